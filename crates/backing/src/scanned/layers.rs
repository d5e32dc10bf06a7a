//! The directories that are stacked: opened once, reached by path afterwards.
//!
//! Each layer's root is held by one descriptor, through a read-only clone of its mount. Where descriptors are scarce, layers
//! share one directory above them, and are reached through it.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layer::TreePath;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, Result, retry_on_intr};
use xxhash_rust::xxh3::Xxh3;

use crate::readonly::{KeptBy, ReadOnly};
use crate::sys;

/// Why plain directories cannot be used as a lower.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No layer was given, or more than 65,535.
    #[error("{0} layers: one is needed at least, 65535 are possible")]
    Count(usize),
    /// A layer is missing, is no directory, or cannot be read.
    #[error("open layer '{}': {source}", path.display())]
    Layer {
        /// The path as it was given.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// The layers, topmost first.
#[derive(Debug)]
pub(super) struct Layers {
    list: Vec<Layer>,
    /// The devices that the layers' roots lie on, in the order in which they first come.
    pub(super) devices: Vec<u64>,
    /// Which layers these are, the same after a restart of the system.
    pub(super) key: u64,
    /// Some file may have a POSIX ACL.
    pub(super) acls: bool,
    pub(super) kept_by: KeptBy,
    /// Mounts that show owners otherwise than the disk has them (`MOUNT_ATTR_IDMAP`): by layer.
    idmapped: Vec<bool>,
}

#[derive(Debug)]
struct Layer {
    /// The root itself, or a directory above it.
    base: Arc<ReadOnly>,
    /// Where the root is beneath `base`; empty if it is `base`.
    prefix: TreePath,
    given: PathBuf,
}

/// A layer's root as first opened.
struct Root {
    given: PathBuf,
    dir: OwnedFd,
    id: Id,
}

/// Which directory it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Id {
    dev: u64,
    ino: u64,
}

impl Layers {
    /// Opens all layers, and tells which one cannot be used.
    pub(super) fn open(given: &[PathBuf], descriptors: usize) -> std::result::Result<Self, OpenError> {
        let mut stack = Stack::default();
        for path in given {
            stack
                .add(path, descriptors)
                .map_err(|failed| OpenError::Layer { path: path.clone(), source: failed.into() })?;
        }
        let Some(top) = stack.list.first().filter(|_| stack.list.len() <= usize::from(u16::MAX)) else {
            return Err(OpenError::Count(given.len()));
        };
        let kept_by = top.base.kept_by();
        Ok(Layers {
            devices: stack.devices,
            key: stack.key.digest(),
            acls: stack.acls,
            kept_by,
            idmapped: stack.idmapped,
            list: stack.list,
        })
    }

    /// Tells whether a layer is reached through a mount that maps owners itself.
    pub(super) fn is_idmapped(&self, layer: u16) -> bool {
        self.idmapped.get(usize::from(layer)).copied().unwrap_or(false)
    }

    pub(super) fn len(&self) -> u16 {
        // `open` has checked it.
        self.list.len() as u16
    }

    /// Opens `path` in a layer for reading.
    pub(super) fn open_at(&self, layer: u16, path: &TreePath, flags: OFlags) -> Result<OwnedFd> {
        let layer = self.list.get(usize::from(layer)).ok_or(Errno::NOENT)?;
        match layer.prefix.is_root() {
            true => sys::open_beneath(&layer.base, path.as_bytes(), flags),
            false => {
                let mut whole = layer.prefix.clone();
                path.names().for_each(|name| whole.push(name));
                sys::open_beneath(&layer.base, whole.as_bytes(), flags)
            }
        }
    }

    /// Names a place in a layer for messages.
    pub(super) fn shown(&self, layer: u16, path: &TreePath) -> String {
        let given =
            self.list.get(usize::from(layer)).map(|layer| layer.given.display().to_string()).unwrap_or_default();
        if path.is_root() { given } else { format!("{given}/{path}") }
    }
}

/// The stack while it is built.
#[derive(Default)]
struct Stack {
    list: Vec<Layer>,
    seen: HashSet<Id>,
    devices: Vec<u64>,
    key: Xxh3,
    acls: bool,
    idmapped: Vec<bool>,
    /// The mounts that map owners, read when the first layer asks.
    mapping: Option<HashSet<u64>>,
    /// What layers beyond the limit of descriptors are reached through, and where that is.
    shared: Vec<(PathBuf, Arc<ReadOnly>)>,
}

impl Stack {
    fn add(&mut self, path: &Path, descriptors: usize) -> Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?;
        sys::open_beneath(&dir, b"", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let found = sys::stat_of(&dir)?;
        let root = Root { given: path.to_path_buf(), dir, id: Id { dev: found.dev, ino: found.stat.ino.0 } };
        // A layer that comes again lower down adds nothing.
        if !self.seen.insert(root.id) {
            return Ok(());
        }
        self.note(&root)?;
        let mapping = self.mapping.get_or_insert_with(idmapped_mounts);
        let idmapped = !mapping.is_empty() && mount_id(root.dir.as_fd()).is_some_and(|id| mapping.contains(&id));
        self.idmapped.push(idmapped);
        let layer = match self.list.len() < descriptors {
            true => own(root),
            false => self.through_shared(root),
        };
        self.list.push(layer);
        Ok(())
    }

    fn note(&mut self, root: &Root) -> Result<()> {
        let index = self.devices.iter().position(|&dev| dev == root.id.dev).unwrap_or(self.devices.len());
        if index == self.devices.len() {
            self.devices.push(root.id.dev);
            // Where the filesystem knows ACLs, whether any file has one is not known without reading all.
            self.acls |= rustix::fs::fgetxattr(readable(&root.dir)?, "system.posix_acl_access", &mut [0; 4][..])
                != Err(Errno::OPNOTSUPP);
        }
        // Device numbers change with the next start of the system; an inode and its birth do not.
        let born = rustix::fs::statx(&root.dir, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME)
            .map(|found| (found.stx_btime.tv_sec, found.stx_btime.tv_nsec))
            .unwrap_or_default();
        for number in [index as u64, root.id.ino, born.0 as u64, u64::from(born.1)] {
            self.key.update(&number.to_le_bytes());
        }
        Ok(())
    }

    /// Finds a directory that is held already and has `root` beneath it, or holds one: the highest on the same mount, so
    /// that it serves as many as possible.
    fn through_shared(&mut self, root: Root) -> Layer {
        let Some(real) = real_path(root.dir.as_fd()) else { return own(root) };
        for (above, base) in &self.shared {
            if let Some(prefix) = beneath(base, above, &real, root.id) {
                return Layer { base: base.clone(), prefix, given: root.given };
            }
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let highest = real.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev().find_map(|above| {
            let dir = rustix::fs::open(above, flags, Mode::empty()).ok()?;
            let base = (mount_id(dir.as_fd())? == mount_id(root.dir.as_fd())?).then(|| ReadOnly::over(dir))?;
            Some((beneath(&base, above, &real, root.id)?, above, base))
        });
        match highest {
            Some((prefix, above, base)) => {
                let base = Arc::new(base);
                self.shared.push((above.to_path_buf(), base.clone()));
                Layer { base, prefix, given: root.given }
            }
            None => own(root),
        }
    }
}

fn own(root: Root) -> Layer {
    Layer { base: Arc::new(ReadOnly::over(root.dir)), prefix: TreePath::root(), given: root.given }
}

fn readable(dir: &OwnedFd) -> Result<OwnedFd> {
    sys::open_beneath(dir, b"", OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Returns the path of `real` beneath `base`, which is at `above`, if the directory `id` is found there.
fn beneath(base: &ReadOnly, above: &Path, real: &Path, id: Id) -> Option<TreePath> {
    let prefix = TreePath::parse(real.strip_prefix(above).ok()?.as_os_str().as_bytes()).ok()?;
    let dir = sys::open_beneath(base, prefix.as_bytes(), OFlags::PATH | OFlags::DIRECTORY).ok()?;
    let found = sys::stat_of(dir).ok()?;
    (Id { dev: found.dev, ino: found.stat.ino.0 } == id).then_some(prefix)
}

fn real_path(dir: BorrowedFd<'_>) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok().filter(|path| path.is_absolute())
}

/// Returns the numbers of the mounts that map owners, as `/proc/self/mountinfo` has them (proc(5)).
fn idmapped_mounts() -> HashSet<u64> {
    // Without /proc nothing is known of them, and owners count as they are seen.
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let is_mapped =
        |fields: &[&[u8]]| fields.get(5).is_some_and(|flags| flags.split(|&b| b == b',').any(|f| f == b"idmapped"));
    text.split(|&b| b == b'\n')
        .map(|line| line.split(|&b| b == b' ').take(6).collect::<Vec<_>>())
        .filter(|fields| is_mapped(fields))
        .filter_map(|fields| std::str::from_utf8(fields[0]).ok()?.parse().ok())
        .collect()
}

fn mount_id(dir: BorrowedFd<'_>) -> Option<u64> {
    let found = rustix::fs::statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID).then_some(found.stx_mnt_id)
}
