//! A mount for the time of a measurement; it is taken away whatever happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mountd::mount::Unmount;

use super::Place;
use super::daemon::{self, Daemon};
use crate::scratch;

/// How long a daemon may take to leave after the unmount.
const PATIENCE: Duration = Duration::from_secs(120);

/// A mounted stack.
pub(crate) struct Mounted {
    root: PathBuf,
    place: Place,
    /// `None` once it has been taken away.
    daemon: Option<Daemon>,
    is_plain: bool,
    pids: Vec<u32>,
}

/// What the processes of a mount take, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// All pages that are present.
    pub(crate) resident: u64,
    /// The same, where a page that n processes share counts as 1/n.
    pub(crate) proportional: u64,
}

impl Mounted {
    pub(super) fn plain(root: PathBuf, place: Place) -> Self {
        Mounted { root, place, daemon: None, is_plain: true, pids: Vec::new() }
    }

    pub(super) fn new(place: Place, daemon: Daemon) -> Self {
        Mounted { root: place.mnt.clone(), place, daemon: Some(daemon), is_plain: false, pids: Vec::new() }
    }

    /// Returns the directory to work in.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Tells whether the changes stay in the layers themselves.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Returns what the changes take on the disk, in bytes; what the daemon holds back is not written yet.
    pub(crate) fn disk(&self) -> Result<u64> {
        Ok(scratch::disk_use(&self.place.upper)? + scratch::disk_use(&self.place.work)?)
    }

    /// Looks for the daemon's processes, so that [`Mounted::unmount`] need not.
    pub(crate) fn find_daemon(&mut self) {
        if let Some(daemon) = self.daemon.as_ref().filter(|_| self.pids.is_empty()) {
            self.pids = daemon.pids(&self.root);
        }
    }

    /// Returns what the daemon takes; nothing where there is none.
    pub(crate) fn memory(&mut self) -> Result<Memory> {
        self.find_daemon();
        self.pids.iter().try_fold(Memory::default(), |sum, pid| {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = fs::read_to_string(&path).with_context(|| path.clone())?;
            let field = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() * 1024
            };
            Ok(Memory { resident: sum.resident + field("Rss:"), proportional: sum.proportional + field("Pss:") })
        })
    }

    /// Unmounts, and returns when the daemon is gone too.
    pub(crate) fn unmount(&mut self) -> Result<()> {
        self.find_daemon();
        let Some(daemon) = self.daemon.take() else { return Ok(()) };
        let done = mountd::mount::unmount(&self.root, Unmount::WhenIdle);
        if done.is_err() {
            mountd::mount::unmount(&self.root, Unmount::Lazily)?;
        }
        for pid in &self.pids {
            if !daemon::gone_within(*pid, PATIENCE) {
                let pid = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw);
                pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL)).transpose()?;
                daemon.reap()?;
                bail!("the daemon did not leave within {} s after the unmount", PATIENCE.as_secs());
            }
        }
        daemon.reap()?;
        Ok(done?)
    }

    /// Unmounts, and removes what was written.
    pub(crate) fn end(mut self) -> Result<()> {
        self.unmount()?;
        scratch::remove_tree(&self.place.dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After an error: what cannot be taken away now, the scratch directory's guard tries once more and tells.
        self.unmount().ok();
        scratch::remove_tree(&self.place.dir).ok();
    }
}
