//! The processes behind a mount.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Who serves a mount.
#[derive(Debug)]
pub(super) enum Daemon {
    /// The kernel.
    None,
    /// Our daemon.
    Ours(mountd::Mounted),
    /// A program that stayed in the foreground.
    Child(Child),
    /// A program that went to the background: found by its command line.
    Background,
}

impl Daemon {
    /// Returns the ids of its processes.
    pub(super) fn pids(&self, mnt: &Path) -> Vec<u32> {
        match self {
            Daemon::None => Vec::new(),
            Daemon::Ours(mounted) => vec![mounted.pid()],
            Daemon::Child(child) => vec![child.id()],
            Daemon::Background => with_argument(mnt),
        }
    }

    /// Takes note of the end of a process that is our child.
    pub(super) fn reap(self) -> std::io::Result<()> {
        match self {
            Daemon::None | Daemon::Background => Ok(()),
            Daemon::Ours(mounted) => mounted.wait().map(drop),
            Daemon::Child(mut child) => child.wait().map(drop),
        }
    }
}

/// Finds the processes that have `mnt` as an argument.
fn with_argument(mnt: &Path) -> Vec<u32> {
    let wanted = mnt.as_os_str().as_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|&b| b == 0).any(|word| word == wanted))
    };
    pids.filter(has).collect()
}

/// Waits for the end of a process; tells whether it came in time.
pub(super) fn gone_within(pid: u32, time: Duration) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return true };
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    loop {
        match rustix::event::poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
