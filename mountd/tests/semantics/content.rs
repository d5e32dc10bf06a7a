//! The content of small files, which comes with their first open.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::area::{Area, each};
use crate::tree::*;

/// Much longer than a read from memory takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads while the daemon stands still; `None` if that needs the daemon.
fn read_alone(area: &Area, file: File, len: usize) -> Option<Vec<u8>> {
    let daemon = Pid::from_raw(area.daemon_pid() as i32).unwrap();
    kill_process(daemon, Signal::STOP).unwrap();
    let (send, receive) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let read = at(&file, 0, len);
        send.send(read).unwrap();
        file
    });
    let read = receive.recv_timeout(PATIENCE).ok();
    kill_process(daemon, Signal::CONT).unwrap();
    drop(reader.join().unwrap());
    read
}

#[test]
fn a_small_file_is_read_without_the_daemon_once_it_is_open() {
    each(|area| {
        for len in [1, 4096, 5000, 65_535] {
            file(&area.lower(&len.to_string()), len);
        }
        area.mount();
        for len in [1, 4096, 5000, 65_535] {
            let reader = open(&area.m(&len.to_string()));
            assert!(read_alone(area, reader, len) == Some(pattern(len)), "{len} bytes");
        }
    });
}

#[test]
fn what_came_with_an_open_gives_way_to_what_is_written() {
    each(|area| {
        for name in ["rewritten", "cut", "longer", "swapped"] {
            file(&area.lower(name), 5000);
        }
        area.mount();
        let readers: Vec<_> = ["rewritten", "cut", "longer"].iter().map(|name| open(&area.m(name))).collect();
        open_rw(&area.m("rewritten")).write_all_at(b"new", 4096).unwrap();
        open_rw(&area.m("cut")).set_len(10).unwrap();
        open_rw(&area.m("longer")).write_all_at(b"end", 9000).unwrap();
        put(&area.m("other"), "other");
        std::fs::rename(area.m("other"), area.m("swapped")).unwrap();
        let mut rewritten = pattern(5000);
        rewritten[4096..4099].copy_from_slice(b"new");
        let mut longer = pattern(5000);
        longer.resize(9000, 0);
        longer.extend(b"end");
        for (reader, (name, content)) in
            readers.iter().zip([("rewritten", rewritten), ("cut", pattern(5000)[..10].to_vec()), ("longer", longer)])
        {
            assert!(at(reader, 0, content.len()) == content, "{name} by an old reader");
            assert!(std::fs::read(area.m(name)).unwrap() == content, "{name}");
        }
        assert_eq!(text(&area.m("swapped")), "other");
    });
}

#[test]
fn readers_and_writers_of_one_small_file_side_by_side_never_see_old_content_again() {
    each(|area| {
        for n in 0..64 {
            put(&area.lower(&format!("f{n}")), "old content of a small file");
        }
        area.mount();
        for n in 0..64 {
            let path = area.m(&format!("f{n}"));
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        let seen = text(&path);
                        assert!(["old content of a small file", "", "new"].contains(&&*seen), "{seen:?}");
                    });
                }
                scope.spawn(|| put(&path, "new"));
            });
            assert_eq!(text(&path), "new");
            assert_eq!(meta(&path).len(), 3);
        }
    });
}

#[test]
fn who_opened_past_the_cache_first_reads_through_it_while_others_open() {
    each(|area| {
        let names: Vec<String> = (0..200).map(|n| format!("f{n}")).collect();
        names.iter().for_each(|name| file(&area.lower(name), 5000));
        area.mount();
        for name in names {
            let path = area.m(&name);
            let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
            rustix::fs::fcntl_setfl(&direct, rustix::fs::OFlags::empty()).unwrap();
            let (send, receive) = mpsc::channel();
            let second = send.clone();
            // Not in a scope: two that wait for each other would never come back to it.
            std::thread::spawn(move || send.send(at(&direct, 0, 5000)));
            std::thread::spawn(move || second.send(std::fs::read(path).unwrap()));
            for _ in 0..2 {
                let Ok(read) = receive.recv_timeout(PATIENCE) else {
                    // Daemon and reader wait for each other in the kernel: only the end of the connection parts them (it is
                    // busy all the same).
                    rustix::mount::unmount(area.m(""), rustix::mount::UnmountFlags::FORCE).ok();
                    panic!("{name}: no answer");
                };
                assert!(read == pattern(5000), "{name}");
            }
        }
    });
}
