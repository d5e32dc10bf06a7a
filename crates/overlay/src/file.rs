//! Open files: where the bytes are, reading and writing them.
//!
//! All handles of one inode share one body, so that a copy-up is seen by every reader that opened before it. A handle itself
//! holds nothing: the front end's handle number can be derived again from the inode and the open flags.

use std::sync::Arc;

use layer::{FileType, Ino, Slot};

use crate::attr::Privilege;
use crate::copy_up::{Depth, Fresh};
use crate::error::{Errno, Error, Result};
use crate::lower::{Body, Lower, LowerFile};
use crate::node::{Node, OpenBody, Place, heir_of};
use crate::union::{At, Overlay};
use crate::upper::{Seek, Upper, UpperFile};

/// How a program opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `O_RDONLY`.
    Read,
    /// `O_WRONLY`, `O_RDWR`.
    Write,
    /// Either of them with `O_TRUNC`.
    Truncate,
}

/// Where the bytes of an open file are; for front ends that pass descriptors on.
pub enum BodyAt<L: Lower, U: Upper> {
    /// In memory.
    Mapped,
    /// In a file of the lower.
    Lower(Arc<L::File>),
    /// In a file of the upper.
    Upper(Arc<U::File>),
    /// In a file of the upper and one of the lower.
    Both,
}

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Opens a regular file; one [`Overlay::release`] belongs to each.
    ///
    /// # Errors
    /// `EISDIR`; `EROFS`; those of a copy-up.
    pub fn open(&self, id: Ino, access: Access, privilege: Privilege) -> Result<BodyAt<L, U>> {
        let (node, fresh) = match access {
            Access::Read => (self.node(id)?, None),
            Access::Write => self.copy_up_to_open(id, Depth::Writable)?,
            Access::Truncate => self.copy_up_to_open(id, Depth::Empty)?,
        };
        match node.kind {
            FileType::File => {}
            FileType::Dir => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::ENXIO.into()),
        }
        let body = self.open_body(&node, fresh)?;
        if access == Access::Truncate
            && let OpenBody::Upper(file) = &body
        {
            let dropped = {
                let _path = self.path.read();
                self.drop_privileges(&node, privilege).and_then(|()| self.sync_copy(&node))
            };
            let truncated = dropped.and_then(|()| file.truncate(0));
            if let Err(error) = truncated {
                self.release(id);
                return Err(error);
            }
        }
        match body {
            OpenBody::Mapped(_) => Ok(BodyAt::Mapped),
            OpenBody::Lower(file) => Ok(BodyAt::Lower(file)),
            OpenBody::Upper(file) => Ok(BodyAt::Upper(file)),
            OpenBody::Partial(_) => Ok(BodyAt::Both),
            OpenBody::Closed => Err(Errno::EBADF.into()),
        }
    }

    /// Counts one more handle, opening the body for the first; `copy` is the upper's file, if it is open already.
    fn open_body(&self, node: &Arc<Node<L, U>>, mut copy: Fresh<U>) -> Result<OpenBody<L, U>> {
        loop {
            {
                let mut open = node.open.write();
                if !matches!(open.body, OpenBody::Closed) {
                    open.count += 1;
                    return Ok(open.body.clone());
                }
            }
            let fresh = self.find_body(node, copy.take())?;
            let mut open = node.open.write();
            // Another handle, or a copy-up, was faster: its body is the one to share.
            if !matches!(open.body, OpenBody::Closed) {
                continue;
            }
            if self.moved_up(node) && !matches!(fresh, OpenBody::Upper(_) | OpenBody::Partial(_)) {
                continue;
            }
            open.count += 1;
            open.body = fresh.clone();
            return Ok(fresh);
        }
    }

    fn moved_up(&self, node: &Node<L, U>) -> bool {
        matches!(&*node.place.read(), Place::Upper(up) if up.body_below.is_none() || up.partial.is_some())
    }

    fn find_body(&self, node: &Arc<Node<L, U>>, copy: Fresh<U>) -> Result<OpenBody<L, U>> {
        let (below, partial) = match &*node.place.read() {
            Place::Lower { .. } => (node.slot, None),
            Place::Upper(up) => (up.body_below, up.partial),
            Place::Gone(_) => return Err(Errno::ESTALE.into()),
        };
        let below = match below {
            Some(slot) if partial.is_none() && node.in_upper() && self.heal_cut(node, slot)? => None,
            below => below,
        };
        if let (Some(slot), Some(limit)) = (below, partial) {
            return self.open_partial(node, slot, limit);
        }
        if let Some(slot) = below {
            return Ok(match self.lower.body(slot)? {
                Body::Bytes(_) => OpenBody::Mapped(slot),
                Body::File(file) => OpenBody::Lower(Arc::new(file)),
            });
        }
        if let Some(file) = copy {
            return Ok(OpenBody::Upper(file));
        }
        let _path = self.path.read();
        let file = self.with_target(node, |upper, target| upper.open(target))?;
        Ok(OpenBody::Upper(Arc::new(file)))
    }

    /// Ends one handle.
    pub fn release(&self, id: Ino) {
        let Some(node) = self.nodes.get(id) else { return };
        let closed = {
            let mut open = node.open.write();
            open.count = open.count.saturating_sub(1);
            if open.count == 0 { std::mem::replace(&mut open.body, OpenBody::Closed) } else { OpenBody::Closed }
        };
        drop(closed);
        let untouched = matches!(&*node.place.read(), Place::Lower { seen } if seen.is_empty());
        if untouched {
            self.drop_untouched(node);
        } else {
            self.release_node(node);
        }
    }

    /// A row of the lower needs no node once it is closed, whether the kernel knows it or not.
    fn drop_untouched(&self, node: Arc<Node<L, U>>) {
        let id = node.id;
        drop(node);
        self.nodes.remove_if(id, |node| {
            node.open.read().count == 0 && matches!(&*node.place.read(), Place::Lower { seen } if seen.is_empty())
        });
    }

    /// Gives a lower file that is open past the daemon another node for what is about to be written, the old one keeping
    /// the lower bytes for those who have it open; all else that they do (attributes, links, fsync) is done to the new node, as
    /// there is one file to them. Returns the file's names, which lead to the new node from now on; `None`
    /// when the old node was left behind before.
    ///
    /// # Errors
    /// Those of a copy-up.
    pub fn detach(&self, id: Ino, access: Access) -> Result<Option<Vec<(Ino, layer::NameBuf)>>> {
        let node = self.node(id)?;
        if self.is_gone(&node) {
            return Ok(None);
        }
        let slot = node.slot.ok_or(Error::Answer(Errno::ESTALE))?;
        let below = self.lower.stat(slot)?;
        let depth = if access == Access::Truncate { Depth::Empty } else { Depth::Writable };
        let mut all = std::mem::take(&mut *node.met.lock());
        if let Place::Lower { seen } = &*node.place.read() {
            all.extend(seen.iter().cloned());
        }
        self.copy_up_apart(&node, depth)?;
        let fresh = self.leave_node(&node, layer::Stat { ino: node.shown, ..below });
        fresh.met.lock().clone_from(&all);
        if let Place::Upper(up) = &*fresh.place.read() {
            all.extend(up.names.iter().map(|(parent, name)| (parent.id, name.clone())));
        }
        self.relearn(&fresh);
        if let Some(below) = self.lower.names(slot)? {
            all.extend(below.into_iter().map(|(dir, name)| (self.id_of(dir), name)));
        }
        Ok(Some(all))
    }

    /// Tells whether a number means what [`Overlay::detach`] left to those who have it open.
    pub fn is_left(&self, id: Ino) -> bool {
        self.heir(id).is_some()
    }

    /// Returns the number by which the file is asked for that was left to those who have `id` open.
    pub fn heir(&self, id: Ino) -> Option<Ino> {
        self.nodes.get(id)?.heir.get().map(|heir| heir.id)
    }

    /// Returns the row of the lower that has an inode's body; `None` for a body that the upper has, in whole or in part.
    pub fn slot_below(&self, id: Ino) -> Option<Slot> {
        match self.at(id).ok()? {
            At::Lower(slot) => Some(slot),
            At::Node(node) => match &*node.place.read() {
                Place::Lower { .. } => node.slot,
                Place::Upper(up) => up.body_below,
                Place::Gone(_) => None,
            },
        }
    }

    /// Tells whether opening this inode for writing copies a body that is worth a thread of its own.
    pub fn copies_much(&self, id: Ino) -> bool {
        const MUCH: u64 = 1 << 20;
        self.slot_below(id).is_some_and(|slot| {
            self.lower
                .stat(slot)
                .is_ok_and(|stat| stat.size > MUCH && (!self.options.lazy || stat.size < self.options.lazy_min))
        })
    }

    /// Returns the open file of the upper, if the body is there; for front ends that pass descriptors on.
    pub fn upper_body(&self, id: Ino) -> Option<Arc<U::File>> {
        self.nodes.get(id).and_then(|node| self.upper_file(&node))
    }

    fn body(&self, id: Ino) -> Result<OpenBody<L, U>> {
        match self.nodes.get(id) {
            Some(node) => Ok(node.open.read().body.clone()),
            None => Ok(OpenBody::Closed),
        }
    }

    /// Returns the upper's whole file behind an open inode; a partial copy is completed first.
    fn whole_file(&self, id: Ino) -> Result<Arc<U::File>> {
        match self.body(id)? {
            OpenBody::Upper(file) => {
                let node = self.node(id)?;
                let _path = self.path.read();
                self.sync_copy(&node)?;
                Ok(file)
            }
            OpenBody::Partial(partial) => {
                self.complete(&self.node(id)?, &partial)?;
                Ok(partial.upper.clone())
            }
            _ => Err(Errno::EBADF.into()),
        }
    }

    /// Syncs what a program is about to write around the page cache, if it is an unsynced copy.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`, `EDQUOT` of the upper's filesystem.
    pub fn settle_copy(&self, id: Ino) -> Result<()> {
        let node = self.node(id)?;
        let _path = self.path.read();
        self.sync_copy(&node)
    }

    /// Reads from an open file and hands the bytes to `take`; small bodies straight from the map.
    ///
    /// `buf` is scratch space of the caller's, `len` bytes at least.
    /// # Errors
    /// `EBADF` for a file that is not open; faults.
    pub fn read<T>(&self, id: Ino, offset: u64, buf: &mut [u8], take: impl FnOnce(&[u8]) -> T) -> Result<T> {
        match self.body(id)? {
            OpenBody::Mapped(slot) => match self.lower.body(slot)? {
                Body::Bytes(bytes) => {
                    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                    let end = start.saturating_add(buf.len()).min(bytes.len());
                    Ok(take(&bytes[start..end]))
                }
                Body::File(file) => {
                    let read = read_all(buf, offset, |buf, at| file.read_at(buf, at))?;
                    Ok(take(&buf[..read]))
                }
            },
            OpenBody::Lower(file) => {
                let read = read_all(buf, offset, |buf, at| file.read_at(buf, at))?;
                Ok(take(&buf[..read]))
            }
            OpenBody::Upper(file) => {
                let read = read_all(buf, offset, |buf, at| file.read_at(buf, at))?;
                Ok(take(&buf[..read]))
            }
            OpenBody::Partial(partial) => {
                let read = partial.read_at(buf, offset)?;
                Ok(take(&buf[..read]))
            }
            OpenBody::Closed => Err(Errno::EBADF.into()),
        }
    }

    /// Writes to an open file.
    ///
    /// # Errors
    /// `EBADF` for a file that is not open for writing; `ENOSPC`, `EDQUOT`, `EFBIG` of the upper's filesystem.
    pub fn write(&self, id: Ino, offset: u64, data: &[u8], privilege: Privilege) -> Result<usize> {
        let body = self.body(id)?;
        if !matches!(body, OpenBody::Upper(_) | OpenBody::Partial(_)) {
            return Err(Errno::EBADF.into());
        }
        // Before the content changes: a crash between must not leave new content with old privileges.
        if privilege == Privilege::Drops {
            let node = self.node(id)?;
            let _path = self.path.read();
            self.drop_privileges(&node, privilege)?;
        }
        match body {
            OpenBody::Partial(partial) => partial.write_at(data, offset),
            OpenBody::Upper(file) => file.write_at(data, offset),
            _ => Err(Errno::EBADF.into()),
        }
    }

    /// fallocate(2) on an open file; mode bits as the kernel's.
    ///
    /// # Errors
    /// `EBADF`; `EOPNOTSUPP`, `ENOSPC`... of the upper's filesystem.
    pub fn allocate(&self, id: Ino, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.whole_file(id)?.allocate(mode, offset, len)
    }

    /// Finds the next data or hole of an open file.
    ///
    /// # Errors
    /// `ENXIO` past the end (lseek(2)).
    pub fn seek(&self, id: Ino, offset: u64, what: Seek) -> Result<u64> {
        let size = self.getattr(id)?.stat.size;
        if offset >= size {
            return Err(Errno::ENXIO.into());
        }
        match self.body(id)? {
            OpenBody::Upper(file) => file.seek(offset, what),
            OpenBody::Lower(file) => file.seek(offset, what, size),
            _ => Ok(if what == Seek::Data { offset } else { size }),
        }
    }

    /// Makes an open file durable; what was never changed is durable already.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`, `EDQUOT` of the upper's filesystem.
    pub fn sync(&self, id: Ino, data_only: bool) -> Result<()> {
        match self.nodes.get(id) {
            Some(node) => self.sync_file(&heir_of(&node), data_only),
            None => Ok(()),
        }
    }

    /// Copies between two open files; blocks are shared where the filesystem can.
    ///
    /// # Errors
    /// `EXDEV` where that cannot be done below, so that the caller copies by reading and writing; `EBADF`.
    pub fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        let target = self.whole_file(to.0)?;
        match self.body(from.0)? {
            OpenBody::Upper(file) => file.copy_range(from.1, &target, to.1, len),
            _ => Err(Errno::EXDEV.into()),
        }
    }
}

/// Reads until `buf` is full or the end: a short answer would be taken for the end of the file.
fn read_all(buf: &mut [u8], offset: u64, read: impl Fn(&mut [u8], u64) -> Result<usize>) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match read(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if done == 0 => return Err(error),
            Err(Error::Answer(_)) => break,
            Err(fault) => return Err(fault),
        }
    }
    Ok(done)
}
