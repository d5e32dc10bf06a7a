//! Directories: merged, hidden, removed, renamed.

use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::RenameFlags;

use crate::area::each;
use crate::tree::*;

fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap_or_else(|error| panic!("rename {from:?} to {to:?}: {error}"));
}

#[test]
fn a_removed_and_remade_directory_hides_all_of_the_old_one() {
    each(|area| {
        dir(&area.lower("d/sub"));
        put(&area.lower("d/f"), "old");
        put(&area.lower("d/sub/g"), "old");
        area.mount();
        std::fs::remove_dir_all(area.m("d")).unwrap();
        std::fs::create_dir(area.m("d")).unwrap();
        assert_eq!(names(&area.m("d")), Vec::<String>::new());
        put(&area.m("d/new"), "new");
        std::fs::create_dir(area.m("d/sub")).unwrap();
        let check = || {
            assert_eq!((names(&area.m("d")), names(&area.m("d/sub"))), (vec!["new".into(), "sub".into()], vec![]));
            assert!(!exists(&area.m("d/f")) && !exists(&area.m("d/sub/g")));
        };
        check();
        area.crash();
        check();
        area.remount();
        check();
    });
}

#[test]
fn a_removed_directory_stays_removed() {
    each(|area| {
        dir(&area.lower("d/a/b/c"));
        put(&area.lower("d/a/b/c/f"), "x");
        dir(&area.lower("empty"));
        area.mount();
        std::fs::remove_dir_all(area.m("d")).unwrap();
        std::fs::remove_dir(area.m("empty")).unwrap();
        area.crash();
        assert_eq!(names(&area.m("")), Vec::<String>::new());
        assert!(is_whiteout(&area.upper("d")) && is_whiteout(&area.upper("empty")));
    });
}

#[test]
fn rmdir_answers_as_on_any_disk() {
    each(|area| {
        dir(&area.lower("full/sub"));
        dir(&area.lower("mixed"));
        put(&area.lower("mixed/below"), "x");
        put(&area.lower("file"), "x");
        area.mount();
        put(&area.m("mixed/above"), "x");
        let rmdir = |name: &str| std::fs::remove_dir(area.m(name)).errno();
        assert_eq!(
            (rmdir("full"), rmdir("mixed"), rmdir("file"), rmdir("none")),
            (libc::ENOTEMPTY, libc::ENOTEMPTY, libc::ENOTDIR, libc::ENOENT)
        );
        std::fs::remove_file(area.m("mixed/below")).unwrap();
        assert_eq!(rmdir("mixed"), libc::ENOTEMPTY);
        std::fs::remove_file(area.m("mixed/above")).unwrap();
        assert_eq!(rmdir("mixed"), 0);
        assert_eq!(std::fs::remove_file(area.m("full")).errno(), libc::EISDIR);
        assert_eq!(std::fs::create_dir(area.m("full")).errno(), libc::EEXIST);
    });
}

#[test]
fn nothing_can_be_made_in_a_removed_directory() {
    each(|area| {
        dir(&area.lower("below"));
        area.mount();
        dir(&area.m("born"));
        for name in ["below", "born"] {
            let open = open_dir(&area.m(name));
            std::fs::remove_dir(area.m(name)).unwrap();
            let mode = rustix::fs::Mode::RWXU;
            assert_eq!(rustix::fs::mkdirat(&open, "x", mode).errno(), libc::ENOENT, "{name}");
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
            assert_eq!(rustix::fs::openat(&open, "x", flags, mode).errno(), libc::ENOENT, "{name}");
            let stat = rustix::fs::fstat(&open).unwrap();
            assert_eq!(stat.st_nlink, 0, "{name}");
            let mut buf = [std::mem::MaybeUninit::uninit(); 1024];
            let listed = rustix::fs::RawDir::new(&open, &mut buf).next().map(|entry| entry.map(drop).errno());
            assert_eq!(listed, Some(libc::ENOENT), "{name}: as on any disk");
        }
    });
}

#[test]
fn a_lower_directory_can_be_renamed() {
    each(|area| {
        dir(&area.lower("d/sub/deep"));
        put(&area.lower("d/f"), "f");
        put(&area.lower("d/sub/deep/g"), "g");
        dir(&area.lower("to"));
        area.mount();
        rename(&area.m("d"), &area.m("e"));
        let check = |top: &str| {
            assert!(!exists(&area.m("d")));
            assert_eq!(names(&area.m(top)), ["f", "sub"]);
            assert_eq!(text(&area.m(&format!("{top}/sub/deep/g"))), "g");
        };
        check("e");
        rename(&area.m("e"), &area.m("to/e"));
        check("to/e");
        area.remount();
        check("to/e");
        rename(&area.m("to/e"), &area.m("f"));
        check("f");
        area.crash();
        check("f");
        assert_eq!(names(&area.m("")), ["f", "to"]);
    });
}

#[test]
fn a_merged_directory_can_be_renamed() {
    each(|area| {
        let below = area.add_lower("lower2");
        dir(&area.lower("d"));
        put(&area.lower("d/one"), "1");
        dir(&below.join("d"));
        put(&below.join("d/two"), "2");
        put(&below.join("d/gone"), "x");
        area.mount();
        put(&area.m("d/three"), "3");
        std::fs::remove_file(area.m("d/gone")).unwrap();
        put(&area.m("d/two"), "2+");
        rename(&area.m("d"), &area.m("e"));
        let check = || {
            assert_eq!(names(&area.m("e")), ["one", "three", "two"]);
            assert_eq!(
                (text(&area.m("e/one")), text(&area.m("e/two")), text(&area.m("e/three"))),
                ("1".into(), "2+".into(), "3".into())
            );
        };
        check();
        put(&area.m("e/one"), "1+");
        std::fs::remove_file(area.m("e/one")).unwrap();
        put(&area.m("e/one"), "1");
        check();
        area.remount();
        check();
    });
}

#[test]
fn a_directory_can_be_renamed_back_again() {
    each(|area| {
        dir(&area.lower("d/sub"));
        put(&area.lower("d/sub/f"), "f");
        area.mount();
        rename(&area.m("d"), &area.m("e"));
        put(&area.m("e/sub/new"), "n");
        rename(&area.m("e"), &area.m("d"));
        let check = || {
            assert_eq!(
                (names(&area.m("")), names(&area.m("d/sub"))),
                (vec!["d".to_owned()], vec!["f".into(), "new".into()])
            );
            assert_eq!(text(&area.m("d/sub/f")), "f");
        };
        check();
        area.crash();
        check();
    });
}

#[test]
fn a_directory_can_be_renamed_into_a_renamed_one() {
    each(|area| {
        dir(&area.lower("a/b/c"));
        put(&area.lower("a/b/c/f"), "f");
        dir(&area.lower("x"));
        put(&area.lower("x/y"), "y");
        area.mount();
        rename(&area.m("x"), &area.m("z"));
        rename(&area.m("a/b"), &area.m("z/b"));
        rename(&area.m("z"), &area.m("a/z"));
        rename(&area.m("a/z/b/c"), &area.m("c"));
        let check = || {
            assert_eq!(
                (names(&area.m("")), names(&area.m("a"))),
                (vec!["a".to_owned(), "c".into()], vec!["z".to_owned()])
            );
            assert_eq!(names(&area.m("a/z")), ["b", "y"]);
            assert_eq!((names(&area.m("a/z/b")), text(&area.m("c/f"))), (vec![], "f".to_owned()));
        };
        check();
        area.remount();
        check();
        assert_eq!(rustix::fs::rename(area.m("a"), area.m("a/z/b/a")).errno(), libc::EINVAL);
    });
}

#[test]
fn the_place_of_a_renamed_directory_can_be_used_again() {
    each(|area| {
        dir(&area.lower("d"));
        put(&area.lower("d/old"), "old");
        area.mount();
        rename(&area.m("d"), &area.m("moved"));
        dir(&area.m("d"));
        put(&area.m("d/new"), "new");
        let check = || {
            assert_eq!(
                (names(&area.m("d")), names(&area.m("moved"))),
                (vec!["new".to_owned()], vec!["old".to_owned()])
            );
            assert_ne!(meta(area.m("d")).ino(), meta(area.m("moved")).ino());
        };
        check();
        area.remount();
        check();
        std::fs::remove_dir_all(area.m("moved")).unwrap();
        assert_eq!(names(&area.m("")), ["d"]);
        area.crash();
        assert_eq!((names(&area.m("")), names(&area.m("d"))), (vec!["d".to_owned()], vec!["new".to_owned()]));
    });
}

#[test]
fn a_directory_renamed_over_an_empty_one_takes_its_place() {
    each(|area| {
        for name in ["from", "onto", "emptied"] {
            dir(&area.lower(name));
        }
        put(&area.lower("from/f"), "f");
        put(&area.lower("emptied/e"), "e");
        dir(&area.lower("full"));
        put(&area.lower("full/x"), "x");
        put(&area.lower("file"), "x");
        area.mount();
        std::fs::remove_file(area.m("emptied/e")).unwrap();
        let errno = |to: &str| std::fs::rename(area.m("from"), area.m(to)).errno();
        assert_eq!((errno("full"), errno("file")), (libc::ENOTEMPTY, libc::ENOTDIR));
        assert_eq!(std::fs::rename(area.m("file"), area.m("from")).errno(), libc::EISDIR);
        rename(&area.m("from"), &area.m("onto"));
        assert_eq!(names(&area.m("onto")), ["f"]);
        rename(&area.m("onto"), &area.m("emptied"));
        let check = || {
            assert_eq!(
                (names(&area.m("emptied")), names(&area.m(""))),
                (vec!["f".to_owned()], vec!["emptied".to_owned(), "file".into(), "full".into()])
            )
        };
        check();
        area.remount();
        check();
    });
}

#[test]
fn a_rename_of_a_large_directory_takes_constant_time() {
    each(|area| {
        dir(&area.lower("d"));
        for index in 0..10_000 {
            std::fs::File::create(area.lower(&format!("d/{index}"))).unwrap();
        }
        area.mount();
        let start = Instant::now();
        area.costs_little("rename", || rename(&area.m("d"), &area.m("e")));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(list(&area.m("e")).len(), 10_000);
        area.remount();
        assert_eq!(list(&area.m("e")).len(), 10_000);
        std::fs::remove_dir_all(area.m("e")).unwrap();
        assert_eq!(names(&area.m("")), Vec::<String>::new());
    });
}

#[test]
fn a_lower_directory_of_two_names_over_time_can_be_removed() {
    each(|area| {
        dir(&area.lower("d/sub"));
        for index in 0..300 {
            put(&area.lower(&format!("d/sub/f{index}")), "x");
        }
        area.mount();
        rename(&area.m("d"), &area.m("e"));
        rename(&area.m("e/sub"), &area.m("e/other"));
        put(&area.m("e/other/new"), "x");
        std::fs::remove_dir_all(area.m("e")).unwrap();
        area.remount();
        assert_eq!(names(&area.m("")), Vec::<String>::new());
    });
}

#[test]
fn open_descriptors_follow_a_renamed_directory() {
    each(|area| {
        dir(&area.lower("d/sub"));
        put(&area.lower("d/sub/f"), "f");
        area.mount();
        let open = open_dir(&area.m("d/sub"));
        rename(&area.m("d"), &area.m("e"));
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE;
        let made = rustix::fs::openat(&open, "new", flags, rustix::fs::Mode::RWXU).unwrap();
        std::fs::File::from(made).write_all_at(b"n", 0).unwrap();
        assert_eq!(
            (text(&area.m("e/sub/new")), names(&area.m("e/sub"))),
            ("n".into(), vec!["f".to_owned(), "new".into()])
        );
    });
}

#[test]
fn directories_can_be_exchanged() {
    each(|area| {
        dir(&area.lower("a/x"));
        put(&area.lower("a/in-a"), "a");
        dir(&area.lower("b"));
        put(&area.lower("b/in-b"), "b");
        put(&area.lower("file"), "f");
        area.mount();
        let exchange = |one: &str, two: &str| {
            let cwd = rustix::fs::CWD;
            rustix::fs::renameat_with(cwd, area.m(one), cwd, area.m(two), RenameFlags::EXCHANGE).unwrap();
        };
        exchange("a", "b");
        assert_eq!(
            (names(&area.m("a")), names(&area.m("b"))),
            (vec!["in-b".to_owned()], vec!["in-a".to_owned(), "x".into()])
        );
        exchange("a", "file");
        let check = || {
            assert_eq!((text(&area.m("a")), names(&area.m("file"))), ("f".to_owned(), vec!["in-b".to_owned()]));
            assert_eq!(names(&area.m("b")), ["in-a", "x"]);
        };
        check();
        area.remount();
        check();
        exchange("b/x", "file/in-b");
        assert_eq!((text(&area.m("b/x")), names(&area.m("file/in-b"))), ("b".to_owned(), vec![]));
    });
}

#[test]
fn a_file_of_the_upper_hides_a_directory_of_the_lower_and_back() {
    each(|area| {
        dir(&area.lower("d"));
        put(&area.lower("d/f"), "f");
        put(&area.lower("file"), "x");
        symlink("d", area.lower("link")).unwrap();
        area.mount();
        std::fs::remove_dir_all(area.m("d")).unwrap();
        put(&area.m("d"), "now a file");
        for name in ["file", "link"] {
            std::fs::remove_file(area.m(name)).unwrap();
            dir(&area.m(&format!("{name}/sub")));
        }
        let check = || {
            assert_eq!(text(&area.m("d")), "now a file");
            assert_eq!(
                (names(&area.m("file")), names(&area.m("link"))),
                (vec!["sub".to_owned()], vec!["sub".to_owned()])
            );
            assert_eq!(std::fs::read(area.m("d/f")).errno(), libc::ENOTDIR);
        };
        check();
        area.remount();
        check();
    });
}

#[test]
fn whatever_is_no_directory_ends_the_merge_below_it() {
    each(|area| {
        // Upper a/c over lower a (a fifo) over lower a/c/b: b is hidden.
        let (second, third) = (area.add_lower("lower2"), area.add_lower("lower3"));
        dir(&area.lower("a/c"));
        rustix::fs::mkfifoat(rustix::fs::CWD, second.join("a"), rustix::fs::Mode::RUSR).unwrap();
        dir(&third.join("a/c/b"));
        symlink("x", area.lower("s")).unwrap();
        dir(&second.join("s/t"));
        area.mount();
        assert_eq!(names(&area.m("a/c")), Vec::<String>::new());
        assert!(meta(area.m("s")).is_symlink());
        put(&area.m("a/c/new"), "n");
        assert_eq!(names(&area.m("a/c")), ["new"]);
    });
}

#[test]
fn whiteouts_of_every_spelling_hide_what_is_below_them() {
    each(|area| {
        area.kernel_differs();
        let below = area.add_lower("lower2");
        for name in ["a", "b", "keep", "d/x", "d/y", "e/x"] {
            dir(below.join(name).parent().unwrap());
            put(&below.join(name), "below");
        }
        put(&area.lower(".wh.a"), "");
        dir(&area.lower("d"));
        put(&area.lower("d/.wh..wh..opq"), "");
        put(&area.lower("d/z"), "above");
        dir(&area.lower("e"));
        set_xattr(&area.lower("e"), "user.overlay.opaque", b"y").unwrap();
        dir(&area.lower("f"));
        area.mount();
        assert_eq!(names(&area.m("")), ["b", "d", "e", "f", "keep"]);
        assert_eq!((names(&area.m("d")), names(&area.m("e"))), (vec!["z".to_owned()], vec![]));
        put(&area.m("a"), "new");
        put(&area.m("d/x"), "new");
        area.remount();
        assert_eq!((text(&area.m("a")), text(&area.m("d/x"))), ("new".into(), "new".into()));
        assert_eq!(names(&area.m("d")), ["x", "z"]);
    });
}

#[test]
fn only_overlay_whiteouts_count_when_told_so() {
    each(|area| {
        area.set_options("plyfs.whiteouts=overlay");
        let below = area.add_lower("lower2");
        put(&below.join("a"), "below");
        put(&area.lower(".wh.a"), "a file");
        area.mount();
        assert_eq!(
            (names(&area.m("")), text(&area.m(".wh.a"))),
            (vec![".wh.a".to_owned(), "a".into()], "a file".to_owned())
        );
    });
}

#[test]
fn a_thousand_lower_directories_are_one_tree() {
    crate::area::once(crate::area::Way::Passthrough, |area| {
        area.kernel_differs();
        for index in 0..999 {
            let path = area.add_lower(&format!("l{index}"));
            put(&path.join(format!("f{index}")), "x");
            put(&path.join("same"), &index.to_string());
        }
        area.mount();
        assert_eq!((list(&area.m("")).len(), text(&area.m("same"))), (1000, "0".to_owned()));
    });
}

#[test]
fn a_former_upper_works_as_a_lower_directory() {
    each(|area| {
        dir(&area.lower("d/sub"));
        put(&area.lower("d/f"), "f");
        put(&area.lower("gone"), "x");
        file(&area.lower("large"), 8 << 20);
        area.mount();
        std::fs::remove_file(area.m("gone")).unwrap();
        rename(&area.m("d"), &area.m("e"));
        std::fs::remove_dir(area.m("e/sub")).unwrap();
        dir(&area.m("e/sub"));
        put(&area.m("new"), "n");
        chmod(&area.m("large"), 0o600);
        area.unmount();
        let old = crate::area::Area::new(area.way());
        sh(r#"cp -a "$1/." "$2/""#, &[&area.path("upper"), &old.path("lower")]);
        let below = old.add_lower("lower2");
        sh(r#"cp -a "$1/." "$2/""#, &[&area.path("lower"), &below]);
        old.mount();
        assert_eq!(names(&old.m("")), ["e", "large", "new"]);
        assert_eq!((names(&old.m("e")), text(&old.m("e/f"))), (vec!["f".to_owned(), "sub".into()], "f".to_owned()));
        assert!(std::fs::read(old.m("large")).unwrap() == pattern(8 << 20));
        assert_eq!(perm(old.m("large")), 0o600);
        put(&old.m("e/f"), "changed");
        std::fs::remove_dir_all(old.m("e")).unwrap();
        old.remount();
        assert_eq!(names(&old.m("")), ["large", "new"]);
        old.unmount();
        area.mount();
    });
}
