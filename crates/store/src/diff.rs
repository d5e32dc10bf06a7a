//! What a container changed, from its upper alone: names that the upper does not hold are never looked at, but where a
//! directory was moved or made opaque.

mod body;
mod tar;
pub(crate) mod upper;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backing::sys;
use layer::index::{Index, RowData};
use layer::{FileType, Name, NameBuf, Slot, TreePath};
use rustix::fs::{Mode, OFlags};

use crate::containers::Container;
use crate::error::{Error, Result};
use crate::layout::BODIES;
use crate::store::Store;
use body::Below;
pub use tar::Reserved;
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
        let mut walk = Comparison::new(self, container)?;
        walk.run(Some(Slot(0)))?;
        walk.add_parents();
        Ok(walk.changes.into_iter().map(|(path, change)| (change.kind, path)).collect())
    }

    /// Finds what the container changed, to be written as a layer.
    ///
    /// Partial copies of a mounted container are read together with what they were copied from.
    pub(crate) fn changes<'a>(&'a self, container: &'a Container) -> Result<Changes<'a>> {
        let mut walk = Comparison::new(self, container)?;
        walk.run(Some(Slot(0)))?;
        walk.add_linked();
        walk.add_parents();
        let when = if container.diff_ids.is_empty() { RootDir::Always } else { RootDir::IfChanged };
        walk.add_root(when)?;
        Ok(Changes { changes: std::mem::take(&mut walk.changes), walk })
    }

    /// Writes the container's whole tree as a tar, as programs in it see it.
    ///
    /// # Errors
    /// The disk, the writer; an image whose layers are gone.
    pub fn export(&self, container: &Container, out: &mut dyn std::io::Write) -> Result<()> {
        let _lease = self.take_lease(&container.diff_ids, Some(&container.id), "export")?;
        let mut walk = Comparison::new(self, container)?;
        // Compared with nothing, everything is new.
        walk.run(None)?;
        walk.add_root(RootDir::Always)?;
        Changes { changes: std::mem::take(&mut walk.changes), walk }.write_tar(Reserved::Keep, out)
    }
}

/// Refuses an upper that was left in the AUFS form: what it holds means something else there.
pub(crate) fn not_aufs(container: &Container) -> Result<()> {
    match backing::upper::is_aufs(&container.work).map_err(Error::at("look into", &container.work))? {
        false => Ok(()),
        true => {
            let what = format!("container {}", container.name);
            let why = format!("what it wrote is in the AUFS form; bring it back with: plyfs settle {}", container.name);
            Err(Error::unsupported(what, why))
        }
    }
}

/// Returns the index of an empty root directory: what a first layer is compared with.
fn nothing() -> Result<Index<Vec<u8>>> {
    let invalid = |why: String| Error::invalid("an empty layer", why);
    let empty = layer::tree::LayerTree::new().into_index(layer::DiffId(layer::Digest::of(b"")));
    Index::open(empty.map_err(|why| invalid(why.to_string()))?).map_err(|why| invalid(why.to_string()))
}

/// What a container changed.
pub(crate) struct Changes<'a> {
    walk: Comparison<'a>,
    changes: BTreeMap<TreePath, Change>,
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
    Upper(Box<Found>, Place),
}

impl Now {
    /// Tells whether the lower's names lead to a copy that may have none in the upper yet.
    fn is_indexed(&self) -> bool {
        matches!(self, Now::Upper(_, Place::Index(..)))
    }
}

/// Where something of the upper lies.
#[derive(Clone)]
enum Place {
    /// Under the path at which programs see it.
    Here,
    /// In the index of hard-linked origins of the work directory: the lower's names are linked to it when the mount ends.
    Index(Arc<OwnedFd>, NameBuf),
}

/// How a path differs, and what is there now.
struct Change {
    kind: ChangeKind,
    now: Now,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RootDir {
    IfChanged,
    Always,
}

struct Comparison<'a> {
    store: &'a Store,
    index: Index<Vec<u8>>,
    upper: OwnedFd,
    /// The upper's path, for messages.
    shown: &'a Path,
    /// Hard-linked origins that were copied while the mount lives, by row: where the copy is.
    indexed: HashMap<Slot, Place>,
    /// The names in the lower that lead to them, by directory, with the directories on the way.
    on_the_way: HashMap<Slot, BTreeSet<NameBuf>>,
    /// An earlier mount left copies of this epoch unsynced and did not come to rest.
    unsynced: Option<u64>,
    changes: BTreeMap<TreePath, Change>,
    /// Names of the upper that are as they were, of files with several names.
    linked: Vec<(TreePath, Change)>,
    /// Directories that are as they were, but not all that is in them.
    unchanged: HashMap<TreePath, Now>,
}

impl<'a> Comparison<'a> {
    fn new(store: &'a Store, container: &'a Container) -> Result<Self> {
        let index = match container.diff_ids.is_empty() {
            true => nothing()?,
            false => store.folded_index(&container.diff_ids)?,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper =
            rustix::fs::open(&container.upper, flags, Mode::empty()).map_err(Error::at("open", &container.upper))?;
        not_aufs(container)?;
        let own = container.work.join("plyfs");
        let epoch = match container.is_mounted() {
            // The daemon knows which of them are whole.
            true => None,
            false => crate::disk::read_if_there(&own.join("unsynced"))?,
        };
        let mut walk = Comparison {
            store,
            index,
            upper,
            shown: &container.upper,
            indexed: HashMap::new(),
            on_the_way: HashMap::new(),
            unsynced: epoch.and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes),
            changes: BTreeMap::new(),
            linked: Vec::new(),
            unchanged: HashMap::new(),
        };
        walk.read_index(&own.join("index"))?;
        Ok(walk)
    }

    /// Reads which hard-linked origins were copied, and finds their names in the lower.
    fn read_index(&mut self, path: &Path) -> Result<()> {
        let names = crate::disk::names(path)?;
        if names.is_empty() {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = Arc::new(rustix::fs::open(path, flags, Mode::empty()).map_err(Error::at("open", path))?);
        for name in names {
            let number = u32::from_str_radix(&name, 16).ok().and_then(|ino| ino.checked_sub(1));
            let (Some(slot), Ok(name)) = (number.map(Slot), NameBuf::new(name)) else { continue };
            self.indexed.insert(slot, Place::Index(Arc::clone(&dir), name));
            for name in std::iter::once(slot).chain(self.index.aliases(slot)) {
                let mut at = self.index.row(name);
                while let Some((row, name)) = at.and_then(|row| Some((row, row.name()?))) {
                    self.on_the_way.entry(row.parent()).or_default().insert(name.to_buf());
                    at = self.index.row(row.parent());
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, base: Option<Slot>) -> Result<()> {
        let lower = Some(Slot(0));
        let mut pending = vec![Pending { path: TreePath::root(), upper: Presence::InUpper, lower, base }];
        while let Some(dir) = pending.pop() {
            self.directory(&dir, &mut pending)?;
        }
        Ok(())
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
        if let Some(below) = dir.lower.and_then(|lower| self.on_the_way.get(&lower)) {
            names.extend(below.iter().cloned());
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
            Some(mut found) => {
                found.body_below = self.copied_from(&found, dir, below);
                Now::Upper(Box::new(found), Place::Here)
            }
            None => match below.and_then(|slot| Some((slot, self.indexed.get(&slot)?.clone()))) {
                None => below.map_or(Now::Nothing, Now::Lower),
                Some((slot, place)) => self.indexed_now(slot, place, dir)?,
            },
        };
        let is_dir = |slot: Slot| self.index.row(slot).is_some_and(|row| row.file_type() == Some(FileType::Dir));
        let old_dir = base.filter(|slot| is_dir(*slot));
        let on_the_way = |slot: Slot| is_dir(slot) && self.on_the_way.contains_key(&slot);
        let (kind, next) = match (&now, base) {
            (Now::Nothing, None) => return Ok(()),
            (Now::Nothing, Some(_)) => (Some(ChangeKind::Deleted), None),
            (Now::Lower(slot), Some(base)) if *slot == base => {
                (None, on_the_way(base).then_some((Presence::LowerOnly, Some(base))))
            }
            (Now::Lower(slot), _) => {
                let next = is_dir(*slot).then_some((Presence::LowerOnly, Some(*slot)));
                let kind = match base {
                    None => Some(ChangeKind::Added),
                    Some(base) => (!self.same_rows(*slot, base)).then_some(ChangeKind::Changed),
                };
                (kind, next)
            }
            (Now::Upper(found, place), _) => {
                let through =
                    found.is_dir().then(|| self.shows_through(found, dir, below.filter(|slot| is_dir(*slot))));
                let kind = match base {
                    None => Some(ChangeKind::Added),
                    Some(base) => {
                        let same = match place {
                            Place::Here => self.is_same(opened.map(|dir| (dir, name)), found, base)?,
                            Place::Index(dir, name) => self.is_same(Some((dir, name.as_name())), found, base)?,
                        };
                        (!same).then_some(ChangeKind::Changed)
                    }
                };
                (kind, through.map(|through| (Presence::InUpper, through)))
            }
        };
        let walked = next.is_some();
        if let Some((upper, lower)) = next {
            pending.push(Pending { path: path.clone(), upper, lower, base: old_dir });
        }
        match (kind, now) {
            (Some(kind), now) => drop(self.changes.insert(path, Change { kind, now })),
            (None, Now::Upper(found, place))
                if !found.is_dir() && (found.stat.nlink > 1 || matches!(place, Place::Index(..))) =>
            {
                let now = Now::Upper(found, place);
                self.linked.push((path, Change { kind: ChangeKind::Changed, now }));
            }
            (None, now) if walked => drop(self.unchanged.insert(path, now)),
            (None, _) => {}
        }
        Ok(())
    }

    /// What a name that only the lower has leads to while its origin's copy waits in the index.
    fn indexed_now(&self, slot: Slot, place: Place, parent: &Pending) -> Result<Now> {
        let Place::Index(dir, name) = &place else { return Ok(Now::Lower(slot)) };
        let found = upper::find(dir, name.as_name()).map_err(|errno| Error::io("read the work directory", errno))?;
        Ok(match found {
            // It was taken away meanwhile: all names lead to it by now.
            None => Now::Lower(slot),
            Some(mut found) => {
                found.body_below = self.copied_from(&found, parent, Some(slot));
                Now::Upper(Box::new(found), place)
            }
        })
    }

    /// Finds the lower file that has the body of a metadata-only copy.
    fn copied_from(&self, found: &Found, parent: &Pending, below: Option<Slot>) -> Option<Slot> {
        let is_file = |slot: &Slot| self.index.row(*slot).is_some_and(|row| row.file_type() == Some(FileType::File));
        let noted = found.origin.as_ref().map(|origin| origin.slot).filter(is_file);
        let moved = || match found.redirect.as_ref()? {
            Redirect::From(path) => self.index.find(path),
            Redirect::Beside(name) => self.index.lookup(parent.lower?, name.as_name()),
            Redirect::Bad => None,
        };
        let slot = noted.or_else(moved).or(below);
        slot.map(|slot| self.index.resolve(slot)).filter(is_file)
    }

    /// Tells where the body is of a copy that took its name unsynced and lost it in a power cut.
    fn lost_body(&self, found: &Found, file: &OwnedFd) -> std::io::Result<Option<Slot>> {
        let Some(origin) = found.origin.as_ref().filter(|origin| origin.length > 0) else { return Ok(None) };
        if self.unsynced != Some(origin.epoch) {
            return Ok(None);
        }
        let hole = match rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(0)) {
            Err(rustix::io::Errno::NXIO) => 0,
            hole => hole?,
        };
        Ok((found.stat.size < origin.length || hole < origin.length).then_some(found.body_below).flatten())
    }

    /// Adds the other names of files that are told: hard links stay together.
    fn add_linked(&mut self) {
        let upper_inode = |change: &Change| match &change.now {
            Now::Upper(found, _) if !found.is_dir() => Some(found.stat.ino),
            _ => None,
        };
        let told: HashSet<_> = self.changes.values().filter_map(upper_inode).collect();
        let linked = std::mem::take(&mut self.linked);
        self.changes.extend(
            linked.into_iter().filter(|(_, change)| upper_inode(change).is_some_and(|ino| told.contains(&ino))),
        );
    }

    fn add_root(&mut self, when: RootDir) -> Result<()> {
        let root = TreePath::root();
        let found = upper::find_root(&self.upper).map_err(self.reading(&root))?;
        if when == RootDir::Always || !self.is_same(None, &found, Slot(0))? {
            self.changes
                .insert(root, Change { kind: ChangeKind::Changed, now: Now::Upper(Box::new(found), Place::Here) });
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
    fn is_same(&self, at: Option<(&OwnedFd, Name<'_>)>, found: &Found, base: Slot) -> Result<bool> {
        let Some(old) = self.index.row(base).map(|row| row.stat()) else { return Ok(false) };
        let new = &found.stat;
        let attributes = (new.kind, new.perm, new.uid, new.gid) == (old.kind, old.perm, old.uid, old.gid);
        if !attributes || !found.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).eq(self.index.xattrs(base))
        {
            return Ok(false);
        }
        let same_body = new.size == old.size && new.mtime == old.mtime;
        match (new.kind, at) {
            (FileType::Dir, _) => Ok(true),
            (FileType::Char | FileType::Block, _) => Ok(new.rdev == old.rdev && new.mtime == old.mtime),
            (FileType::Symlink, Some((dir, name))) => {
                let target = self.link_target(dir, name, found)?;
                let was = self.index.row(base).map(|row| row.data());
                Ok(same_body && was == Some(RowData::Symlink(&target)))
            }
            (FileType::File, Some(_)) if found.metacopy => {
                Ok(same_body && found.partial.is_none() && found.body_below == Some(base))
            }
            (FileType::File, Some((dir, name))) => Ok(same_body && self.same_content(dir, name, base)?),
            _ => Ok(same_body),
        }
    }

    /// Compares contents byte by byte: size and time are the same already.
    fn same_content(&self, dir: &OwnedFd, name: Name<'_>, base: Slot) -> Result<bool> {
        let Some(row) = self.index.row(base) else { return Ok(false) };
        let Below { file: old, start } = self.below(base)?;
        let reading = |cause: std::io::Error| Error::io("compare a file of the upper", cause);
        let new = sys::open_beneath(dir, name.as_bytes(), OFlags::RDONLY).map_err(|cause| reading(cause.into()))?;
        let new = File::from(new);
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

    /// Opens the content of a lower file.
    fn below(&self, slot: Slot) -> Result<Below> {
        let slot = self.index.resolve(slot);
        let no_file = || Error::corrupt(format!("row {} of the folded index", slot.0), "it is no file");
        let row = self.index.row(slot).ok_or_else(no_file)?;
        let (path, start): (PathBuf, u64) = match row.data() {
            RowData::Object(object) => (self.store.layout().object(&object.digest), 0),
            RowData::Inline { offset } => {
                let layer = self.index.layers().nth(usize::from(row.layer().0)).ok_or_else(no_file)?;
                (self.store.layout().layer(&layer).join(BODIES), offset)
            }
            _ => return Err(no_file()),
        };
        Ok(Below { file: File::open(&path).map_err(Error::at("open", &path))?, start })
    }

    /// Returns the target of a link, or of the file that stands for one.
    fn link_target(&self, dir: &OwnedFd, name: Name<'_>, found: &Found) -> Result<Vec<u8>> {
        let reading = |cause: std::io::Error| Error::io("read a link of the upper", cause);
        if !found.stands_in {
            return sys::read_link_at(dir, name.as_bytes()).map_err(|errno| reading(errno.into()));
        }
        let file = sys::open_beneath(dir, name.as_bytes(), OFlags::RDONLY).map_err(|errno| reading(errno.into()))?;
        let mut target = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(File::from(file), 4096), &mut target).map_err(reading)?;
        Ok(target)
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
        for dir in parents {
            let now = self.unchanged.remove(&dir).unwrap_or(Now::Nothing);
            self.changes.insert(dir, Change { kind: ChangeKind::Changed, now });
        }
    }

    fn open(&self, path: &TreePath) -> Result<OwnedFd> {
        sys::open_beneath(&self.upper, path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(self.reading(path))
    }

    fn reading(&self, path: &TreePath) -> impl FnOnce(rustix::io::Errno) -> Error {
        let doing = format!("read {path} in {}", self.shown.display());
        move |cause| Error::io(doing, cause)
    }
}
