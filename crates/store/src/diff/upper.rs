//! What an upper at rest has under a name, in the kernel's overlayfs format (overlayfs.rst), with privilege or without.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use backing::override_stat::{self, Override};
use backing::sys;
use backing::upper::{Mark, OriginRecord};
use layer::{Dev, FileType, Name, NameBuf, Slot, Stat, TreePath};
use overlay::upper::Kept;
use rustix::io::Errno;

use crate::ids;

/// What the upper has under a name.
pub(crate) struct Found {
    pub(crate) stat: Stat,
    pub(crate) whiteout: bool,
    pub(crate) opaque: bool,
    /// Only the metadata is here.
    pub(crate) metacopy: bool,
    /// The body is here in part; the lower counts up to so many bytes.
    pub(crate) partial: Option<u64>,
    /// The row of the lower file that has the body, if it is a copy; found by who knows the lower.
    pub(crate) body_below: Option<Slot>,
    /// What the copy's maker noted of the lower inode.
    pub(crate) origin: Option<Origin>,
    /// A record tells owner and mode.
    recorded: bool,
    /// A file that stands for something of another kind.
    pub(crate) stands_in: bool,
    pub(crate) redirect: Option<Redirect>,
    /// What a crash took from it while its body was brought up.
    kept: Option<Kept>,
    /// What a program sees, sorted by name.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The lower inode that a copy was made from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) slot: Slot,
    /// A file that is shorter, or has a hole before this, lost its body in a power cut; 0 for a copy that was synced.
    pub(crate) length: u64,
    /// When it took its name unsynced.
    pub(crate) epoch: u64,
}

/// Where in the lower a moved directory came from.
pub(crate) enum Redirect {
    Beside(NameBuf),
    From(TreePath),
    /// Nowhere that a lower could have.
    Bad,
}

const CAPABILITY: &[u8] = b"security.capability";
const NAMESPACES: [&[u8]; 2] = [b"trusted.", b"user."];
/// The union's own, another union's, and the host's policy: no part of the content.
const PRIVATE: [&[u8]; 4] = [b"trusted.plyfs.", b"user.plyfs.", b"user.fuseoverlayfs.", b"security.selinux"];

impl Found {
    pub(crate) fn is_dir(&self) -> bool {
        self.stat.kind == FileType::Dir
    }
}

/// Returns the names in a directory of the upper.
pub(crate) fn names(dir: &OwnedFd) -> Result<BTreeSet<NameBuf>, Errno> {
    let mut names = BTreeSet::new();
    let here = sys::open_beneath(dir, b"", rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY)?;
    sys::read_dir(&here, |entry| {
        names.extend(NameBuf::new(entry.name).ok());
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

/// Returns what the upper has under `name`; `None` if nothing.
pub(crate) fn find(dir: &OwnedFd, name: Name<'_>) -> Result<Option<Found>, Errno> {
    let stat = match sys::stat_at(dir, name.as_bytes()) {
        Err(Errno::NOENT) => return Ok(None),
        found => found?.stat,
    };
    let mut found = Found::new(stat);
    if found.whiteout {
        return Ok(Some(found));
    }
    let attributes = sys::xattr_names_at(dir, name.as_bytes())?;
    for attribute in attributes.split(|&b| b == 0).filter(|attribute| !attribute.is_empty()) {
        let value = sys::xattr_at(dir, name.as_bytes(), attribute)?.unwrap_or_default();
        found.take(attribute, value);
    }
    found.settle(stat.kind);
    Ok(Some(found))
}

/// Returns what the upper's root is.
pub(crate) fn find_root(upper: &OwnedFd) -> Result<Found, Errno> {
    let stat = sys::stat_of(upper)?.stat;
    let mut found = Found::new(stat);
    for attribute in sys::xattr_names_of(upper)?.split(|&b| b == 0).filter(|attribute| !attribute.is_empty()) {
        found.take(attribute, sys::xattr_of(upper, attribute)?.unwrap_or_default());
    }
    found.settle(stat.kind);
    Ok(found)
}

impl Found {
    fn new(stat: Stat) -> Self {
        Found {
            stat,
            whiteout: stat.kind == FileType::Char && stat.rdev == Dev::default(),
            opaque: false,
            metacopy: false,
            partial: None,
            body_below: None,
            origin: None,
            recorded: false,
            stands_in: false,
            redirect: None,
            kept: None,
            xattrs: Vec::new(),
        }
    }

    fn settle(&mut self, raw: FileType) {
        if let Some(kept) = self.kept.take() {
            self.stat.mtime = kept.mtime;
            self.stat.perm = kept.perm.filter(|_| !self.recorded).unwrap_or(self.stat.perm);
            if let Some(capability) = kept.capability {
                self.xattrs.retain(|(name, _)| name != CAPABILITY);
                self.xattrs.push((CAPABILITY.to_vec(), capability));
            }
        }
        self.xattrs.sort();
        if !self.recorded {
            ids::as_meant(&mut self.stat);
        }
        self.stands_in = self.stat.kind != raw;
    }

    fn take(&mut self, attribute: &[u8], value: Vec<u8>) {
        let mark = NAMESPACES.iter().find_map(|space| attribute.strip_prefix(*space));
        if let Some(mark) = mark.filter(|mark| mark.starts_with(b"overlay.")) {
            let Ok(read) = Mark::read(mark, || Ok::<_, std::convert::Infallible>(value));
            match read {
                Some(Mark::Opaque) => self.opaque = true,
                Some(Mark::Redirect(path)) => self.redirect = Some(redirect(&path)),
                Some(Mark::Metacopy) => self.metacopy = self.stat.kind == FileType::File,
                Some(Mark::Whiteout) => self.whiteout |= self.stat.kind == FileType::File && self.stat.size == 0,
                Some(Mark::Partial(limit)) => self.partial = Some(limit),
                Some(Mark::Kept(kept)) => self.kept = Some(kept),
                // An old record gives way to another.
                Some(Mark::Origin(record)) if record.old && self.origin.is_some() => {}
                Some(Mark::Origin(record)) => self.origin = Origin::of(&record),
                None => {}
            }
        } else if attribute == override_stat::NAME {
            if let Some(record) = Override::parse(&value) {
                record.apply(&mut self.stat);
                self.recorded = true;
            }
        } else if !PRIVATE.iter().any(|private| attribute.starts_with(private)) {
            self.xattrs.push((attribute.to_vec(), value));
        }
    }
}

impl Origin {
    fn of(record: &OriginRecord) -> Option<Self> {
        // A lower inode's number is its row + 1.
        let slot = Slot(u32::try_from(record.origin?.ino.0.checked_sub(1)?).ok()?);
        Some(Origin { slot, length: record.length, epoch: record.epoch })
    }
}

fn redirect(value: &[u8]) -> Redirect {
    match value.strip_prefix(b"/") {
        Some(path) => TreePath::parse(path).map_or(Redirect::Bad, Redirect::From),
        None => NameBuf::new(value).map_or(Redirect::Bad, Redirect::Beside),
    }
}
