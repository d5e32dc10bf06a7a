//! rename(2) and renameat2(2) of what is no directory.

use std::os::unix::fs::{MetadataExt, symlink};

use rustix::fs::{CWD, RenameFlags};

use crate::area::{Area, each};
use crate::tree::*;

fn rename_with(area: &Area, from: &str, to: &str, flags: RenameFlags) -> i32 {
    rustix::fs::renameat_with(CWD, area.m(from), CWD, area.m(to), flags).errno()
}

#[test]
fn a_lower_file_moves_with_all_it_has() {
    each(|area| {
        dir(&area.lower("d"));
        for (name, len) in [("small", 100), ("medium", 100_000), ("large", 8 << 20)] {
            file(&area.lower(name), len);
            chmod(&area.lower(name), 0o741);
            set_times(&area.lower(name), 1_000_000_000, 9);
        }
        area.mount();
        for (name, len) in [("small", 100), ("medium", 100_000), ("large", 8 << 20)] {
            let before = meta(area.m(name));
            std::fs::rename(area.m(name), area.m("d").join(name)).unwrap();
            let after = meta(area.m("d").join(name));
            let seen =
                |m: &std::fs::Metadata| (m.ino(), m.mode(), m.len(), m.nlink(), m.mtime(), m.mtime_nsec(), m.uid());
            assert_eq!(seen(&before), seen(&after));
            assert!(std::fs::read(area.m("d").join(name)).unwrap() == pattern(len));
            assert!(is_whiteout(&area.upper(name)));
        }
        area.crash();
        assert_eq!(
            (names(&area.m("")), names(&area.m("d"))),
            (vec!["d".to_owned()], vec!["large".to_owned(), "medium".into(), "small".into()])
        );
    });
}

#[test]
fn a_rename_replaces_what_is_there() {
    each(|area| {
        for name in ["a", "b", "c", "d"] {
            put(&area.lower(name), name);
        }
        symlink("x", area.lower("link")).unwrap();
        area.mount();
        put(&area.m("new"), "new");
        std::fs::rename(area.m("a"), area.m("b")).unwrap();
        std::fs::rename(area.m("new"), area.m("c")).unwrap();
        std::fs::rename(area.m("d"), area.m("link")).unwrap();
        let check = || {
            assert_eq!(names(&area.m("")), ["b", "c", "link"]);
            assert_eq!(
                (text(&area.m("b")), text(&area.m("c")), text(&area.m("link"))),
                ("a".into(), "new".into(), "d".into())
            );
        };
        check();
        area.crash();
        check();
    });
}

#[test]
fn an_open_file_that_is_renamed_over_keeps_its_bytes() {
    each(|area| {
        for (name, len) in [("small", 1000), ("large", 8 << 20)] {
            file(&area.lower(name), len);
        }
        area.mount();
        for (name, len) in [("small", 1000), ("large", 8 << 20)] {
            let old = open(&area.m(name));
            put(&area.m("tmp"), "new");
            std::fs::rename(area.m("tmp"), area.m(name)).unwrap();
            assert_eq!(text(&area.m(name)), "new");
            assert!(at(&old, 0, len) == pattern(len));
            assert_eq!(old.metadata().unwrap().nlink(), 0);
        }
    });
}

#[test]
fn noreplace_refuses_what_programs_see_and_nothing_else() {
    each(|area| {
        for name in ["a", "b", "hidden"] {
            put(&area.lower(name), name);
        }
        dir(&area.lower("d"));
        area.mount();
        std::fs::remove_file(area.m("hidden")).unwrap();
        put(&area.m("new"), "new");
        let keep = RenameFlags::NOREPLACE;
        assert_eq!(rename_with(area, "a", "b", keep), libc::EEXIST);
        assert_eq!(rename_with(area, "new", "b", keep), libc::EEXIST);
        assert_eq!(rename_with(area, "d", "a", keep), libc::EEXIST);
        assert_eq!(rename_with(area, "none", "x", keep), libc::ENOENT);
        assert_eq!(rename_with(area, "a", "hidden", keep), 0);
        assert_eq!(rename_with(area, "d", "e", keep), 0);
        assert_eq!(
            (names(&area.m("")), text(&area.m("hidden"))),
            (vec!["b".to_owned(), "e".into(), "hidden".into(), "new".into()], "a".into())
        );
    });
}

#[test]
fn files_can_be_exchanged() {
    each(|area| {
        dir(&area.lower("d"));
        put(&area.lower("a"), "a");
        put(&area.lower("d/b"), "b");
        file(&area.lower("large"), 8 << 20);
        symlink("target", area.lower("link")).unwrap();
        area.mount();
        put(&area.m("new"), "new");
        let exchange = |one: &str, two: &str| rename_with(area, one, two, RenameFlags::EXCHANGE);
        assert_eq!(exchange("a", "none"), libc::ENOENT);
        let (a, b) = (meta(area.m("a")).ino(), meta(area.m("d/b")).ino());
        assert_eq!(exchange("a", "d/b"), 0);
        assert_eq!((meta(area.m("a")).ino(), meta(area.m("d/b")).ino()), (b, a));
        assert_eq!(exchange("large", "new"), 0);
        assert_eq!(exchange("link", "d/b"), 0);
        let check = || {
            assert_eq!(
                (text(&area.m("a")), text(&area.m("link")), text(&area.m("large"))),
                ("b".into(), "a".into(), "new".into())
            );
            assert!(meta(area.m("d/b")).is_symlink());
            assert!(std::fs::read(area.m("new")).unwrap() == pattern(8 << 20));
        };
        check();
        area.crash();
        check();
    });
}

#[test]
fn a_whiteout_cannot_be_asked_for() {
    each(|area| {
        put(&area.lower("a"), "a");
        area.mount();
        assert_eq!(rename_with(area, "a", "b", RenameFlags::WHITEOUT), libc::EINVAL);
        assert_eq!(rename_with(area, "a", "b", RenameFlags::NOREPLACE | RenameFlags::EXCHANGE), libc::EINVAL);
        assert_eq!(names(&area.m("")), ["a"]);
    });
}

#[test]
fn a_moved_large_file_of_the_lower_can_be_written_later() {
    each(|area| {
        dir(&area.lower("d"));
        file(&area.lower("d/f"), 8 << 20);
        file(&area.lower("d/m"), 200_000);
        area.mount();
        std::fs::rename(area.m("d/f"), area.m("f")).unwrap();
        std::fs::rename(area.m("d/m"), area.m("m")).unwrap();
        std::fs::rename(area.m("d"), area.m("e")).unwrap();
        area.remount();
        for (name, len) in [("f", 8 << 20), ("m", 200_000)] {
            std::os::unix::fs::FileExt::write_all_at(&open_rw(&area.m(name)), b"new", 100_000).unwrap();
            let mut expected = pattern(len);
            expected[100_000..100_003].copy_from_slice(b"new");
            assert!(std::fs::read(area.m(name)).unwrap() == expected, "{name}");
        }
    });
}

#[test]
fn a_rename_onto_itself_does_nothing() {
    each(|area| {
        put(&area.lower("a"), "a");
        dir(&area.lower("d"));
        area.mount();
        std::fs::rename(area.m("a"), area.m("a")).unwrap();
        std::fs::rename(area.m("d"), area.m("d")).unwrap();
        assert_eq!((names(&area.m("")), text(&area.m("a"))), (vec!["a".to_owned(), "d".into()], "a".into()));
    });
}
