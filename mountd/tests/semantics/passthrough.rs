//! Large files of the lower while some read them past the daemon and others write.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::area::{Area, Way, each, in_user_namespace, once};
use crate::tree::*;

const SIZES: [usize; 2] = [200_000, 8 << 20];

fn changed(len: usize, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = pattern(len);
    content[at..at + bytes.len()].copy_from_slice(bytes);
    content
}

/// What a descriptor that was opened before the copy-up reads afterwards.
fn assert_old_reader(area: &Area, reader: &std::fs::File, old: &[u8], new: &[u8]) {
    match area.way() {
        // Documented: it keeps the lower bytes.
        Way::Passthrough => assert!(at(reader, 0, old.len()) == old),
        Way::Served => assert!(at(reader, 0, new.len()) == new),
    }
}

#[test]
fn new_opens_see_what_was_written_while_an_old_reader_keeps_the_lower_bytes() {
    each(|area| {
        for len in SIZES {
            file(&area.lower(&len.to_string()), len);
        }
        area.d_ino_may_differ();
        area.mount();
        for len in SIZES {
            let path = area.m(&len.to_string());
            let reader = open(&path);
            assert!(at(&reader, 0, len) == pattern(len));
            let number = meta(&path).ino();
            let writer = open_rw(&path);
            writer.write_all_at(b"new", 100).unwrap();
            let new = changed(len, 100, b"new");
            assert!(at(&writer, 0, len) == new);
            assert!(std::fs::read(&path).unwrap() == new);
            assert_old_reader(area, &reader, &pattern(len), &new);
            assert_eq!(
                (meta(&path).ino(), writer.metadata().unwrap().ino(), reader.metadata().unwrap().ino()),
                (number, number, number)
            );
            drop(writer);
            assert!(std::fs::read(&path).unwrap() == new);
            drop(reader);
            assert!(std::fs::read(&path).unwrap() == new);
        }
    });
}

#[test]
fn truncating_opens_and_calls_work_while_a_reader_lives() {
    each(|area| {
        for name in ["open", "path", "shell", "cut"] {
            file(&area.lower(name), 200_000);
        }
        area.d_ino_may_differ();
        area.mount();
        let readers: Vec<_> = ["open", "path", "shell", "cut"].iter().map(|name| open(&area.m(name))).collect();
        put(&area.m("open"), "by O_TRUNC");
        assert_eq!(text(&area.m("open")), "by O_TRUNC");
        sh(r#"exec python3 -c 'import os,sys; os.truncate(sys.argv[1], 0)' "$1""#, &[&area.m("path")]);
        assert_eq!(meta(area.m("path")).len(), 0);
        sh(r#"echo shell > "$1""#, &[&area.m("shell")]);
        assert_eq!(text(&area.m("shell")), "shell\n");
        sh(r#"exec python3 -c 'import os,sys; os.truncate(sys.argv[1], 100000)' "$1""#, &[&area.m("cut")]);
        assert!(std::fs::read(area.m("cut")).unwrap() == pattern(100_000));
        if area.way() == Way::Passthrough {
            for reader in &readers {
                assert!(at(reader, 0, 200_000) == pattern(200_000));
            }
        }
    });
}

#[test]
fn many_readers_and_writers_in_turn_never_meet_an_error() {
    each(|area| {
        for len in SIZES {
            file(&area.lower(&len.to_string()), len);
        }
        area.d_ino_may_differ();
        area.mount();
        std::thread::scope(|scope| {
            for len in SIZES {
                let path = area.m(&len.to_string());
                for _ in 0..2 {
                    let path = path.clone();
                    scope.spawn(move || {
                        for round in 0..60 {
                            let reader = open(&path);
                            assert_eq!(at(&reader, len as u64 - 10, 10), pattern(len)[len - 10..], "round {round}");
                        }
                    });
                }
                scope.spawn(move || {
                    for round in 0..30u64 {
                        open_rw(&path).write_all_at(b"x", round * 1000).unwrap();
                    }
                });
            }
        });
    });
}

#[test]
fn a_private_mapping_keeps_the_lower_bytes_and_a_shared_one_is_written() {
    each(|area| {
        file(&area.lower("f"), 200_000);
        area.d_ino_may_differ();
        area.mount();
        let map = backing::mmap::Map::of(open(&area.m("f"))).unwrap();
        assert!(map.as_ref() == pattern(200_000));
        sh(
            r#"exec python3 -c 'import mmap,sys
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
m[100:103] = b"new"
m.flush()' "$1""#,
            &[&area.m("f")],
        );
        let new = changed(200_000, 100, b"new");
        assert!(std::fs::read(area.m("f")).unwrap() == new);
        if area.way() == Way::Passthrough {
            assert!(map.as_ref() == pattern(200_000));
        }
    });
}

#[test]
fn a_file_mapped_and_closed_can_be_written() {
    each(|area| {
        file(&area.lower("f"), 200_000);
        area.d_ino_may_differ();
        area.mount();
        let map = {
            let reader = open(&area.m("f"));
            backing::mmap::Map::of(&reader).unwrap()
        };
        open_rw(&area.m("f")).write_all_at(b"new", 0).unwrap();
        assert!(std::fs::read(area.m("f")).unwrap() == changed(200_000, 0, b"new"));
        drop(map);
        assert!(std::fs::read(area.m("f")).unwrap() == changed(200_000, 0, b"new"));
    });
}

#[test]
fn reopening_a_large_file_for_writing_by_descriptor_is_refused_while_a_reader_lives_past_the_daemon() {
    each(|area| {
        file(&area.lower("large"), 200_000);
        put(&area.lower("small"), "content");
        area.d_ino_may_differ();
        area.mount();
        let reopen = |file: &std::fs::File| {
            std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        };
        let small = open(&area.m("small"));
        reopen(&small).unwrap().write_all_at(b"C", 0).unwrap();
        assert_eq!((text(&area.m("small")), at(&small, 0, 7)), ("Content".to_owned(), b"Content".to_vec()));
        let large = open(&area.m("large"));
        match area.way() {
            Way::Passthrough => {
                assert_eq!(reopen(&large).errno(), libc::ETXTBSY);
                assert!(std::fs::read(area.m("large")).unwrap() == pattern(200_000));
                // By name it works, and changes nothing for the old descriptor.
                open_rw(&area.m("large")).write_all_at(b"x", 0).unwrap();
                assert_eq!(reopen(&large).errno(), libc::ETXTBSY);
                assert!(at(&large, 0, 200_000) == pattern(200_000));
            }
            Way::Served => {
                reopen(&large).unwrap().write_all_at(b"x", 0).unwrap();
                assert_eq!(at(&large, 0, 1), b"x");
            }
        }
    });
}

#[test]
fn two_mounts_on_one_lower_do_not_see_each_other() {
    each(|area| {
        for len in SIZES {
            file(&area.lower(&len.to_string()), len);
        }
        area.d_ino_may_differ();
        area.mount();
        let other = area.mount_another("merged2");
        for len in SIZES {
            let name = len.to_string();
            let (here, there) = (open(&area.m(&name)), open(&other.join(&name)));
            open_rw(&area.m(&name)).write_all_at(b"here", 10).unwrap();
            assert!(std::fs::read(other.join(&name)).unwrap() == pattern(len));
            open_rw(&other.join(&name)).write_all_at(b"there", 20).unwrap();
            assert!(std::fs::read(area.m(&name)).unwrap() == changed(len, 10, b"here"));
            assert!(std::fs::read(other.join(&name)).unwrap() == changed(len, 20, b"there"));
            drop((here, there));
        }
    });
}

#[test]
fn other_names_of_a_large_hard_link_lead_to_the_copy() {
    each(|area| {
        dir(&area.lower("d"));
        file(&area.lower("a"), 200_000);
        std::fs::hard_link(area.lower("a"), area.lower("b")).unwrap();
        std::fs::hard_link(area.lower("a"), area.lower("d/c")).unwrap();
        area.d_ino_may_differ();
        area.mount();
        let readers = [open(&area.m("a")), open(&area.m("b")), open(&area.m("d/c"))];
        open_rw(&area.m("b")).write_all_at(b"new", 0).unwrap();
        for name in ["a", "b", "d/c"] {
            // The kernel is told of the other names by a thread of its own.
            let expected = changed(200_000, 0, b"new");
            crate::area::wait_until(name, || std::fs::read(area.m(name)).unwrap() == expected);
            assert_eq!(meta(area.m(name)).nlink(), 3);
            chmod(&area.m(name), 0o751);
            open_rw(&area.m(name)).write_all_at(b"new", 0).unwrap();
        }
        drop(readers);
        area.remount();
        for name in ["a", "b", "d/c"] {
            assert_eq!((perm(area.m(name)), meta(area.m(name)).nlink()), (0o751, 3));
        }
    });
}

#[test]
fn names_of_a_written_large_hard_link_can_be_moved_and_linked_while_an_old_reader_lives() {
    each(|area| {
        for name in ["a", "b", "c"] {
            match name {
                "a" => file(&area.lower("a"), 200_000),
                _ => std::fs::hard_link(area.lower("a"), area.lower(name)).unwrap(),
            }
        }
        area.d_ino_may_differ();
        area.mount();
        let reader = open(&area.m("a"));
        open_rw(&area.m("b")).write_all_at(b"new", 0).unwrap();
        let expected = changed(200_000, 0, b"new");
        for name in ["a", "c"] {
            crate::area::wait_until(name, || std::fs::read(area.m(name)).unwrap() == expected);
        }
        // Only the lower has these names: the move must bring the copy under them, not what the reader holds.
        std::fs::rename(area.m("a"), area.m("moved")).unwrap();
        std::fs::hard_link(area.m("c"), area.m("linked")).unwrap();
        for name in ["moved", "linked", "b", "c"] {
            assert!(std::fs::read(area.m(name)).unwrap() == expected, "{name}");
            assert_eq!(meta(area.m(name)).nlink(), 4, "{name}");
        }
        drop(reader);
        area.remount();
        for name in ["moved", "linked", "b", "c"] {
            assert!(std::fs::read(area.m(name)).unwrap() == expected, "{name}");
            assert_eq!(meta(area.m(name)).nlink(), 4, "{name}");
        }
    });
}

#[test]
fn a_chmod_of_a_large_file_that_is_being_read_shows_at_once() {
    each(|area| {
        file(&area.lower("f"), 200_000);
        area.d_ino_may_differ();
        area.mount();
        let reader = open(&area.m("f"));
        chmod(&area.m("f"), 0o601);
        set_times(&area.m("f"), 9, 9);
        assert_eq!((perm(area.m("f")), mtime(area.m("f"))), (0o601, (9, 9)));
        assert_eq!(reader.metadata().unwrap().mode() & 0o7777, 0o601);
        assert!(at(&reader, 0, 200_000) == pattern(200_000));
        open_rw(&area.m("f")).write_all_at(b"new", 0).unwrap();
        assert_eq!(perm(area.m("f")), 0o601);
        std::fs::rename(area.m("f"), area.m("g")).unwrap();
        assert!(std::fs::read(area.m("g")).unwrap() == changed(200_000, 0, b"new"));
    });
}

#[test]
fn a_large_file_that_is_being_read_can_be_renamed_linked_removed_and_written() {
    each(|area| {
        for name in ["a", "b", "c"] {
            file(&area.lower(name), 200_000);
        }
        area.d_ino_may_differ();
        area.mount();
        let readers: Vec<_> = ["a", "b", "c"].iter().map(|name| open(&area.m(name))).collect();
        std::fs::rename(area.m("a"), area.m("a2")).unwrap();
        open_rw(&area.m("a2")).write_all_at(b"new", 0).unwrap();
        std::fs::hard_link(area.m("b"), area.m("b2")).unwrap();
        open_rw(&area.m("b2")).write_all_at(b"new", 0).unwrap();
        std::fs::remove_file(area.m("c")).unwrap();
        put(&area.m("c"), "again");
        let new = changed(200_000, 0, b"new");
        crate::area::wait_until("b leads to the copy", || std::fs::read(area.m("b")).unwrap() == new);
        assert!(std::fs::read(area.m("a2")).unwrap() == new && std::fs::read(area.m("b2")).unwrap() == new);
        assert_eq!(
            (text(&area.m("c")), meta(area.m("b")).nlink(), meta(area.m("b2")).nlink()),
            ("again".to_owned(), 2, 2)
        );
        assert!(at(&readers[2], 0, 200_000) == pattern(200_000));
    });
}

#[test]
fn a_file_written_past_the_daemon_shows_its_size_and_time() {
    each(|area| {
        area.d_ino_may_differ();
        area.mount();
        let file = std::fs::File::create(area.m("new")).unwrap();
        for round in 1..=20u64 {
            file.write_all_at(&pattern(10_000), (round - 1) * 10_000).unwrap();
            assert_eq!((meta(area.m("new")).len(), file.metadata().unwrap().len()), (round * 10_000, round * 10_000));
        }
        let old = mtime(area.m("new"));
        std::thread::sleep(std::time::Duration::from_millis(15));
        file.write_all_at(b"x", 0).unwrap();
        assert!(mtime(area.m("new")) > old);
        let reader = open(&area.m("new"));
        file.write_all_at(b"yz", 5).unwrap();
        assert_eq!(at(&reader, 5, 2), b"yz");
        file.set_len(3).unwrap();
        assert_eq!((meta(area.m("new")).len(), at(&reader, 0, 10).len()), (3, 3));
    });
}

#[test]
fn readers_of_one_large_file_through_both_ways_of_opening_agree() {
    once(Way::Passthrough, |area| {
        file(&area.lower("f"), 8 << 20);
        area.d_ino_may_differ();
        area.mount();
        // A writer first: the copy is partial and served by the daemon; a reader after it follows.
        let writer = open_rw(&area.m("f"));
        let reader = open(&area.m("f"));
        writer.write_all_at(b"one", 1_000_000).unwrap();
        assert_eq!(at(&reader, 1_000_000, 3), b"one");
        drop(writer);
        let writer = open_rw(&area.m("f"));
        writer.write_all_at(b"two", 1_000_000).unwrap();
        assert_eq!(at(&reader, 1_000_000, 3), b"two");
    });
}

#[test]
fn d_ino_of_a_file_that_was_written_while_it_was_read_is_right_after_a_remount() {
    once(Way::Passthrough, |area| {
        file(&area.lower("f"), 200_000);
        area.mount();
        let reader = open(&area.m("f"));
        open_rw(&area.m("f")).write_all_at(b"x", 0).unwrap();
        let number = meta(area.m("f")).ino();
        // While this mount lives a listing may tell the node's number; stat tells the file's.
        let listed = list(&area.m(""))[0].ino;
        assert!(listed == number || listed >> 62 == 1, "{listed:x}");
        drop(reader);
        area.remount();
        assert_eq!((list(&area.m(""))[0].ino, meta(area.m("f")).ino()), (number, number));
    });
}

#[test]
fn writers_that_open_by_name_at_the_same_moment_all_succeed() {
    each(|area| {
        area.d_ino_may_differ();
        for round in 0..10 {
            file(&area.lower(&format!("f{round}")), 200_000);
        }
        area.mount();
        for round in 0..10 {
            let path = area.m(&format!("f{round}"));
            let reader = open(&path);
            let together = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for writer in 0..4u64 {
                    let (path, together) = (&path, &together);
                    scope.spawn(move || {
                        together.wait();
                        open_rw(path).write_all_at(b"new", writer * 10).unwrap();
                    });
                }
            });
            let mut expected = pattern(200_000);
            for writer in 0..4 {
                expected[writer * 10..writer * 10 + 3].copy_from_slice(b"new");
            }
            assert!(std::fs::read(&path).unwrap() == expected);
            drop(reader);
        }
    });
}

/// There is one file to programs, whichever bytes a descriptor shows.
#[test]
fn what_is_changed_by_an_old_readers_descriptor_is_changed_in_the_file() {
    each(|area| {
        for len in SIZES {
            file(&area.lower(&len.to_string()), len);
            set_xattr(&area.lower(&len.to_string()), "user.old", b"1").unwrap();
        }
        area.d_ino_may_differ();
        area.mount();
        for len in SIZES {
            let (path, other) = (area.m(&len.to_string()), area.m(&format!("{len}-linked")));
            let reader = open(&path);
            open_rw(&path).write_all_at(b"new", 0).unwrap();
            let seen = || (perm(&path), meta(&path).uid(), mtime(&path), xattrs(&path));
            let held = || {
                let meta = reader.metadata().unwrap();
                (meta.mode() & 0o7777, meta.uid(), (meta.mtime(), meta.mtime_nsec()), xattrs_of(&reader))
            };
            assert_eq!(held(), seen());
            reader.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o641)).unwrap();
            // A user namespace may have nobody else to give it to.
            let owner = if in_user_namespace() { 0 } else { 1000 };
            std::os::unix::fs::fchown(&reader, Some(owner), Some(owner)).unwrap();
            let at = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 7 };
            let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
            rustix::fs::futimens(&reader, &times).unwrap();
            rustix::fs::fsetxattr(&reader, "user.new", b"2", rustix::fs::XattrFlags::empty()).unwrap();
            rustix::fs::fremovexattr(&reader, "user.old").unwrap();
            assert_eq!((perm(&path), mtime(&path)), (0o641, (1_000_000_000, 7)));
            assert_eq!((meta(&path).uid(), meta(&path).gid()), (owner, owner));
            assert_eq!((xattr(&path, "user.new"), xattr(&path, "user.old")), (Some(b"2".to_vec()), None));
            assert_eq!(held(), seen());
            // And the other way.
            chmod(&path, 0o604);
            set_times(&path, 1_000_000_001, 8);
            assert_eq!((held(), perm(&path)), (seen(), 0o604));
            reader.sync_all().unwrap();
            let by_descriptor = format!("/proc/self/fd/{}", reader.as_raw_fd());
            let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(rustix::fs::CWD, by_descriptor, rustix::fs::CWD, &other, follow).unwrap();
            let new = changed(len, 0, b"new");
            assert!(std::fs::read(&other).unwrap() == new);
            assert_eq!((meta(&path).nlink(), reader.metadata().unwrap().nlink()), (2, 2));
            std::fs::remove_file(&path).unwrap();
            assert_eq!((meta(&other).nlink(), reader.metadata().unwrap().nlink()), (1, 1));
            open_rw(&other).set_len(10).unwrap();
            assert_old_reader(area, &reader, &pattern(len), &new[..10]);
            let size = if area.way() == Way::Passthrough { len } else { 10 };
            assert_eq!((reader.metadata().unwrap().len(), meta(&other).len()), (size as u64, 10));
            std::fs::remove_file(&other).unwrap();
            assert_eq!(reader.metadata().unwrap().nlink(), 0);
            file(&path, len);
            let second = open(&path);
            put(&path, "short");
            second.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            drop((reader, second));
            assert_eq!((perm(&path), text(&path)), (0o600, "short".to_owned()));
        }
        area.crash();
        for len in SIZES {
            assert_eq!((perm(area.m(&len.to_string())), text(&area.m(&len.to_string()))), (0o600, "short".to_owned()));
        }
    });
}

/// What an old descriptor changed is there after the last close, a remount, and a crash.
#[test]
fn what_an_old_readers_descriptor_changed_lasts() {
    each(|area| {
        for name in ["a", "b", "c"] {
            file(&area.lower(name), 200_000);
        }
        std::fs::hard_link(area.lower("c"), area.lower("d")).unwrap();
        area.d_ino_may_differ();
        area.mount();
        for name in ["a", "b", "c"] {
            let reader = open(&area.m(name));
            open_rw(&area.m(name)).write_all_at(b"new", 0).unwrap();
            // The kernel forgets the other number, and asks by this one alone.
            std::fs::write("/proc/sys/vm/drop_caches", "2").ok();
            reader.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o641)).unwrap();
            reader.sync_all().unwrap();
        }
        area.crash();
        for name in ["a", "b", "c", "d"] {
            assert_eq!(perm(area.m(name)), 0o641, "{name}");
            assert!(std::fs::read(area.m(name)).unwrap() == changed(200_000, 0, b"new"), "{name}");
        }
    });
}

fn xattrs_of(file: &std::fs::File) -> std::collections::BTreeMap<std::ffi::OsString, Vec<u8>> {
    let (mut names, mut value) = ([0; 1024], [0; 1024]);
    let len = rustix::fs::flistxattr(file, &mut names[..]).unwrap();
    let names = names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let len = rustix::fs::fgetxattr(file, name, &mut value[..]).unwrap();
            (std::os::unix::ffi::OsStrExt::from_bytes(name), value[..len].to_vec())
        })
        .map(|(name, value): (&std::ffi::OsStr, _)| (name.to_owned(), value))
        .collect()
}
