//! Making an upper plain: whole files and opaque directories, for the kernel's overlayfs without `metacopy` and `redirect_dir`,
//! which is all that it offers an ordinary user.

use std::ops::ControlFlow;
use std::sync::Arc;

use layer::{FileType, NameBuf};

use crate::copy_up::Depth;
use crate::error::{Errno, Error, Result};
use crate::lower::Lower;
use crate::node::{Node, Place, ROOT};
use crate::union::Overlay;
use crate::upper::{Leave, Target, Upper};

/// A directory of the upper that was met.
struct Met<L: Lower, U: Upper> {
    node: Arc<Node<L, U>>,
    /// It is not where it is in the lower: it is to hide the lower, so that all it shows must be in the upper.
    moved: bool,
    /// It lies in such a directory, or is one, or has nothing below it anyway.
    whole: bool,
}

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Settles the upper, and takes redirects and metadata-only copies out of it. The last call of a union.
    ///
    /// A directory that was moved is brought up with all that it holds. It is marked last: a crash on the way leaves a
    /// valid upper, and the next call goes on.
    ///
    /// # Errors
    /// The first that occurred (`ENOSPC`...).
    pub fn settle_plain(&self) -> Result<()> {
        self.settle()?;
        let Some(upper) = &self.upper else { return Ok(()) };
        let dirs = self.bring_up_moved(upper)?;
        // Hard links that were brought up are in the index now.
        self.settle()?;
        for met in &dirs {
            self.fill_all(&met.node)?;
        }
        upper.rest()?;
        for met in dirs.iter().rev().filter(|met| met.moved) {
            let _path = self.path.read();
            let dir = self.dir(&met.node)?;
            upper.set_opaque(&dir)?;
            upper.remove_redirect(Target::Dir(&dir))?;
        }
        for met in dirs.iter().filter(|met| met.whole) {
            self.remove_whiteouts(upper, &met.node)?;
        }
        upper.rest()
    }

    /// Brings up what moved directories show of the lower; returns all directories of the upper, outer ones first.
    fn bring_up_moved(&self, upper: &U) -> Result<Vec<Met<L, U>>> {
        let root = self.nodes.get(ROOT).ok_or(Error::Answer(Errno::ESTALE))?;
        let mut dirs = vec![Met { node: root, moved: false, whole: false }];
        let mut at = 0;
        while let Some(Met { node, whole, .. }) = dirs.get(at) {
            let (node, whole) = (node.clone(), *whole);
            at += 1;
            if whole {
                self.bring_up_names(&node)?;
            }
            for name in self.names_of(&node, FileType::Dir)? {
                let _path = self.path.read();
                let (child, _) = self.upper_node(&node, name.as_name())?;
                let moved = upper.find(Target::Dir(&self.dir(&child)?))?.1.redirect.is_some();
                let whole = whole || moved || child.slot.is_none();
                dirs.push(Met { node: child, moved, whole });
            }
        }
        Ok(dirs)
    }

    /// Gives a directory of the upper every name that it shows of the lower.
    fn bring_up_names(&self, node: &Arc<Node<L, U>>) -> Result<()> {
        let Some(slot) = node.slot else { return Ok(()) };
        let mut below: Vec<NameBuf> = Vec::new();
        self.lower.entries(slot, 0, &mut |entry| {
            below.push(entry.name.to_buf());
            ControlFlow::Continue(())
        })?;
        below.iter().try_for_each(|name| self.name_in_upper(node, name.as_name()))
    }

    /// Completes the metadata-only copies in a directory.
    fn fill_all(&self, dir: &Arc<Node<L, U>>) -> Result<()> {
        for name in self.names_of(dir, FileType::File)? {
            let node = {
                let _path = self.path.read();
                self.upper_node(dir, name.as_name())?.0
            };
            let below = match &*node.place.read() {
                Place::Upper(up) => up.body_below,
                _ => None,
            };
            if let Some(slot) = below
                && !self.heal_cut(&node, slot)?
            {
                self.fill(&node, slot, Depth::Writable)?;
            }
            self.release_node(node);
        }
        Ok(())
    }

    /// Takes out whiteouts that hide nothing any more: the kernel's overlayfs lists a directory that nothing is below as it is.
    fn remove_whiteouts(&self, upper: &U, node: &Arc<Node<L, U>>) -> Result<()> {
        let _path = self.path.read();
        let dir = self.dir(node)?;
        let mut names = self.lock_names(node, &dir)?;
        let names = names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
        let whiteouts: Vec<NameBuf> =
            names.iter().filter(|(_, entry)| entry.kind.is_none()).map(|(name, _)| name.to_buf()).collect();
        if whiteouts.is_empty() {
            return Ok(());
        }
        self.keep_times(&dir, || {
            for name in &whiteouts {
                upper.unlink(&dir, name.as_name(), Leave::Nothing)?;
                names.remove(name.as_name());
            }
            Ok(())
        })
    }

    fn names_of(&self, dir: &Arc<Node<L, U>>, kind: FileType) -> Result<Vec<NameBuf>> {
        let _path = self.path.read();
        self.with_names(dir, |names| {
            let of_kind = names.iter().filter(|(_, entry)| entry.kind == Some(kind));
            Ok(of_kind.map(|(name, _)| name.to_buf()).collect())
        })
    }
}
