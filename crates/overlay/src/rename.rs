//! Renaming: files and directories, of the upper, the lower, or both, each in one step.

use std::sync::Arc;

use layer::{FileType, Ino, Name, Stat};

use crate::error::{Errno, Error, Result};
use crate::lower::Lower;
use crate::names::Names;
use crate::node::{Last, Node, Place};
use crate::remove::{Losing, commit_removal, leave};
use crate::union::{Overlay, View};
use crate::upper::{Leave, Onto, Rename, Target, Upper};

/// What a rename does with the new name (renameat2(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// Replaces what is there.
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
}

/// One of the two names of a rename.
struct End<'a, L: Lower, U: Upper> {
    parent: &'a Arc<Node<L, U>>,
    dir: U::Dir,
    name: Name<'a>,
}

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Renames; a lower directory moves in constant time, by a redirect in the upper.
    ///
    /// # Errors
    /// `ENOENT`; `EEXIST`; `ENOTDIR`, `EISDIR`, `ENOTEMPTY` as rename(2); `EROFS`; those of the upper's filesystem.
    pub fn rename(&self, from: (Ino, Name<'_>), to: (Ino, Name<'_>), flags: Flags) -> Result<()> {
        self.writable()?;
        let from_node = self.dir_in_upper(from.0)?;
        let to_node = self.dir_in_upper(to.0)?;
        self.name_in_upper(&from_node, from.1)?;
        match flags {
            Flags::Exchange => self.name_in_upper(&to_node, to.1)?,
            Flags::Replace => self.prepare_removal(&to_node, to.1)?,
            Flags::NoReplace => {}
        }
        // Whether a directory moves is looked at again below; a file's rename never takes the path lock for itself alone.
        let moves_dir =
            self.is_dir(&from_node, from.1)? || (flags == Flags::Exchange && self.is_dir(&to_node, to.1)?);
        let (_alone, _shared) = match moves_dir {
            true => (Some(self.path.write()), None),
            false => (None, Some(self.path.read())),
        };
        let from = End { dir: self.dir(&from_node)?, parent: &from_node, name: from.1 };
        let to = End { dir: self.dir(&to_node)?, parent: &to_node, name: to.1 };
        if Arc::ptr_eq(&from_node, &to_node) {
            let mut names = self.lock_names(&from_node, &from.dir)?;
            let names = names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
            return self.rename_locked(&from, &to, flags, moves_dir, &mut Both::One(names));
        }
        let (mut from_names, mut to_names);
        if from_node.id < to_node.id {
            from_names = self.lock_names(&from_node, &from.dir)?;
            to_names = self.lock_names(&to_node, &to.dir)?;
        } else {
            to_names = self.lock_names(&to_node, &to.dir)?;
            from_names = self.lock_names(&from_node, &from.dir)?;
        }
        let from_names = from_names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
        let to_names = to_names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
        self.rename_locked(&from, &to, flags, moves_dir, &mut Both::Two(from_names, to_names))
    }

    fn is_dir(&self, parent: &Arc<Node<L, U>>, name: Name<'_>) -> Result<bool> {
        let _path = self.path.read();
        let view = self.with_names(parent, |names| self.view(parent, names, name))?;
        Ok(self.kind(&view)? == FileType::Dir)
    }

    fn rename_locked(
        &self,
        from: &End<'_, L, U>,
        to: &End<'_, L, U>,
        flags: Flags,
        moves_dir: bool,
        names: &mut Both<'_>,
    ) -> Result<()> {
        if moves_dir {
            *self.moved.lock() = None;
        }
        let from_view = self.view(from.parent, names.from(), from.name)?;
        let to_view = self.view(to.parent, names.to(), to.name)?;
        if self.is_gone(to.parent) {
            return Err(Errno::ENOENT.into());
        }
        let kind = self.kind(&from_view)?;
        if !from_view.in_upper() || (kind == FileType::Dir && !moves_dir) {
            // It changed between the copy-up and the lock; the kernel, which orders changes of one directory, never lets it.
            return Err(Errno::EAGAIN.into());
        }
        let (moving, _) = self.find_named(from.parent, &from.dir, Some(names.from()), from.name)?;
        if flags == Flags::Exchange {
            return self.exchange(from, to, (moving, from_view), to_view, names);
        }
        if flags == Flags::NoReplace && to_view.visible() {
            return Err(Errno::EEXIST.into());
        }
        let victim = self.check_target((to, names.to()), &to_view, kind, &moving)?;
        if matches!(victim, Victim::Same) {
            return Ok(());
        }
        self.prepare_move(&moving, from, (to, &to_view))?;
        let how = Rename {
            leave: leave(&from_view),
            onto: match (to_view.upper, &victim) {
                (None, _) => Onto::Nothing,
                (Some(entry), _) if entry.kind.is_none() => Onto::Whiteout,
                (_, Victim::Dir(..)) => Onto::EmptyDir,
                _ => Onto::File,
            },
        };
        if let Err(error) = self.writable()?.rename((&from.dir, from.name), (&to.dir, to.name), how) {
            if let Victim::Dir(node, _) = &victim {
                self.keep_number(node);
            }
            return Err(error);
        }
        commit_removal(names.from(), from.name, how.leave);
        names.to().set(to.name, Some(kind), Some(moving.id));
        self.move_name(&moving, from, to);
        match victim {
            Victim::None | Victim::Same => Ok(()),
            Victim::File(losing) => self.lose_name(losing, to.parent, to.name, to_view.in_upper()),
            Victim::Dir(node, stat) => {
                self.gone(&node, Last::new(Stat { nlink: 0, ..stat }));
                self.release_node(node);
                Ok(())
            }
            Victim::LowerDir(id, stat) => self.gone_below(id, Stat { nlink: 0, ..stat }),
        }
    }

    /// Looks at what a rename replaces, by the rules of rename(2).
    fn check_target(
        &self,
        (to, names): (&End<'_, L, U>, &Names),
        view: &View,
        kind: FileType,
        moving: &Node<L, U>,
    ) -> Result<Victim<L, U>> {
        if !view.visible() {
            return Ok(Victim::None);
        }
        match (kind == FileType::Dir, self.kind(view)? == FileType::Dir) {
            (true, false) => return Err(Errno::ENOTDIR.into()),
            (false, true) => return Err(Errno::EISDIR.into()),
            (false, false) => {
                let losing = self.victim(&to.dir, to.name, view)?;
                // Two names of one file: nothing happens.
                if losing.id == Some(moving.id) {
                    return Ok(Victim::Same);
                }
                return Ok(Victim::File(losing));
            }
            (true, true) => {}
        }
        if view.in_upper() {
            let (node, stat) = self.find_named(to.parent, &to.dir, Some(names), to.name)?;
            let dir = self.dir(&node)?;
            let child = self.lock_names(&node, &dir)?;
            self.require_empty(&node, child.as_ref())?;
            drop(child);
            return Ok(Victim::Dir(node, stat));
        }
        let slot = view.lower.ok_or(Error::Answer(Errno::ENOENT))?;
        let mut empty = true;
        self.lower.entries(slot, 0, &mut |_| {
            empty = false;
            std::ops::ControlFlow::Break(())
        })?;
        if !empty {
            return Err(Errno::ENOTEMPTY.into());
        }
        Ok(Victim::LowerDir(self.id_of(slot), self.lower.stat(slot)?))
    }

    /// Makes what moves independent of the place it had: a redirect to where its lower part is, or opaque where it has none
    /// and the new place has one.
    fn prepare_move(
        &self,
        moving: &Arc<Node<L, U>>,
        from: &End<'_, L, U>,
        (to, to_view): (&End<'_, L, U>, &View),
    ) -> Result<()> {
        let upper = self.writable()?;
        if moving.kind != FileType::Dir {
            let below = match &*moving.place.read() {
                Place::Upper(up) => up.body_below,
                _ => None,
            };
            if let Some(slot) = below {
                self.mark_impure(to.parent, &to.dir)?;
                upper.set_redirect(Target::At(&from.dir, from.name), &self.lower_path(slot)?)?;
            } else if moving.unsynced.load(std::sync::atomic::Ordering::Relaxed) {
                let target = Target::At(&from.dir, from.name);
                match moving.slot {
                    Some(slot) => upper.note_path(target, &self.lower_path(slot)?)?,
                    None => upper.sync_copy(target)?,
                }
            }
            return Ok(());
        }
        match moving.slot {
            Some(slot) => {
                self.mark_impure(to.parent, &to.dir)?;
                upper.set_redirect(Target::At(&from.dir, from.name), &self.lower_path(slot)?)
            }
            None if to_view.lower.is_some() => upper.set_opaque(&self.dir(moving)?),
            None => Ok(()),
        }
    }

    fn exchange(
        &self,
        from: &End<'_, L, U>,
        to: &End<'_, L, U>,
        (moving, from_view): (Arc<Node<L, U>>, View),
        to_view: View,
        names: &mut Both<'_>,
    ) -> Result<()> {
        self.kind(&to_view)?; // ENOENT where programs see nothing.
        if !to_view.in_upper() {
            return Err(Errno::EAGAIN.into());
        }
        let (other, _) = self.find_named(to.parent, &to.dir, Some(names.to()), to.name)?;
        self.prepare_move(&moving, from, (to, &to_view))?;
        self.prepare_move(&other, to, (from, &from_view))?;
        let how = Rename { leave: Leave::Nothing, onto: Onto::Exchange };
        self.writable()?.rename((&from.dir, from.name), (&to.dir, to.name), how)?;
        names.from().set(from.name, Some(other.kind), Some(other.id));
        names.to().set(to.name, Some(moving.kind), Some(moving.id));
        self.move_name(&moving, from, to);
        self.move_name(&other, to, from);
        Ok(())
    }

    fn move_name(&self, node: &Node<L, U>, from: &End<'_, L, U>, to: &End<'_, L, U>) {
        if let Place::Upper(up) = &mut *node.place.write() {
            up.names.retain(|(p, n)| !(Arc::ptr_eq(p, from.parent) && n.as_name() == from.name));
            up.names.push((to.parent.clone(), to.name.to_buf()));
        }
    }
}

/// What a rename replaces.
enum Victim<L: Lower, U: Upper> {
    None,
    /// The same inode by another name.
    Same,
    File(Losing<U::File>),
    Dir(Arc<Node<L, U>>, Stat),
    LowerDir(Ino, Stat),
}

/// The locked names of both directories, which may be one.
enum Both<'a> {
    One(&'a mut Names),
    Two(&'a mut Names, &'a mut Names),
}

impl Both<'_> {
    fn from(&mut self) -> &mut Names {
        match self {
            Both::One(names) | Both::Two(names, _) => names,
        }
    }

    fn to(&mut self) -> &mut Names {
        match self {
            Both::One(names) | Both::Two(_, names) => names,
        }
    }
}
