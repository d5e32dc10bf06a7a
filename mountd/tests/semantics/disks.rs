//! Disks of the upper that are full, out of bounds, or broken: the program hears of it at the call, and nothing else changes.
//!
//! Needs the superuser of the machine, who may mount them.

use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::area::{Area, Way, each, is_root, once};
use crate::tree::*;

/// Mounts a filesystem of its own at `area/disk`, and removes it again.
struct Disk(PathBuf);

impl Disk {
    fn tmpfs(area: &Area, size: &str) -> Self {
        Self::mounted(area, &format!(r#"mount -t tmpfs -o size={size} tmpfs "$1""#))
    }

    /// A disk in the file `area/image`: `$1` is where it is mounted, `$2` the file.
    fn image(area: &Area, size: &str, format: &str, options: &str) -> Self {
        Self::mounted(area, &format!(r#"truncate -s {size} "$2"; {format} "$2"; mount -o loop,{options} "$2" "$1""#))
    }

    fn mounted(area: &Area, script: &str) -> Self {
        let path = area.path("disk");
        dir(&path);
        sh(script, &[&path, &area.path("image")]);
        for name in ["upper", "work"] {
            dir(&path.join(name));
            std::fs::remove_dir(area.path(name)).unwrap();
            symlink(path.join(name), area.path(name)).unwrap();
        }
        Disk(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_reaches_the_program_and_leaves_the_tree_as_it_was() {
    if !is_root("a_full_disk_reaches_the_program_and_leaves_the_tree_as_it_was") {
        return;
    }
    each(|area| {
        area.kernel_differs();
        file(&area.lower("medium"), 2 << 20);
        file(&area.lower("large"), 8 << 20);
        file(&area.lower("small"), 1000);
        dir(&area.lower("d"));
        let disk = Disk::tmpfs(area, "3m");
        area.mount();
        file(&area.m("filler"), 2 << 20);
        let before = Tree::of(&area.m(""));
        let opened = std::fs::OpenOptions::new().write(true).open(area.m("medium"));
        assert_eq!(opened.errno(), libc::ENOSPC);
        before.assert_same(&Tree::of(&area.m("")), "after ENOSPC", Compare::All);
        // A large one is written until nothing fits any more; what was said to be written is there.
        let large = open_rw(&area.m("large"));
        let mut written = 0;
        let errno = loop {
            match large.write_at(&[b'!'; 65536], written) {
                Ok(count) => written += count as u64,
                Err(error) => break error.raw_os_error().unwrap(),
            }
        };
        assert_eq!(errno, libc::ENOSPC);
        drop(large);
        let mut expected = pattern(8 << 20);
        expected[..written as usize].fill(b'!');
        assert!(std::fs::read(area.m("large")).unwrap() == expected);
        std::fs::remove_file(area.m("filler")).unwrap();
        std::fs::remove_file(area.m("large")).unwrap();
        open_rw(&area.m("medium")).write_all_at(b"fits now", 0).unwrap();
        assert!(std::fs::read(area.m("medium")).unwrap().starts_with(b"fits now"));
        std::fs::remove_file(area.m("medium")).unwrap();
        area.unmount();
        drop(disk);
        area.forget();
    });
}

#[test]
fn a_disk_without_inodes_leaves_the_tree_as_it_was() {
    if !is_root("a_disk_without_inodes_leaves_the_tree_as_it_was") {
        return;
    }
    each(|area| {
        dir(&area.lower("d/sub"));
        put(&area.lower("d/sub/f"), "x");
        put(&area.lower("g"), "x");
        let disk = Disk::tmpfs(area, "10m,nr_inodes=40");
        area.mount();
        let mut made = 0;
        while std::fs::write(area.m(&format!("n{made}")), b"").is_ok() {
            made += 1;
        }
        let before = Tree::of(&area.m(""));
        assert_eq!(std::fs::create_dir(area.m("d/sub/new")).errno(), libc::ENOSPC);
        assert_eq!(
            std::fs::set_permissions(area.m("d/sub/f"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).errno(),
            libc::ENOSPC
        );
        assert_eq!(std::fs::rename(area.m("d"), area.m("e")).errno(), libc::ENOSPC);
        assert_eq!(std::fs::remove_file(area.m("g")).errno(), libc::ENOSPC, "a whiteout needs an inode");
        before.assert_same(&Tree::of(&area.m("")), "after ENOSPC", Compare::All);
        for index in 0..made {
            std::fs::remove_file(area.m(&format!("n{index}"))).unwrap();
        }
        std::fs::rename(area.m("d"), area.m("e")).unwrap();
        std::fs::remove_file(area.m("g")).unwrap();
        assert_eq!((names(&area.m("")), text(&area.m("e/sub/f"))), (vec!["e".to_owned()], "x".to_owned()));
        area.unmount();
        drop(disk);
        area.forget();
    });
}

#[test]
fn a_workdir_on_another_filesystem_is_refused_in_one_line() {
    if !is_root("a_workdir_on_another_filesystem_is_refused_in_one_line") {
        return;
    }
    once(Way::Passthrough, |area| {
        let path = area.path("disk");
        dir(&path);
        sh(r#"mount -t tmpfs tmpfs "$1""#, &[&path]);
        let disk = Disk(path);
        dir(&area.path("disk/work"));
        let said = area.refusal("upper", "disk/work");
        assert!(said.lines().count() == 1 && said.contains("is not on the filesystem of upperdir"), "{said}");
        drop(disk);
    });
}

/// As for every mount of the kernel's overlayfs: the daemon's privilege is not its clients'.
#[test]
fn a_privilege_over_quotas_and_reserved_space_is_not_used() {
    if !is_root("a_privilege_over_quotas_and_reserved_space_is_not_used") {
        return;
    }
    each(|area| {
        area.kernel_differs();
        // Half of it is for one user, and for those who have CAP_SYS_RESOURCE.
        let disk = Disk::image(area, "32M", "mkfs.ext4 -q -m 50 -O ^has_journal", "nodelalloc,resuid=4243");
        area.mount();
        chmod(&area.m(""), 0o777);
        let mut fill = Command::new("sh");
        fill.arg("-c").arg(r#"head -c 40000000 /dev/zero > "$1/f""#).arg("sh").arg(area.m("")).uid(4242).gid(4242);
        let output = fill.output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{output:?}");
        let size = meta(area.m("f")).len();
        assert!((4 << 20..20 << 20).contains(&size), "{size} bytes of 32 MiB, half of them reserved");
        area.unmount();
        drop(disk);
        area.forget();
    });
}

#[test]
fn a_quota_reaches_the_program_and_leaves_the_tree_as_it_was() {
    if !is_root("a_quota_reaches_the_program_and_leaves_the_tree_as_it_was") {
        return;
    }
    if Command::new("mkfs.btrfs").arg("--version").output().is_err() {
        assert!(std::env::var_os("PLYFS_TEST_NO_SKIPS").is_none(), "there is no mkfs.btrfs (install btrfs-progs)");
        eprintln!("a_quota_reaches_the_program_and_leaves_the_tree_as_it_was: skipped: there is no mkfs.btrfs");
        return;
    }
    once(Way::Served, quota);
    once(Way::Passthrough, quota);
}

fn quota(area: &Area) {
    area.kernel_differs();
    file(&area.lower("big"), 3 << 20);
    put(&area.lower("small"), "small");
    let disk = Disk::image(area, "128M", "mkfs.btrfs -q", "rw");
    sh(r#"btrfs quota enable "$1"; btrfs qgroup limit 4M "$1"; sync -f "$1""#, &[&area.path("disk")]);
    area.mount();
    let filler = std::fs::File::create(area.m("filler")).unwrap();
    // Past the daemon or through it, at the write or at the latest when it is synced.
    let errno = (0..64).find_map(|index| match filler.write_all_at(&[b'x'; 131_072], index * 131_072) {
        Ok(()) => filler.sync_all().err(),
        Err(error) => Some(error),
    });
    assert_eq!(errno.and_then(|error| error.raw_os_error()), Some(libc::EDQUOT));
    let before = Tree::of(&area.m(""));
    // The first write copies all of a file of this size, when it is opened.
    assert_eq!(std::fs::OpenOptions::new().write(true).open(area.m("big")).errno(), libc::EDQUOT);
    before.assert_same(&Tree::of(&area.m("")), "after EDQUOT", Compare::All);
    assert!(std::fs::read(area.m("big")).unwrap() == pattern(3 << 20));
    drop(filler);
    std::fs::remove_file(area.m("filler")).unwrap();
    sh(r#"sync -f "$1""#, &[&area.path("disk")]);
    open_rw(&area.m("big")).write_all_at(b"fits now", 0).unwrap();
    assert!(std::fs::read(area.m("big")).unwrap().starts_with(b"fits now"));
    area.unmount();
    drop(disk);
    area.forget();
}

#[test]
fn a_broken_disk_reaches_the_program_and_leaves_the_tree_as_it_was() {
    if !is_root("a_broken_disk_reaches_the_program_and_leaves_the_tree_as_it_was") {
        return;
    }
    each(|area| {
        area.kernel_differs();
        area.disk_fails();
        file(&area.lower("big"), 3 << 20);
        put(&area.lower("small"), "small");
        let disk = Disk::image(area, "64M", "mkfs.ext4 -q -b 4096 -O ^has_journal", "rw");
        // All that is written from now on lies behind this, where there will be no disk.
        sh(r#"fallocate -l 30M "$1/filler"; sync -f "$1""#, &[&area.path("disk")]);
        area.mount();
        put(&area.m("born"), "was there");
        open(&area.m("born")).sync_all().unwrap();
        let before = Tree::of(&area.m(""));
        let device = sh(r#"findmnt -no SOURCE "$1""#, &[&area.path("disk")]);
        let resize = |size: &str| {
            sh(&format!(r#"truncate -s {size} "$1"; losetup -c {}"#, device.trim()), &[&area.path("image")])
        };
        resize("24M");
        // A copy of this size is synced before it takes the name.
        assert_eq!(std::fs::OpenOptions::new().write(true).open(area.m("big")).errno(), libc::EIO);
        before.assert_same(&Tree::of(&area.m("")), "after EIO", Compare::All);
        // A new file is written to memory: its sync tells.
        let born = open_rw(&area.m("born"));
        born.write_all_at(&[b'x'; 100_000], 0).unwrap();
        assert_eq!(born.sync_all().errno(), libc::EIO);
        drop(born);
        resize("64M");
        open_rw(&area.m("big")).write_all_at(b"works again", 0).unwrap();
        let mut expected = pattern(3 << 20);
        expected[..11].copy_from_slice(b"works again");
        assert!(std::fs::read(area.m("big")).unwrap() == expected);
        area.unmount();
        drop(disk);
        area.forget();
    });
}
