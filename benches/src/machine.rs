//! What the machine is, and what may be done to it.

use std::fs::{self, OpenOptions};
use std::io;
use std::num::NonZero;
use std::path::Path;

use serde::Serialize;

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// What a reader of a report has to know of the machine. No names: reports are sent to colleagues.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// Processors that may be used.
    pub processors: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// The filesystem of the scratch directory.
    pub filesystem: String,
    /// As whom it ran.
    pub user: &'static str,
    /// The load average at the beginning: work that was not ours.
    pub load: f64,
}

impl Machine {
    /// Looks at the machine; `dir` is where the layers will lie.
    pub(crate) fn look(dir: &Path) -> Self {
        Machine {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processors: std::thread::available_parallelism().map_or(1, NonZero::get),
            memory: meminfo("MemTotal:"),
            filesystem: filesystem(dir),
            user: user(),
            load: load(),
        }
    }
}

/// Returns how many processes were running or waiting for a processor, on average over the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or_default()
}

/// Tells whether all user IDs are the host's: else this is a user namespace.
pub(crate) fn is_host_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn user() -> &'static str {
    match (rustix::process::geteuid().is_root(), is_host_namespace()) {
        (true, true) => "root",
        (true, false) => "root of a user namespace",
        (false, _) => "an ordinary user",
    }
}

fn filesystem(dir: &Path) -> String {
    let Ok(found) = rustix::fs::statfs(dir) else { return "unknown".into() };
    // linux/magic.h
    match found.f_type as u64 {
        0xef53 => "ext4".into(),
        0x5846_5342 => "xfs".into(),
        0x9123_683e => "btrfs".into(),
        0x0102_1994 => "tmpfs".into(),
        0x794c_7630 => "overlayfs".into(),
        0x2fc1_2fc1 => "zfs".into(),
        0xf2f5_2010 => "f2fs".into(),
        other => format!("{other:#x}"),
    }
}

fn meminfo(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() * 1024
}

/// Returns how much of files is held in memory, in bytes.
pub(crate) fn page_cache() -> u64 {
    meminfo("Cached:")
}

/// What can be done to the kernel's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caches {
    /// They can be emptied.
    Drop,
    /// They stay as they are.
    Stay,
}

impl Caches {
    /// Finds out what we may do.
    pub(crate) fn allowed() -> Self {
        match OpenOptions::new().write(true).open(DROP_CACHES) {
            Ok(_) => Caches::Drop,
            Err(_) => Caches::Stay,
        }
    }
}

/// Empties the page cache and the caches of names and inodes. Unwritten data stays in them: sync first.
///
/// # Errors
/// `EACCES` for all but root on the host.
pub(crate) fn drop_caches() -> io::Result<()> {
    fs::write(DROP_CACHES, "3")
}

/// Returns the processor time of children that have ended, in seconds, to 10 ms.
pub(crate) fn children_time() -> f64 {
    // proc_pid_stat(5): fields 16 and 17, in ticks of 1/100 s on every Linux; the name in field 2 may hold blanks.
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |field: usize| fields.split_whitespace().nth(field - 3).and_then(|text| text.parse::<u64>().ok());
    (ticks(16).unwrap_or_default() + ticks(17).unwrap_or_default()) as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_what_it_is() {
        let machine = Machine::look(Path::new("/"));
        assert!(machine.processors > 0 && machine.memory > 0 && !machine.kernel.is_empty());
        assert!(page_cache() > 0);
        assert!(children_time() >= 0.0);
    }
}
