//! Owners, modes, times, extended attributes, and what a new file gets of them.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use crate::area::{Area, Way, each, once, wait_until};
use crate::copy_up::acl;
use crate::tree::*;

#[test]
fn times_before_1970_and_after_2038_keep_their_nanoseconds() {
    each(|area| {
        let times = [(-1, 999_999_999), (-2_000_000_000, 1), (0, 0), (2_147_483_648, 5), (4_294_967_296, 123_456_789)];
        for (index, (sec, nsec)) in times.iter().enumerate() {
            put(&area.lower(&format!("l{index}")), "x");
            set_times(&area.lower(&format!("l{index}")), *sec, *nsec);
        }
        area.mount();
        for (index, at) in times.iter().enumerate() {
            let (below, above) = (area.m(&format!("l{index}")), area.m(&format!("u{index}")));
            assert_eq!(mtime(&below), *at);
            chmod(&below, 0o600);
            assert_eq!(mtime(&below), *at, "copied up");
            put(&above, "x");
            set_times(&above, at.0, at.1);
            assert_eq!(mtime(&above), *at);
            let meta = meta(&above);
            assert_eq!((meta.atime(), meta.atime_nsec()), *at);
        }
        area.remount();
        for (index, at) in times.iter().enumerate() {
            assert_eq!((mtime(area.m(&format!("l{index}"))), mtime(area.m(&format!("u{index}")))), (*at, *at));
        }
    });
}

#[test]
fn times_can_be_set_one_at_a_time_and_to_now() {
    each(|area| {
        put(&area.lower("f"), "x");
        set_times(&area.lower("f"), 1_000_000_000, 1);
        area.mount();
        let set = |atime: i64, mtime: i64| {
            let at = |nsec| rustix::fs::Timespec { tv_sec: 0, tv_nsec: nsec };
            let times = rustix::fs::Timestamps { last_access: at(atime), last_modification: at(mtime) };
            rustix::fs::utimensat(rustix::fs::CWD, area.m("f"), &times, rustix::fs::AtFlags::empty()).unwrap();
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        set(rustix::fs::UTIME_NOW, rustix::fs::UTIME_OMIT);
        let found = meta(area.m("f"));
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000_000, 1));
        assert!((found.atime() - now).abs() < 100);
        set(5, rustix::fs::UTIME_NOW);
        let found = meta(area.m("f"));
        assert_eq!((found.atime(), found.atime_nsec()), (0, 5));
        assert!((found.mtime() - now).abs() < 100);
    });
}

#[test]
fn changes_move_mtime_and_ctime_as_on_any_disk() {
    each(|area| {
        for name in ["write", "chmod", "link", "trunc", "rename", "xattr"] {
            file(&area.lower(name), 100);
        }
        dir(&area.lower("d"));
        set_times(&area.lower("d"), 1_000_000_000, 0);
        area.mount();
        let times = |name: &str| {
            let meta = meta(area.m(name));
            ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()))
        };
        for (name, modifies) in
            [("write", true), ("trunc", true), ("chmod", false), ("link", false), ("rename", false), ("xattr", false)]
        {
            let before = times(name);
            std::thread::sleep(Duration::from_millis(12));
            let mut now = name;
            match name {
                "write" => open_rw(&area.m(name)).write_all_at(b"x", 0).unwrap(),
                "trunc" => open_rw(&area.m(name)).set_len(10).unwrap(),
                "chmod" => chmod(&area.m(name), 0o600),
                "link" => std::fs::hard_link(area.m(name), area.m("d/linked")).unwrap(),
                "xattr" => set_xattr(&area.m(name), "user.x", b"1").unwrap(),
                _ => {
                    std::fs::rename(area.m(name), area.m("d/renamed")).unwrap();
                    now = "d/renamed";
                }
            }
            let after = times(now);
            assert_eq!(after.0 > before.0, modifies, "mtime after {name}");
            assert!(after.1 > before.1, "ctime after {name}");
        }
        assert!(mtime(area.m("d")).0 > 1_000_000_000, "the directory changed too");
    });
}

#[test]
fn the_umask_of_the_caller_counts() {
    each(|area| {
        dir(&area.lower("d"));
        area.mount();
        sh(
            r#"umask 027; cd "$1"; : > f; mkdir dir; mkfifo p; umask 0; : > open; mkdir wide; umask 777; : > none"#,
            &[&area.m("d")],
        );
        let all: Vec<_> = ["f", "dir", "p", "open", "wide", "none"].map(|name| perm(area.m("d").join(name))).to_vec();
        assert_eq!(all, [0o640, 0o750, 0o640, 0o666, 0o777, 0]);
    });
}

#[test]
fn a_default_acl_is_inherited_instead_of_the_umask() {
    each(|area| {
        let default = acl(&[(1, 7, u32::MAX), (2, 7, 0), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]);
        for at in ["below", "merged"] {
            dir(&area.lower(at));
            set_xattr(&area.lower(at), "system.posix_acl_default", &default).unwrap();
        }
        area.mount();
        dir(&area.m("above"));
        set_xattr(&area.m("above"), "system.posix_acl_default", &default).unwrap();
        for at in ["below", "merged", "above"] {
            sh(r#"umask 077; cd "$1"; : > f; mkdir dir; mkdir dir/again"#, &[&area.m(at)]);
            assert_eq!((perm(area.m(at).join("f")), perm(area.m(at).join("dir"))), (0o664, 0o775), "{at}");
            assert!(xattr(&area.m(at).join("f"), "system.posix_acl_access").is_some(), "{at}");
            for name in ["dir", "dir/again"] {
                assert_eq!(xattr(&area.m(at).join(name), "system.posix_acl_default"), Some(default.clone()), "{at}");
            }
        }
        area.remount();
        assert_eq!(xattr(&area.m("below/dir/again"), "system.posix_acl_default"), Some(default.clone()));
    });
}

#[test]
fn an_acl_and_the_mode_follow_each_other() {
    each(|area| {
        put(&area.lower("f"), "x");
        area.mount();
        let access =
            |mask: u16| acl(&[(1, 6, u32::MAX), (2, 6, 0), (4, 4, u32::MAX), (16, mask, u32::MAX), (32, 4, u32::MAX)]);
        set_xattr(&area.m("f"), "system.posix_acl_access", &access(6)).unwrap();
        assert_eq!(perm(area.m("f")), 0o664);
        chmod(&area.m("f"), 0o640);
        let expected = acl(&[(1, 6, u32::MAX), (2, 6, 0), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]);
        assert_eq!(xattr(&area.m("f"), "system.posix_acl_access"), Some(expected));
        rustix::fs::removexattr(area.m("f"), "system.posix_acl_access").unwrap();
        assert_eq!(xattr(&area.m("f"), "system.posix_acl_access"), None);
    });
}

#[test]
fn extended_attributes_work_as_on_any_disk() {
    use rustix::fs::XattrFlags;
    each(|area| {
        put(&area.lower("f"), "x");
        set_xattr(&area.lower("f"), "user.below", b"1").unwrap();
        dir(&area.lower("d"));
        area.mount();
        for name in ["f", "d"] {
            let path = area.m(name);
            let set = |name: &str, flags| rustix::fs::setxattr(&path, name, b"value", flags).errno();
            assert_eq!(set("user.a", XattrFlags::REPLACE), libc::ENODATA);
            assert_eq!(set("user.a", XattrFlags::CREATE), 0);
            assert_eq!(set("user.a", XattrFlags::CREATE), libc::EEXIST);
            assert_eq!(set("user.a", XattrFlags::REPLACE), 0);
            let mut short = [0; 2];
            assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut short[..]).errno(), libc::ERANGE);
            assert_eq!(rustix::fs::removexattr(&path, "user.none").errno(), libc::ENODATA);
            set_xattr(&path, "user.empty", b"").unwrap();
            assert_eq!(xattr(&path, "user.empty"), Some(vec![]));
            rustix::fs::removexattr(&path, "user.a").unwrap();
            assert_eq!(xattr(&path, "user.a"), None);
        }
        rustix::fs::removexattr(area.m("f"), "user.below").unwrap();
        area.remount();
        assert_eq!(xattrs(&area.m("f")).keys().cloned().collect::<Vec<_>>(), ["user.empty"]);
    });
}

#[test]
fn marks_of_the_union_can_neither_be_set_nor_seen() {
    each(|area| {
        put(&area.lower("f"), "x");
        dir(&area.lower("d"));
        put(&area.lower("d/f"), "x");
        area.mount();
        put(&area.m("d/new"), "x");
        chmod(&area.m("f"), 0o600);
        for name in [
            "trusted.overlay.opaque",
            "trusted.overlay.redirect",
            "user.overlay.opaque",
            "user.overlay.whiteout",
            "trusted.plyfs.origin",
            "user.plyfs.origin",
        ] {
            for path in [area.m("d"), area.m("f")] {
                let set = set_xattr(&path, name, b"y").errno();
                assert!(matches!(set, libc::EPERM | libc::EOPNOTSUPP), "{name}: {set}");
                assert_eq!(xattr_errno(&path, name), libc::ENODATA, "{name}");
            }
        }
        for path in ["d", "f", "d/new"] {
            let seen = xattrs(&area.m(path));
            assert!(seen.is_empty(), "{seen:?}");
        }
        assert_eq!(names(&area.m("d")), ["f", "new"]);
    });
}

fn xattr_errno(path: &std::path::Path, name: &str) -> i32 {
    match rustix::fs::lgetxattr(path, name, &mut [0; 10][..]).errno() {
        libc::EPERM | libc::EOPNOTSUPP => libc::ENODATA,
        errno => errno,
    }
}

#[test]
fn a_size_is_changed_by_path_as_by_descriptor() {
    each(|area| {
        for (name, len) in [("small", 1000), ("medium", 200_000)] {
            file(&area.lower(name), len);
        }
        area.mount();
        for (name, len) in [("small", 1000), ("medium", 200_000usize)] {
            for size in [len / 2, len * 2, 0, 10] {
                sh(&format!(r#"truncate -s {size} "$1""#), &[&area.m(name)]);
                let mut expected = pattern(len);
                expected.truncate(len / 2);
                if size <= 10 {
                    expected.clear();
                }
                expected.resize(size, 0);
                assert!(std::fs::read(area.m(name)).unwrap() == expected, "{name} {size}");
            }
        }
        dir(&area.m("d"));
        assert!(
            !std::process::Command::new("truncate")
                .args(["-s", "0"])
                .arg(area.m("d"))
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap()
                .success()
        );
    });
}

#[test]
fn reading_never_moves_the_access_time_of_a_lower_file() {
    each(|area| {
        for (name, len) in [("small", 100), ("large", 200_000)] {
            file(&area.lower(name), len);
            set_times(&area.lower(name), 1_000_000_000, 1);
        }
        area.mount();
        for name in ["small", "large"] {
            std::fs::read(area.m(name)).unwrap();
            assert_eq!(meta(area.m(name)).atime(), 1_000_000_000);
        }
        area.remount();
        for name in ["small", "large"] {
            assert_eq!((meta(area.m(name)).atime(), meta(area.lower(name)).atime()), (1_000_000_000, 1_000_000_000));
        }
    });
}

#[test]
fn the_time_of_birth_is_not_told() {
    each(|area| {
        put(&area.lower("f"), "x");
        area.mount();
        let flags = rustix::fs::StatxFlags::BASIC_STATS | rustix::fs::StatxFlags::BTIME;
        let seen = rustix::fs::statx(rustix::fs::CWD, area.m("f"), rustix::fs::AtFlags::empty(), flags).unwrap();
        assert_eq!(seen.stx_mask & rustix::fs::StatxFlags::BTIME.bits(), 0);
        assert_eq!(seen.stx_size, 1);
    });
}

#[test]
fn a_mapping_that_is_written_moves_mtime_and_ctime() {
    each(|area| {
        for (name, len) in [("small", 1000), ("medium", 200_000), ("large", 8 << 20)] {
            file(&area.lower(name), len);
        }
        area.mount();
        file(&area.m("born"), 200_000);
        for name in ["small", "medium", "large", "born"] {
            let path = area.m(name);
            drop(open_rw(&path));
            set_times(&path, 1_000_000_000, 1);
            let ctime = (meta(&path).ctime(), meta(&path).ctime_nsec());
            std::thread::sleep(Duration::from_millis(12));
            sh(
                r#"exec python3 -c 'import mmap,sys
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
m[10:13] = b"new"
m.flush()
m.close()' "$1""#,
                &[&path],
            );
            let after = meta(&path);
            assert!(after.mtime() > 1_000_000_000, "mtime of {name}");
            assert!((after.ctime(), after.ctime_nsec()) > ctime, "ctime of {name}");
        }
    });
}

#[test]
fn reading_a_file_of_the_upper_moves_its_access_time_as_its_disk_does() {
    each(|area| {
        area.mount();
        for (name, len) in [("small", 100), ("large", 200_000)] {
            let plain = area.path(&format!("plain-{name}"));
            for path in [&plain, &area.m(name)] {
                file(path, len);
                set_times(path, 1_000_000_000, 1);
            }
            area.remount();
            for path in [&plain, &area.m(name)] {
                assert_eq!(std::fs::read(path).unwrap().len(), len);
            }
            area.remount();
            let moved = |path: &std::path::Path| meta(path).atime() != 1_000_000_000;
            assert_eq!((moved(&area.upper(name)), moved(&area.m(name))), (moved(&plain), moved(&plain)), "{name}");
        }
    });
}

/// Walks through a tree and asks for one attribute of everything and for the list; returns the errors of both, each once.
fn ask_all(dir: &std::path::Path) -> (Vec<i32>, Vec<i32>) {
    let (mut gets, mut lists) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        gets.extend(rustix::fs::lgetxattr(&path, "user.none", &mut [0; 16][..]).err().map(|e| e.raw_os_error()));
        lists.extend(rustix::fs::llistxattr(&path, &mut [0; 512][..]).err().map(|e| e.raw_os_error()));
        if meta(&path).is_dir() {
            let (below, also) = ask_all(&path);
            gets.extend(below);
            lists.extend(also);
        }
    }
    for errors in [&mut gets, &mut lists] {
        errors.sort_unstable();
        errors.dedup();
    }
    (gets, lists)
}

/// Asks again and again until the daemon has looked through all, and tells whether it found that there is nothing.
fn looked_through(area: &Area, mounted: &std::path::Path) -> bool {
    let said = |bare| {
        let log = std::fs::read_to_string(area.log()).unwrap_or_default();
        log.contains(&format!("nothing here has an extended attribute: {bare}"))
    };
    wait_until("all is looked through", || {
        ask_all(mounted);
        said(true) || said(false)
    });
    said(true)
}

fn many_files(area: &Area) {
    for dir in 0..40 {
        std::fs::create_dir(area.lower(&format!("d{dir}"))).unwrap();
        for file in 0..8 {
            put(&area.lower(&format!("d{dir}/{file}")), "x");
        }
    }
}

#[test]
fn a_walk_through_a_read_only_mount_without_attributes_is_told_that_there_are_none() {
    once(Way::Served, |area| {
        many_files(area);
        let mounted = area.mount_lower("bare", "plyfs-mountd");
        assert_eq!(
            rustix::fs::lgetxattr(mounted.join("d1"), "user.none", &mut [0; 16][..]),
            Err(rustix::io::Errno::NODATA)
        );
        assert!(looked_through(area, &mounted));
        assert_eq!(ask_all(&mounted), (vec![libc::EOPNOTSUPP], vec![libc::EOPNOTSUPP]));
        assert_eq!(std::fs::read(mounted.join("d7/3")).unwrap(), b"x");
    });
}

#[test]
fn a_walk_through_a_read_only_mount_with_one_attribute_finds_it() {
    once(Way::Served, |area| {
        many_files(area);
        set_xattr(&area.lower("d39/7"), "user.one", b"1").unwrap();
        let mounted = area.mount_lower("bare", "plyfs-mountd");
        assert!(!looked_through(area, &mounted));
        assert_eq!(ask_all(&mounted).0, [libc::ENODATA]);
        assert_eq!(xattr(&mounted.join("d39/7"), "user.one").as_deref(), Some(&b"1"[..]));
    });
}

#[test]
fn mounts_that_can_get_attributes_and_those_for_containerd_are_never_told_to_have_none() {
    once(Way::Served, |area| {
        many_files(area);
        area.mount();
        let mounted = [area.m(""), area.mount_lower("named", "fuse-overlayfs")];
        for mounted in mounted.iter().cycle().take(20) {
            let (gets, lists) = ask_all(mounted);
            assert_eq!((gets, lists), (vec![libc::ENODATA], vec![]), "{}", mounted.display());
        }
    });
}
