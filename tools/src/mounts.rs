//! Mounting, unmounting, and what is mounted.
//!
//! The record comes first (in the maker's name, so that nothing the mount needs is removed meanwhile), then the daemon, then
//! the record names the daemon. A record counts while its process lives; one that is left over is put right by the next
//! command that meets it.

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use mountd::Settle;
use mountd::mount::Unmount;
use mountd::options::{Call, spell};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use store::{Container, Image, ImageMount, Lower, Mount, Process, Store};

use crate::cli::{Kind, MountArgs, SettleArgs, UmountArgs, UnshareArgs, WhiteoutForm};
use crate::print::{self, Column, row};
use crate::{complain, for_each, namespace};

pub(crate) mod table;

/// How long an unmount may take before we say what it waits for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a lazy unmount waits to see whether anybody used the mount at all.
const LAZY_PATIENCE: Duration = Duration::from_millis(200);

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Its daemon lives.
    Mounted,
    /// Its daemon died and left a mount point that answers no more.
    Dead,
    /// At rest.
    NotMounted,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Mounted => "Mounted",
            Status::Dead => "Daemon died",
            Status::NotMounted => "Not mounted",
        })
    }
}

/// Tells where a container stands.
pub(crate) fn status(container: &Container) -> Status {
    match &container.mount {
        Some(mount) if mount.is_live() => Status::Mounted,
        Some(mount) if is_dead(&mount.target) => Status::Dead,
        _ => Status::NotMounted,
    }
}

/// Tells whether a mount without a daemon lies on `target`.
fn is_dead(target: &Path) -> bool {
    // Not stat: the kernel answers that from memory.
    rustix::fs::statfs(target).is_err_and(|errno| errno == rustix::io::Errno::NOTCONN)
}

/// What is to be mounted.
pub(crate) enum Subject {
    /// Read-write.
    Container(Container),
    /// Read-only.
    Image(Image),
}

/// `plyfs mount`
pub(crate) fn mount(store: &Store, args: &MountArgs, kind: Option<Kind>, out: &mut dyn Write) -> Result<()> {
    let (Some(name), Some(target)) = (&args.name, &args.target) else {
        return list(store, out);
    };
    let target = match find(store, name, kind)? {
        Subject::Container(container) => mount_container(store, &container, target, &args.options)?,
        Subject::Image(image) => mount_image(store, &image, target, &args.options)?,
    };
    writeln!(out, "{}", target.display())?;
    Ok(())
}

/// Finds the container of that name, else the image.
pub(crate) fn find(store: &Store, name: &str, kind: Option<Kind>) -> Result<Subject> {
    if kind != Some(Kind::Image) {
        match store.container(name) {
            Ok(container) => return Ok(Subject::Container(container)),
            Err(error) if error.is_not_found() && kind.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    match store.image(name) {
        Ok(image) => Ok(Subject::Image(image)),
        Err(error) if error.is_not_found() && kind.is_none() => Err(crate::containers::neither(name)),
        Err(error) => Err(error.into()),
    }
}

/// Mounts a container read-write; returns the mount point as the kernel knows it.
///
/// # Errors
/// The mount point is missing or taken, the container is mounted already, or the daemon's one line.
pub(crate) fn mount_container(
    store: &Store,
    container: &Container,
    target: &Path,
    options: &[OsString],
) -> Result<PathBuf> {
    if let Some(mount) = container.mount.as_ref().filter(|mount| mount.is_live()) {
        let at = mount.target.display();
        bail!("container {0} is mounted at {at}; unmount it first: plyfs umount {0}", container.name);
    }
    clear_dead(container)?;
    let target = check_target(store, target)?;
    let image = store.image_by_id(container.image)?;
    let lower = store.lower(&image)?;
    let maker = this_process()?;
    let record = |process| Mount { target: target.clone(), process, log: container.log.clone() };
    store.set_mount(container, Some(record(maker.clone())))?;

    let started = start(container_words(&lower, container), options, &target).and_then(|process| {
        store.set_mount(container, Some(record(process)))?;
        Ok(())
    });
    if let Err(error) = started {
        let ours = |now: &Container| now.mount.as_ref().is_some_and(|mount| mount.process == maker);
        if let Some(now) = store.container(&container.id).ok().filter(ours) {
            store.set_mount(&now, None)?;
        }
        return Err(error);
    }
    Ok(target)
}

/// Mounts an image read-only; returns the mount point as the kernel knows it.
///
/// # Errors
/// The mount point is missing or taken, or the daemon's one line.
pub(crate) fn mount_image(store: &Store, image: &Image, target: &Path, options: &[OsString]) -> Result<PathBuf> {
    let target = check_target(store, target)?;
    let lower = store.lower(image)?;
    let log = image_log(store)?;
    let mount = Mount { target: target.clone(), process: this_process()?, log: log.clone() };
    let mut record = store.add_image_mount(image, mount)?;
    let started = start(daemon_words(&lower, &log, &image.label()), options, &target).and_then(|process| {
        record.mount.process = process;
        Ok(store.set_image_mount(&record)?)
    });
    if let Err(error) = started {
        store.remove_image_mount(&record.id)?;
        return Err(error);
    }
    Ok(target)
}

/// Returns the log that all read-only mounts of images write to; it begins anew when none is left.
fn image_log(store: &Store) -> Result<PathBuf> {
    let log = store.root().join("mounts.log");
    if store.image_mounts()?.is_empty() {
        match std::fs::remove_file(&log) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                bail!("{}: {}", log.display(), crate::reason(&error));
            }
            _ => {}
        }
    }
    Ok(log)
}

/// The daemon's options for every mount.
fn daemon_words(lower: &Lower, log: &Path, name: &str) -> Vec<OsString> {
    let options = [
        spell("plyfs.index", &lower.index),
        spell("plyfs.objects", &lower.objects),
        spell("plyfs.layers", &lower.layers),
        spell("plyfs.log", log),
        spell("fsname", name),
    ];
    options.into_iter().flat_map(|option| ["-o".into(), option]).collect()
}

/// Starts this program as the daemon and waits until the mount answers.
pub(crate) fn start(mut words: Vec<OsString>, options: &[OsString], target: &Path) -> Result<Process> {
    words.extend(options.iter().flat_map(|option| ["-o".into(), option.clone()]));
    words.push(target.into());
    let mounted = mountd::spawn(Path::new("/proc/self/exe"), &words).map_err(|failure| {
        // We have a command for it.
        anyhow!("{}", failure.line().replace("use a user namespace (unshare -Urm)", "run it inside 'plyfs unshare'"))
    })?;
    Process::running(mounted.pid()).ok_or_else(|| anyhow!("{}: the daemon ended at once", target.display()))
}

fn this_process() -> Result<Process> {
    Process::own().ok_or_else(|| anyhow!("/proc: not mounted; mount it: mount -t proc proc /proc"))
}

/// Takes away the mount point that a dead daemon left.
fn clear_dead(container: &Container) -> Result<()> {
    match &container.mount {
        Some(mount) if is_dead(&mount.target) => Ok(mountd::mount::unmount(&mount.target, Unmount::Lazily)?),
        _ => Ok(()),
    }
}

/// Returns the true path of a directory that can be mounted on.
fn check_target(store: &Store, target: &Path) -> Result<PathBuf> {
    let shown = target.display();
    let real = match target.canonicalize() {
        Ok(real) if real.is_dir() => real,
        Ok(_) => bail!("{shown}: not a directory; name a directory to mount on"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("{shown}: no such directory; make it first: mkdir -p {shown}")
        }
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) => {
            bail!("{shown}: a mount whose daemon died is in the way; take it away: plyfs umount {shown}")
        }
        Err(error) => bail!("{shown}: {}", crate::reason(&error)),
    };
    if is_dead(&real) {
        bail!("{shown}: a mount whose daemon died is in the way; take it away: plyfs umount {shown}");
    }
    if let Some(there) = table::read()?.into_iter().rev().find(|mount| mount.target == real) {
        bail!("{shown}: already a mount point ({}); unmount it first, or choose another directory", there.kind);
    }
    let root = store.root().canonicalize().unwrap_or_else(|_| store.root().to_path_buf());
    if real.starts_with(&root) || root.starts_with(&real) {
        bail!("{shown}: the store is there ({}); choose another directory", root.display());
    }
    Ok(real)
}

/// `plyfs mount` without arguments: what is mounted.
fn list(store: &Store, out: &mut dyn Write) -> Result<()> {
    let mut rows = Vec::new();
    for container in store.containers()? {
        if let Some(mount) = container.mount.as_ref().filter(|mount| mount.is_live()) {
            rows.push(mount_row(&container.name, &container.image_name, "read-write", mount));
        }
    }
    let images = store.images()?;
    for mounted in store.image_mounts()? {
        let image = images.iter().find(|image| image.id == mounted.image);
        let label = image.map_or_else(|| mounted.image.short(), Image::label);
        rows.push(mount_row("", &label, "read-only", &mounted.mount));
    }
    let columns: &[Column] = &[
        ("MOUNT POINT", "MountPoint"),
        ("MODE", "Mode"),
        ("IMAGE", "Image"),
        ("CONTAINER", "Container"),
        ("PID", "Pid"),
    ];
    print::rows(out, &print::Format::Table, columns, rows)
}

fn mount_row(container: &str, image: &str, mode: &str, mount: &Mount) -> print::Row {
    row! {
        MountPoint: mount.target.display().to_string(),
        Mode: mode,
        Image: image,
        Container: container,
        Pid: mount.process.pid,
    }
}

/// `plyfs umount`
pub(crate) fn umount(store: &Store, args: &UmountArgs) -> Result<ExitCode> {
    let how = if args.lazy { Unmount::Lazily } else { Unmount::WhenIdle };
    for_each(&args.targets, |target| match recorded(store, target)? {
        Recorded::Container(container) => umount_container(store, &container, how),
        Recorded::Image(mounted) => umount_image(store, &mounted, how),
        Recorded::Nowhere(target) => umount_unrecorded(&target, how),
    })
}

/// What a word behind `plyfs umount` stands for.
enum Recorded {
    Container(Container),
    Image(ImageMount),
    /// A path that no record has.
    Nowhere(PathBuf),
}

/// Finds a container by name, or whatever is mounted on a path.
fn recorded(store: &Store, word: &Path) -> Result<Recorded> {
    if let Some(name) = word.to_str().filter(|name| !name.contains('/')) {
        match store.container(name) {
            Ok(container) => return Ok(Recorded::Container(container)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Ok(target) = real_path(word) else {
        bail!("{0}: no such directory or container; 'plyfs mount' lists what is mounted", word.display());
    };
    let is_there = |mount: &Mount| mount.target == target;
    if let Some(container) = store.containers()?.into_iter().find(|c| c.mount.as_ref().is_some_and(is_there)) {
        return Ok(Recorded::Container(container));
    }
    if let Some(mounted) = store.image_mounts()?.into_iter().find(|mounted| is_there(&mounted.mount)) {
        return Ok(Recorded::Image(mounted));
    }
    Ok(Recorded::Nowhere(target))
}

/// Resolves links in a path whose last name may be a mount point that answers no more.
fn real_path(path: &Path) -> std::io::Result<PathBuf> {
    let resolved = path.canonicalize();
    let is_dead = |error: &std::io::Error| error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error());
    match (&resolved, path.file_name()) {
        (Err(error), Some(name)) if is_dead(error) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(parent.canonicalize()?.join(name))
        }
        _ => resolved,
    }
}

/// Unmounts a container, and returns when its daemon has written all and gone.
pub(crate) fn umount_container(store: &Store, container: &Container, how: Unmount) -> Result<()> {
    match &container.mount {
        Some(mount) if mount.is_live() => {
            if leave(mount, how)? == Daemon::Stays {
                return Ok(()); // The record protects what it uses, and counts no more when it has ended.
            }
        }
        Some(mount) if is_dead(&mount.target) => mountd::mount::unmount(&mount.target, Unmount::Lazily)?,
        _ => bail!("container {} is not mounted", container.name),
    }
    store.set_mount(container, None)?;
    Ok(())
}

/// Ends a container's mount whoever uses it.
pub(crate) fn end(store: &Store, container: &Container) -> Result<()> {
    match &container.mount {
        None => return Ok(()),
        Some(mount) if mount.is_live() => {
            tell_to_leave(&mount.process)?;
            wait_until_gone(&mount.process, &mount.target);
        }
        Some(_) => clear_dead(container)?,
    }
    store.set_mount(container, None)?;
    Ok(())
}

/// Ends what was mounted on `target` just now.
pub(crate) fn leave_target(store: &Store, target: &Path) -> Result<()> {
    match recorded(store, target)? {
        Recorded::Container(container) => end(store, &container),
        Recorded::Image(mounted) => end_image(store, &mounted),
        Recorded::Nowhere(target) => take_away(&target, Unmount::Lazily),
    }
}

/// Ends a mount that neither a container nor an image has, whoever uses it, and takes away what a dead daemon left.
pub(crate) fn end_mount(mount: &Mount) -> Result<()> {
    if mount.is_live() {
        // Gently first: a daemon that nobody uses ends by this alone.
        take_away_here(&mount.target)?;
        if !gone_within(&mount.process, Some(LAZY_PATIENCE)) {
            tell_to_leave(&mount.process)?;
            wait_until_gone(&mount.process, &mount.target);
        }
    }
    take_away_here(&mount.target)
}

fn take_away_here(target: &Path) -> Result<()> {
    let is_here = table::read()?.iter().any(|here| here.target == target && here.is_ours());
    if is_here { Ok(mountd::mount::unmount(target, Unmount::Lazily)?) } else { Ok(()) }
}

/// Ends a read-only mount whoever uses it.
pub(crate) fn end_image(store: &Store, mounted: &ImageMount) -> Result<()> {
    tell_to_leave(&mounted.mount.process)?;
    wait_until_gone(&mounted.mount.process, &mounted.mount.target);
    Ok(store.remove_image_mount(&mounted.id)?)
}

fn umount_image(store: &Store, mounted: &ImageMount, how: Unmount) -> Result<()> {
    match leave(&mounted.mount, how)? {
        Daemon::Gone => Ok(store.remove_image_mount(&mounted.id)?),
        Daemon::Stays => Ok(()),
    }
}

/// What has become of a daemon whose mount was taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    /// All is written, and the upper is at rest.
    Gone,
    /// Programs still use what was mounted.
    Stays,
}

/// Unmounts what somebody mounted with `plyfs-mountd`, or what a dead daemon of an image left.
fn umount_unrecorded(target: &Path, how: Unmount) -> Result<()> {
    let shown = target.display();
    match table::read()?.into_iter().rev().find(|mount| mount.target == target) {
        None => bail!("{shown}: not a mount point; 'plyfs mount' lists what is mounted"),
        Some(mount) if !mount.is_ours() => bail!("{shown}: not a plyfs mount ({}); use umount", mount.kind),
        Some(_) => {}
    }
    let how = if is_dead(target) { Unmount::Lazily } else { how };
    take_away(target, how)
}

/// Takes a mount away, here or where only its daemon sees it, and waits for the daemon.
fn leave(mount: &Mount, how: Unmount) -> Result<Daemon> {
    let is_here = table::read()?.iter().any(|here| here.target == mount.target && here.is_ours());
    match is_here {
        true => take_away(&mount.target, how)?,
        false => tell_to_leave(&mount.process)?, // It lies in another mount namespace, as `plyfs unshare` makes them.
    }
    if how == Unmount::Lazily && !gone_within(&mount.process, Some(LAZY_PATIENCE)) {
        return Ok(Daemon::Stays);
    }
    wait_until_gone(&mount.process, &mount.target);
    Ok(Daemon::Gone)
}

fn take_away(target: &Path, how: Unmount) -> Result<()> {
    mountd::mount::unmount(target, how).map_err(|failure| {
        let users = table::users(target);
        match users.is_empty() {
            true => failure.into(),
            false => {
                anyhow!("{}: busy: used by {}; end it, or unmount with --lazy", target.display(), users.join(", "))
            }
        }
    })
}

fn tell_to_leave(process: &Process) -> Result<()> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    match pid.filter(|_| process.is_alive()).map(|pid| kill_process(pid, Signal::TERM)) {
        None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
        Some(Err(errno)) => {
            bail!("daemon {}: {}; it belongs to another user", process.pid, crate::reason(&errno.into()))
        }
    }
}

/// Waits for the end of a daemon: then all is written and the upper is at rest.
fn wait_until_gone(process: &Process, target: &Path) {
    if !gone_within(process, Some(PATIENCE)) {
        complain(&format!("{}: waiting for daemon {} to finish", target.display(), process.pid));
        gone_within(process, None);
    }
}

/// Tells whether the process ends in that time; `None` waits for ever.
fn gone_within(process: &Process, time: Option<Duration>) -> bool {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return true };
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    // The descriptor may be that of a newcomer with the same number.
    if !process.is_alive() {
        return true;
    }
    let timeout = time.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return !process.is_alive(),
        }
    }
}

/// `plyfs settle`
pub(crate) fn settle_containers(store: &Store, args: &SettleArgs, out: &mut dyn Write) -> Result<ExitCode> {
    let how = match (args.whiteouts, args.plain) {
        (WhiteoutForm::Aufs, _) => Settle::Aufs,
        (WhiteoutForm::Overlay, true) => Settle::Plain,
        (WhiteoutForm::Overlay, false) => Settle::AtRest,
    };
    for_each(&args.containers, |name| {
        let container = store.container(name)?;
        if let Some(mount) = container.mount.as_ref().filter(|mount| mount.is_live()) {
            bail!("container {0} is mounted at {1}; unmount it first: plyfs umount {0}", name, mount.target.display());
        }
        let lower = store.lower(&store.image_by_id(container.image)?)?;
        let mut words = container_words(&lower, &container);
        words.push(store.root().into()); // Where a mount point would be named.
        match mountd::options::parse(&words)? {
            Call::Mount(options) => mountd::settle(&options, how)?,
            Call::Help | Call::Version => {}
        }
        writeln!(out, "{name}")?;
        Ok(())
    })
}

/// The daemon's options for a container.
fn container_words(lower: &Lower, container: &Container) -> Vec<OsString> {
    let mut words = daemon_words(lower, &container.log, &container.name);
    for (name, path) in [("upperdir", &container.upper), ("workdir", &container.work)] {
        words.extend(["-o".into(), spell(name, path)]);
    }
    words
}

/// `plyfs unshare`: a command in a user and mount namespace of its own; the mounts made in it end with it.
pub(crate) fn unshare(root: &Path, args: &UnshareArgs) -> Result<ExitCode> {
    namespace::enter(args.map)?;
    let before: Vec<u64> = table::read()?.iter().map(|mount| mount.id).collect();
    let mut child = namespace::start(&args.command, root)?;
    namespace::pass_signals_on(child.id())?;
    let status = child.wait()?;
    let made_inside = |mount: &table::Mounted| mount.is_ours() && !before.contains(&mount.id);
    let left: Vec<PathBuf> = table::read()?.into_iter().rev().filter(made_inside).map(|mount| mount.target).collect();
    for target in &left {
        mountd::mount::unmount(target, Unmount::Lazily)?;
    }
    if !left.is_empty() {
        settle(&Store::open(root)?, &left)?;
    }
    Ok(code_of(status))
}

/// Waits for the daemons of mounts that were taken away, and forgets the mounts.
fn settle(store: &Store, targets: &[PathBuf]) -> Result<()> {
    for container in store.containers()? {
        if let Some(mount) = container.mount.as_ref().filter(|mount| targets.contains(&mount.target)) {
            // A program that was left in the background may still hold it.
            if gone_within(&mount.process, Some(PATIENCE)) {
                store.set_mount(&container, None)?;
            }
        }
    }
    for mounted in store.image_mounts()? {
        if targets.contains(&mounted.mount.target) && gone_within(&mounted.mount.process, Some(PATIENCE)) {
            store.remove_image_mount(&mounted.id)?;
        }
    }
    Ok(())
}

/// Ends as the command ended: with its code, or with 128 and the signal's number, as shells tell it.
pub(crate) fn code_of(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
