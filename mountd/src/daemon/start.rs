//! The caller's side: starting a daemon and waiting until its mount answers.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::DAEMON_WORD;
use crate::failure::{Failure, errno_text};
use crate::mount::{Unmount, unmount};
use crate::options::{self, Call};

/// The longest report in bytes.
const REPORT_MAX: u64 = 64 << 10;

/// A mount that answers.
#[derive(Debug)]
pub struct Mounted {
    daemon: Child,
}

impl Mounted {
    /// Returns the daemon's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// Waits until the daemon has left; a process that outlives its daemons must, so that they can be gone.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn wait(mut self) -> std::io::Result<ExitStatus> {
        self.daemon.wait()
    }
}

/// Starts `exe` (`plyfs` or `plyfs-mountd`) as the daemon with these words, and waits until its mount answers.
///
/// The daemon lives on when the caller ends. See [`options::spell`] for how a path becomes an option.
///
/// # Errors
/// The daemon's one line; nothing is left mounted, and the daemon is gone.
pub fn spawn(exe: &Path, words: &[OsString]) -> Result<Mounted, Failure> {
    start(Command::new(exe), words)
}

/// Starts this very program as the daemon.
pub(crate) fn start_again(argv0: Option<&OsString>, words: &[OsString]) -> Result<Mounted, Failure> {
    let name = argv0.map_or(OsStr::new("plyfs-mountd"), OsString::as_os_str);
    let myself = Path::new("/proc/self/exe");
    let mut command = Command::new(if myself.exists() { myself } else { Path::new(name) });
    command.arg0(name);
    start(command, words)
}

fn start(mut command: Command, words: &[OsString]) -> Result<Mounted, Failure> {
    // What is wrong with the words needs no process to be told.
    let Call::Mount(options) = options::parse(words)? else {
        return Err(Failure::new("the daemon mounts, and does nothing else"));
    };
    command.arg(DAEMON_WORD).args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut daemon = command.spawn().map_err(|error| {
        Failure::new(format!("cannot start {}: {error}", Path::new(command.get_program()).display()))
    })?;
    let line = report(&mut daemon);
    match line.as_deref().map(|line| line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""))) {
        Some(("ready", device)) => match ask(&options.target, device) {
            Ok(()) => Ok(Mounted { daemon }),
            Err(failure) => {
                end(daemon);
                clear_dead_mount(&options.target)?;
                Err(failure)
            }
        },
        Some(("error", why)) => {
            // It is on its way out; whoever hears of the failure finds nothing of it left.
            daemon.wait().ok();
            Err(Failure::new(why))
        }
        _ => Err(died(daemon, &options.target)),
    }
}

/// Asks the mount for the first time, and makes sure that it is the one.
fn ask(target: &Path, device: &str) -> Result<(), Failure> {
    let on = |what: &dyn std::fmt::Display| Failure::new(format!("{}: {what}", target.display()));
    let stat = rustix::fs::stat(target)
        .map_err(|errno| on(&format_args!("the mount does not answer: {}", errno_text(errno))))?;
    if device.parse() == Ok(stat.st_dev) {
        Ok(())
    } else {
        Err(on(&"the mount is gone already, or covered by another"))
    }
}

/// Has a daemon take its mount away and leave.
fn end(mut daemon: Child) {
    if let Some(pid) = Pid::from_raw(daemon.id().cast_signed()) {
        // One that has ended already has done so.
        kill_process(pid, Signal::TERM).ok();
    }
    daemon.wait().ok();
}

fn report(daemon: &mut Child) -> Option<String> {
    let mut line = Vec::new();
    let output = daemon.stdout.take()?;
    // An error here is a daemon that said nothing.
    BufReader::new(output.take(REPORT_MAX)).read_until(b'\n', &mut line).ok()?;
    line.ends_with(b"\n").then(|| String::from_utf8_lossy(&line).into_owned())
}

/// Tells how a daemon ended that had no time to say why.
fn died(mut daemon: Child, target: &Path) -> Failure {
    let how = match daemon.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    match clear_dead_mount(target) {
        Ok(()) => Failure::new(format!("the daemon ended before the mount was ready ({how})")),
        Err(failure) => failure,
    }
}

/// Takes away what a daemon left that was killed.
fn clear_dead_mount(target: &Path) -> Result<(), Failure> {
    match rustix::fs::stat(target) {
        Err(Errno::NOTCONN) => unmount(target, Unmount::Lazily),
        _ => Ok(()),
    }
}
