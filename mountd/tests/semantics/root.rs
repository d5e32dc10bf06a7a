//! What needs the superuser of the machine: other users, devices, other filesystems, the kernel's overlayfs.

use std::os::unix::fs::{FileExt, MetadataExt, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Dev, FileType, Mode, makedev, mknodat};

use crate::area::{Area, KernelOverlay, Way, each, is_root, once};
use crate::tree::*;

/// A user who owns nothing.
const SOMEBODY: u32 = 4242;

/// Runs a script as an ordinary user; returns whether it went well.
fn as_somebody(script: &str, args: &[&Path]) -> bool {
    let mut command = Command::new("sh");
    command.arg("-ec").arg(script).arg("sh").args(args).uid(SOMEBODY).gid(SOMEBODY);
    command.stderr(std::process::Stdio::null()).status().unwrap().success()
}

fn capability() -> Vec<u8> {
    // VFS_CAP_REVISION_2 with the effective bit, CAP_NET_RAW (linux/capability.h).
    let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn copy_up_keeps_owners_and_set_user_id_bits() {
    if !is_root("copy_up_keeps_owners_and_set_user_id_bits") {
        return;
    }
    each(|area| {
        for mode in [0o4755, 0o2755, 0o6711, 0o1644] {
            let path = area.lower(&format!("f{mode:o}"));
            file(&path, 1000);
            lchown(&path, Some(SOMEBODY), Some(77)).unwrap();
            chmod(&path, mode);
        }
        dir(&area.lower("d"));
        lchown(area.lower("d"), Some(SOMEBODY), Some(77)).unwrap();
        chmod(&area.lower("d"), 0o2770);
        symlink("x", area.lower("link")).unwrap();
        lchown(area.lower("link"), Some(SOMEBODY), Some(77)).unwrap();
        set_xattr(&area.lower("link"), "trusted.mark", b"1").unwrap();
        area.mount();
        for mode in [0o4755, 0o2755, 0o6711, 0o1644] {
            let path = area.m(&format!("f{mode:o}"));
            set_times(&path, 5, 5);
            assert_eq!((perm(&path), meta(&path).uid(), meta(&path).gid()), (mode, SOMEBODY, 77));
        }
        put(&area.m("d/new"), "x");
        set_times(&area.m("link"), 5, 5);
        for name in ["d", "link"] {
            assert_eq!((meta(area.m(name)).uid(), meta(area.m(name)).gid()), (SOMEBODY, 77), "{name}");
        }
        assert_eq!((perm(area.m("d")), xattr(&area.m("link"), "trusted.mark")), (0o2770, Some(b"1".to_vec())));
    });
}

#[test]
fn a_set_group_id_directory_hands_down_its_group() {
    if !is_root("a_set_group_id_directory_hands_down_its_group") {
        return;
    }
    each(|area| {
        dir(&area.lower("d"));
        lchown(area.lower("d"), None, Some(77)).unwrap();
        chmod(&area.lower("d"), 0o2777);
        area.mount();
        assert!(as_somebody(
            r#"cd "$1"; umask 022; : > f; mkdir sub; : > sub/g; ln -s x link; mkfifo p"#,
            &[&area.m("d")]
        ));
        for name in ["f", "sub", "sub/g", "link", "p"] {
            let made = meta(area.m("d").join(name));
            assert_eq!((made.uid(), made.gid()), (SOMEBODY, 77), "{name}");
        }
        assert_eq!((perm(area.m("d/sub")), perm(area.m("d/f"))), (0o2755, 0o644));
    });
}

#[test]
fn new_files_belong_to_their_maker() {
    if !is_root("new_files_belong_to_their_maker") {
        return;
    }
    each(|area| {
        dir(&area.lower("d"));
        chmod(&area.lower("d"), 0o1777);
        area.mount();
        assert!(as_somebody(r#"cd "$1"; : > f; mkdir dir; ln -s x link; mkfifo p"#, &[&area.m("d")]));
        for name in ["f", "dir", "link", "p"] {
            let made = meta(area.m("d").join(name));
            assert_eq!((made.uid(), made.gid()), (SOMEBODY, SOMEBODY), "{name}");
        }
        put(&area.m("d/roots"), "x");
        assert!(!as_somebody(r#"rm -f "$1""#, &[&area.m("d/roots")]), "the sticky bit");
        assert!(!as_somebody(r#"mv "$1" "$1"2"#, &[&area.m("d/roots")]), "the sticky bit");
        assert!(as_somebody(r#"rm "$1""#, &[&area.m("d/f")]));
    });
}

#[test]
fn permissions_are_checked() {
    if !is_root("permissions_are_checked") {
        return;
    }
    each(|area| {
        put(&area.lower("private"), "x");
        chmod(&area.lower("private"), 0o600);
        dir(&area.lower("locked"));
        put(&area.lower("locked/f"), "x");
        chmod(&area.lower("locked"), 0o700);
        area.mount();
        for script in [
            r#"cat "$1/private""#,
            r#"echo > "$1/private""#,
            r#"cat "$1/locked/f""#,
            r#"echo > "$1/new""#,
            r#"chmod 777 "$1/private""#,
            r#"touch "$1/private""#,
        ] {
            assert!(!as_somebody(script, &[&area.m("")]), "{script}");
        }
        chmod(&area.m("private"), 0o604);
        assert!(as_somebody(r#"cat "$1/private" > /dev/null"#, &[&area.m("")]));
    });
}

#[test]
fn a_write_by_another_user_takes_set_user_id_bits_and_capabilities() {
    if !is_root("a_write_by_another_user_takes_set_user_id_bits_and_capabilities") {
        return;
    }
    each(|area| {
        for (at, len) in [("small", 100), ("medium", 200_000), ("large", 8 << 20)] {
            for mode in [0o6777, 0o2767, 0o4777] {
                let path = area.lower(&format!("{at}{mode:o}"));
                file(&path, len);
                chmod(&path, mode);
                set_xattr(&path, "security.capability", &capability()).unwrap();
            }
        }
        area.mount();
        for at in ["small", "medium", "large"] {
            for (mode, after) in [(0o6777, 0o777), (0o2767, 0o2767), (0o4777, 0o777)] {
                let path = area.m(&format!("{at}{mode:o}"));
                let after = if mode == 0o2767 { 0o2767 } else { after };
                assert!(as_somebody(r#"printf x | dd of="$1" conv=notrunc status=none"#, &[&path]));
                assert_eq!((perm(&path), xattr(&path, "security.capability")), (after, None), "{at} {mode:o}");
            }
        }
        // A file that the upper has already, written past the daemon.
        area.mount_check_born();
    });
}

impl Area {
    fn mount_check_born(&self) {
        for (index, script) in
            [r#"printf x | dd of="$1" conv=notrunc status=none"#, r#": > "$1""#, r#"truncate -s 5 "$1""#]
                .iter()
                .enumerate()
        {
            let path = self.m(&format!("born{index}"));
            file(&path, 200_000);
            chmod(&path, 0o6777);
            set_xattr(&path, "security.capability", &capability()).unwrap();
            let reader = open(&path);
            assert!(as_somebody(script, &[&path]));
            assert_eq!((perm(&path), xattr(&path, "security.capability")), (0o777, None), "{script}");
            drop(reader);
        }
    }
}

#[test]
fn a_truncation_by_another_user_takes_set_user_id_bits() {
    if !is_root("a_truncation_by_another_user_takes_set_user_id_bits") {
        return;
    }
    each(|area| {
        for name in ["open", "path"] {
            for len in [100, 200_000, 8 << 20] {
                file(&area.lower(&format!("{name}{len}")), len);
                chmod(&area.lower(&format!("{name}{len}")), 0o6777);
            }
        }
        area.mount();
        for len in [100, 200_000, 8 << 20] {
            let (open, path) = (area.m(&format!("open{len}")), area.m(&format!("path{len}")));
            assert!(as_somebody(r#": > "$1""#, &[&open]));
            assert!(as_somebody(r#"truncate -s 50 "$1""#, &[&path]));
            assert_eq!((perm(&open), perm(&path)), (0o777, 0o777), "{len}");
            assert_eq!((meta(&open).len(), meta(&path).len()), (0, 50));
        }
    });
}

#[test]
fn a_chown_takes_set_user_id_bits_and_capabilities() {
    if !is_root("a_chown_takes_set_user_id_bits_and_capabilities") {
        return;
    }
    each(|area| {
        for (name, len) in [("small", 100), ("medium", 200_000)] {
            file(&area.lower(name), len);
            chmod(&area.lower(name), 0o6755);
            set_xattr(&area.lower(name), "security.capability", &capability()).unwrap();
        }
        dir(&area.lower("d"));
        chmod(&area.lower("d"), 0o6755);
        area.mount();
        for name in ["small", "medium"] {
            lchown(area.m(name), Some(1), Some(2)).unwrap();
            assert_eq!((perm(area.m(name)), xattr(&area.m(name), "security.capability")), (0o755, None), "{name}");
            assert_eq!((meta(area.m(name)).uid(), meta(area.m(name)).gid()), (1, 2));
        }
        lchown(area.m("d"), Some(1), Some(2)).unwrap();
        assert_eq!(perm(area.m("d")), 0o6755, "a directory keeps its bits");
    });
}

#[test]
fn a_write_by_the_superuser_keeps_set_user_id_bits_and_takes_capabilities() {
    if !is_root("a_write_by_the_superuser_keeps_set_user_id_bits_and_takes_capabilities") {
        return;
    }
    each(|area| {
        file(&area.lower("f"), 200_000);
        chmod(&area.lower("f"), 0o6755);
        set_xattr(&area.lower("f"), "security.capability", &capability()).unwrap();
        area.mount();
        open_rw(&area.m("f")).write_all_at(b"x", 0).unwrap();
        assert_eq!((perm(area.m("f")), xattr(&area.m("f"), "security.capability")), (0o6755, None));
    });
}

#[test]
fn a_bit_that_is_set_while_another_user_writes_goes_with_the_next_write() {
    if !is_root("a_bit_that_is_set_while_another_user_writes_goes_with_the_next_write") {
        return;
    }
    each(|area| {
        area.mount();
        file(&area.m("f"), 200_000);
        chmod(&area.m("f"), 0o777);
        // The script opens for writing, waits for a line, and writes.
        let mut shell = Command::new("sh");
        shell
            .arg("-ec")
            .arg(r#"exec 3<> "$1"; echo ready; read go; printf x >&3; echo done; read go"#)
            .arg("sh")
            .arg(area.m("f"));
        shell.uid(SOMEBODY).gid(SOMEBODY).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut writer = shell.spawn().unwrap();
        let mut said = std::io::BufReader::new(writer.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        chmod(&area.m("f"), 0o6777);
        set_xattr(&area.m("f"), "security.capability", &capability()).unwrap();
        assert_eq!(perm(area.m("f")), 0o6777);
        let mut go = writer.stdin.take().unwrap();
        std::io::Write::write_all(&mut go, b"go\n").unwrap();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(
            (&*line, perm(area.m("f")), xattr(&area.m("f"), "security.capability")),
            ("ready\ndone\n", 0o777, None)
        );
        assert_eq!(perm(area.upper("f")), 0o777);
        drop(go);
        writer.wait().unwrap();
    });
}

#[test]
fn a_set_user_id_program_runs_as_its_owner() {
    if !is_root("a_set_user_id_program_runs_as_its_owner") {
        return;
    }
    each(|area| {
        let id = PathBuf::from(sh("command -v id", &[]).trim());
        std::fs::copy(std::fs::canonicalize(id).unwrap(), area.lower("id")).unwrap();
        lchown(area.lower("id"), Some(77), Some(77)).unwrap();
        chmod(&area.lower("id"), 0o4755);
        area.mount();
        let mut command = Command::new(area.m("id"));
        // One program that is many looks at its name.
        let output = command.arg("-u").uid(SOMEBODY).gid(SOMEBODY).output();
        match output {
            Ok(output) if output.status.success() => assert_eq!(String::from_utf8(output.stdout).unwrap(), "77\n"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn devices_can_be_made_but_not_one_numbered_zero() {
    if !is_root("devices_can_be_made_but_not_one_numbered_zero") {
        return;
    }
    each(|area| {
        mknodat(CWD, area.lower("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3)).unwrap();
        area.mount();
        let make = |name: &str, kind: FileType, dev: Dev| {
            mknodat(CWD, area.m(name), kind, Mode::from_raw_mode(0o600), dev).errno()
        };
        assert_eq!(make("zero", FileType::CharacterDevice, 0), libc::EPERM);
        assert_eq!(make("block", FileType::BlockDevice, makedev(7, 300)), 0);
        assert_eq!(make("char", FileType::CharacterDevice, makedev(259, 70_000)), 0);
        assert_eq!(make("fifo", FileType::Fifo, 0), 0);
        assert_eq!(make("socket", FileType::Socket, 0), 0);
        chmod(&area.m("null"), 0o600);
        std::fs::write(area.m("null"), b"into the void").unwrap();
        assert_eq!(
            (meta(area.m("block")).rdev(), meta(area.m("char")).rdev(), meta(area.m("null")).rdev()),
            (makedev(7, 300), makedev(259, 70_000), makedev(1, 3))
        );
        assert_eq!(names(&area.m("")), ["block", "char", "fifo", "null", "socket"]);
        std::fs::rename(area.m("null"), area.m("void")).unwrap();
        area.remount();
        assert_eq!(names(&area.m("")), ["block", "char", "fifo", "socket", "void"]);
    });
}

/// An upper that the kernel's overlayfs made.
fn kernel_made(area: &Area, options: &str, change: impl FnOnce(&Path)) -> Tree {
    let (lower, upper, work) = (area.path("lower"), area.path("upper"), area.path("work"));
    let options =
        format!("lowerdir={},upperdir={},workdir={},{options}", lower.display(), upper.display(), work.display());
    let mounted = KernelOverlay::mount(&area.m(""), &options);
    change(&area.m(""));
    let tree = Tree::of_any(&area.m(""));
    drop(mounted);
    tree
}

#[test]
fn an_upper_of_the_kernels_overlayfs_works_here() {
    if !is_root("an_upper_of_the_kernels_overlayfs_works_here") {
        return;
    }
    for options in ["metacopy=on,redirect_dir=on,index=on", "metacopy=off,redirect_dir=off,index=off"] {
        each(|area| {
            dir(&area.lower("d/sub"));
            put(&area.lower("d/f"), "f");
            put(&area.lower("d/sub/g"), "g");
            dir(&area.lower("opaque"));
            put(&area.lower("opaque/hidden"), "x");
            for name in ["meta", "gone", "moved"] {
                file(&area.lower(name), 200_000);
            }
            let on = options.starts_with("metacopy=on");
            let before = kernel_made(area, options, |top| {
                chmod(&top.join("meta"), 0o600);
                std::fs::remove_file(top.join("gone")).unwrap();
                std::fs::rename(top.join("moved"), top.join("d/moved")).unwrap();
                std::fs::remove_dir_all(top.join("opaque")).unwrap();
                dir(&top.join("opaque"));
                put(&top.join("opaque/new"), "n");
                put(&top.join("new"), "n");
                if on {
                    std::fs::rename(top.join("d"), top.join("e")).unwrap();
                    std::fs::rename(top.join("e/sub"), top.join("e/sub2")).unwrap();
                }
            });
            area.mount();
            before.assert_same(&Tree::of(&area.m("")), "a kernel's upper", Compare::Content);
            let d = if on { "e" } else { "d" };
            open_rw(&area.m("meta")).write_all_at(b"new", 0).unwrap();
            assert_eq!((perm(area.m("meta")), meta(area.m("meta")).len()), (0o600, 200_000));
            std::fs::rename(area.m(d), area.m("z")).unwrap();
            put(&area.m("z/f"), "changed");
            area.remount();
            assert_eq!(text(&area.m("z/f")), "changed");
            assert!(std::fs::read(area.m("z/moved")).unwrap() == pattern(200_000));
            assert_eq!(names(&area.m("opaque")), ["new"]);
        });
    }
}

#[test]
fn hard_links_that_the_kernels_overlayfs_copied_up_stay_together_here() {
    if !is_root("hard_links_that_the_kernels_overlayfs_copied_up_stay_together_here") {
        return;
    }
    each(|area| {
        for name in ["a", "b", "c"] {
            file(&area.lower(name), 1000);
            std::fs::hard_link(area.lower(name), area.lower(&format!("{name}2"))).unwrap();
        }
        let before = kernel_made(area, "metacopy=on,redirect_dir=on,index=on", |top| {
            open_rw(&top.join("a")).write_all_at(b"new", 0).unwrap();
            std::fs::remove_file(top.join("b")).unwrap();
            chmod(&top.join("c"), 0o600);
        });
        area.mount();
        before.assert_same(&Tree::of(&area.m("")), "a kernel's upper", Compare::Content);
        open_rw(&area.m("a2")).write_all_at(b"more", 0).unwrap();
        assert_eq!((&at(&open(&area.m("a")), 0, 4)[..], meta(area.m("a")).nlink()), (&b"more"[..], 2));
        assert_eq!((perm(area.m("c2")), meta(area.m("b2")).nlink()), (0o600, 1));
    });
}

#[test]
fn the_kernels_overlayfs_can_write_over_our_upper_and_hand_it_back() {
    if !is_root("the_kernels_overlayfs_can_write_over_our_upper_and_hand_it_back") {
        return;
    }
    each(|area| {
        dir(&area.lower("d/sub"));
        put(&area.lower("d/f"), "f");
        put(&area.lower("d/sub/g"), "g");
        for (name, len) in [("medium", 200_000), ("large", 8 << 20), ("chmod", 200_000)] {
            file(&area.lower(name), len);
        }
        put(&area.lower("l1"), "linked");
        std::fs::hard_link(area.lower("l1"), area.lower("l2")).unwrap();
        area.mount();
        std::fs::rename(area.m("d"), area.m("e")).unwrap();
        chmod(&area.m("chmod"), 0o600);
        open_rw(&area.m("large")).write_all_at(b"new", 3_000_000).unwrap();
        open_rw(&area.m("l1")).write_all_at(b"L", 0).unwrap();
        std::fs::remove_file(area.m("medium")).unwrap();
        let ours = Tree::of(&area.m(""));
        area.unmount();
        let kernels = kernel_made(area, "metacopy=on,redirect_dir=on", |top| {
            ours.assert_same(&Tree::of_any(top), "under the kernel's overlayfs, writable", Compare::Content);
            put(&top.join("e/f"), "by the kernel");
            open_rw(&top.join("chmod")).write_all_at(b"kernel", 0).unwrap();
            std::fs::rename(top.join("e"), top.join("k")).unwrap();
            put(&top.join("l2"), "both");
        });
        area.mount();
        kernels.assert_same(&Tree::of(&area.m("")), "back again", Compare::Content);
        assert_eq!((text(&area.m("k/f")), text(&area.m("l1"))), ("by the kernel".to_owned(), "both".to_owned()));
    });
}

#[test]
fn device_numbers_and_kinds_of_the_lower_show() {
    if !is_root("device_numbers_and_kinds_of_the_lower_show") {
        return;
    }
    each(|area| {
        for (name, kind, dev) in [
            ("c", FileType::CharacterDevice, makedev(1, 3)),
            ("b", FileType::BlockDevice, makedev(259, 70_000)),
            ("p", FileType::Fifo, 0),
            ("s", FileType::Socket, 0),
        ] {
            mknodat(CWD, area.lower(name), kind, Mode::from_raw_mode(0o640), dev).unwrap();
        }
        // The root of the mount shows the upper's times.
        for root in [area.lower(""), area.path("upper")] {
            set_times(&root, 5, 5);
        }
        area.mount();
        Tree::of_any(&area.lower("")).assert_same(&Tree::of(&area.m("")), "seen", Compare::Content);
        for name in ["c", "b", "p", "s"] {
            lchown(area.m(name), Some(5), Some(6)).unwrap();
            set_xattr(&area.m(name), "trusted.x", b"1").unwrap();
            let (above, below) = (meta(area.m(name)), meta(area.lower(name)));
            assert_eq!((above.mode(), above.rdev(), above.uid()), (below.mode(), below.rdev(), 5), "{name}");
        }
    });
}

#[test]
fn an_idle_reader_does_not_keep_the_lower_from_being_refused_writes() {
    if !is_root("an_idle_reader_does_not_keep_the_lower_from_being_refused_writes") {
        return;
    }
    // The daemon holds the lower through a read-only clone of its mount: what it opened there cannot be written, whoever asks.
    once(Way::Passthrough, |area| {
        file(&area.lower("f"), 200_000);
        area.mount();
        let _reader = open(&area.m("f"));
        let pid = area.daemon_pid();
        let mut tried = 0;
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let path = entry.unwrap().path();
            let Ok(target) = std::fs::read_link(&path) else { continue };
            if target.to_string_lossy().ends_with("/f") {
                tried += 1;
                assert_eq!(std::fs::OpenOptions::new().write(true).open(&path).errno(), libc::EROFS, "{target:?}");
            }
        }
        assert!(tried > 0, "the daemon has the lower file open");
    });
}

/// Owner, mode, attributes, ACLs and times of every kind of inode.
#[test]
fn copy_up_keeps_everything_of_every_kind() {
    if !is_root("copy_up_keeps_everything_of_every_kind") {
        return;
    }
    let facts = |path: &Path| {
        let (meta, mut attributes) = (meta(path), xattrs(path));
        attributes.retain(|name, _| !name.to_string_lossy().starts_with("trusted.overlay."));
        // Looking at a link's target is an access.
        let atime = (!meta.is_symlink()).then(|| (meta.atime(), meta.atime_nsec()));
        let times = (atime, (meta.mtime(), meta.mtime_nsec()));
        (meta.mode(), (meta.uid(), meta.gid()), meta.rdev(), times, attributes, std::fs::read_link(path).ok())
    };
    each(|area| {
        let access = crate::copy_up::acl(&[
            (1, 6, u32::MAX),
            (2, 7, SOMEBODY),
            (4, 4, u32::MAX),
            (16, 7, u32::MAX),
            (32, 0, u32::MAX),
        ]);
        let kinds = ["small", "medium", "large", "dir", "link", "fifo", "socket", "char", "block"];
        for name in kinds {
            let path = area.lower(name);
            let node = |kind, dev| mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), dev).unwrap();
            match name {
                "small" => file(&path, 100),
                "medium" => file(&path, 200_000),
                "large" => file(&path, 8 << 20),
                "dir" => dir(&path),
                "link" => symlink("to/nowhere", &path).unwrap(),
                "fifo" => node(FileType::Fifo, 0),
                "socket" => node(FileType::Socket, 0),
                "char" => node(FileType::CharacterDevice, makedev(1, 3)),
                _ => node(FileType::BlockDevice, makedev(259, 70_000)),
            }
            lchown(&path, Some(SOMEBODY), Some(77)).unwrap();
            set_xattr(&path, "trusted.mark", name.as_bytes()).unwrap();
            if name != "link" {
                set_xattr(&path, "system.posix_acl_access", &access).unwrap();
                chmod(&path, if name == "dir" { 0o3771 } else { 0o6751 });
            }
            if ["small", "medium", "large"].contains(&name) {
                set_xattr(&path, "security.capability", &capability()).unwrap();
            }
            if name == "dir" {
                set_xattr(&path, "system.posix_acl_default", &access).unwrap();
            }
            set_times(&path, -5, 123_456_789);
        }
        area.mount();
        let moved = |name: &str| format!("{name}-moved");
        for name in kinds {
            let before = facts(&area.lower(name));
            std::fs::rename(area.m(name), area.m(&moved(name))).unwrap();
            assert_eq!(facts(&area.upper(&moved(name))), before, "{name} in the upper");
            assert_eq!(facts(&area.m(&moved(name))), before, "{name}");
        }
        area.crash();
        for name in kinds {
            assert_eq!(facts(&area.m(&moved(name))), facts(&area.lower(name)), "{name} after a crash");
        }
    });
}

#[test]
fn the_kernels_overlayfs_lists_our_upper_by_the_numbers_that_it_tells() {
    if !is_root("the_kernels_overlayfs_lists_our_upper_by_the_numbers_that_it_tells") {
        return;
    }
    each(|area| {
        dir(&area.lower("d/sub/deep"));
        dir(&area.lower("e"));
        for name in ["d/chmod", "d/sub/f", "d/sub/deep/g", "linked", "moved", "swapped"] {
            file(&area.lower(name), 200_000);
        }
        area.mount();
        chmod(&area.m("d/chmod"), 0o600);
        open_rw(&area.m("d/sub/f")).write_all_at(b"new", 0).unwrap();
        put(&area.m("d/sub/deep/new"), "n");
        dir(&area.m("born/inner"));
        std::fs::rename(area.m("moved"), area.m("born/moved")).unwrap();
        std::fs::rename(area.m("d/sub/deep"), area.m("born/inner/deep")).unwrap();
        std::fs::hard_link(area.m("linked"), area.m("born/inner/linked")).unwrap();
        std::fs::rename(area.m("e"), area.m("born/e")).unwrap();
        dir(&area.m("other/apart"));
        put(&area.m("other/file"), "x");
        let exchange = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(CWD, area.m("swapped"), CWD, area.m("other/file"), exchange).unwrap();
        let ours = Tree::of(&area.m(""));
        area.unmount();
        dir(&area.path("kernel-work"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={},metacopy=on,redirect_dir=on,index=off,xino=off",
            area.path("lower").display(),
            area.path("upper").display(),
            area.path("kernel-work").display()
        );
        let mounted = KernelOverlay::mount(&area.path("merged"), &options);
        ours.assert_same(&Tree::of(&area.path("merged")), "by the kernel, d_ino too", Compare::Content);
        drop(mounted);
        area.mount();
    });
}
