//! The two-sided union: one lower that never changes, one upper that does, and one method per verb.
//!
//! This module owns the shared state and the way to it (which node is meant, where it lies; which node an inode of the upper is, `adopt` says); the verbs are in `read`,
//! `make`, `remove`, `rename`, `copy_up`, `attr` and `file`.
//!
//! **Locks**, in this order: one node's copy-up lock (`Node::copying`), the path lock (exclusive only for the rename of a
//! directory), directory locks (`Node::names`, two at a time by ascending number), then memory (`Node::place`, `Node::open`,
//! the node table), for one statement each. Bodies are copied under the first alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use layer::{FileType, Ino, Name, NameBuf, Slot, Stat};
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};

use crate::error::{Errno, Error, Result};
use crate::ids::Ids;
use crate::lower::Lower;
use crate::names::{Entry, Names};
use crate::node::{BORN, InUpper, Node, Nodes, Place, ROOT, SPARE, told_slot};
use crate::partial::LAZY_MIN;
use crate::upper::{Target, Upper};

/// A union mount: the only face that front ends see.
pub struct Overlay<L: Lower, U: Upper> {
    pub(crate) lower: L,
    pub(crate) upper: Option<U>,
    pub(crate) options: Options,
    pub(crate) nodes: Nodes<L, U>,
    pub(crate) path: RwLock<()>,
    /// Hard-linked origins that are in the upper's index.
    pub(crate) indexed: RwLock<HashSet<Ino>>,
    pub(crate) spares: AtomicU64,
    /// Which spare stands for a backing inode.
    pub(crate) stand_ins: RwLock<HashMap<u64, Ino>>,
    dirs_open: AtomicUsize,
    /// Where directories of the lower went that were moved; `None` when that is not known.
    pub(crate) moved: Mutex<Option<HashMap<Slot, Vec<NameBuf>>>>,
}

/// What a union does beyond the two trees.
#[derive(Clone, Debug)]
pub struct Options {
    /// Owners on disk and as shown.
    pub ids: Ids,
    /// How many directories of the upper are held open at most.
    pub open_dirs: usize,
    /// A body up to this many bytes is copied with its metadata; a larger one stays below until it is written.
    pub small: u64,
    /// A large body that is written is copied piece by piece.
    pub lazy: bool,
    /// How large in bytes; smaller ones are copied whole, which takes no longer than a program notices.
    pub lazy_min: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { ids: Ids::default(), open_dirs: 1024, small: 64 << 10, lazy: true, lazy_min: LAZY_MIN }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Filesystem user id, as the mount shows it.
    pub uid: u32,
    /// Filesystem group id, as the mount shows it.
    pub gid: u32,
    /// File mode creation mask.
    pub umask: u32,
}

/// An inode as the front end tells it to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The number to ask by; differs from `stat.ino` only for spares.
    pub id: Ino,
    /// Attributes with shown ids; `ino` is what programs see.
    pub stat: Stat,
}

/// Which inode a number means.
pub(crate) enum At<L: Lower, U: Upper> {
    /// A row of the lower that nothing was done to.
    Lower(Slot),
    Node(Arc<Node<L, U>>),
}

/// Both sides of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// What the upper has.
    pub(crate) upper: Option<Entry>,
    /// What the lower has, hidden or not.
    pub(crate) lower: Option<Slot>,
}

impl View {
    /// Tells whether programs see the name.
    pub(crate) fn visible(&self) -> bool {
        match self.upper {
            Some(entry) => entry.kind.is_some(),
            None => self.lower.is_some(),
        }
    }

    /// Tells whether the upper has an entry (not a whiteout) there.
    pub(crate) fn in_upper(&self) -> bool {
        self.upper.is_some_and(|entry| entry.kind.is_some())
    }

    pub(crate) fn whiteout(&self) -> bool {
        self.upper.is_some_and(|entry| entry.kind.is_none())
    }
}

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Joins the two sides; without an upper the union is read-only.
    ///
    /// # Errors
    /// A fault when the upper's root cannot be read.
    pub fn new(lower: L, upper: Option<U>, options: Options) -> Result<Self> {
        let this = Self::joined(lower, upper, options)?;
        this.take_over_index()?;
        Ok(this)
    }

    /// Joins the two sides, and knows nothing of them yet.
    pub(crate) fn joined(lower: L, upper: Option<U>, options: Options) -> Result<Self> {
        let nodes = Nodes::new();
        if let Some(upper) = &upper {
            let root = upper.root();
            let (stat, marks) = upper.find(Target::Dir(&root))?;
            let slot = if marks.opaque { None } else { Some(lower.root()) };
            let place = Place::Upper(InUpper {
                names: Vec::new(),
                indexed: false,
                body_below: None,
                lower_names: 0,
                partial: None,
            });
            let node = Node::new(ROOT, ROOT, FileType::Dir, slot, place, stat.ino.0);
            *node.dir.lock() = Some(root);
            nodes.insert(Arc::new(node));
        }
        Ok(Overlay {
            lower,
            upper,
            options,
            nodes,
            path: RwLock::new(()),
            indexed: RwLock::new(HashSet::new()),
            spares: AtomicU64::new(0),
            stand_ins: RwLock::default(),
            dirs_open: AtomicUsize::new(0),
            moved: Mutex::new(None),
        })
    }

    /// Returns the lower.
    pub fn lower(&self) -> &L {
        &self.lower
    }

    /// Returns the upper, if the union has one.
    pub fn upper(&self) -> Option<&U> {
        self.upper.as_ref()
    }

    /// Returns how many inodes are kept in memory.
    pub fn nodes_in_memory(&self) -> usize {
        self.nodes.len()
    }

    /// Tells whether POSIX ACLs may occur.
    pub fn has_acls(&self) -> bool {
        self.lower.has_acls() || self.upper.as_ref().is_some_and(Upper::has_acls)
    }

    /// Tells whether it is known that nothing here has an extended attribute, nor ever will.
    pub fn is_bare(&self) -> bool {
        self.upper.is_none() && self.lower.is_bare()
    }

    pub(crate) fn writable(&self) -> Result<&U> {
        self.upper.as_ref().ok_or(Error::Answer(Errno::EROFS))
    }

    /// Finds what a number means; a number that is not known any more is `ESTALE`.
    pub(crate) fn at(&self, id: Ino) -> Result<At<L, U>> {
        if let Some(node) = self.nodes.get(id) {
            return Ok(At::Node(node));
        }
        self.slot_of(id).map(At::Lower).ok_or(Error::Answer(Errno::ESTALE))
    }

    pub(crate) fn slot_of(&self, id: Ino) -> Option<Slot> {
        if id == ROOT {
            return Some(self.lower.root());
        }
        if id.0 & (BORN | SPARE) == 0 { self.lower.slot(id) } else { None }
    }

    /// The number of a slot of the lower; the root's is always 1.
    pub(crate) fn id_of(&self, slot: Slot) -> Ino {
        if slot == self.lower.root() { ROOT } else { self.lower.ino(slot) }
    }

    /// Returns a node for that number, making one for a row of the lower.
    pub(crate) fn node(&self, id: Ino) -> Result<Arc<Node<L, U>>> {
        match self.at(id)? {
            At::Node(node) => Ok(node),
            // Not known to the kernel now, but copied up before, by another name.
            At::Lower(slot) if self.indexed.read().contains(&id) => self.indexed_node(id, slot),
            At::Lower(slot) => {
                let kind = self.lower.stat(slot)?.kind;
                Ok(self
                    .nodes
                    .get_or_insert(id, || Node::new(id, id, kind, Some(slot), Place::Lower { seen: Vec::new() }, 0)))
            }
        }
    }

    /// Lets go of a node that was made for one operation.
    pub(crate) fn release_node(&self, node: Arc<Node<L, U>>) {
        let (id, slot) = (node.id, told_slot(&node));
        drop(node);
        self.nodes.drop_unused(id, slot);
    }

    /// Takes back `count` answers that named `id`.
    pub fn forget(&self, id: Ino, count: u64) {
        self.nodes.forget(id, self.slot_of(id), count);
    }

    /// Counts one answer that named `id`.
    pub(crate) fn tell(&self, id: Ino) {
        match self.slot_of(id) {
            Some(slot) => self.nodes.tell(Some(slot), None),
            None => self.nodes.tell(None, self.nodes.get(id).as_deref()),
        }
    }

    /// Opens the upper's directory behind a node that is in the upper.
    ///
    /// The caller holds the path lock, so that no directory above moves meanwhile.
    pub(crate) fn dir(&self, node: &Arc<Node<L, U>>) -> Result<U::Dir> {
        if let Some(dir) = &*node.dir.lock() {
            return Ok(dir.clone());
        }
        let upper = self.writable()?;
        let (parent, name) = match &*node.place.read() {
            Place::Upper(up) => up.names.first().cloned().ok_or(Error::Answer(Errno::ENOENT))?,
            Place::Gone(_) => return Err(Errno::ENOENT.into()),
            Place::Lower { .. } => return Err(Errno::ESTALE.into()),
        };
        let dir = upper.open_dir(&self.dir(&parent)?, name.as_name())?;
        self.keep_dir(node, dir.clone());
        Ok(dir)
    }

    /// Holds a directory open for the next time; past the limit all others are let go.
    pub(crate) fn keep_dir(&self, node: &Arc<Node<L, U>>, dir: U::Dir) {
        if self.dirs_open.fetch_add(1, Ordering::Relaxed) >= self.options.open_dirs {
            let mut let_go = 0;
            self.nodes.for_each(|other| {
                if other.id != ROOT && other.dir.try_lock().is_some_and(|mut dir| dir.take().is_some()) {
                    let_go += 1;
                }
            });
            self.dirs_open.store(0, Ordering::Relaxed);
            log::debug!("let go of {let_go} open directories");
        }
        *node.dir.lock() = Some(dir);
    }

    /// Calls `f` with the way to an inode that is in the upper.
    ///
    /// The caller holds the path lock. A file's own directory is locked shared, so that its name stays its name.
    pub(crate) fn with_target<T>(
        &self,
        node: &Arc<Node<L, U>>,
        f: impl FnOnce(&U, Target<'_, U>) -> Result<T>,
    ) -> Result<T> {
        let upper = self.writable()?;
        if node.kind == FileType::Dir {
            let dir = self.dir(node)?;
            return f(upper, Target::Dir(&dir));
        }
        loop {
            let (name, indexed) = match &*node.place.read() {
                Place::Upper(up) => (up.names.first().cloned(), up.indexed),
                Place::Gone(_) => (None, false),
                Place::Lower { .. } => return Err(Errno::ESTALE.into()),
            };
            if indexed {
                return f(upper, Target::Index(node.shown));
            }
            let Some((parent, name)) = name else {
                return match self.open_inode(node) {
                    Some(file) => f(upper, Target::File(&*file)),
                    None => Err(Errno::ENOENT.into()),
                };
            };
            let dir = self.dir(&parent)?;
            let _shared = parent.names.read();
            let still = matches!(&*node.place.read(), Place::Upper(up)
                if up.names.first().is_some_and(|(p, n)| Arc::ptr_eq(p, &parent) && *n == name));
            if still {
                return f(upper, Target::At(&dir, name.as_name()));
            }
        }
    }

    /// Locks a directory of the upper for changes, its names read.
    pub(crate) fn lock_names<'a>(
        &self,
        node: &'a Arc<Node<L, U>>,
        dir: &U::Dir,
    ) -> Result<RwLockWriteGuard<'a, Option<Names>>> {
        let mut names = node.names.write();
        if names.is_none() {
            *names = Some(Names::from_list(self.writable()?.list(dir)?));
        }
        Ok(names)
    }

    /// Calls `f` with the names that the upper has in a directory.
    pub(crate) fn with_names<T>(&self, node: &Arc<Node<L, U>>, f: impl FnOnce(&Names) -> Result<T>) -> Result<T> {
        {
            let names = node.names.read();
            if let Some(names) = &*names {
                return f(names);
            }
        }
        let dir = self.dir(node)?;
        let names = RwLockWriteGuard::downgrade(self.lock_names(node, &dir)?);
        match &*names {
            Some(names) => f(names),
            None => Err(Errno::ESTALE.into()),
        }
    }

    /// Looks at both sides of a name.
    pub(crate) fn view(&self, dir: &Node<L, U>, names: &Names, name: Name<'_>) -> Result<View> {
        let lower = match dir.slot {
            Some(slot) => self.lower.lookup(slot, name)?,
            None => None,
        };
        Ok(View { upper: names.get(name), lower })
    }

    /// Looks a name up; `None` when there is nothing, else the kernel is told of it (one to [`Overlay::forget`]).
    ///
    /// # Errors
    /// `ESTALE` for a number that was forgotten; faults.
    pub fn lookup(&self, parent: Ino, name: Name<'_>) -> Result<Option<Attr>> {
        match self.at(parent)? {
            At::Lower(dir) => {
                let _path = self.upper.as_ref().map(|_| self.path.read());
                self.lookup_lower(parent, dir, name)
            }
            At::Node(node) if node.in_upper() => {
                let _path = self.path.read();
                let view = self.with_names(&node, |names| self.view(&node, names, name))?;
                match view.upper {
                    Some(Entry { kind: None, .. }) => Ok(None),
                    Some(Entry { kind: Some(_), .. }) => self.lookup_upper(&node, name).map(Some),
                    None => match view.lower {
                        Some(slot) => self.tell_lower(node.id, slot, name).map(Some),
                        None => Ok(None),
                    },
                }
            }
            At::Node(node) => match node.slot {
                Some(dir) if !self.is_gone(&node) => {
                    let _path = self.path.read();
                    self.lookup_lower(parent, dir, name)
                }
                _ => Ok(None),
            },
        }
    }

    fn lookup_lower(&self, parent: Ino, dir: Slot, name: Name<'_>) -> Result<Option<Attr>> {
        match self.lower.lookup(dir, name)? {
            Some(slot) => self.tell_lower(parent, slot, name).map(Some),
            None => Ok(None),
        }
    }

    /// Answers with a row of the lower, or with the copy that a hard-linked one has by another name.
    fn tell_lower(&self, parent: Ino, slot: Slot, name: Name<'_>) -> Result<Attr> {
        let attr = self.lower_attr(parent, slot, name)?;
        self.tell(attr.id);
        Ok(attr)
    }

    pub(crate) fn lower_attr(&self, parent: Ino, slot: Slot, name: Name<'_>) -> Result<Attr> {
        let stat = self.lower.stat(slot)?;
        let id = self.id_of(slot);
        if stat.kind != FileType::Dir && stat.nlink > 1 && self.upper.is_some() {
            if self.indexed.read().contains(&id) {
                let node = self.indexed_node(id, slot)?;
                if self.lower.names(slot)?.is_none() {
                    self.note_seen(&node, parent, name);
                }
                return self.attr(&node);
            }
            if let Some(node) = self.nodes.get(id) {
                self.note_seen(&node, parent, name);
                return self.attr(&node);
            }
            if self.lower.names(slot)?.is_none() {
                let node = self.node(id)?;
                self.note_seen(&node, parent, name);
            }
        }
        Ok(Attr { id, stat: self.shown(stat, id) })
    }

    fn note_seen(&self, node: &Node<L, U>, parent: Ino, name: Name<'_>) {
        let known = |names: &[(Ino, layer::NameBuf)]| names.iter().any(|(p, n)| *p == parent && n.as_name() == name);
        if let Place::Lower { seen } = &mut *node.place.write() {
            if !known(seen) {
                seen.push((parent, name.to_buf()));
            }
            return;
        }
        let mut met = node.met.lock();
        if !known(&met) {
            met.push((parent, name.to_buf()));
        }
    }

    pub(crate) fn indexed_node(&self, id: Ino, slot: Slot) -> Result<Arc<Node<L, U>>> {
        let known = self.nodes.get(id);
        if let Some(node) = &known
            && node.in_upper()
        {
            return Ok(node.clone());
        }
        let (stat, marks) = self.writable()?.find(Target::Index(id))?;
        let spare = self.stand_ins.read().get(&stat.ino.0).copied();
        if let Some(node) = spare.and_then(|spare| self.nodes.get(spare)) {
            return Ok(node);
        }
        let place = Place::Upper(InUpper {
            names: Vec::new(),
            indexed: true,
            body_below: marks.metacopy.then_some(slot),
            lower_names: marks.lower_names,
            partial: marks.partial,
        });
        let node = match known {
            Some(_) => self.new_spare(|spare| Node::new(spare, id, stat.kind, Some(slot), place, stat.ino.0)),
            None => self.nodes.get_or_insert(id, || Node::new(id, id, stat.kind, Some(slot), place, stat.ino.0)),
        };
        node.unsynced.fetch_or(marks.unsynced, Ordering::Relaxed);
        Ok(node)
    }

    fn lookup_upper(&self, parent: &Arc<Node<L, U>>, name: Name<'_>) -> Result<Attr> {
        let (node, stat) = self.upper_node(parent, name)?;
        self.learn(parent, name, node.id);
        let attr = self.attr_from(&node, stat)?;
        self.nodes.tell(told_slot(&node), Some(&node));
        Ok(attr)
    }

    /// Remembers which node a name leads to.
    pub(crate) fn learn(&self, parent: &Node<L, U>, name: Name<'_>, id: Ino) {
        let known =
            parent.names.read().as_ref().and_then(|names| names.get(name)).is_some_and(|entry| entry.id == Some(id));
        if !known && let Some(names) = &mut *parent.names.write() {
            names.learn(name, id);
        }
    }

    /// Returns the node and the raw attributes behind a name that the upper has.
    pub(crate) fn upper_node(&self, parent: &Arc<Node<L, U>>, name: Name<'_>) -> Result<(Arc<Node<L, U>>, Stat)> {
        let dir = self.dir(parent)?;
        let names = parent.names.read();
        self.find_named(parent, &dir, names.as_ref(), name)
    }
}
