//! What an upper at rest has under a name, in the kernel's overlayfs format (overlayfs.rst), with privilege or without.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use backing::override_stat::{self, Override};
use backing::sys;
use layer::{Dev, FileType, Name, NameBuf, Stat, TreePath};
use rustix::io::Errno;

/// What the upper has under a name.
pub(crate) struct Found {
    pub(crate) stat: Stat,
    pub(crate) whiteout: bool,
    pub(crate) opaque: bool,
    /// Only the metadata is here.
    pub(crate) metacopy: bool,
    pub(crate) redirect: Option<Redirect>,
    /// What a program sees, sorted by name.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where in the lower a moved directory came from.
pub(crate) enum Redirect {
    Beside(NameBuf),
    From(TreePath),
    /// Nowhere that a lower could have.
    Bad,
}

const NAMESPACES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// The union's own, and the host's policy: no part of the content.
const PRIVATE: [&[u8]; 5] =
    [b"trusted.plyfs.", b"user.plyfs.", b"user.fuseoverlayfs.", override_stat::NAME, b"security.selinux"];

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
    let whiteout = stat.kind == FileType::Char && stat.rdev == Dev::default();
    let mut found = Found { stat, whiteout, opaque: false, metacopy: false, redirect: None, xattrs: Vec::new() };
    if whiteout {
        return Ok(Some(found));
    }
    let attributes = sys::xattr_names_at(dir, name.as_bytes())?;
    for attribute in attributes.split(|&b| b == 0).filter(|attribute| !attribute.is_empty()) {
        let value = sys::xattr_at(dir, name.as_bytes(), attribute)?.unwrap_or_default();
        found.take(attribute, value);
    }
    found.xattrs.sort();
    Ok(Some(found))
}

impl Found {
    fn take(&mut self, attribute: &[u8], value: Vec<u8>) {
        if let Some(mark) = NAMESPACES.iter().find_map(|space| attribute.strip_prefix(*space)) {
            match mark {
                b"opaque" => self.opaque |= value == b"y",
                b"redirect" => self.redirect = Some(redirect(&value)),
                b"metacopy" => self.metacopy = self.stat.kind == FileType::File,
                b"whiteout" => self.whiteout |= self.stat.kind == FileType::File && self.stat.size == 0,
                _ => {}
            }
        } else if attribute == override_stat::NAME {
            if let Some(record) = Override::parse(&value) {
                record.apply(&mut self.stat);
            }
        } else if !PRIVATE.iter().any(|private| attribute.starts_with(private)) {
            self.xattrs.push((attribute.to_vec(), value));
        }
    }
}

fn redirect(value: &[u8]) -> Redirect {
    match value.strip_prefix(b"/") {
        Some(path) => TreePath::parse(path).map_or(Redirect::Bad, Redirect::From),
        None => NameBuf::new(value).map_or(Redirect::Bad, Redirect::Beside),
    }
}
