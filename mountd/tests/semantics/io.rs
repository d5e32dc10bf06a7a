//! Calls on file content beside read and write: sync, holes, allocation, copies, space.

use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::area::each;
use crate::tree::*;

#[test]
fn fsync_of_a_file_and_of_its_directory_works() {
    each(|area| {
        dir(&area.lower("d"));
        put(&area.lower("d/f"), "x");
        area.mount();
        let file = open_rw(&area.m("d/f"));
        file.write_all_at(b"y", 0).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        for name in ["", "d"] {
            rustix::fs::fsync(open_dir(&area.m(name))).unwrap();
        }
        open(&area.m("d/f")).sync_all().unwrap();
        rustix::fs::syncfs(open_dir(&area.m(""))).unwrap();
        drop(file);
        area.crash();
        assert_eq!(text(&area.m("d/f")), "y");
    });
}

#[test]
fn fsync_of_a_volatile_mount_works_every_time() {
    each(|area| {
        dir(&area.lower("d"));
        put(&area.lower("d/f"), "x");
        area.set_options("volatile");
        area.mount();
        let file = open_rw(&area.m("d/f"));
        for byte in [b"y", b"z"] {
            file.write_all_at(byte, 0).unwrap();
            file.sync_all().unwrap();
            file.sync_data().unwrap();
            rustix::fs::fsync(open_dir(&area.m("d"))).unwrap();
        }
        drop(file);
        area.remount();
        assert_eq!(text(&area.m("d/f")), "z");
    });
}

#[test]
fn space_is_that_of_the_upper() {
    each(|area| {
        area.mount();
        let (seen, below) =
            (rustix::fs::statvfs(area.m("")).unwrap(), rustix::fs::statvfs(area.path("upper")).unwrap());
        assert_eq!(
            (seen.f_blocks * seen.f_frsize, seen.f_files, seen.f_namemax),
            (below.f_blocks * below.f_frsize, below.f_files, 255)
        );
        assert!(seen.f_bavail > 0);
    });
}

#[test]
fn data_and_holes_are_found() {
    each(|area| {
        let make = |path: &std::path::Path| {
            let file = std::fs::File::create(path).unwrap();
            file.set_len(1 << 20).unwrap();
            file.write_all_at(&pattern(65536), 262_144).unwrap();
        };
        make(&area.lower("below"));
        area.mount();
        make(&area.m("above"));
        for name in ["below", "above"] {
            let (file, plain) =
                (open(&area.m(name)), open(&if name == "below" { area.lower(name) } else { area.upper(name) }));
            for offset in [0, 262_144, 300_000, 400_000, (1 << 20) - 1] {
                for find in [SeekFrom::Data, SeekFrom::Hole] {
                    assert_eq!(seek(&file, find(offset)), seek(&plain, find(offset)), "{name} {offset}");
                }
            }
            assert_eq!(seek(&file, SeekFrom::Data(1 << 20)), Err(Errno::NXIO));
            assert_eq!(seek(&file, SeekFrom::Hole((1 << 20) + 5)), Err(Errno::NXIO));
            assert_eq!(seek(&file, SeekFrom::End(-1)), Ok((1 << 20) - 1));
        }
    });
}

#[test]
fn fallocate_works_in_every_mode_that_the_upper_knows() {
    each(|area| {
        for name in ["below", "plain"] {
            file(&area.lower(name), 200_000);
        }
        area.mount();
        std::fs::copy(area.lower("plain"), area.path("plain")).unwrap();
        let (mount, plain) = (open_rw(&area.m("below")), open_rw(&area.path("plain")));
        let modes = [
            (FallocateFlags::empty(), 150_000, 100_000),
            (FallocateFlags::KEEP_SIZE, 300_000, 50_000),
            (FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 5000, 20_000),
            (FallocateFlags::ZERO_RANGE, 50_000, 30_000),
            (FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 240_000, 30_000),
        ];
        for (mode, offset, len) in modes {
            let (here, there) = (fallocate(&mount, mode, offset, len), fallocate(&plain, mode, offset, len));
            match here {
                // The kernel's FUSE itself passes only some modes on.
                Err(Errno::OPNOTSUPP) if there.is_err() => {}
                here => assert_eq!(here, there, "{mode:?}"),
            }
            assert_eq!(meta(area.m("below")).len(), meta(area.path("plain")).len(), "{mode:?}");
            assert!(std::fs::read(area.m("below")).unwrap() == std::fs::read(area.path("plain")).unwrap(), "{mode:?}");
        }
        for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            assert_eq!(fallocate(&mount, mode, 0, 4096), Err(Errno::OPNOTSUPP), "{mode:?}");
        }
    });
}

#[test]
fn copy_file_range_copies_between_any_two_files() {
    each(|area| {
        for (name, len) in [("small", 1000), ("medium", 200_000), ("large", 8 << 20)] {
            file(&area.lower(name), len);
        }
        area.mount();
        for (name, len) in [("small", 1000), ("medium", 200_000), ("large", 8 << 20)] {
            let (from, to) = (open(&area.m(name)), std::fs::File::create(area.m(&format!("{name}-copy"))).unwrap());
            let (mut from_at, mut to_at) = (10, 5);
            while from_at < len as u64 {
                let copied =
                    rustix::fs::copy_file_range(&from, Some(&mut from_at), &to, Some(&mut to_at), 1 << 20).unwrap();
                assert!(copied > 0);
            }
            drop(to);
            let mut expected = vec![0; 5];
            expected.extend_from_slice(&pattern(len)[10..]);
            assert!(std::fs::read(area.m(&format!("{name}-copy"))).unwrap() == expected, "{name}");
        }
        // Into the middle of a lower file, and from the upper.
        let (from, to) = (open(&area.m("small-copy")), open_rw(&area.m("medium")));
        let (mut from_at, mut to_at) = (5, 100_000);
        assert_eq!(rustix::fs::copy_file_range(&from, Some(&mut from_at), &to, Some(&mut to_at), 500).unwrap(), 500);
        drop(to);
        let mut expected = pattern(200_000);
        expected[100_000..100_500].copy_from_slice(&pattern(1000)[10..510]);
        assert!(std::fs::read(area.m("medium")).unwrap() == expected);
    });
}

#[test]
fn unnamed_temporary_files_are_not_to_be_had() {
    each(|area| {
        area.mount();
        let made = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(area.m(""));
        assert!(matches!(made.errno(), libc::EOPNOTSUPP | libc::ENOSYS));
        // tempfile falls back to a name that it removes.
        tempfile::tempfile_in(area.m("")).unwrap();
        assert_eq!(names(&area.m("")), Vec::<String>::new());
    });
}

#[test]
fn extents_and_inode_flags_are_not_told() {
    each(|area| {
        file(&area.lower("file"), 4096);
        area.mount();
        file(&area.m("born"), 4096);
        for name in ["file", "born"] {
            let said = sh(
                r#"exec python3 -c 'import errno, fcntl, sys
with open(sys.argv[1], "rb") as file:
    for request in (0xC020660B, 0x80086601):  # FS_IOC_FIEMAP, FS_IOC_GETFLAGS
        try:
            fcntl.ioctl(file, request, bytearray(64))
            print("told")
        except OSError as error:
            print(errno.errorcode[error.errno])' "$1""#,
                &[&area.m(name)],
            );
            assert_eq!(said, "ENOTSUP\nENOTTY\n", "{name}");
        }
    });
}

#[test]
fn a_sparse_file_of_the_upper_stays_sparse() {
    each(|area| {
        area.mount();
        let file = std::fs::File::create(area.m("f")).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"x", 1 << 29).unwrap();
        drop(file);
        assert_eq!(meta(area.m("f")).len(), 1 << 30);
        assert!(meta(area.m("f")).blocks() < 1000 && meta(area.upper("f")).blocks() < 1000);
    });
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    each(|area| {
        put(&area.lower("f"), "x");
        dir(&area.lower("d"));
        area.set_options("ro");
        area.mount();
        let m = |name: &str| area.m(name);
        let refused = [
            std::fs::write(m("new"), "x").errno(),
            std::fs::write(m("f"), "x").errno(),
            std::fs::remove_file(m("f")).errno(),
            std::fs::remove_dir(m("d")).errno(),
            std::fs::rename(m("f"), m("g")).errno(),
            std::fs::hard_link(m("f"), m("g")).errno(),
            std::fs::create_dir(m("e")).errno(),
            std::fs::set_permissions(m("f"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).errno(),
            set_xattr(&m("f"), "user.x", b"").errno(),
        ];
        assert_eq!(refused, [libc::EROFS; 9]);
        assert_eq!(text(&m("f")), "x");
    });
}

#[test]
fn a_busy_upper_is_refused_in_one_line() {
    each(|area| {
        put(&area.lower("f"), "x");
        area.mount();
        let said = area.refusal("upper", "work");
        assert!(said.lines().count() == 1 && said.contains("another mount uses it"), "{said}");
        assert_eq!(text(&area.m("f")), "x");
        put(&area.m("f"), "still works");
    });
}

#[test]
fn a_lower_directory_that_cannot_be_read_refuses_the_mount() {
    each(|area| {
        put(&area.lower("f"), "x");
        let second = area.add_lower("lower2");
        for broken in ["none", "file"] {
            std::fs::remove_dir(&second).or_else(|_| std::fs::remove_file(&second)).ok();
            if broken == "file" {
                put(&second, "not a directory");
            }
            let said = area.refusal("upper", "work");
            assert!(said.lines().count() == 1 && said.contains("lower2"), "{said}");
            assert_eq!(names(&area.path("refused")), Vec::<String>::new());
        }
    });
}
