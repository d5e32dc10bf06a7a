//! Inode numbers, hard links, link counts.

use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use crate::area::each;
use crate::tree::*;

fn ino(path: std::path::PathBuf) -> u64 {
    meta(path).ino()
}

fn links(area: &crate::area::Area, names: &[&str]) -> Vec<u64> {
    names.iter().map(|name| meta(area.m(name)).nlink()).collect()
}

#[test]
fn inode_numbers_stay_over_copy_up_rename_link_and_remount() {
    each(|area| {
        dir(&area.lower("d/sub"));
        for (name, len) in [("d/small", 10), ("d/medium", 200_000), ("d/large", 8 << 20)] {
            file(&area.lower(name), len);
        }
        area.mount();
        let names = ["d", "d/sub", "d/small", "d/medium", "d/large"];
        let before: Vec<_> = names.iter().map(|name| ino(area.m(name))).collect();
        for name in ["d/small", "d/medium", "d/large"] {
            open_rw(&area.m(name)).write_all_at(b"!", 0).unwrap();
        }
        put(&area.m("d/sub/new"), "n");
        let now = |names: &[&str]| names.iter().map(|name| ino(area.m(name))).collect::<Vec<_>>();
        assert_eq!(now(&names), before, "after copy-up");
        std::fs::rename(area.m("d"), area.m("e")).unwrap();
        std::fs::rename(area.m("e/small"), area.m("e/renamed")).unwrap();
        std::fs::hard_link(area.m("e/medium"), area.m("e/other")).unwrap();
        let names = ["e", "e/sub", "e/renamed", "e/medium", "e/large"];
        assert_eq!(now(&names), before, "after renames");
        assert_eq!(ino(area.m("e/other")), before[3]);
        let new = ino(area.m("e/sub/new"));
        area.remount();
        assert_eq!(now(&names), before, "after a remount");
        assert_eq!((ino(area.m("e/other")), ino(area.m("e/sub/new"))), (before[3], new));
        area.crash();
        assert_eq!(now(&names), before, "after a crash");
    });
}

#[test]
fn inode_numbers_are_unique() {
    each(|area| {
        let below = area.add_lower("lower2");
        for at in [area.lower(""), below] {
            dir(&at.join("d"));
            for name in ["a", "b", "d/c"] {
                put(&at.join(name), name);
            }
        }
        put(&area.lower("d/only"), "x");
        area.mount();
        for name in ["new", "d/new"] {
            put(&area.m(name), "n");
        }
        chmod(&area.m("a"), 0o600);
        let mut seen = std::collections::HashMap::new();
        for name in ["", "a", "b", "d", "d/c", "d/only", "new", "d/new"] {
            let number = if name.is_empty() { ino(area.m("")) } else { ino(area.m(name)) };
            assert_eq!(seen.insert(number, name), None, "{name} has the number of another");
        }
    });
}

#[test]
fn hard_links_are_one_file_after_copy_up_and_after_a_remount() {
    each(|area| {
        dir(&area.lower("d"));
        for (name, len) in [("s", 100), ("m", 100_000), ("l", 8 << 20)] {
            file(&area.lower(name), len);
            std::fs::hard_link(area.lower(name), area.lower(&format!("{name}2"))).unwrap();
            std::fs::hard_link(area.lower(name), area.lower(&format!("d/{name}3"))).unwrap();
        }
        area.mount();
        for (name, len) in [("s", 100), ("m", 100_000), ("l", 8 << 20)] {
            let all = [name.to_owned(), format!("{name}2"), format!("d/{name}3")];
            let number = ino(area.m(name));
            for path in &all {
                assert_eq!((meta(area.m(path)).nlink(), ino(area.m(path))), (3, number));
            }
            open_rw(&area.m(&all[1])).write_all_at(b"changed", 1).unwrap();
            let mut expected = pattern(len);
            expected[1..8].copy_from_slice(b"changed");
            let check = |when: &str| {
                for path in &all {
                    let found = meta(area.m(path));
                    assert_eq!((found.nlink(), found.ino(), found.len()), (3, number, len as u64), "{path} {when}");
                    assert!(std::fs::read(area.m(path)).unwrap() == expected, "{path} {when}");
                }
            };
            check("at once");
            area.crash();
            check("after a crash");
            area.remount();
            check("after a remount");
            chmod(&area.m(&all[2]), 0o600);
            for path in &all {
                assert_eq!(perm(area.m(path)), 0o600, "{path}");
            }
        }
    });
}

#[test]
fn other_names_of_a_hard_link_show_changes_at_once() {
    each(|area| {
        for (name, len) in [("s", 100), ("m", 100_000)] {
            file(&area.lower(name), len);
            std::fs::hard_link(area.lower(name), area.lower(&format!("{name}2"))).unwrap();
        }
        area.mount();
        for name in ["s", "m"] {
            let other = area.m(&format!("{name}2"));
            assert!(std::fs::read(&other).unwrap().starts_with(&pattern(10)));
            chmod(&area.m(name), 0o751);
            assert_eq!(perm(&other), 0o751);
            put(&area.m(name), "short");
            assert_eq!((meta(&other).len(), text(&other)), (5, "short".to_owned()));
            set_xattr(&other, "user.x", b"1").unwrap();
            assert_eq!(xattr(&area.m(name), "user.x"), Some(b"1".to_vec()));
        }
    });
}

#[test]
fn link_counts_follow_unlink_and_link_of_lower_names() {
    each(|area| {
        file(&area.lower("a"), 100);
        for name in ["b", "c", "d"] {
            std::fs::hard_link(area.lower("a"), area.lower(name)).unwrap();
        }
        area.mount();
        assert_eq!(links(area, &["a", "b", "c", "d"]), [4, 4, 4, 4]);
        std::fs::remove_file(area.m("b")).unwrap();
        assert_eq!(links(area, &["a", "c", "d"]), [3, 3, 3]);
        std::fs::hard_link(area.m("c"), area.m("e")).unwrap();
        assert_eq!(links(area, &["a", "c", "d", "e"]), [4, 4, 4, 4]);
        std::fs::rename(area.m("d"), area.m("f")).unwrap();
        assert_eq!(links(area, &["a", "c", "e", "f"]), [4, 4, 4, 4]);
        area.remount();
        assert_eq!(links(area, &["a", "c", "e", "f"]), [4, 4, 4, 4]);
        for name in ["a", "c", "e"] {
            std::fs::remove_file(area.m(name)).unwrap();
        }
        assert_eq!(links(area, &["f"]), [1]);
        assert!(std::fs::read(area.m("f")).unwrap() == pattern(100));
        area.crash();
        assert_eq!(links(area, &["f"]), [1]);
        std::fs::remove_file(area.m("f")).unwrap();
        area.remount();
        assert_eq!(names(&area.m("")), Vec::<String>::new());
    });
}

#[test]
fn a_rename_over_an_alias_takes_one_name_from_it() {
    each(|area| {
        put(&area.lower("a"), "shared");
        std::fs::hard_link(area.lower("a"), area.lower("b")).unwrap();
        put(&area.lower("other"), "other");
        area.mount();
        std::fs::rename(area.m("other"), area.m("a")).unwrap();
        assert_eq!((text(&area.m("a")), text(&area.m("b"))), ("other".into(), "shared".into()));
        assert_eq!(links(area, &["a", "b"]), [1, 1]);
        area.remount();
        assert_eq!(links(area, &["a", "b"]), [1, 1]);
        assert_eq!((text(&area.m("a")), text(&area.m("b"))), ("other".into(), "shared".into()));
    });
}

#[test]
fn a_rename_of_an_alias_over_its_sibling_does_nothing() {
    each(|area| {
        put(&area.lower("a"), "shared");
        std::fs::hard_link(area.lower("a"), area.lower("b")).unwrap();
        area.mount();
        std::fs::rename(area.m("a"), area.m("b")).unwrap();
        assert_eq!(links(area, &["a", "b"]), [2, 2]);
        open_rw(&area.m("b")).write_all_at(b"S", 0).unwrap();
        std::fs::rename(area.m("a"), area.m("b")).unwrap();
        assert_eq!((text(&area.m("a")), text(&area.m("b"))), ("Shared".into(), "Shared".into()));
        assert_eq!(links(area, &["a", "b"]), [2, 2]);
    });
}

#[test]
fn an_unlinked_alias_that_is_open_keeps_its_siblings_file() {
    each(|area| {
        put(&area.lower("a"), "shared");
        std::fs::hard_link(area.lower("a"), area.lower("b")).unwrap();
        area.mount();
        let open = open_rw(&area.m("a"));
        std::fs::remove_file(area.m("a")).unwrap();
        open.write_all_at(b"S", 0).unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 1);
        assert_eq!(text(&area.m("b")), "Shared");
        std::fs::remove_file(area.m("b")).unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        assert_eq!(at(&open, 0, 6), b"Shared");
    });
}

#[test]
fn hard_links_of_symlinks_and_fifos_stay_together() {
    each(|area| {
        symlink("target", area.lower("l")).unwrap();
        std::fs::hard_link(area.lower("l"), area.lower("l2")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, area.lower("p"), rustix::fs::Mode::RUSR).unwrap();
        std::fs::hard_link(area.lower("p"), area.lower("p2")).unwrap();
        area.mount();
        set_times(&area.m("l"), 5, 6);
        chmod(&area.m("p"), 0o666);
        for (one, two) in [("l", "l2"), ("p", "p2")] {
            let (one, two) = (meta(area.m(one)), meta(area.m(two)));
            assert_eq!((one.ino(), one.nlink(), one.mode(), one.mtime()), (two.ino(), 2, two.mode(), two.mtime()));
        }
        area.remount();
        assert_eq!((mtime(area.m("l2")), perm(area.m("p2"))), ((5, 6), 0o666));
        assert_eq!(links(area, &["l", "l2", "p", "p2"]), [2, 2, 2, 2]);
    });
}

#[test]
fn the_number_of_a_removed_file_that_is_open_is_not_given_to_another() {
    each(|area| {
        area.mount();
        put(&area.m("a"), "old");
        let open = open(&area.m("a"));
        let number = open.metadata().unwrap().ino();
        std::fs::remove_file(area.m("a")).unwrap();
        for round in 0..50 {
            put(&area.m(&format!("n{round}")), "new");
            assert_ne!(ino(area.m(&format!("n{round}"))), number);
        }
        assert_eq!(at(&open, 0, 3), b"old");
    });
}

#[test]
fn directories_count_their_subdirectories() {
    each(|area| {
        dir(&area.lower("d/a"));
        dir(&area.lower("d/b"));
        // Some filesystems do not count: btrfs says 1.
        if meta(area.lower("d")).nlink() == 1 {
            return;
        }
        area.mount();
        assert_eq!(meta(area.m("d")).nlink(), 4);
        dir(&area.m("d/c"));
        assert_eq!(meta(area.m("d")).nlink(), 5);
        std::fs::remove_dir(area.m("d/a")).unwrap();
        assert_eq!(meta(area.m("d")).nlink(), 4);
        area.remount();
        assert_eq!(meta(area.m("d")).nlink(), 4);
    });
}

#[test]
fn a_copy_up_has_the_number_of_the_lower_in_every_mount() {
    each(|area| {
        put(&area.lower("f"), "x");
        area.mount();
        let other = area.mount_another("merged2");
        let number = ino(area.m("f"));
        put(&area.m("f"), "changed");
        assert_eq!((ino(area.m("f")), ino(other.join("f"))), (number, number));
        assert_eq!(text(&other.join("f")), "x");
    });
}

#[test]
fn a_copied_up_symlink_keeps_its_number_without_privilege_until_a_remount() {
    each(|area| {
        symlink("x", area.lower("link")).unwrap();
        area.mount();
        let number = ino(area.m("link"));
        std::fs::rename(area.m("link"), area.m("renamed")).unwrap();
        set_times(&area.m("renamed"), 1, 1);
        assert_eq!(ino(area.m("renamed")), number);
        area.remount();
        // Without privilege a symlink bears no extended attributes, and so no note of where it came from.
        assert_eq!(ino(area.m("renamed")) == number, !crate::area::in_user_namespace());
    });
}
