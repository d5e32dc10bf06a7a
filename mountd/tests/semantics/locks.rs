//! Locks and watches over a copy-up.

use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock, inotify};

use crate::area::{Way, each, once, retry, wait_until};
use crate::tree::*;

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

fn ofd_lock(file: &std::fs::File, start: i64, len: i64) -> i32 {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, start, len))).err().map_or(0, |error| error as i32)
}

#[test]
fn flock_holds_over_the_copy_up_of_a_small_file() {
    each(|area| {
        put(&area.lower("f"), "content");
        area.mount();
        let holder = open(&area.m("f"));
        flock(&holder, FlockOperation::LockExclusive).unwrap();
        let other = open_rw(&area.m("f"));
        assert_eq!(flock(&other, FlockOperation::NonBlockingLockExclusive).errno(), libc::EWOULDBLOCK);
        other.write_all_at(b"C", 0).unwrap();
        let third = open(&area.m("f"));
        assert_eq!(flock(&third, FlockOperation::NonBlockingLockShared).errno(), libc::EWOULDBLOCK);
        drop(holder);
        // A program that another test starts holds all descriptors for a moment.
        retry("flock", || flock(&third, FlockOperation::NonBlockingLockShared));
    });
}

#[test]
fn record_locks_hold_over_the_copy_up_of_a_small_file() {
    each(|area| {
        put(&area.lower("f"), "content");
        area.mount();
        let (one, two) = (open_rw(&area.m("f")), open_rw(&area.m("f")));
        assert_eq!(ofd_lock(&one, 0, 4), 0);
        assert_eq!((ofd_lock(&two, 0, 1), ofd_lock(&two, 4, 4)), (libc::EAGAIN, 0));
        one.write_all_at(b"C", 0).unwrap();
        let three = open_rw(&area.m("f"));
        assert_eq!(
            (ofd_lock(&three, 3, 1), ofd_lock(&three, 5, 1), ofd_lock(&three, 100, 1)),
            (libc::EAGAIN, libc::EAGAIN, 0)
        );
        drop(one);
        wait_until("the lock is free", || ofd_lock(&three, 0, 4) == 0);
    });
}

#[test]
fn a_record_lock_of_a_reader_holds_over_the_copy_up_of_a_small_file() {
    each(|area| {
        put(&area.lower("f"), "content");
        area.mount();
        let reader = open(&area.m("f"));
        fcntl(&reader, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, 0, 0))).unwrap();
        let writer = open_rw(&area.m("f"));
        writer.write_all_at(b"C", 0).unwrap();
        assert_eq!(ofd_lock(&writer, 0, 1), libc::EAGAIN);
        // The locks of a process (fcntl) and of a description meet.
        assert_eq!(fcntl(&writer, FcntlArg::F_SETLK(&range(libc::F_WRLCK, 0, 0))), Err(nix::errno::Errno::EAGAIN));
        drop(reader);
        retry("fcntl", || fcntl(&writer, FcntlArg::F_SETLK(&range(libc::F_WRLCK, 0, 0))));
    });
}

#[test]
fn locks_of_a_written_large_file_hold() {
    each(|area| {
        file(&area.lower("f"), 8 << 20);
        area.mount();
        let (one, two) = (open_rw(&area.m("f")), open_rw(&area.m("f")));
        flock(&one, FlockOperation::LockExclusive).unwrap();
        one.write_all_at(b"x", 0).unwrap();
        assert_eq!(flock(&two, FlockOperation::NonBlockingLockExclusive).errno(), libc::EWOULDBLOCK);
        let reader = open(&area.m("f"));
        assert_eq!(flock(&reader, FlockOperation::NonBlockingLockShared).errno(), libc::EWOULDBLOCK);
    });
}

#[test]
fn locks_of_a_reader_of_a_large_file_stay_with_the_old_file_under_passthrough() {
    once(Way::Passthrough, |area| {
        area.d_ino_may_differ();
        file(&area.lower("f"), 200_000);
        area.mount();
        let reader = open(&area.m("f"));
        flock(&reader, FlockOperation::LockExclusive).unwrap();
        // The copy is another inode to the kernel: its locks are its own.
        let writer = open_rw(&area.m("f"));
        flock(&writer, FlockOperation::NonBlockingLockExclusive).unwrap();
    });
    once(Way::Served, |area| {
        file(&area.lower("f"), 200_000);
        area.mount();
        let reader = open(&area.m("f"));
        flock(&reader, FlockOperation::LockExclusive).unwrap();
        let writer = open_rw(&area.m("f"));
        assert_eq!(flock(&writer, FlockOperation::NonBlockingLockExclusive).errno(), libc::EWOULDBLOCK);
    });
}

/// What a watch saw, by bits.
fn events(watch: &impl std::os::fd::AsFd) -> inotify::ReadFlags {
    let mut seen = inotify::ReadFlags::empty();
    let mut buf = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut buf);
    loop {
        match reader.next() {
            Ok(event) => seen |= event.events(),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                return seen;
            }
        }
    }
}

fn watch(path: &Path) -> std::os::fd::OwnedFd {
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, path, inotify::WatchFlags::ALL_EVENTS).unwrap();
    watch
}

#[test]
fn a_watch_of_a_small_file_sees_what_happens_after_its_copy_up() {
    each(|area| {
        put(&area.lower("f"), "content");
        area.mount();
        let watch = watch(&area.m("f"));
        open_rw(&area.m("f")).write_all_at(b"C", 0).unwrap();
        assert!(events(&watch).contains(inotify::ReadFlags::MODIFY | inotify::ReadFlags::CLOSE_WRITE));
        open_rw(&area.m("f")).write_all_at(b"D", 0).unwrap();
        assert!(events(&watch).contains(inotify::ReadFlags::MODIFY));
        chmod(&area.m("f"), 0o600);
        assert!(events(&watch).contains(inotify::ReadFlags::ATTRIB));
        std::fs::remove_file(area.m("f")).unwrap();
        assert!(events(&watch).contains(inotify::ReadFlags::DELETE_SELF));
    });
}

#[test]
fn a_watch_of_a_directory_sees_names_come_and_go() {
    each(|area| {
        dir(&area.lower("d"));
        put(&area.lower("d/f"), "x");
        area.mount();
        let watch = watch(&area.m("d"));
        put(&area.m("d/new"), "x");
        std::fs::rename(area.m("d/new"), area.m("d/renamed")).unwrap();
        std::fs::remove_file(area.m("d/f")).unwrap();
        let expected = inotify::ReadFlags::CREATE
            | inotify::ReadFlags::MOVED_FROM
            | inotify::ReadFlags::MOVED_TO
            | inotify::ReadFlags::DELETE;
        assert!(events(&watch).contains(expected));
    });
}

#[test]
fn a_watch_of_a_large_file_that_is_read_past_the_daemon_stays_with_the_old_file() {
    once(Way::Passthrough, |area| {
        area.d_ino_may_differ();
        file(&area.lower("f"), 200_000);
        area.mount();
        let _reader = open(&area.m("f"));
        let watch = watch(&area.m("f"));
        open_rw(&area.m("f")).write_all_at(b"x", 0).unwrap();
        assert!(!events(&watch).contains(inotify::ReadFlags::MODIFY));
    });
    once(Way::Served, |area| {
        file(&area.lower("f"), 200_000);
        area.mount();
        let _reader = open(&area.m("f"));
        let watch = watch(&area.m("f"));
        open_rw(&area.m("f")).write_all_at(b"x", 0).unwrap();
        assert!(events(&watch).contains(inotify::ReadFlags::MODIFY));
    });
}
