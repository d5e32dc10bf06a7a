//! What a container changed, from its upper alone: names that the upper does not hold are never looked at, but where a
//! directory was moved or made opaque.

pub(crate) mod upper;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use backing::sys;
use layer::index::{Index, RowData};
use layer::{FileType, Name, NameBuf, Slot, TreePath};
use rustix::fs::{Mode, OFlags};

use crate::containers::Container;
use crate::error::{Error, Result};
use crate::layout::BODIES;
use crate::store::Store;
use upper::{Found, Redirect};

/// How a path differs from the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is new: `A`.
    Added,
    /// It, or something in it, is different: `C`.
    Changed,
    /// It is gone: `D`.
    Deleted,
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChangeKind::Added => "A",
            ChangeKind::Changed => "C",
            ChangeKind::Deleted => "D",
        })
    }
}

impl Store {
    /// Returns what the container changed, sorted by path, as docker tells it: a directory in which something changed is
    /// itself changed (the root is not listed), of what was deleted only the top. Directories' times do not count; a file that was
    /// copied up but is as it was is not listed.
    ///
    /// # Errors
    /// The disk; an image whose layers are gone.
    pub fn diff(&self, container: &Container) -> Result<Vec<(ChangeKind, TreePath)>> {
        let lower = self.lower_of(&container.diff_ids)?;
        let bytes = std::fs::read(&lower.index).map_err(Error::at("read", &lower.index))?;
        let index = Index::open(bytes).map_err(|why| Error::corrupt(lower.index.display(), why))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper =
            rustix::fs::open(&container.upper, flags, Mode::empty()).map_err(Error::at("open", &container.upper))?;
        let walk = Comparison { store: self, index, upper, shown: &container.upper, changes: BTreeMap::new() };
        walk.run()
    }
}

/// A directory to be compared.
struct Pending {
    path: TreePath,
    upper: Presence,
    /// The lower directory that shows through.
    lower: Option<Slot>,
    /// The lower directory that was at this path.
    base: Option<Slot>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    InUpper,
    /// Only through a directory above that was moved.
    LowerOnly,
}

/// What a name is now.
enum Now {
    Nothing,
    /// As in the lower, at that row.
    Lower(Slot),
    Upper(Found),
}

struct Comparison<'a> {
    store: &'a Store,
    index: Index<Vec<u8>>,
    upper: OwnedFd,
    /// The upper's path, for messages.
    shown: &'a Path,
    changes: BTreeMap<TreePath, ChangeKind>,
}

impl Comparison<'_> {
    fn run(mut self) -> Result<Vec<(ChangeKind, TreePath)>> {
        let root = Slot(0);
        let mut pending =
            vec![Pending { path: TreePath::root(), upper: Presence::InUpper, lower: Some(root), base: Some(root) }];
        while let Some(dir) = pending.pop() {
            self.directory(&dir, &mut pending)?;
        }
        self.add_parents();
        Ok(self.changes.into_iter().map(|(path, kind)| (kind, path)).collect())
    }

    fn directory(&mut self, dir: &Pending, pending: &mut Vec<Pending>) -> Result<()> {
        let opened = match dir.upper {
            Presence::InUpper => Some(self.open(&dir.path)?),
            Presence::LowerOnly => None,
        };
        let mut names = BTreeSet::new();
        if let Some(opened) = &opened {
            names = upper::names(opened).map_err(self.reading(&dir.path))?;
        }
        // Where the same lower directory shows through as was there, only the upper's own names can differ.
        if dir.lower != dir.base {
            for side in [dir.lower, dir.base].into_iter().flatten() {
                names.extend(
                    self.index.children(side).filter_map(|slot| Some(self.index.row(Slot(slot))?.name()?.to_buf())),
                );
            }
        }
        names.iter().try_for_each(|name| self.name(dir, opened.as_ref(), name, pending))
    }

    fn name(
        &mut self,
        dir: &Pending,
        opened: Option<&OwnedFd>,
        name: &NameBuf,
        pending: &mut Vec<Pending>,
    ) -> Result<()> {
        let name = name.as_name();
        let path = dir.path.join(name);
        let lookup = |side: Option<Slot>| Some(self.index.resolve(self.index.lookup(side?, name)?));
        let (below, base) = (lookup(dir.lower), lookup(dir.base));
        let found = match opened {
            Some(opened) => upper::find(opened, name).map_err(self.reading(&path))?,
            None => None,
        };
        let now = match found {
            Some(found) if found.whiteout => Now::Nothing,
            Some(found) => Now::Upper(found),
            None => below.map_or(Now::Nothing, Now::Lower),
        };
        let is_dir = |slot: Slot| self.index.row(slot).is_some_and(|row| row.file_type() == Some(FileType::Dir));
        let old_dir = base.filter(|slot| is_dir(*slot));
        let (kind, next) = match (now, base) {
            (Now::Nothing, None) => return Ok(()),
            (Now::Nothing, Some(_)) => (Some(ChangeKind::Deleted), None),
            (Now::Lower(slot), Some(base)) if slot == base => return Ok(()),
            (Now::Lower(slot), _) => {
                let next = is_dir(slot).then_some((Presence::LowerOnly, Some(slot)));
                let kind = match base {
                    None => Some(ChangeKind::Added),
                    Some(base) => (!self.same_rows(slot, base)).then_some(ChangeKind::Changed),
                };
                (kind, next)
            }
            (Now::Upper(found), _) => {
                let through =
                    found.is_dir().then(|| self.shows_through(&found, dir, below.filter(|slot| is_dir(*slot))));
                let kind = match base {
                    None => Some(ChangeKind::Added),
                    Some(base) => (!self.is_same(opened, name, &found, base)?).then_some(ChangeKind::Changed),
                };
                (kind, through.map(|through| (Presence::InUpper, through)))
            }
        };
        if let Some((upper, lower)) = next {
            pending.push(Pending { path: path.clone(), upper, lower, base: old_dir });
        }
        if let Some(kind) = kind {
            self.changes.insert(path, kind);
        }
        Ok(())
    }

    /// Finds the lower directory that a directory of the upper lies over.
    fn shows_through(&self, found: &Found, parent: &Pending, below: Option<Slot>) -> Option<Slot> {
        let target = match &found.redirect {
            _ if found.opaque => None,
            None => return below,
            Some(Redirect::From(path)) => self.index.find(path),
            Some(Redirect::Beside(name)) => self.index.lookup(parent.lower?, name.as_name()),
            Some(Redirect::Bad) => None,
        };
        target.filter(|slot| self.index.row(*slot).is_some_and(|row| row.file_type() == Some(FileType::Dir)))
    }

    fn same_rows(&self, a: Slot, b: Slot) -> bool {
        let (Some(a), Some(b)) = (self.index.row(a), self.index.row(b)) else { return false };
        let same = a.data() == b.data() && a.size() == b.size() && a.mtime() == b.mtime();
        let dirs = a.file_type() == Some(FileType::Dir) && b.file_type() == Some(FileType::Dir);
        (dirs || same)
            && (a.perm(), a.uid(), a.gid()) == (b.perm(), b.uid(), b.gid())
            && self.index.xattrs(a.slot()).eq(self.index.xattrs(b.slot()))
    }

    /// Compares what the upper has with what the lower had.
    fn is_same(&self, dir: Option<&OwnedFd>, name: Name<'_>, found: &Found, base: Slot) -> Result<bool> {
        let Some(old) = self.index.row(base).map(|row| row.stat()) else { return Ok(false) };
        let new = &found.stat;
        let attributes = (new.kind, new.perm, new.uid, new.gid) == (old.kind, old.perm, old.uid, old.gid);
        if !attributes || !found.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).eq(self.index.xattrs(base))
        {
            return Ok(false);
        }
        let same_body = new.size == old.size && new.mtime == old.mtime;
        match (new.kind, dir) {
            (FileType::Dir, _) => Ok(true),
            (FileType::Char | FileType::Block, _) => Ok(new.rdev == old.rdev && new.mtime == old.mtime),
            (FileType::Symlink, Some(dir)) => {
                let target = sys::read_link_at(dir, name.as_bytes())
                    .map_err(|cause| Error::io("read a link of the upper", cause))?;
                let was = self.index.row(base).map(|row| row.data());
                Ok(same_body && was == Some(RowData::Symlink(&target)))
            }
            (FileType::File, Some(dir)) => Ok(same_body && (found.metacopy || self.same_content(dir, name, base)?)),
            _ => Ok(same_body),
        }
    }

    /// Compares contents byte by byte: size and time are the same already.
    fn same_content(&self, dir: &OwnedFd, name: Name<'_>, base: Slot) -> Result<bool> {
        let Some(row) = self.index.row(base) else { return Ok(false) };
        let layers: Vec<_> = self.index.layers().collect();
        let (path, start) = match row.data() {
            RowData::Object(object) => (self.store.layout().object(&object.digest), 0),
            RowData::Inline { offset } => match layers.get(usize::from(row.layer().0)) {
                Some(layer) => (self.store.layout().layer(layer).join(BODIES), offset),
                None => return Ok(false),
            },
            _ => return Ok(false),
        };
        let reading = |cause: std::io::Error| Error::io("compare a file of the upper", cause);
        let new = sys::open_beneath(dir, name.as_bytes(), OFlags::RDONLY).map_err(|cause| reading(cause.into()))?;
        let (new, old) = (File::from(new), File::open(&path).map_err(Error::at("open", &path))?);
        let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let mut at = 0;
        while at < row.size() {
            let len = (row.size() - at).min(a.len() as u64) as usize;
            new.read_exact_at(&mut a[..len], at).map_err(reading)?;
            old.read_exact_at(&mut b[..len], start + at).map_err(reading)?;
            if a[..len] != b[..len] {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(true)
    }

    /// A directory in which something changed is itself changed.
    fn add_parents(&mut self) {
        let mut parents = BTreeSet::new();
        for path in self.changes.keys() {
            let mut above = path.split_last().map(|(parent, _)| parent);
            while let Some(dir) = above.filter(|dir| !dir.is_root() && !self.changes.contains_key(dir)) {
                above = dir.split_last().map(|(parent, _)| parent);
                if !parents.insert(dir) {
                    break;
                }
            }
        }
        self.changes.extend(parents.into_iter().map(|dir| (dir, ChangeKind::Changed)));
    }

    fn open(&self, path: &TreePath) -> Result<OwnedFd> {
        sys::open_beneath(&self.upper, path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(self.reading(path))
    }

    fn reading(&self, path: &TreePath) -> impl FnOnce(rustix::io::Errno) -> Error {
        let doing = format!("read {path} in {}", self.shown.display());
        move |cause| Error::io(doing, cause)
    }
}
