//! Removing names: nothing is ever copied up to be deleted; the lower's names are hidden by whiteouts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer::{FileType, Ino, Name, Stat};

use crate::copy_up::Depth;
use crate::error::{Errno, Error, Result};
use crate::lower::Lower;
use crate::names::Names;
use crate::node::{Last, Node, OpenBody, Place};
use crate::union::{Overlay, View};
use crate::upper::{Leave, Target, Upper};

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// `ENOENT`; `EISDIR`; `EROFS`; those of the upper's filesystem.
    pub fn unlink(&self, parent: Ino, name: Name<'_>) -> Result<()> {
        let upper = self.writable()?;
        let dir_node = self.dir_in_upper(parent)?;
        self.prepare_removal(&dir_node, name)?;
        let _path = self.path.read();
        let dir = self.dir(&dir_node)?;
        let mut names = self.lock_names(&dir_node, &dir)?;
        let names = names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
        let view = self.view(&dir_node, names, name)?;
        if self.kind(&view)? == FileType::Dir {
            return Err(Errno::EISDIR.into());
        }
        let victim = self.victim(&dir, name, &view)?;
        let leave = leave(&view);
        if view.in_upper() {
            upper.unlink(&dir, name, leave)?;
        } else {
            upper.whiteout(&dir, name)?;
        }
        commit_removal(names, name, leave);
        self.lose_name(victim, &dir_node, name, view.in_upper())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`; `ENOTDIR`; `ENOTEMPTY`; `EROFS`; those of the upper's filesystem.
    pub fn rmdir(&self, parent: Ino, name: Name<'_>) -> Result<()> {
        let upper = self.writable()?;
        let dir_node = self.dir_in_upper(parent)?;
        let _path = self.path.read();
        let dir = self.dir(&dir_node)?;
        let mut names = self.lock_names(&dir_node, &dir)?;
        let names = names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
        let view = self.view(&dir_node, names, name)?;
        if self.kind(&view)? != FileType::Dir {
            return Err(Errno::ENOTDIR.into());
        }
        let leave = leave(&view);
        if view.in_upper() {
            let (node, victim) = self.find_named(&dir_node, &dir, Some(names), name)?;
            let child_dir = self.dir(&node)?;
            let child = self.lock_names(&node, &child_dir)?;
            self.require_empty(&node, child.as_ref())?;
            upper.remove_dir(&dir, name, leave)?;
            commit_removal(names, name, leave);
            drop(child);
            self.gone(&node, Last::new(Stat { nlink: 0, ..victim }));
            self.release_node(node);
            return Ok(());
        }
        let slot = view.lower.ok_or(Error::Answer(Errno::ENOENT))?;
        let stat = self.lower.stat(slot)?;
        let mut empty = true;
        self.lower.entries(slot, 0, &mut |_| {
            empty = false;
            std::ops::ControlFlow::Break(())
        })?;
        if !empty {
            return Err(Errno::ENOTEMPTY.into());
        }
        upper.whiteout(&dir, name)?;
        commit_removal(names, name, leave);
        self.gone_below(self.id_of(slot), Stat { nlink: 0, ..stat })
    }

    /// Answers `ENOTEMPTY` unless programs see nothing in the directory.
    pub(crate) fn require_empty(&self, node: &Node<L, U>, names: Option<&Names>) -> Result<()> {
        let names = names.ok_or(Error::Answer(Errno::ESTALE))?;
        if names.iter().any(|(_, entry)| entry.kind.is_some()) {
            return Err(Errno::ENOTEMPTY.into());
        }
        let Some(slot) = node.slot else { return Ok(()) };
        let mut empty = true;
        self.lower.entries(slot, 0, &mut |entry| {
            if names.get(entry.name).is_some() {
                return std::ops::ControlFlow::Continue(());
            }
            empty = false;
            std::ops::ControlFlow::Break(())
        })?;
        if empty { Ok(()) } else { Err(Errno::ENOTEMPTY.into()) }
    }

    /// Returns the kind of what programs see under a name.
    pub(crate) fn kind(&self, view: &View) -> Result<FileType> {
        match (view.upper, view.lower) {
            (Some(entry), _) => entry.kind.ok_or(Error::Answer(Errno::ENOENT)),
            (None, Some(slot)) => Ok(self.lower.stat(slot)?.kind),
            (None, None) => Err(Errno::ENOENT.into()),
        }
    }

    /// Finds what is to be known of a non-directory that is about to lose a name.
    pub(crate) fn victim(&self, dir: &U::Dir, name: Name<'_>, view: &View) -> Result<Losing<U::File>> {
        match (view.upper, view.lower) {
            (Some(entry), _) => {
                let stat = self.writable()?.stat(Target::At(dir, name))?;
                let file = self.hold(entry.id, Target::At(dir, name))?;
                Ok(Losing { id: entry.id, last: Last { file, ..Last::new(stat) } })
            }
            (None, Some(slot)) => {
                let id = self.id_of(slot);
                let file =
                    if self.indexed.read().contains(&id) { self.hold(Some(id), Target::Index(id))? } else { None };
                Ok(Losing { id: Some(id), last: Last { file, ..Last::new(self.lower.stat(slot)?) } })
            }
            (None, None) => Err(Errno::ENOENT.into()),
        }
    }

    /// Opens the upper's inode of a file that is open while its body is below, so that its attributes outlive its names.
    fn hold(&self, id: Option<Ino>, target: Target<'_, U>) -> Result<Option<Arc<U::File>>> {
        let Some(node) = id.and_then(|id| self.nodes.get(id)) else { return Ok(None) };
        let below = matches!(node.open.read().body, OpenBody::Mapped(_) | OpenBody::Lower(_));
        if !below {
            return Ok(None);
        }
        self.writable()?.open(target).map(|file| Some(Arc::new(file)))
    }

    /// Takes a name from an inode; with its last name it is gone, though open handles go on.
    pub(crate) fn lose_name(
        &self,
        Losing { id, last }: Losing<U::File>,
        parent: &Arc<Node<L, U>>,
        name: Name<'_>,
        in_upper: bool,
    ) -> Result<()> {
        let Some(id) = id else { return Ok(()) };
        let node = match (self.nodes.get(id), self.slot_of(id)) {
            // Before the node: that may be one that was left behind.
            (_, Some(slot)) if self.indexed.read().contains(&id) => self.indexed_node(id, slot)?,
            (Some(node), _) => node,
            (None, _) if in_upper => return Ok(()),
            // A row of the lower: fstat of an open descriptor must tell that the name is gone.
            (None, _) => return self.gone_below(id, Stat { nlink: 0, ..last.stat }),
        };
        let mut own_links = 0;
        let left = match &mut *node.place.write() {
            Place::Lower { .. } => None,
            Place::Upper(up) => {
                up.names.retain(|(p, n)| !(Arc::ptr_eq(p, parent) && n.as_name() == name));
                own_links = u32::from(up.partial.is_some());
                Some((up.indexed, up.names.is_empty()))
            }
            Place::Gone(_) => return Ok(()),
        };
        match left {
            Some((true, _)) => {
                if !in_upper {
                    self.lose_lower_name(&node)?;
                }
                self.drop_index_if_unused(&node, last.file)
            }
            Some((false, false)) => Ok(()),
            // With other names that this mount has not met, the next lookup of one of them finds the inode again.
            Some((false, true)) | None => {
                let nlink = last.stat.nlink.saturating_sub(1 + own_links);
                if own_links > 0 && nlink == 0 {
                    self.writable()?.drop_partial(node.backing.load(Ordering::Relaxed))?;
                }
                self.gone(&node, Last { stat: Stat { nlink, ..last.stat }, ..last });
                self.release_node(node);
                Ok(())
            }
        }
    }

    /// Brings the metadata of a hard-linked lower file up before it loses a name, so that the count is right on every other.
    pub(crate) fn prepare_removal(&self, dir_node: &Arc<Node<L, U>>, name: Name<'_>) -> Result<()> {
        let view = {
            let _path = self.path.read();
            self.with_names(dir_node, |names| self.view(dir_node, names, name))?
        };
        let (None, Some(slot)) = (view.upper, view.lower) else { return Ok(()) };
        let stat = self.lower.stat(slot)?;
        if stat.kind != FileType::Dir && stat.nlink > 1 {
            self.copy_up_named(slot, Depth::Links)?;
        }
        Ok(())
    }

    /// Drops a hard-linked origin from the index once it has no name on either side.
    fn drop_index_if_unused(&self, node: &Arc<Node<L, U>>, file: Option<Arc<U::File>>) -> Result<()> {
        let upper = self.writable()?;
        let stat = upper.stat(Target::Index(node.shown))?;
        let (left, own_links) = match &*node.place.read() {
            Place::Upper(up) => (up.lower_names, 1 + u32::from(up.partial.is_some())),
            _ => return Ok(()),
        };
        if stat.nlink > own_links || left > 0 {
            return Ok(());
        }
        upper.remove_index(node.shown)?;
        if own_links > 1 {
            upper.drop_partial(stat.ino.0)?;
        }
        self.indexed.write().remove(&node.shown);
        self.gone(node, Last { file, ..Last::new(Stat { nlink: 0, ..stat }) });
        Ok(())
    }

    /// Notes that an inode has no name any more.
    pub(crate) fn gone(&self, node: &Arc<Node<L, U>>, last: Last<U::File>) {
        *node.place.write() = Place::Gone(Box::new(last));
        *node.dir.lock() = None;
    }

    /// The same for a row of the lower, which becomes a node while the kernel knows it.
    pub(crate) fn gone_below(&self, id: Ino, stat: Stat) -> Result<()> {
        let Ok(node) = self.node(id) else { return Ok(()) };
        self.gone(&node, Last::new(stat));
        self.release_node(node);
        Ok(())
    }
}

/// A non-directory that is about to lose a name.
pub(crate) struct Losing<F> {
    /// Its number, if it is known.
    pub(crate) id: Option<Ino>,
    /// What is left when this was the last name; `nlink` still counts it.
    pub(crate) last: Last<F>,
}

pub(crate) fn leave(view: &View) -> Leave {
    if view.lower.is_some() { Leave::Whiteout } else { Leave::Nothing }
}

pub(crate) fn commit_removal(names: &mut Names, name: Name<'_>, leave: Leave) {
    match leave {
        Leave::Whiteout => names.set(name, None, None),
        Leave::Nothing => names.remove(name),
    }
}
