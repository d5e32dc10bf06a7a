//! Hard links of the lower: how many names an inode has there that programs see, and where directories went that hold them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use layer::{FileType, Ino, Name, NameBuf, Slot};

use crate::error::Result;
use crate::lower::Lower;
use crate::node::{Node, ROOT};
use crate::union::{At, Overlay};
use crate::upper::{Origin, Target, Upper};

/// An inode of the lower, and its names there by directory.
pub(crate) type Below = (Slot, Vec<(Slot, NameBuf)>);

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Takes over the index of hard-linked origins that a mount left without settling.
    ///
    /// A crash may have come between the loss of a name and its count, so that all are counted again; one that has none left
    /// is dropped.
    pub(crate) fn take_over_index(&self) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        self.take_over_foreign_index(upper)?;
        let mut found = Vec::new();
        for origin in upper.indexed()? {
            let (stat, marks) = upper.find(Target::Index(origin))?;
            if marks.origin.is_none_or(|origin| origin.key != self.lower.key()) {
                log::warn!("the upper's index has a file of other layers: {origin:?}");
                continue;
            }
            found.push((origin, stat, marks));
        }
        let names = self.names_below(found.iter().map(|(origin, ..)| *origin))?;
        self.indexed.write().extend(names.keys());
        for (origin, stat, marks) in found {
            let Some((_, names)) = names.get(&origin) else {
                log::warn!("the upper's index has a file that the lower does not have: {origin:?}");
                continue;
            };
            let left = self.count_visible(names)?;
            let own_links = 1 + u32::from(marks.partial.is_some());
            if left == 0 && stat.nlink <= own_links {
                upper.remove_index(origin)?;
                if marks.partial.is_some() {
                    upper.drop_partial(stat.ino.0)?;
                }
                self.indexed.write().remove(&origin);
            } else if left != marks.lower_names {
                upper.set_lower_names(Target::Index(origin), left)?;
            }
        }
        Ok(())
    }

    /// Takes over the index that the kernel's overlayfs left (`index=on`): its hard-linked files stay one file each.
    fn take_over_foreign_index(&self, upper: &U) -> Result<()> {
        let foreign = upper.foreign_index()?;
        let candidates: Vec<_> = foreign.iter().map(|(handle, _)| self.lower.by_handle(handle)).collect();
        let below = self.names_below(candidates.iter().flatten().copied())?;
        for ((handle, kind), candidates) in foreign.into_iter().zip(candidates) {
            let mut fitting = Vec::new();
            for ino in candidates {
                if let Some((slot, _)) = below.get(&ino)
                    && self.lower.stat(*slot)?.kind == kind
                {
                    fitting.push(ino);
                }
            }
            match fitting[..] {
                [ino] => upper.adopt_foreign(&handle, Origin { key: self.lower.key(), ino })?,
                _ => log::warn!("the kernel's index of the upper has a file that is not found in the lower"),
            }
        }
        Ok(())
    }

    /// Counts the names of a hard-linked file that programs see in the lower alone, at the moment of its first change.
    pub(crate) fn names_still_below(&self, slot: Slot, nlink: u32) -> Result<u32> {
        match self.lower.names(slot)? {
            Some(all) => self.count_visible(&all),
            None => Ok(nlink),
        }
    }

    fn count_visible(&self, names: &[(Slot, NameBuf)]) -> Result<u32> {
        let mut visible = 0;
        for (dir, name) in names {
            visible += u32::from(self.visible_below(*dir, name.as_name())?);
        }
        Ok(visible)
    }

    /// Finds inodes of the lower and all the names they have there. Where the lower cannot tell, it is searched once for all.
    pub(crate) fn names_below(&self, origins: impl Iterator<Item = Ino>) -> Result<HashMap<Ino, Below>> {
        let mut found = HashMap::new();
        let mut searched = HashSet::new();
        for origin in origins {
            let known = match self.slot_of(origin) {
                Some(slot) => self.lower.names(slot)?.map(|names| (slot, names)),
                None => None,
            };
            match known {
                Some(known) => drop(found.insert(origin, known)),
                None => drop(searched.insert(origin)),
            }
        }
        let mut todo = if searched.is_empty() { Vec::new() } else { vec![self.lower.root()] };
        while let Some(dir) = todo.pop() {
            let mut entries = Vec::new();
            self.lower.entries(dir, 0, &mut |entry| {
                entries.push((entry.slot, entry.kind, entry.name.to_buf()));
                std::ops::ControlFlow::Continue(())
            })?;
            for (slot, kind, name) in entries {
                if kind == FileType::Dir {
                    todo.push(slot);
                } else if searched.contains(&self.id_of(slot)) {
                    found.entry(self.id_of(slot)).or_insert_with(|| (slot, Vec::new())).1.push((dir, name));
                }
            }
        }
        Ok(found)
    }

    /// Tells whether a name of the lower is what programs see there.
    pub(crate) fn visible_below(&self, dir: Slot, name: Name<'_>) -> Result<bool> {
        match self.walk_below(dir)? {
            None => Ok(false),
            Some(At::Lower(_)) => Ok(true),
            Some(At::Node(node)) => {
                let _path = self.path.read();
                self.with_names(&node, |names| Ok(names.get(name).is_none()))
            }
        }
    }

    /// Finds what a directory of the lower is in the union; `None` when it is hidden or removed.
    pub(crate) fn walk_below(&self, dir: Slot) -> Result<Option<At<L, U>>> {
        let mut down = Vec::new();
        let mut slot = dir;
        let mut above = loop {
            match self.nodes.get(self.id_of(slot)) {
                Some(node) if node.in_upper() => break Some(node),
                Some(node) if self.is_gone(&node) => break None,
                _ if slot == self.lower.root() => return Ok(Some(At::Lower(dir))),
                _ => {}
            }
            down.push(slot);
            slot = self.lower.parent(slot)?;
        };
        while let Some(slot) = down.pop() {
            let there = match &above {
                Some(node) => match self.child_below(node, slot)? {
                    Child::Untouched => return Ok(Some(At::Lower(dir))),
                    Child::Is(node) => Some(node),
                    Child::Hidden => None,
                },
                None => None,
            };
            // What lies in a directory that is hidden may have been moved out of it before.
            above = match there {
                Some(node) => Some(node),
                None => self.moved(slot)?,
            };
        }
        Ok(above.map(At::Node))
    }

    /// Looks for a directory of the lower under its name in the upper's directory that merges with its parent.
    fn child_below(&self, parent: &Arc<Node<L, U>>, slot: Slot) -> Result<Child<L, U>> {
        let path = self.lower.path(slot)?;
        let Some((_, name)) = path.split_last() else { return Ok(Child::Hidden) };
        let _path = self.path.read();
        let Some(entry) = self.with_names(parent, |names| Ok(names.get(name)))? else { return Ok(Child::Untouched) };
        if entry.kind != Some(FileType::Dir) {
            return Ok(Child::Hidden);
        }
        let (node, _) = self.upper_node(parent, name)?;
        Ok(if node.slot == Some(slot) { Child::Is(node) } else { Child::Hidden })
    }

    /// Finds where a directory of the lower went that is not in its place any more.
    ///
    /// Only the upper knows. It is searched once, when this is first asked, and again after a directory was renamed.
    fn moved(&self, slot: Slot) -> Result<Option<Arc<Node<L, U>>>> {
        let _path = self.path.read();
        let path = {
            let mut moved = self.moved.lock();
            match &*moved {
                Some(known) => known.get(&slot).cloned(),
                None => moved.insert(self.search_moved()?).get(&slot).cloned(),
            }
        };
        let (Some(path), Some(root)) = (path, self.nodes.get(ROOT)) else { return Ok(None) };
        let mut node = root;
        for name in path {
            (node, _) = self.upper_node(&node, name.as_name())?;
        }
        Ok((node.slot == Some(slot)).then_some(node))
    }

    /// Searches the upper for directories that are not where they are in the lower; the caller holds the path lock.
    fn search_moved(&self) -> Result<HashMap<Slot, Vec<NameBuf>>> {
        let mut found = HashMap::new();
        let mut todo: Vec<_> = self.nodes.get(ROOT).map(|root| (root, Vec::new())).into_iter().collect();
        while let Some((node, path)) = todo.pop() {
            let dirs: Vec<NameBuf> = self.with_names(&node, |names| {
                let dirs = names.iter().filter(|(_, entry)| entry.kind == Some(FileType::Dir));
                Ok(dirs.map(|(name, _)| name.to_buf()).collect())
            })?;
            for name in dirs {
                let (child, _) = self.upper_node(&node, name.as_name())?;
                let mut path: Vec<NameBuf> = path.clone();
                path.push(name);
                if let (Some(slot), Some(name)) = (child.slot, path.last()) {
                    let here = match node.slot {
                        Some(dir) => self.lower.lookup(dir, name.as_name())?,
                        None => None,
                    };
                    if here != Some(slot) {
                        found.insert(slot, path.clone());
                    }
                }
                todo.push((child, path));
            }
            self.release_node(node);
        }
        Ok(found)
    }
}

/// What the upper has under the name that a directory of the lower has there.
enum Child<L: Lower, U: Upper> {
    /// Nothing: it is seen as it is.
    Untouched,
    /// The same directory.
    Is(Arc<Node<L, U>>),
    /// A whiteout, or something else.
    Hidden,
}
