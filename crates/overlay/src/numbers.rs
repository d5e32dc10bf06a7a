//! Finding inodes by number alone, for file handles that outlived what the kernel remembers (open_by_handle_at(2)).
//!
//! A number of the lower is never another's, so it is looked for where the lower has it, and then all over the upper. One that was born in
//! the upper may be given to another file after its removal: it is found only while it is in memory.

use std::sync::Arc;

use layer::{FileType, Ino, NameBuf, Slot};

use crate::error::Result;
use crate::lower::Lower;
use crate::node::{Node, Place, ROOT, told_slot};
use crate::union::{At, Attr, Overlay};
use crate::upper::Upper;

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Finds an inode by its number; `None` when there is none any more, else the kernel is told of it (one to
    /// [`Overlay::forget`]).
    ///
    /// # Errors
    /// Faults.
    pub fn lookup_number(&self, id: Ino) -> Result<Option<Attr>> {
        if let Some(node) = self.nodes.get(id) {
            return self.told_node(&node);
        }
        let Some(slot) = self.slot_of(id) else { return Ok(None) };
        if self.lower.stat(slot)?.kind == FileType::Dir {
            return match self.walk_below(slot)? {
                None => Ok(None),
                Some(At::Node(node)) => {
                    if node.id == id {
                        self.told_node(&node)
                    } else {
                        Ok(None)
                    }
                }
                Some(At::Lower(_)) => {
                    self.tell(id);
                    self.getattr(id).map(Some)
                }
            };
        }
        for (dir, name) in self.some_names(slot)? {
            let parent = match self.walk_below(dir)? {
                None => continue,
                Some(At::Lower(dir)) => self.id_of(dir),
                Some(At::Node(node)) => node.id,
            };
            match self.lookup(parent, name.as_name())? {
                Some(attr) if attr.id == id => return Ok(Some(attr)),
                Some(attr) => self.forget(attr.id, 1),
                None => {}
            }
        }
        self.search_upper(id)
    }

    /// Finds the directory that a directory lies in; `None` when it is removed.
    ///
    /// # Errors
    /// `ESTALE` for a number that was forgotten; faults.
    pub fn lookup_parent(&self, id: Ino) -> Result<Option<Attr>> {
        let parent = match self.at(id)? {
            At::Lower(slot) => self.id_of(self.lower.parent(slot)?),
            At::Node(node) => match (&*node.place.read(), node.slot) {
                (Place::Upper(up), _) => up.names.first().map_or(ROOT, |(parent, _)| parent.id),
                (Place::Lower { .. }, Some(slot)) => self.id_of(self.lower.parent(slot)?),
                _ => return Ok(None),
            },
        };
        self.lookup_number(parent)
    }

    fn told_node(&self, node: &Arc<Node<L, U>>) -> Result<Option<Attr>> {
        let attr = {
            let _path = self.path.read();
            self.attr(node)?
        };
        if attr.stat.nlink == 0 {
            return Ok(None);
        }
        self.nodes.tell(told_slot(node), Some(node));
        Ok(Some(attr))
    }

    /// The names of a lower inode, or the one that is known where the lower cannot tell all.
    fn some_names(&self, slot: Slot) -> Result<Vec<(Slot, NameBuf)>> {
        if let Some(all) = self.lower.names(slot)? {
            return Ok(all);
        }
        let path = self.lower.path(slot)?;
        let Some((_, name)) = path.split_last() else { return Ok(Vec::new()) };
        Ok(vec![(self.lower.parent(slot)?, name.to_buf())])
    }

    /// Looks at every name of the upper, for a file that has none of its old ones.
    fn search_upper(&self, id: Ino) -> Result<Option<Attr>> {
        let mut todo: Vec<_> = self.nodes.get(ROOT).filter(|root| root.in_upper()).into_iter().collect();
        while let Some(dir) = todo.pop() {
            let path = self.path.read();
            let names: Vec<(NameBuf, FileType)> = self.with_names(&dir, |names| {
                let there = names.iter().filter_map(|(name, entry)| Some((name.to_buf(), entry.kind?)));
                Ok(there.collect())
            })?;
            for (name, kind) in names {
                let (child, _) = self.upper_node(&dir, name.as_name())?;
                if child.id == id {
                    drop(path);
                    [dir].into_iter().chain(todo).for_each(|node| self.release_node(node));
                    return self.told_node(&child);
                }
                match kind {
                    FileType::Dir => todo.push(child),
                    _ => self.release_node(child),
                }
            }
            drop(path);
            self.release_node(dir);
        }
        Ok(None)
    }
}
