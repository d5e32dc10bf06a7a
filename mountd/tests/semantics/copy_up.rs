//! Copy-up keeps everything, and copies nothing that it need not.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use crate::area::each;
use crate::tree::*;

const LARGE: usize = 8 << 20;

#[test]
fn copy_up_keeps_modes_of_directories() {
    each(|area| {
        for (name, mode) in [("private", 0o700), ("sticky", 0o1777), ("sgid", 0o2775), ("odd", 0o511)] {
            dir(&area.lower(name));
            put(&area.lower(name).join("old"), "x");
            chmod(&area.lower(name), mode);
            set_times(&area.lower(name), 1_000_000_000, 5);
        }
        area.mount();
        for (name, mode) in [("private", 0o700), ("sticky", 0o1777), ("sgid", 0o2775), ("odd", 0o511)] {
            put(&area.m(name).join("new"), "y");
            assert_eq!((perm(area.m(name)), perm(area.upper(name))), (mode, mode), "{name}");
        }
    });
}

#[test]
fn copy_up_keeps_modes_of_files() {
    each(|area| {
        let modes = [0o400, 0o644, 0o755, 0o2755, 0o4755, 0o6711, 0o1644];
        for mode in modes {
            let path = area.lower(&format!("f{mode:o}"));
            put(&path, "content");
            chmod(&path, mode);
        }
        area.mount();
        for mode in modes {
            // A change of times copies up, and takes no bit away.
            let path = area.m(&format!("f{mode:o}"));
            set_times(&path, 1_234_567_890, 123_456_789);
            assert_eq!(perm(&path), mode);
            assert_eq!(mtime(&path), (1_234_567_890, 123_456_789));
        }
    });
}

#[test]
fn copy_up_keeps_xattrs_and_acls() {
    each(|area| {
        let acl = acl(&[(1, 6, u32::MAX), (2, 7, 0), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]);
        let default = acl.clone();
        dir(&area.lower("d"));
        put(&area.lower("d/f"), "x");
        for (name, value) in [("user.one", &b"1"[..]), ("user.empty", b""), ("system.posix_acl_access", &acl)] {
            set_xattr(&area.lower("d/f"), name, value).unwrap();
            set_xattr(&area.lower("d"), name, value).unwrap();
        }
        set_xattr(&area.lower("d/f"), "user.big", &pattern(1000)).unwrap();
        set_xattr(&area.lower("d"), "system.posix_acl_default", &default).unwrap();
        let (file_before, dir_before) = (xattrs(&area.lower("d/f")), xattrs(&area.lower("d")));
        area.mount();
        assert_eq!(xattrs(&area.m("d/f")), file_before);
        set_times(&area.m("d/f"), 7, 7);
        put(&area.m("d/new"), "y");
        assert_eq!(xattrs(&area.m("d/f")), file_before);
        assert_eq!(xattrs(&area.m("d")), dir_before);
        area.remount();
        assert_eq!(xattrs(&area.m("d/f")), file_before);
        assert_eq!(xattrs(&area.m("d")), dir_before);
    });
}

/// Spells an ACL as the kernel does (linux/posix_acl_xattr.h).
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

#[test]
fn copy_up_of_a_symlink_keeps_its_time_and_target() {
    each(|area| {
        symlink("to/nowhere", area.lower("link")).unwrap();
        set_times(&area.lower("link"), 1_111_111_111, 222_222_222);
        area.mount();
        std::fs::rename(area.m("link"), area.m("renamed")).unwrap();
        assert_eq!(mtime(area.m("renamed")), (1_111_111_111, 222_222_222));
        assert_eq!(std::fs::read_link(area.m("renamed")).unwrap().to_str(), Some("to/nowhere"));
        assert!(is_whiteout(&area.upper("link")));
    });
}

#[test]
fn copy_up_leaves_the_times_of_parents_alone() {
    each(|area| {
        dir(&area.lower("a/b/c"));
        file(&area.lower("a/b/c/small"), 10);
        file(&area.lower("a/b/c/large"), 100_000);
        for name in ["a/b/c", "a/b", "a"] {
            set_times(&area.lower(name), 1_000_000_000, 17);
        }
        area.mount();
        // The root's own times are those of the upper's root.
        let root = mtime(area.m(""));
        open_rw(&area.m("a/b/c/small")).write_all_at(b"changed", 0).unwrap();
        chmod(&area.m("a/b/c/large"), 0o600);
        for name in ["a/b/c", "a/b", "a"] {
            assert_eq!(mtime(area.m(name)), (1_000_000_000, 17), "{name}");
        }
        assert_eq!(mtime(area.m("")), root);
        area.remount();
        for name in ["a/b/c", "a/b", "a"] {
            assert_eq!(mtime(area.m(name)), (1_000_000_000, 17), "{name} after a remount");
        }
    });
}

#[test]
fn a_copy_has_the_time_of_its_first_write_and_no_other() {
    each(|area| {
        put(&area.lower("f"), "content");
        set_times(&area.lower("f"), 1_000_000_000, 17);
        area.mount();
        let file = open_rw(&area.m("f"));
        assert_eq!(mtime(area.m("f")), (1_000_000_000, 17), "opening for writing changes nothing");
        file.write_all_at(b"C", 0).unwrap();
        drop(file);
        assert!(mtime(area.m("f")).0 > 1_700_000_000);
        assert_eq!(text(&area.m("f")), "Content");
    });
}

#[test]
fn holes_stay_holes() {
    each(|area| {
        for (name, len) in [("medium", 2u64 << 20), ("large", 64 << 20)] {
            let file = std::fs::File::create(area.lower(name)).unwrap();
            file.set_len(len).unwrap();
            file.write_all_at(b"begin", 0).unwrap();
            file.write_all_at(b"end", len - 4096).unwrap();
        }
        area.mount();
        for name in ["medium", "large"] {
            open_rw(&area.m(name)).write_all_at(b"middle", 1 << 20).unwrap();
        }
        assert!(area.used() < 256 << 10, "{} bytes", area.used());
        area.unmount();
        assert!(area.used() < 256 << 10, "{} bytes at rest", area.used());
        for (name, len) in [("medium", 2u64 << 20), ("large", 64 << 20)] {
            let copy = open(&area.upper(name));
            assert_eq!(
                (at(&copy, 0, 5), at(&copy, 1 << 20, 6), at(&copy, len - 4096, 3)),
                (b"begin".to_vec(), b"middle".to_vec(), b"end".to_vec())
            );
            assert_eq!(copy.metadata().unwrap().len(), len);
        }
        area.mount();
    });
}

#[test]
fn metadata_changes_of_a_large_file_cost_little() {
    each(|area| {
        dir(&area.lower("d"));
        for name in
            ["chmod", "chown", "times", "xattr", "rename", "link", "unlink", "trunc", "truncate", "replaced", "d/rm"]
        {
            file(&area.lower(name), LARGE);
        }
        area.mount();
        let m = |name: &str| area.m(name);
        area.costs_little("chmod", || chmod(&m("chmod"), 0o600));
        area.costs_little("chown", || std::os::unix::fs::lchown(m("chown"), Some(0), Some(0)).unwrap());
        area.costs_little("utimens", || set_times(&m("times"), 1, 2));
        area.costs_little("setxattr", || set_xattr(&m("xattr"), "user.x", b"y").unwrap());
        area.costs_little("rename", || std::fs::rename(m("rename"), m("renamed")).unwrap());
        area.costs_little("link", || std::fs::hard_link(m("link"), m("linked")).unwrap());
        area.costs_little("unlink", || std::fs::remove_file(m("unlink")).unwrap());
        area.costs_little("O_TRUNC", || put(&m("trunc"), "new"));
        area.costs_little("truncate to 0", || {
            std::process::Command::new("truncate").args(["-s", "0"]).arg(m("truncate")).status().unwrap();
        });
        area.costs_little("rename over it", || {
            put(&m("small"), "s");
            std::fs::rename(m("small"), m("replaced")).unwrap();
        });
        area.costs_little("rm -r", || std::fs::remove_dir_all(m("d")).unwrap());
        let content = pattern(LARGE);
        for name in ["chmod", "chown", "times", "xattr", "renamed", "link", "linked"] {
            assert!(std::fs::read(m(name)).unwrap() == content, "{name}");
        }
        assert_eq!((text(&m("trunc")), meta(m("truncate")).len(), text(&m("replaced"))), ("new".into(), 0, "s".into()));
        area.remount();
        for name in ["chmod", "chown", "times", "xattr", "renamed", "link", "linked"] {
            assert!(std::fs::read(m(name)).unwrap() == content, "{name} after a remount");
        }
        assert_eq!(meta(m("link")).ino(), meta(m("linked")).ino());
        assert_eq!(
            (perm(m("chmod")), mtime(m("times")), xattr(&m("xattr"), "user.x")),
            (0o600, (1, 2), Some(b"y".to_vec()))
        );
    });
}

#[test]
fn a_medium_file_is_copied_whole_by_its_first_write() {
    each(|area| {
        file(&area.lower("f"), 1 << 20);
        chmod(&area.lower("f"), 0o640);
        area.mount();
        open_rw(&area.m("f")).write_all_at(b"hello", 500_000).unwrap();
        let mut expected = pattern(1 << 20);
        expected[500_000..500_005].copy_from_slice(b"hello");
        assert!(std::fs::read(area.m("f")).unwrap() == expected);
        assert!(std::fs::read(area.upper("f")).unwrap() == expected);
        assert_eq!(perm(area.m("f")), 0o640);
        area.crash();
        assert!(std::fs::read(area.m("f")).unwrap() == expected);
    });
}

#[test]
fn opening_for_writing_and_closing_changes_no_attribute() {
    each(|area| {
        for (name, len) in [("small", 100), ("medium", 100_000), ("large", LARGE)] {
            file(&area.lower(name), len);
            set_times(&area.lower(name), 1_000_000_000, 17);
            chmod(&area.lower(name), 0o4711);
        }
        area.mount();
        for (name, len) in [("small", 100), ("medium", 100_000), ("large", LARGE)] {
            let before = meta(area.m(name));
            drop(open_rw(&area.m(name)));
            let after = meta(area.m(name));
            let seen = |m: &std::fs::Metadata| (m.ino(), m.mode(), m.len(), m.nlink(), m.mtime(), m.mtime_nsec());
            assert_eq!(seen(&before), seen(&after), "{name}");
            assert!(std::fs::read(area.m(name)).unwrap() == pattern(len), "{name}");
        }
    });
}

#[test]
fn copy_up_of_a_file_that_nobody_may_read_works() {
    each(|area| {
        file(&area.lower("f"), 100_000);
        chmod(&area.lower("f"), 0);
        area.mount();
        chmod(&area.m("f"), 0o200);
        std::fs::OpenOptions::new().append(true).open(area.m("f")).unwrap().write_at(b"x", 0).unwrap();
        assert_eq!(meta(area.m("f")).permissions().mode() & 0o7777, 0o200);
        assert_eq!(meta(area.m("f")).len(), 100_001);
    });
}
