//! Owners that are shown otherwise than they lie on the disk, as runtimes ask for it.

use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use crate::area::{Way, each, is_root, once};
use crate::tree::*;

const ACL: &str = "system.posix_acl_access";
const CAPABILITIES: &str = "security.capability";
const OVERRIDE: &str = "user.containers.override_stat";

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let meta = meta(path);
    (meta.uid(), meta.gid())
}

/// An ACL that names one user and one group (linux/posix_acl_xattr.h).
fn acl(user: u32, group: u32) -> Vec<u8> {
    let any = u32::MAX;
    let entries = [(1u16, 6u16, any), (2, 6, user), (4, 4, any), (8, 4, group), (16, 6, any), (32, 0, any)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        acl.extend([&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    acl
}

#[test]
fn mapped_owners_are_shown_shifted_and_written_back_unshifted() {
    if !is_root("mapped_owners_are_shown_shifted_and_written_back_unshifted") {
        return;
    }
    each(|area| {
        area.kernel_differs();
        for (name, uid, gid) in [("passwd", 0, 0), ("shadow", 0, 42), ("outside", 7000, 7000)] {
            put(&area.lower(name), name);
            lchown(area.lower(name), Some(uid), Some(gid)).unwrap();
        }
        set_xattr(&area.lower("passwd"), ACL, &acl(33, 42)).unwrap();
        // The leading colon is containers/storage's.
        area.set_options("uidmapping=:0:100000:5000,gidmapping=:0:200000:5000");
        area.mount();
        assert_eq!(owner(area.m("passwd")), (100_000, 200_000));
        assert_eq!(owner(area.m("shadow")), (100_000, 200_042));
        assert_eq!(owner(area.m("outside")), (65534, 65534), "an id that nothing maps");
        assert_eq!(xattr(&area.m("passwd"), ACL), Some(acl(100_033, 200_042)));

        // What changes keeps its owner on the disk, and what is given is taken back through the map.
        chmod(&area.m("shadow"), 0o600);
        put(&area.m("mine"), "mine");
        lchown(area.m("mine"), Some(100_033), Some(200_042)).unwrap();
        set_xattr(&area.m("mine"), ACL, &acl(100_001, 200_002)).unwrap();
        assert_eq!((owner(area.m("shadow")), owner(area.m("mine"))), ((100_000, 200_042), (100_033, 200_042)));
        assert_eq!((owner(area.upper("shadow")), owner(area.upper("mine"))), ((0, 42), (33, 42)));
        assert_eq!(xattr(&area.upper("mine"), ACL), Some(acl(1, 2)));
        area.remount();
        assert_eq!(owner(area.m("mine")), (100_033, 200_042));
        assert_eq!(xattr(&area.m("mine"), ACL), Some(acl(100_001, 200_002)));
    });
}

/// `cap_net_raw=ep` for whoever is root as that user (linux/capability.h).
fn capabilities(root: u32) -> Vec<u8> {
    let revision = if root == 0 { 2 } else { 3 };
    let mut value = vec![1, 0, 0, revision, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    if root != 0 {
        value.extend(root.to_le_bytes());
    }
    value
}

#[test]
fn file_capabilities_count_for_the_root_that_is_shown() {
    if !is_root("file_capabilities_count_for_the_root_that_is_shown") {
        return;
    }
    each(|area| {
        area.kernel_differs();
        put(&area.lower("ping"), "ping");
        set_xattr(&area.lower("ping"), CAPABILITIES, &capabilities(0)).unwrap();
        area.set_options("uidmapping=:0:100000:5000,gidmapping=:0:200000:5000");
        area.mount();
        assert_eq!(xattr(&area.m("ping"), CAPABILITIES), Some(capabilities(100_000)));
        put(&area.m("mine"), "mine");
        set_xattr(&area.m("mine"), CAPABILITIES, &capabilities(100_000)).unwrap();
        assert_eq!(xattr(&area.upper("mine"), CAPABILITIES), Some(capabilities(0)));
        // A copy keeps what lies on the disk.
        chmod(&area.m("ping"), 0o711);
        assert_eq!(xattr(&area.upper("ping"), CAPABILITIES), Some(capabilities(0)));
        area.remount();
        assert_eq!(xattr(&area.m("ping"), CAPABILITIES), Some(capabilities(100_000)));
        assert_eq!(xattr(&area.m("mine"), CAPABILITIES), Some(capabilities(100_000)));
    });
}

#[test]
fn squashed_owners_are_one() {
    if !is_root("squashed_owners_are_one") {
        return;
    }
    for (options, shown) in [("squash_to_root", (0, 0)), ("squash_to_uid=7,squash_to_gid=8", (7, 8))] {
        once(Way::Served, |area| {
            area.kernel_differs();
            put(&area.lower("shadow"), "x");
            lchown(area.lower("shadow"), Some(0), Some(42)).unwrap();
            area.set_options(options);
            area.mount();
            assert_eq!(owner(area.m("shadow")), shown, "{options}");
            put(&area.m("mine"), "x");
            assert_eq!(owner(area.m("mine")), shown, "{options}");
            chmod(&area.m("shadow"), 0o600);
            assert_eq!(owner(area.upper("shadow")), (0, 42), "the disk keeps the owner: {options}");
        });
    }
}

#[test]
fn recorded_owners_are_shown_and_written_as_records() {
    if !is_root("recorded_owners_are_shown_and_written_as_records") {
        return;
    }
    once(Way::Served, |area| {
        area.kernel_differs();
        // As podman's force_mask leaves a layer.
        for (name, record) in [("shadow", "0:42:0640"), ("tool", "5:6:4755:file"), ("tty", "0:5:0620:char-5-0")] {
            put(&area.lower(name), "");
            chmod(&area.lower(name), 0o777);
            set_xattr(&area.lower(name), OVERRIDE, record.as_bytes()).unwrap();
        }
        area.set_options("xattr_permissions=2");
        area.mount();
        assert_eq!((owner(area.m("shadow")), perm(area.m("shadow"))), ((0, 42), 0o640));
        assert_eq!((owner(area.m("tool")), perm(area.m("tool"))), ((5, 6), 0o4755));
        assert_eq!(sh("stat -c '%F %t,%T' \"$1\"", &[&area.m("tty")]).trim(), "character special file 5,0");
        assert_eq!(xattr(&area.m("shadow"), OVERRIDE), None, "the record itself is not shown");

        put(&area.m("mine"), "mine");
        lchown(area.m("mine"), Some(33), Some(42)).unwrap();
        chmod(&area.m("mine"), 0o4711);
        lchown(area.m("shadow"), Some(33), Some(42)).unwrap();
        assert_eq!(owner(area.upper("mine")), (0, 0), "the disk is not asked to hold the owner");
        assert_eq!(xattr(&area.upper("mine"), OVERRIDE), Some(b"33:42:4711".to_vec()));
        area.remount();
        assert_eq!((owner(area.m("mine")), perm(area.m("mine"))), ((33, 42), 0o4711));
        assert_eq!((owner(area.m("shadow")), perm(area.m("shadow"))), ((33, 42), 0o640));
    });
}

#[test]
fn marks_are_the_users_where_that_is_asked_for() {
    if !is_root("marks_are_the_users_where_that_is_asked_for") {
        return;
    }
    once(Way::Served, |area| {
        // The kernel's overlayfs would have to be told so, too.
        area.kernel_differs();
        dir(&area.lower("d"));
        put(&area.lower("d/old"), "old");
        area.set_options("userxattr");
        area.mount();
        sh("rm -rf \"$1\" && mkdir \"$1\" && touch \"$1/new\"", &[&area.m("d")]);
        assert_eq!(names(&area.m("d")), ["new"]);
        area.remount();
        assert_eq!(names(&area.m("d")), ["new"]);
        assert_eq!(xattr(&area.upper("d"), "user.overlay.opaque"), Some(b"y".to_vec()));
        assert_eq!(xattr(&area.upper("d"), "trusted.overlay.opaque"), None);
    });
}

#[test]
fn a_directory_made_anew_holds_what_is_new_alone_in_every_walk() {
    each(|area| {
        dir(&area.lower("d"));
        for name in ["a-first", "b", "sub/c"] {
            std::fs::create_dir_all(area.lower("d").join(name).parent().unwrap()).unwrap();
            put(&area.lower("d").join(name), name);
        }
        area.mount();
        sh("rm -rf \"$1\" && mkdir \"$1\"", &[&area.m("d")]);
        assert!(names(&area.m("d")).is_empty());
        put(&area.m("d/new"), "new");
        area.remount();
        assert_eq!(names(&area.m("d")), ["new"]);
        // A diff asks by name as well: every old name is gone.
        assert!(["a-first", "b", "sub"].iter().all(|old| !exists(&area.m("d").join(old))));
    });
}
