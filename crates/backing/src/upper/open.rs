//! Opening an upper and its work directory: whose they are, what they can hold, and what a crash left there.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use overlay::{Errno, Error, Result};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno as Raw;

use super::folder::{self, Folder};
use super::{Identity, Settings, UpperDir, kept, marks, recover, stage, taken_over};

impl UpperDir {
    /// Opens an upper and its work directory, and sweeps what a crash left in the latter.
    ///
    /// # Errors
    /// `EBUSY` when another mount uses them; `EXDEV` when they are on different filesystems; those of the system.
    pub fn open(upper: &Path, work: &Path, settings: Settings) -> Result<Self> {
        let doing = |what: &'static str, path: &Path| {
            let path = path.display().to_string();
            move |raw: Raw| Error::fault(format!("{what} {path}"), Errno(raw.raw_os_error()), std::io::Error::from(raw))
        };
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(upper, directory, Mode::empty()).map_err(doing("open upperdir", upper))?;
        let work_fd = rustix::fs::open(work, directory, Mode::empty()).map_err(doing("open workdir", work))?;
        let (root_dev, work_dev) = (rustix::fs::fstat(&root), rustix::fs::fstat(&work_fd));
        let (root_dev, work_dev) =
            (root_dev.map_err(doing("stat", upper))?.st_dev, work_dev.map_err(doing("stat", work))?.st_dev);
        if root_dev != work_dev {
            let why = "workdir must be on the same filesystem as upperdir";
            return Err(Error::fault(format!("use workdir {}", work.display()), Errno::EXDEV, why));
        }
        let own = folder::made(&work_fd, "plyfs").map_err(doing("make plyfs/ in workdir", work))?;
        let lock = lock(&own).map_err(|raw| match raw {
            Raw::WOULDBLOCK => Error::fault(
                format!("use upperdir {}", upper.display()),
                Errno::EBUSY,
                "another mount uses it; unmount that one first",
            ),
            raw => doing("lock workdir", work)(raw),
        })?;
        let to_take_over = taken_over::begin(&root, &work_fd, &own).map_err(doing("look into", work))?;
        let tmp = folder::made(&own, "tmp").map_err(doing("make plyfs/tmp in workdir", work))?;
        let index = Folder::find(&own, "index").map_err(doing("open plyfs/index in workdir", work))?;
        let partial = Folder::find(&own, "partial").map_err(doing("open plyfs/partial in workdir", work))?;
        let noted = recover::noted_epoch(&own).map_err(doing("read plyfs/unsynced in workdir", work))?;
        let identity = Identity { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let mut space = marks::Space::probe(&tmp, settings.always_override, settings.user_marks);
        space.epoch = noted.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_nanos() as u64));
        let this = UpperDir {
            root: Arc::new(root),
            tmp: Arc::new(tmp),
            index,
            _lock: lock,
            space,
            durability: settings.durability,
            identity,
            next: AtomicU64::new(0),
            rename_whiteout: AtomicBool::new(true),
            nameless: AtomicBool::new(true),
            partial,
            own,
            foreign: foreign_index(&work_fd).map_err(doing("open index/ in workdir", work))?,
            suspect: noted.is_some(),
            whole: Mutex::default(),
            noted: Mutex::new(noted.is_some()),
            unmarked: Mutex::default(),
            kept: kept::Notes::default(),
        };
        this.read_unmarked()?;
        stage::empty_dir(&this.tmp)?;
        this.sweep_partials()?;
        if to_take_over {
            this.take_over(&work_fd)?;
        } else {
            this.mark_ours()?;
        }
        Ok(this)
    }
}

/// Opens the index that the kernel's overlayfs keeps with `index=on`.
fn foreign_index(work: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(work, "index", flags, Mode::empty()) {
        Ok(index) => Ok(Some(index)),
        Err(Raw::NOENT | Raw::NOTDIR) => Ok(None),
        Err(raw) => Err(raw),
    }
}

/// Takes the lock of an upper. A daemon that was just unmounted may still be settling its upper: that is worth a short wait.
fn lock(own: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = rustix::fs::openat(own, "lock", flags, Mode::RUSR | Mode::WUSR)?;
    let mut waited = 0;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Raw::WOULDBLOCK) if waited < 2000 => {
                std::thread::sleep(std::time::Duration::from_millis(5));
                waited += 5;
            }
            Ok(()) => return Ok(lock),
            Err(raw) => return Err(raw),
        }
    }
}
