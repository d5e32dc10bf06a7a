//! A user and mount namespace of one's own, where an ordinary user is root and may mount.
//!
//! A namespace can be entered only by a process with one thread, so this comes first in whatever needs it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{getgid, getuid};

use crate::cli::IdMap;

/// First arguments by which this program calls itself.
pub(crate) const PROBE: &str = "__probe-namespace";
pub(crate) const WRITE_MAP: &str = "__write-id-map";

/// Where FUSE mounts come from.
pub(crate) const FUSE_DEVICE: &str = "/dev/fuse";

/// A range of IDs that belongs to a user (subuid(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    count: u32,
}

/// Tells why a namespace with mounts in it cannot be had here; `None` when it can.
///
/// Tried in a child, because what a process enters it cannot leave.
pub(crate) fn obstacle() -> Option<String> {
    let output = Command::new("/proc/self/exe").arg(PROBE).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_string()),
        Err(error) => Some(format!("/proc/self/exe: {error}")),
    }
}

/// The child of [`obstacle`]: enters a namespace and changes its mounts.
pub(crate) fn probe() -> ExitCode {
    match enter(IdMap::Single) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Opens the FUSE device as a daemon would; fusermount3 does so with the user's rights as well.
pub(crate) fn open_fuse_device() -> Result<()> {
    let Err(error) = fs::OpenOptions::new().read(true).write(true).open(FUSE_DEVICE) else { return Ok(()) };
    let remedy = match error.kind() {
        ErrorKind::NotFound => {
            "; load the module (modprobe fuse), or give the container the device (--device /dev/fuse)"
        }
        ErrorKind::PermissionDenied => "; open it to users (chmod 666 /dev/fuse), or be root",
        _ => "",
    };
    bail!("{FUSE_DEVICE}: {}{remedy}", super::reason(&error))
}

/// Moves this process into a new user and mount namespace in which it is root.
///
/// # Errors
/// Without a right to do so, or when the IDs cannot be mapped; then the process is of no further use.
pub(crate) fn enter(map: IdMap) -> Result<()> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let ranges = match map {
        IdMap::Single => None,
        IdMap::Auto => ranges(uid).ok(),
        IdMap::Range => Some(ranges(uid)?),
    };
    let helper = ranges.map(|(uids, gids)| MapHelper::start(uid, gid, uids, gids)).transpose()?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| {
        anyhow!(
            "a user namespace: {}; {}",
            errno.desc(),
            "ask the administrator whether user namespaces are switched off"
        )
    })?;
    match helper {
        Some(helper) => helper.finish()?,
        None => map_single(uid, gid)?,
    }
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("mounts of the new namespace")?;
    Ok(())
}

/// Maps root inside to the user outside, and nobody else.
fn map_single(uid: u32, gid: u32) -> Result<()> {
    let write = |file: &str, text: String| fs::write(file, text).with_context(|| format!("user namespace: {file}"));
    write("/proc/self/setgroups", "deny".to_string())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Finds the user's ranges and the two programs that may map them.
fn ranges(uid: u32) -> Result<(Range, Range)> {
    for program in ["newuidmap", "newgidmap"] {
        if on_path(program).is_none() {
            bail!("{program}: not found; install the package uidmap");
        }
    }
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
    let find = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        subordinate(&text, uid, user.as_deref()).ok_or_else(|| {
            let name = user.clone().unwrap_or_else(|| uid.to_string());
            anyhow!("{file}: no range for user {name}; add the line '{name}:100000:65536'")
        })
    };
    Ok((find("/etc/subuid")?, find("/etc/subgid")?))
}

/// Finds the first range of a user, by name or number, in the text of /etc/subuid or /etc/subgid.
fn subordinate(text: &str, uid: u32, user: Option<&str>) -> Option<Range> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let (owner, start, count) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let mine = Some(owner) == user || owner.parse() == Ok(uid);
        (mine && count > 0).then_some(Range { start, count })
    })
}

/// Says which IDs a namespace of this user can have beside its own, or why none.
pub(crate) fn range_or_reason() -> String {
    match ranges(getuid().as_raw()) {
        Ok((uids, gids)) => {
            format!("{} users from {}, {} groups from {}", uids.count, uids.start, gids.count, gids.start)
        }
        Err(error) => format!("{error:#}"),
    }
}

/// Finds the program of that name.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}

/// A process that stays outside and writes the maps, because only there newuidmap has its power.
struct MapHelper(Child);

impl MapHelper {
    fn start(uid: u32, gid: u32, uids: Range, gids: Range) -> Result<Self> {
        let numbers = [std::process::id(), uid, uids.start, uids.count, gid, gids.start, gids.count];
        let child = Command::new("/proc/self/exe")
            .arg(WRITE_MAP)
            .args(numbers.map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("/proc/self/exe")?;
        Ok(MapHelper(child))
    }

    /// Lets the helper write, now that the namespace is there.
    fn finish(mut self) -> Result<()> {
        if let Some(mut stdin) = self.0.stdin.take() {
            stdin.write_all(b".").context("user namespace")?;
        }
        let output = self.0.wait_with_output().context("user namespace")?;
        match output.status.success() {
            true => Ok(()),
            false => bail!("user namespace: {}; try --map single", String::from_utf8_lossy(&output.stderr).trim()),
        }
    }
}

/// The helper process: waits for a byte, then maps root to the user and the ranges above it.
pub(crate) fn write_map(arguments: &[OsString]) -> ExitCode {
    let mut go = [0];
    if std::io::stdin().read_exact(&mut go).is_err() {
        return ExitCode::FAILURE; // The caller could not make its namespace and has said why.
    }
    let [pid, uid, first_uid, uids, gid, first_gid, gids] = arguments else {
        return ExitCode::FAILURE;
    };
    let one = OsStr::new("1");
    let map = |program: &str, id: &OsString, first: &OsString, count: &OsString| {
        let arguments = [pid, OsStr::new("0"), id, one, one, first, count];
        Command::new(program).args(arguments).stdin(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    match map("newuidmap", uid, first_uid, uids) && map("newgidmap", gid, first_gid, gids) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Starts `command` (or a shell) in the namespace that this process has entered.
pub(crate) fn start(command: &[OsString], root: &Path) -> Result<Child> {
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    let (program, arguments) = match command.split_first() {
        Some((program, arguments)) => (program, arguments),
        None => (&shell, &[][..]),
    };
    Command::new(program)
        .args(arguments)
        .env("PLYFS_ROOT", root)
        .spawn()
        .map_err(|error| anyhow!("{}: {}", program.display(), super::reason(&error)))
}

/// Lets a command outlive what the terminal sends us, and passes on what is sent to us alone.
pub(crate) fn pass_signals_on(pid: u32) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP]).context("signals")?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // The terminal sends interrupts to the command as well.
            if matches!(signal, SIGTERM | SIGHUP) {
                let to = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
                let how = if signal == SIGTERM { rustix::process::Signal::TERM } else { rustix::process::Signal::HUP };
                to.map(|to| rustix::process::kill_process(to, how).ok()); // It may have ended just now.
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "root:1:2\n# note\nme:100000:65536\n1001:300000:10\nnobody:x:y\nempty:5:0\n";
        let find = |uid, name| subordinate(text, uid, name);
        assert_eq!(find(1000, Some("me")), Some(Range { start: 100_000, count: 65_536 }));
        assert_eq!(find(1001, Some("other")), Some(Range { start: 300_000, count: 10 }));
        assert_eq!(find(1002, Some("nobody")), None);
        assert_eq!(find(1003, Some("empty")), None);
        assert_eq!(find(1004, None), None);
    }
}
