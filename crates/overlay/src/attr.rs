//! Changing attributes: mode, owner, times, size, extended attributes. Only a size needs the body.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer::{FileType, Ino, Stat, Time};

use crate::acl;
use crate::copy_up::{Depth, Xattrs};
use crate::error::{Errno, Error, Result};
use crate::lower::Lower;
use crate::node::{Node, OpenBody, Place, heir_of};
use crate::partial::Partial;
use crate::union::{Attr, Overlay};
use crate::upper::{SetAttr, SetTime, SetXattr, Target, Upper, UpperFile};

/// The attribute that holds file capabilities.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// A partial copy that is open.
type Both<L, U> = Arc<Partial<<U as Upper>::File, <L as Lower>::File>>;

/// Who changes a file's content, for what that takes from it (set-user-ID, set-group-ID, capabilities).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// May keep set-user-ID and set-group-ID bits (`CAP_FSETID`).
    Keeps,
    /// Loses them.
    Drops,
}

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Changes mode, owner and times, then the size; ids are as the mount shows them.
    ///
    /// # Errors
    /// `EROFS`; `EISDIR`, `EINVAL` for the size of something that has none; those of the upper's filesystem.
    pub fn setattr(&self, id: Ino, attr: &SetAttr, size: Option<u64>, privilege: Privilege) -> Result<Attr> {
        let asked = self.copy_up(id, if size.is_some() { depth_for(size) } else { Depth::Metadata })?;
        let node = heir_of(&asked);
        let _path = self.path.read();
        if let Some(size) = size {
            self.truncate(&node, size, privilege)?;
        }
        if *attr != SetAttr::default() {
            let ids = &self.options.ids;
            let disk = SetAttr {
                uid: attr.uid.map(|uid| ids.uid.disk(uid)),
                gid: attr.gid.map(|gid| ids.gid.disk(gid)),
                ..*attr
            };
            if self.is_gone(&node) && self.open_inode(&node).is_none() {
                self.set_attr_gone(&node, &disk);
                if (disk.uid.is_some() || disk.gid.is_some()) && node.kind != FileType::Dir {
                    self.edit_last_xattrs(&node, |xattrs| {
                        xattrs.retain(|(name, _)| name != CAPABILITY);
                        Ok(())
                    })?;
                }
            } else {
                self.with_target(&node, |upper, target| upper.set_attr(target, &disk))?;
            }
            *node.inherit.lock() = None;
        }
        self.attr(&asked)
    }

    fn truncate(&self, node: &Arc<Node<L, U>>, size: u64, privilege: Privilege) -> Result<()> {
        match node.kind {
            FileType::File => {}
            FileType::Dir => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        self.drop_privileges(node, privilege)?;
        self.sync_copy(node)?;
        let open = node.open.read().body.clone();
        match open {
            OpenBody::Partial(partial) => self.truncate_partial(node, &partial, size)?,
            OpenBody::Upper(file) => file.truncate(size)?,
            _ => match self.partial_body(node)? {
                Some(partial) => self.truncate_partial(node, &partial, size)?,
                None => self.with_target(node, |upper, target| upper.open(target)?.truncate(size))?,
            },
        }
        Ok(())
    }

    fn partial_body(&self, node: &Arc<Node<L, U>>) -> Result<Option<Both<L, U>>> {
        let partial = match &*node.place.read() {
            Place::Upper(up) => up.body_below.zip(up.partial),
            _ => None,
        };
        match partial.map(|(slot, limit)| self.open_partial(node, slot, limit)).transpose()? {
            Some(OpenBody::Partial(partial)) => Ok(Some(partial)),
            _ => Ok(None),
        }
    }

    fn truncate_partial(&self, node: &Arc<Node<L, U>>, partial: &Partial<U::File, L::File>, size: u64) -> Result<()> {
        partial.truncate(size, |limit| {
            self.with_target(node, |upper, target| upper.limit_partial(target, limit))?;
            if let Place::Upper(up) = &mut *node.place.write() {
                up.partial = Some(limit);
            }
            Ok(())
        })
    }

    /// Syncs a body that is an unsynced copy, once, before it is cut or punched: its length tells whether it is whole.
    pub(crate) fn sync_copy(&self, node: &Arc<Node<L, U>>) -> Result<()> {
        if !node.unsynced.swap(false, Ordering::Relaxed) || self.is_gone(node) {
            return Ok(());
        }
        let synced = self.with_target(node, |upper, target| upper.sync_copy(target));
        if synced.is_err() {
            node.unsynced.store(true, Ordering::Relaxed);
        }
        synced
    }

    /// Takes set-user-ID and set-group-ID bits and capabilities from a file whose content is about to change, as the kernel
    /// does on a plain disk (file_remove_privs).
    pub(crate) fn drop_privileges(&self, node: &Arc<Node<L, U>>, privilege: Privilege) -> Result<()> {
        self.with_target(node, |upper, target| {
            let stat = upper.stat(target)?;
            let mut perm = stat.perm;
            if privilege == Privilege::Drops {
                perm = without_privileges(perm);
            }
            if perm != stat.perm {
                upper.set_attr(target, &SetAttr { perm: Some(perm), ..SetAttr::default() })?;
            }
            match upper.remove_xattr(target, CAPABILITY) {
                Err(Error::Answer(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EPERM)) | Ok(()) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    /// A lower inode whose last name is gone lives on in memory alone.
    fn set_attr_gone(&self, node: &Node<L, U>, attr: &SetAttr) {
        if let Place::Gone(last) = &mut *node.place.write() {
            let stat = last.stat;
            let owned = attr.uid.is_some() || attr.gid.is_some();
            let kept = if owned && stat.kind != FileType::Dir { without_privileges(stat.perm) } else { stat.perm };
            let time = |set: Option<SetTime>, old: Time| match set {
                Some(SetTime::At(time)) => time,
                _ => old,
            };
            last.stat = Stat {
                perm: attr.perm.unwrap_or(kept),
                uid: attr.uid.unwrap_or(stat.uid),
                gid: attr.gid.unwrap_or(stat.gid),
                atime: time(attr.atime, stat.atime),
                mtime: time(attr.mtime, stat.mtime),
                ..stat
            };
        }
    }

    /// Sets one extended attribute.
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA` by `how`; `EPERM` for the union's own; `EOPNOTSUPP`, `ENOSPC`, `E2BIG` of the upper's filesystem.
    pub fn set_xattr(&self, id: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        if acl::is_acl(name) && self.options.ids.is_mapped() {
            let mut value = value.to_vec();
            self.options.ids.acl_to_disk(&mut value);
            return self.set_xattr_on_disk(id, name, &value, how);
        }
        if name == crate::ids::CAPABILITIES && self.options.ids.is_mapped() {
            let value = self.options.ids.capabilities_to_disk(value.to_vec());
            return self.set_xattr_on_disk(id, name, &value, how);
        }
        self.set_xattr_on_disk(id, name, value, how)
    }

    fn set_xattr_on_disk(&self, id: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        let node = heir_of(&self.copy_up(id, Depth::Metadata)?);
        let _path = self.path.read();
        if self.is_gone(&node) && self.open_inode(&node).is_none() {
            return self.set_last_xattr(&node, name, value, how);
        }
        self.with_target(&node, |upper, target| upper.set_xattr(target, name, value, how))?;
        if acl::is_acl(name) {
            *node.inherit.lock() = None;
        }
        Ok(())
    }

    /// Removes one extended attribute.
    ///
    /// # Errors
    /// `ENODATA`; `EPERM` for the union's own.
    pub fn remove_xattr(&self, id: Ino, name: &[u8]) -> Result<()> {
        // Asked first, so that a removal of nothing copies nothing.
        self.xattr(id, name)?;
        let node = heir_of(&self.copy_up(id, Depth::Metadata)?);
        let _path = self.path.read();
        if self.is_gone(&node) && self.open_inode(&node).is_none() {
            return self.edit_last_xattrs(&node, |xattrs| {
                xattrs.retain(|(known, _)| known != name);
                Ok(())
            });
        }
        self.with_target(&node, |upper, target| upper.remove_xattr(target, name))?;
        *node.inherit.lock() = None;
        Ok(())
    }

    /// Calls `f` with the extended attributes of an inode that lives on in memory alone.
    fn edit_last_xattrs<T>(&self, node: &Node<L, U>, f: impl FnOnce(&mut Xattrs) -> Result<T>) -> Result<T> {
        let below = match node.slot {
            Some(slot) => self.lower_xattrs(slot)?,
            None => Xattrs::new(),
        };
        match &mut *node.place.write() {
            Place::Gone(last) => f(last.xattrs.get_or_insert(below)),
            _ => Err(Errno::ESTALE.into()),
        }
    }

    fn set_last_xattr(&self, node: &Node<L, U>, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        self.edit_last_xattrs(node, |xattrs| {
            let known = xattrs.iter_mut().find(|(known, _)| known == name);
            match (known, how) {
                (Some(_), SetXattr::Create) => return Err(Errno::EEXIST.into()),
                (None, SetXattr::Replace) => return Err(Errno::ENODATA.into()),
                (Some((_, known)), _) => *known = value.to_vec(),
                (None, _) => xattrs.push((name.to_vec(), value.to_vec())),
            }
            Ok(())
        })
    }

    pub(crate) fn last_xattr(&self, node: &Arc<Node<L, U>>, name: &[u8]) -> Result<Vec<u8>> {
        if self.open_inode(node).is_some() {
            return self.with_target(node, |upper, target| upper.xattr(target, name));
        }
        self.edit_last_xattrs(node, |xattrs| {
            let found = xattrs.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.clone()).ok_or(Error::Answer(Errno::ENODATA))
        })
    }

    pub(crate) fn last_xattr_names(&self, node: &Arc<Node<L, U>>) -> Result<Vec<Vec<u8>>> {
        if self.open_inode(node).is_some() {
            return self.with_target(node, |upper, target| upper.xattr_names(target));
        }
        self.edit_last_xattrs(node, |xattrs| Ok(xattrs.iter().map(|(name, _)| name.clone()).collect()))
    }

    /// Makes a directory's entries durable.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`, `EDQUOT` of the upper's filesystem.
    pub fn sync_dir(&self, id: Ino) -> Result<()> {
        let node = match self.nodes.get(id) {
            Some(node) if node.in_upper() => node,
            _ => return Ok(()),
        };
        let _path = self.path.read();
        self.with_target(&node, |upper, target| match target {
            Target::Dir(dir) => upper.sync_dir(dir),
            _ => Err(Errno::ENOTDIR.into()),
        })
    }
}

/// What a change of content or owner leaves of a mode.
fn without_privileges(perm: u16) -> u16 {
    let perm = perm & !0o4000;
    if perm & 0o2010 == 0o2010 { perm & !0o2000 } else { perm }
}

fn depth_for(size: Option<u64>) -> Depth {
    if size == Some(0) { Depth::Empty } else { Depth::Writable }
}
