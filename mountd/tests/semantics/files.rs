//! Open files: those without a name, those that two programs have open, flags of open(2).

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use crate::area::each;
use crate::tree::*;

#[test]
fn an_unlinked_file_that_is_open_works_fully() {
    each(|area| {
        for (name, len) in [("small", 1000), ("medium", 100_000), ("large", 8 << 20)] {
            file(&area.lower(name), len);
        }
        area.mount();
        put(&area.m("born"), "born in the upper");
        for name in ["small", "medium", "large", "born"] {
            let file = open_rw(&area.m(name));
            let before = file.metadata().unwrap();
            std::fs::remove_file(area.m(name)).unwrap();
            assert!(!exists(&area.m(name)));
            let after = file.metadata().unwrap();
            assert_eq!((after.nlink(), after.len(), after.ino()), (0, before.len(), before.ino()), "{name}");
            file.write_all_at(b"written", 3).unwrap();
            assert_eq!(at(&file, 3, 7), b"written", "{name}");
            file.set_len(5).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 5, "{name}");
            file.set_len(8).unwrap();
            assert_eq!(at(&file, 3, 100), b"wr\0\0\0", "{name}");
            let mut copy = &file;
            assert_eq!(std::io::Seek::seek(&mut copy, std::io::SeekFrom::End(0)).unwrap(), 8, "{name}");
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 5000).unwrap();
            assert_eq!((file.metadata().unwrap().len(), at(&file, 4, 5000).len()), (5000, 4996), "{name}");
            let to = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(area.m("copy")).unwrap();
            let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &to, Some(&mut 2), 5).unwrap();
            assert_eq!(
                (copied, at(&to, 0, 100)),
                (5, b"\0\0".iter().chain(&at(&file, 0, 5)).copied().collect()),
                "{name}"
            );
            std::fs::remove_file(area.m("copy")).unwrap();
            file.sync_all().unwrap();
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
            assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640, "{name}");
        }
    });
}

#[test]
fn an_unlinked_file_that_is_open_for_reading_keeps_its_bytes() {
    each(|area| {
        for (name, len) in [("small", 1000), ("medium", 100_000), ("large", 8 << 20)] {
            file(&area.lower(name), len);
        }
        area.mount();
        for (name, len) in [("small", 1000), ("medium", 100_000), ("large", 8 << 20)] {
            let file = open(&area.m(name));
            std::fs::remove_file(area.m(name)).unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0, "{name}");
            put(&area.m(name), "a new one");
            assert_eq!(at(&file, 0, len), pattern(len), "{name}");
            assert_eq!(text(&area.m(name)), "a new one");
            assert_ne!(file.metadata().unwrap().ino(), 0);
        }
    });
}

#[test]
fn a_link_to_a_file_without_a_name_is_refused() {
    each(|area| {
        put(&area.lower("below"), "x");
        area.mount();
        put(&area.m("born"), "x");
        for name in ["below", "born"] {
            let file = open(&area.m(name));
            std::fs::remove_file(area.m(name)).unwrap();
            let done = link_by_descriptor(&file, &area.m("back"));
            assert_eq!(done.errno(), libc::ENOENT, "{name}");
        }
        assert_eq!(names(&area.m("")), Vec::<String>::new());
    });
}

fn link_by_descriptor(file: &std::fs::File, to: &std::path::Path) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(rustix::fs::CWD, path, rustix::fs::CWD, to, rustix::fs::AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn a_link_by_descriptor_to_a_file_with_a_name_works() {
    each(|area| {
        put(&area.lower("below"), "x");
        area.mount();
        link_by_descriptor(&open(&area.m("below")), &area.m("other")).unwrap();
        assert_eq!((meta(area.m("below")).nlink(), meta(area.m("other")).nlink()), (2, 2));
        assert_eq!(text(&area.m("other")), "x");
    });
}

#[test]
fn xattrs_of_an_unlinked_file_that_is_open_work() {
    each(|area| {
        put(&area.lower("f"), "x");
        set_xattr(&area.lower("f"), "user.old", b"1").unwrap();
        area.mount();
        let file = open(&area.m("f"));
        std::fs::remove_file(area.m("f")).unwrap();
        let mut buf = [0; 10];
        assert_eq!(rustix::fs::fgetxattr(&file, "user.old", &mut buf[..]).unwrap(), 1);
        rustix::fs::fsetxattr(&file, "user.new", b"22", rustix::fs::XattrFlags::empty()).unwrap();
        assert_eq!(rustix::fs::fgetxattr(&file, "user.new", &mut buf[..]).unwrap(), 2);
        assert_eq!(rustix::fs::fgetxattr(&file, "user.none", &mut buf[..]).errno(), libc::ENODATA);
    });
}

#[test]
fn a_reader_of_a_small_file_sees_what_a_writer_writes() {
    each(|area| {
        for (name, len) in [("small", 1000), ("almost", 65_535)] {
            file(&area.lower(name), len);
        }
        area.mount();
        for name in ["small", "almost"] {
            let reader = open(&area.m(name));
            assert_eq!(at(&reader, 0, 3), pattern(3));
            let writer = open_rw(&area.m(name));
            assert_eq!(at(&reader, 0, 3), pattern(3));
            writer.write_all_at(b"new", 0).unwrap();
            assert_eq!(at(&reader, 0, 3), b"new", "{name}");
            writer.set_len(2).unwrap();
            assert_eq!((reader.metadata().unwrap().len(), at(&reader, 0, 10)), (2, b"ne".to_vec()));
        }
    });
}

#[test]
fn appends_of_two_writers_do_not_overwrite_each_other() {
    each(|area| {
        put(&area.lower("log"), "0\n");
        area.mount();
        let open = || std::fs::OpenOptions::new().append(true).open(area.m("log")).unwrap();
        let (mut one, mut two) = (open(), open());
        for round in 0..20 {
            writeln!(one, "a{round}").unwrap();
            writeln!(two, "b{round}").unwrap();
        }
        let lines: Vec<_> = text(&area.m("log")).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 41);
        assert_eq!((&*lines[0], &*lines[1], &*lines[2], &*lines[40]), ("0", "a0", "b0", "b19"));
    });
}

#[test]
fn exclusive_creation_refuses_what_is_there() {
    each(|area| {
        put(&area.lower("below"), "x");
        put(&area.lower("hidden"), "x");
        std::os::unix::fs::symlink("nowhere", area.lower("link")).unwrap();
        area.mount();
        std::fs::remove_file(area.m("hidden")).unwrap();
        let create = |name: &str| std::fs::OpenOptions::new().write(true).create_new(true).open(area.m(name));
        assert_eq!(create("below").errno(), libc::EEXIST);
        assert_eq!(create("link").errno(), libc::EEXIST);
        create("hidden").unwrap();
        assert_eq!(create("hidden").errno(), libc::EEXIST);
        assert_eq!(meta(area.m("hidden")).len(), 0);
        create("new").unwrap();
    });
}

#[test]
fn flags_of_open_are_obeyed() {
    each(|area| {
        put(&area.lower("f"), "x");
        dir(&area.lower("d"));
        std::os::unix::fs::symlink("f", area.lower("l")).unwrap();
        area.mount();
        let open =
            |name: &str, flags: i32| std::fs::OpenOptions::new().read(true).custom_flags(flags).open(area.m(name));
        assert_eq!(open("l", libc::O_NOFOLLOW).errno(), libc::ELOOP);
        assert_eq!(open("f", libc::O_DIRECTORY).errno(), libc::ENOTDIR);
        assert_eq!(std::fs::OpenOptions::new().write(true).open(area.m("d")).errno(), libc::EISDIR);
        assert_eq!(open("f/x", 0).errno(), libc::ENOTDIR);
        assert_eq!(open("none", 0).errno(), libc::ENOENT);
    });
}

#[test]
fn direct_io_reads_and_writes() {
    each(|area| {
        for (name, len) in [("small", 4096), ("medium", 1 << 20), ("large", 8 << 20)] {
            file(&area.lower(name), len);
        }
        area.mount();
        for (name, len) in [("small", 4096), ("medium", 1 << 20), ("large", 8 << 20)] {
            sh(
                r#"dd if="$1" of="$2" bs=4096 iflag=direct status=none; dd if=/dev/zero of="$1" bs=4096 count=1 conv=notrunc oflag=direct status=none"#,
                &[&area.m(name), &area.path("copy")],
            );
            assert!(std::fs::read(area.path("copy")).unwrap() == pattern(len), "{name}");
            let mut expected = pattern(len);
            expected[..4096].fill(0);
            assert!(std::fs::read(area.m(name)).unwrap() == expected, "{name}");
        }
    });
}

#[test]
fn a_program_that_runs_cannot_be_written_and_a_written_one_cannot_run() {
    each(|area| {
        std::fs::copy(sh("command -v sleep", &[]).trim(), area.lower("sleep")).unwrap();
        area.mount();
        let mut child = std::process::Command::new(area.m("sleep")).arg("60").spawn().unwrap();
        let done = std::fs::OpenOptions::new().write(true).open(area.m("sleep"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(done.errno(), libc::ETXTBSY);
        let writer =
            crate::area::retry("open for writing", || std::fs::OpenOptions::new().append(true).open(area.m("sleep")));
        assert_eq!(std::process::Command::new(area.m("sleep")).arg("0").spawn().errno(), libc::ETXTBSY);
        drop(writer);
        let status = crate::area::retry("run it", || std::process::Command::new(area.m("sleep")).arg("0").status());
        assert!(status.success());
    });
}

/// The kernel asks us to open and cut, and only then refuses.
#[test]
fn a_program_that_runs_is_not_cut_by_an_open_for_reading() {
    each(|area| {
        std::fs::copy(sh("command -v sleep", &[]).trim(), area.lower("sleep")).unwrap();
        area.mount();
        std::fs::copy(area.m("sleep"), area.m("born")).unwrap();
        for name in ["sleep", "born"] {
            let (program, size) = (area.m(name), meta(area.m(name)).len());
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC;
            let mut child = crate::area::retry("run it", || std::process::Command::new(&program).arg("60").spawn());
            let cut = rustix::fs::open(&program, flags, rustix::fs::Mode::empty());
            let runs = child.try_wait().unwrap().is_none();
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!((cut.errno(), runs, meta(&program).len()), (libc::ETXTBSY, true, size), "{name}");
            crate::area::retry("cut it", || rustix::fs::open(&program, flags, rustix::fs::Mode::empty()));
            assert_eq!(meta(&program).len(), 0, "{name}");
        }
    });
}

#[test]
fn more_files_can_be_open_than_a_program_usually_may() {
    each(|area| {
        for index in 0..3000 {
            std::fs::write(area.lower(&format!("f{index}")), b"x").unwrap();
        }
        area.mount();
        sh(
            r#"ulimit -n 4096; exec python3 -c 'import sys
files = [open("%s/f%d" % (sys.argv[1], i), "r+b" if i % 2 else "rb") for i in range(3000)]
assert all(f.read() == b"x" for f in files)' "$1""#,
            &[&area.m("")],
        );
    });
}
