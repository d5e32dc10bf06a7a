//! Making names: new inodes and hard links.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer::{Dev, FileType, Ino, Name};

use crate::acl;
use crate::copy_up::{Depth, Xattrs};
use crate::error::{Errno, Error, Result};
use crate::lower::Lower;
use crate::names::Names;
use crate::node::{Inherit, Node, OpenBody, Place, heir_of, told_slot};
use crate::union::{Attr, Caller, Overlay};
use crate::upper::{New, Over, Target, Upper, What};

/// What a program asks for with mknod, mkdir or symlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make<'a> {
    /// An empty regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A device node.
    Device(FileType, Dev),
    /// A named pipe or a socket.
    Special(FileType),
}

impl Make<'_> {
    fn kind(&self) -> FileType {
        match self {
            Make::File => FileType::File,
            Make::Dir => FileType::Dir,
            Make::Symlink(_) => FileType::Symlink,
            Make::Device(kind, _) | Make::Special(kind) => *kind,
        }
    }
}

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Makes a new inode with the caller's owner, umask, and what the directory hands down.
    ///
    /// # Errors
    /// `EEXIST`; `ENOENT` for a removed directory; `EPERM` for a character device 0:0, which would be a whiteout; `EROFS`;
    /// those of the upper's filesystem.
    pub fn make(&self, parent: Ino, name: Name<'_>, perm: u16, caller: Caller, what: Make<'_>) -> Result<Attr> {
        let (node, stat) = self.make_node(parent, name, perm, caller, what, |upper, dir, new, over| {
            upper.make(dir, name, new, over).map(|stat| (stat, None))
        })?;
        let attr = self.attr_from(&node, stat)?;
        self.nodes.tell(told_slot(&node), Some(&node));
        Ok(attr)
    }

    /// Makes a new regular file and opens it.
    ///
    /// # Errors
    /// As [`Overlay::make`].
    pub fn create(&self, parent: Ino, name: Name<'_>, perm: u16, caller: Caller) -> Result<Attr> {
        let (node, stat) = self.make_node(parent, name, perm, caller, Make::File, |upper, dir, new, over| {
            upper.create(dir, name, new, over).map(|(stat, file)| (stat, Some(file)))
        })?;
        let attr = self.attr_from(&node, stat)?;
        self.nodes.tell(told_slot(&node), Some(&node));
        Ok(attr)
    }

    fn make_node(
        &self,
        parent: Ino,
        name: Name<'_>,
        perm: u16,
        caller: Caller,
        make: Make<'_>,
        step: impl FnOnce(&U, &U::Dir, &New<'_>, Over) -> Result<(layer::Stat, Option<U::File>)>,
    ) -> Result<(Arc<Node<L, U>>, layer::Stat)> {
        if matches!(make, Make::Device(FileType::Char, Dev { major: 0, minor: 0 })) {
            return Err(Errno::EPERM.into());
        }
        let upper = self.writable()?;
        let dir_node = self.dir_in_upper(parent)?;
        let _path = self.path.read();
        let dir = self.dir(&dir_node)?;
        let mut names = self.lock_names(&dir_node, &dir)?;
        let names = names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
        if self.is_gone(&dir_node) {
            return Err(Errno::ENOENT.into());
        }
        let view = self.view(&dir_node, names, name)?;
        if view.visible() {
            return Err(Errno::EEXIST.into());
        }
        let inherit = self.inherit(&dir_node, &dir)?;
        let (perm, xattrs) = hand_down(&inherit, perm, caller.umask, &make);
        let new = New {
            what: match make {
                Make::File => What::File,
                Make::Dir => What::Dir { opaque: view.lower.is_some() },
                Make::Symlink(target) => What::Symlink(target),
                Make::Device(kind, dev) => What::Device(kind, dev),
                Make::Special(kind) => What::Special(kind),
            },
            perm,
            uid: self.options.ids.uid.disk(caller.uid),
            gid: inherit.gid.unwrap_or_else(|| self.options.ids.gid.disk(caller.gid)),
            xattrs: &xattrs,
            times: None,
        };
        let over = if view.whiteout() { Over::Whiteout } else { Over::Nothing };
        let (stat, file) = step(upper, &dir, &new, over)?;
        let node = self.newborn(&dir_node, name, &stat)?;
        if make == Make::Dir {
            *node.names.write() = Some(Names::default());
        }
        if let Some(file) = file {
            let mut open = node.open.write();
            open.count += 1;
            open.body = OpenBody::Upper(Arc::new(file));
        }
        names.set(name, Some(make.kind()), Some(node.id));
        Ok((node, stat))
    }

    /// Returns what new entries of a directory inherit.
    fn inherit(&self, node: &Node<L, U>, dir: &U::Dir) -> Result<Arc<Inherit>> {
        if let Some(inherit) = &*node.inherit.lock() {
            return Ok(inherit.clone());
        }
        let upper = self.writable()?;
        let stat = upper.stat(Target::Dir(dir))?;
        let acl = match upper.xattr(Target::Dir(dir), acl::DEFAULT) {
            Ok(acl) => Some(acl),
            Err(Error::Answer(Errno::ENODATA | Errno::EOPNOTSUPP)) => None,
            Err(error) => return Err(error),
        };
        let inherit = Arc::new(Inherit { gid: (stat.perm & 0o2000 != 0).then_some(stat.gid), acl });
        *node.inherit.lock() = Some(inherit.clone());
        Ok(inherit)
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// `EEXIST`; `EPERM` for a directory; `ENOENT` for an inode whose last name is gone; `EMLINK`, `ENOSPC`, `EDQUOT`; `EROFS`.
    pub fn link(&self, id: Ino, parent: Ino, name: Name<'_>) -> Result<Attr> {
        let node = heir_of(&self.copy_up(id, Depth::Metadata)?);
        if node.kind == FileType::Dir {
            return Err(Errno::EPERM.into());
        }
        let dir_node = self.dir_in_upper(parent)?;
        let _path = self.path.read();
        let dir = self.dir(&dir_node)?;
        if matches!(&*node.place.read(), Place::Gone(last) if last.stat.nlink == 0) {
            return Err(Errno::ENOENT.into());
        }
        self.note_body_below(&node)?;
        let stat = self.link_locked(&node, &dir_node, &dir, name)?;
        let attr = self.attr_from(&node, stat)?;
        self.nodes.tell(told_slot(&node), Some(&node));
        Ok(attr)
    }

    fn link_locked(
        &self,
        node: &Arc<Node<L, U>>,
        dir_node: &Arc<Node<L, U>>,
        dir: &U::Dir,
        name: Name<'_>,
    ) -> Result<layer::Stat> {
        let upper = self.writable()?;
        let mut names = self.lock_names(dir_node, dir)?;
        let names = names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
        if self.is_gone(dir_node) {
            return Err(Errno::ENOENT.into());
        }
        let view = self.view(dir_node, names, name)?;
        if view.visible() {
            return Err(Errno::EEXIST.into());
        }
        let over = if view.whiteout() { Over::Whiteout } else { Over::Nothing };
        if matches!(&*node.place.read(), Place::Upper(up) if up.body_below.is_some()) {
            self.mark_impure(dir_node, dir)?;
        }
        let known = match &*node.place.read() {
            Place::Upper(up) => (up.indexed, up.names.first().cloned()),
            // It has names that this mount has not met.
            Place::Gone(last) if last.stat.nlink > 0 => (false, None),
            _ => return Err(Errno::ENOENT.into()),
        };
        match known {
            (true, _) => upper.link(Target::Index(node.shown), dir, name, over)?,
            (false, Some((parent, old))) if Arc::ptr_eq(&parent, dir_node) => {
                upper.link(Target::At(dir, old.as_name()), dir, name, over)?;
            }
            (false, Some((parent, old))) => {
                // The source's directory is not locked: a name that moves meanwhile is ENOENT, as between any two programs.
                upper.link(Target::At(&self.dir(&parent)?, old.as_name()), dir, name, over)?;
            }
            (false, None) => match self.open_inode(node) {
                Some(file) => upper.link(Target::File(&*file), dir, name, over)?,
                None => return Err(Errno::ENOENT.into()),
            },
        }
        names.set(name, Some(node.kind), Some(node.id));
        let (stat, marks) = upper.find(Target::At(dir, name))?;
        if self.is_gone(node) {
            self.revive(node, dir_node, name, &stat, self.in_upper(dir_node, name, node.slot, &stat, &marks));
        } else {
            self.gain_upper_name(node, dir_node, name);
        }
        Ok(stat)
    }

    /// Notes on a copy where its body is, or where one that is lost would be found, before the copy gets a name of its own.
    fn note_body_below(&self, node: &Arc<Node<L, U>>) -> Result<()> {
        let below = match &*node.place.read() {
            Place::Upper(up) => up.body_below,
            _ => None,
        };
        if below.is_none() && !node.unsynced.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(slot) = below.or(node.slot) else { return self.sync_copy(node) };
        let path = self.lower_path(slot)?;
        self.with_target(node, |upper, target| match below {
            Some(_) => upper.set_redirect(target, &path),
            None => upper.note_path(target, &path),
        })
    }
}

/// Applies umask, default ACL and set-group-ID inheritance.
fn hand_down(inherit: &Inherit, perm: u16, umask: u32, make: &Make<'_>) -> (u16, Xattrs) {
    if let Make::Symlink(_) = make {
        return (0o777, Vec::new());
    }
    let sgid = if *make == Make::Dir && inherit.gid.is_some() { 0o2000 } else { 0 };
    let inherited = inherit.acl.as_deref().and_then(|default| Some((default, acl::inherit(default, perm)?)));
    let Some((default, (perm, own))) = inherited else {
        return ((perm & !(umask as u16)) | sgid, Vec::new());
    };
    let mut xattrs = Vec::new();
    xattrs.extend(own.map(|own| (acl::ACCESS.to_vec(), own)));
    if *make == Make::Dir {
        xattrs.push((acl::DEFAULT.to_vec(), default.to_vec()));
    }
    (perm | sgid, xattrs)
}
