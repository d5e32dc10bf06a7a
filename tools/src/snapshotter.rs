//! `plyfs snapshotter`: containerd's snapshots over the store; this side mounts them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use mountd::options::spell;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use snapshotter::{Form, Mounter};
use store::{Mount, Snapshot, SnapshotKind, Store};

use crate::cli::{MountForm, SnapshotterArgs};
use crate::{mounts, namespace};

/// How long a daemon may take to write all after containerd has unmounted it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The program that containerd runs when it mounts by itself.
const PROGRAM: &str = "plyfs-mountd";

/// `plyfs snapshotter`
pub(crate) fn serve(store: Store, args: &SnapshotterArgs) -> Result<()> {
    let form = match args.mounts {
        MountForm::Bind => Form::Bind,
        MountForm::Fuse3 => Form::Fuse3 { program: program()? },
    };
    namespace::open_fuse_device()?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals")?;
    let stop = move || {
        signals.forever().next();
    };
    snapshotter::serve(store, &args.address, form, Daemons, stop)
}

/// Finds the daemon's own program beside this one, else in PATH.
pub(crate) fn find_program() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(PROGRAM)).filter(|path| path.is_file());
    beside.or_else(|| namespace::on_path(PROGRAM))
}

fn program() -> Result<String> {
    let path = find_program()
        .ok_or_else(|| anyhow!("{PROGRAM}: not found beside plyfs or in PATH; install it, or use --mounts bind"))?;
    path.into_os_string().into_string().map_err(|path| anyhow!("{}: containerd takes UTF-8 only", path.display()))
}

/// Mounts by this program as the daemon.
struct Daemons;

impl Mounter for Daemons {
    fn options(&self, store: &Store, snapshot: &Snapshot) -> Result<Vec<String>> {
        let text = |option: OsString| {
            option.into_string().map_err(|option| anyhow!("{}: containerd takes UTF-8 only", option.display()))
        };
        words(store, snapshot)?.into_iter().map(text).collect()
    }

    fn mount(&self, store: &Store, snapshot: &Snapshot) -> Result<Mount> {
        let words = words(store, snapshot)?.into_iter().flat_map(|option| ["-o".into(), option]).collect();
        let process = mounts::start(words, &[], &snapshot.target)?;
        Ok(Mount { target: snapshot.target.clone(), process, log: snapshot.log.clone() })
    }

    fn end(&self, mount: &Mount) -> Result<()> {
        mounts::end_mount(mount)
    }

    fn is_at_rest(&self, snapshot: &Snapshot) -> Result<bool> {
        let path = snapshot.work.join("plyfs/lock");
        let until = Instant::now() + PATIENCE;
        loop {
            if is_free(&path)? {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Tells whether no daemon holds the lock of a work directory.
fn is_free(path: &Path) -> Result<bool> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        file => file.with_context(|| path.display().to_string())?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno).with_context(|| path.display().to_string()),
    }
}

/// The daemon's options for a snapshot that stands on others.
fn words(store: &Store, snapshot: &Snapshot) -> Result<Vec<OsString>> {
    let lower = store.lower_of(&snapshot.layers)?;
    let mut words = vec![
        spell("plyfs.index", &lower.index),
        spell("plyfs.objects", &lower.objects),
        spell("plyfs.layers", &lower.layers),
        spell("plyfs.log", &snapshot.log),
    ];
    let own: [(&str, &PathBuf); 2] = [("upperdir", &snapshot.upper), ("workdir", &snapshot.work)];
    match snapshot.kind {
        SnapshotKind::Active => words.extend(own.map(|(name, path)| spell(name, path))),
        _ => words.push("ro".into()),
    }
    Ok(words)
}
