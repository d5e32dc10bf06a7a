//! Which node an inode of the upper is: the number it should have, the node that has it, or a spare one where that is still in use.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer::{FileType, Ino, Name, Slot, Stat};

use crate::error::{Errno, Error, Result};
use crate::lower::Lower;
use crate::names::Names;
use crate::node::{BORN, InUpper, Last, Node, Place, ROOT, SPARE};
use crate::union::Overlay;
use crate::upper::{Marks, Target, Upper};

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Returns the node of an upper inode, made if it is not known yet, with `name` among its names.
    pub(crate) fn adopt(
        &self,
        parent: &Arc<Node<L, U>>,
        name: Name<'_>,
        stat: &Stat,
        marks: &Marks,
    ) -> Result<Arc<Node<L, U>>> {
        let node = self.adopted(parent, name, stat, marks)?;
        node.found.store(true, Ordering::Relaxed);
        if marks.unsynced {
            node.unsynced.store(true, Ordering::Relaxed);
        }
        Ok(node)
    }

    /// Returns the node and the raw attributes of what the upper has under `name`; the caller holds the directory's names, which
    /// are `names`.
    ///
    /// An inode whose marks are known is asked for its attributes alone: marks are nobody's but the union's.
    pub(crate) fn find_named(
        &self,
        parent: &Arc<Node<L, U>>,
        dir: &U::Dir,
        names: Option<&Names>,
        name: Name<'_>,
    ) -> Result<(Arc<Node<L, U>>, Stat)> {
        let upper = self.writable()?;
        let known = names.and_then(|names| names.get(name)?.id).and_then(|id| self.nodes.get(id));
        if let Some(known) = known
            && known.found.load(Ordering::Relaxed)
            && known.is_named(parent, name)
        {
            let stat = upper.stat(Target::At(dir, name))?;
            if stat.ino.0 == known.backing.load(Ordering::Relaxed) && stat.kind == known.kind {
                return Ok((known, stat));
            }
        }
        let (stat, marks) = upper.find(Target::At(dir, name))?;
        Ok((self.adopt(parent, name, &stat, &marks)?, stat))
    }

    fn adopted(&self, parent: &Arc<Node<L, U>>, name: Name<'_>, stat: &Stat, marks: &Marks) -> Result<Arc<Node<L, U>>> {
        let slot = self.merged_slot(parent, name, stat.kind, marks)?;
        if let Some(spare) = self.stand_in(parent, name, slot, stat, marks) {
            return Ok(spare);
        }
        let rightful = self.rightful(slot, stat, marks);
        if let Some(known) = self.nodes.get(rightful) {
            let place = self.in_upper(parent, name, slot, stat, marks);
            if self.revive(&known, parent, name, stat, place) {
                return Ok(known);
            }
            return Ok(self.spare(rightful, parent, name, slot, stat, marks));
        }
        let place = Place::Upper(self.in_upper(parent, name, slot, stat, marks));
        let node =
            self.nodes.get_or_insert(rightful, || Node::new(rightful, rightful, stat.kind, slot, place, stat.ino.0));
        Ok(node)
    }

    /// The number that an upper inode should have: its origin's, else its own.
    fn rightful(&self, slot: Option<Slot>, stat: &Stat, marks: &Marks) -> Ino {
        match (stat.kind, slot, marks.origin) {
            (FileType::Dir, Some(slot), _) => self.id_of(slot),
            (FileType::Dir, None, _) => Ino(BORN | stat.ino.0),
            (_, _, Some(origin)) if origin.key == self.lower.key() => origin.ino,
            _ => Ino(BORN | stat.ino.0),
        }
    }

    /// Adds a name to a known node; `false` when the node is another inode that only had this number.
    pub(crate) fn revive(
        &self,
        node: &Arc<Node<L, U>>,
        parent: &Arc<Node<L, U>>,
        name: Name<'_>,
        stat: &Stat,
        fresh: InUpper<L, U>,
    ) -> bool {
        let mut place = node.place.write();
        let same = node.backing.load(Ordering::Relaxed) == stat.ino.0;
        match &mut *place {
            Place::Upper(up) if same => {
                let known = up.names.iter().any(|(p, n)| Arc::ptr_eq(p, parent) && n.as_name() == name);
                if !known && node.id != ROOT {
                    up.names.push((parent.clone(), name.to_buf()));
                }
                true
            }
            // A name that was not known kept the inode, and its number with it.
            Place::Gone(last)
                if same && last.stat.nlink > 0 && stat.kind == node.kind && stat.kind != FileType::Dir =>
            {
                *place = Place::Upper(fresh);
                true
            }
            // The upper had it before this mount looked there.
            Place::Lower { .. } if stat.kind == node.kind => {
                node.backing.store(stat.ino.0, Ordering::Relaxed);
                *place = Place::Upper(fresh);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn in_upper(
        &self,
        parent: &Arc<Node<L, U>>,
        name: Name<'_>,
        slot: Option<Slot>,
        stat: &Stat,
        marks: &Marks,
    ) -> InUpper<L, U> {
        let indexed =
            slot.is_some_and(|slot| stat.kind != FileType::Dir && self.indexed.read().contains(&self.id_of(slot)));
        InUpper {
            names: vec![(parent.clone(), name.to_buf())],
            indexed,
            body_below: if marks.metacopy { slot } else { None },
            lower_names: marks.lower_names,
            partial: marks.partial,
        }
    }

    /// Makes a node under a spare number, because the rightful one is still in use for an inode that is gone.
    fn spare(
        &self,
        rightful: Ino,
        parent: &Arc<Node<L, U>>,
        name: Name<'_>,
        slot: Option<Slot>,
        stat: &Stat,
        marks: &Marks,
    ) -> Arc<Node<L, U>> {
        let place = Place::Upper(self.in_upper(parent, name, slot, stat, marks));
        self.new_spare(|id| Node::new(id, rightful, stat.kind, slot, place, stat.ino.0))
    }

    pub(crate) fn new_spare(&self, make: impl FnOnce(Ino) -> Node<L, U>) -> Arc<Node<L, U>> {
        let id = Ino(SPARE | (self.spares.fetch_add(1, Ordering::Relaxed) + 1));
        let node = Arc::new(make(id));
        self.nodes.insert(node.clone());
        self.stand_ins.write().insert(node.backing.load(Ordering::Relaxed), id);
        node
    }

    /// Makes a directory keep its number that may have become opaque behind its back.
    pub(crate) fn keep_number(&self, node: &Node<L, U>) {
        self.stand_ins.write().insert(node.backing.load(Ordering::Relaxed), node.id);
    }

    /// Remembers which node an inode of the upper belongs to that may bear no mark: without privilege only files and
    /// directories can (xattr(7)).
    pub(crate) fn remember_unmarked(&self, node: &Node<L, U>, backing: Ino) {
        if node.kind != FileType::File {
            self.stand_ins.write().insert(backing.0, node.id);
        }
    }

    /// Returns the node that stands for a backing inode, if one does.
    fn stand_in(
        &self,
        parent: &Arc<Node<L, U>>,
        name: Name<'_>,
        slot: Option<Slot>,
        stat: &Stat,
        marks: &Marks,
    ) -> Option<Arc<Node<L, U>>> {
        let id = self.stand_ins.read().get(&stat.ino.0).copied()?;
        let node = self.nodes.get(id).filter(|node| node.kind == stat.kind);
        match node {
            Some(node) if self.revive(&node, parent, name, stat, self.in_upper(parent, name, slot, stat, marks)) => {
                Some(node)
            }
            _ => {
                self.stand_ins.write().remove(&stat.ino.0);
                None
            }
        }
    }

    /// Moves an inode of the upper to a spare node; the old node is left to those who have it open, as a file without a name.
    pub(crate) fn leave_node(&self, node: &Arc<Node<L, U>>, last: Stat) -> Arc<Node<L, U>> {
        let place = std::mem::replace(&mut *node.place.write(), Place::Gone(Box::new(Last::new(last))));
        let backing = node.backing.swap(0, Ordering::Relaxed);
        let fresh = self.new_spare(|id| Node::new(id, node.shown, node.kind, node.slot, place, backing));
        fresh.unsynced.store(node.unsynced.swap(false, Ordering::Relaxed), Ordering::Relaxed);
        node.heir.get_or_init(|| fresh.clone());
        fresh
    }

    /// Makes the names of a node lead to it.
    pub(crate) fn relearn(&self, node: &Arc<Node<L, U>>) {
        let names = match &*node.place.read() {
            Place::Upper(up) => up.names.clone(),
            _ => Vec::new(),
        };
        for (parent, name) in names {
            self.learn(&parent, name.as_name(), node.id);
        }
    }

    /// Makes the node of an inode that was just made under `name`.
    pub(crate) fn newborn(&self, parent: &Arc<Node<L, U>>, name: Name<'_>, stat: &Stat) -> Result<Arc<Node<L, U>>> {
        self.adopt(parent, name, stat, &Marks { opaque: true, ..Marks::default() })
    }

    /// Finds the lower inode that an upper one merges with (a directory) or was copied from.
    fn merged_slot(&self, parent: &Node<L, U>, name: Name<'_>, kind: FileType, marks: &Marks) -> Result<Option<Slot>> {
        if kind == FileType::Dir {
            if marks.opaque {
                return Ok(None);
            }
            let found = self.redirected(parent, name, marks)?;
            return match found {
                Some(slot) if self.lower.stat(slot)?.kind == FileType::Dir => Ok(Some(slot)),
                _ => Ok(None),
            };
        }
        if let Some(origin) = marks.origin
            && origin.key == self.lower.key()
            && let Some(slot) = self.lower.slot(origin.ino)
        {
            return Ok(Some(slot));
        }
        if marks.metacopy {
            let found = self.redirected(parent, name, marks)?;
            return match found {
                Some(slot) if self.lower.stat(slot)?.kind == FileType::File => Ok(Some(slot)),
                // The kernel too refuses a metadata-only copy whose body cannot be found.
                _ => {
                    Err(Error::fault(format!("find the lower body of {name}"), Errno::EIO, "its lower file is missing"))
                }
            };
        }
        Ok(None)
    }

    /// Follows a redirect, absolute or to a sibling's name; without one the same name is meant (kernel overlayfs.rst, redirect_dir).
    fn redirected(&self, parent: &Node<L, U>, name: Name<'_>, marks: &Marks) -> Result<Option<Slot>> {
        match marks.redirect.as_deref() {
            Some([b'/', path @ ..]) => {
                let Ok(path) = layer::TreePath::parse(path) else { return Ok(None) };
                let mut slot = self.lower.root();
                for name in path.names() {
                    match self.lower.lookup(slot, name)? {
                        Some(next) => slot = next,
                        None => return Ok(None),
                    }
                }
                Ok(Some(slot))
            }
            Some(sibling) => match (parent.slot, Name::new(sibling)) {
                (Some(dir), Ok(sibling)) => self.lower.lookup(dir, sibling),
                _ => Ok(None),
            },
            None => match parent.slot {
                Some(dir) => self.lower.lookup(dir, name),
                None => Ok(None),
            },
        }
    }
}
