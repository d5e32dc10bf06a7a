//! Which process serves a mount, told so that a later process with the same number is not taken for it.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process, for all time: its number, when it started, and in which boot of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks after the boot (proc(5), `/proc/PID/stat`, field 22).
    pub started: u64,
    /// The boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
}

impl Process {
    /// Returns the process with this number; `None` if there is none.
    pub fn running(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; what counts follows the last one.
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        (state != "Z" && state != "X").then_some(Process { pid, started, boot })
    }

    /// Returns this process.
    pub fn own() -> Option<Self> {
        Process::running(std::process::id())
    }

    /// Tells whether it still runs.
    pub fn is_alive(&self) -> bool {
        Process::running(self.pid).is_some_and(|running| running == *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let own = Process::own().unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own.clone() }.is_alive());
        assert!(!Process { boot: "x".into(), ..own }.is_alive());
        assert_eq!(Process::running(u32::MAX), None);
    }
}
