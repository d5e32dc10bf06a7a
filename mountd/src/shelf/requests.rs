//! The shelf's requests, one method each. What is on it never changes, so the kernel may keep it; where layers appear and go, it asks.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request, TimeOrNow,
};
use layer::index::RowData;
use layer::{Name, Slot};
use overlay::Errno;

use super::{BLOB, INFO, Lender, Node, Place, Shelf, fault, of_row};
use crate::fs::{FOREVER, answer_with, file_attr, kind};

const GENERATION: Generation = Generation(0);

/// Replies with the error and returns, where a call failed.
macro_rules! or_reply {
    ($reply:ident, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(errno) => return $reply.error(answer_with(errno)),
        }
    };
}

impl<L: Lender> Shelf<L> {
    fn ttl(node: &Node) -> Duration {
        match node {
            Node::Info(_) | Node::Blob(_) | Node::Row(..) => FOREVER,
            Node::Root | Node::Name | Node::Dir(..) => Duration::ZERO,
        }
    }

    /// Opens a layer's blob, in a thread of its own: it may have to be made first.
    fn open_blob(&self, place: Arc<Place>, reply: ReplyOpen) {
        let (lender, open) = (self.lender.clone(), self.open.clone());
        let run = move || match lender.blob(&place.offer) {
            Ok(file) => reply.opened(FileHandle(open.keep(file)), FopenFlags::FOPEN_KEEP_CACHE),
            Err(failure) => reply.error(answer_with(fault(&failure))),
        };
        // Where no thread can be had the request is answered with EIO by its own end.
        if let Err(error) = std::thread::Builder::new().name("blob".to_owned()).spawn(run) {
            log::error!("cannot start a thread: {error}");
        }
    }

    fn child(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        match self.node(parent)? {
            Node::Row(first, place, dir) => {
                let name = Name::new(name.as_bytes()).map_err(|_| Errno::ENOENT)?;
                let slot = place.index.lookup(dir, name).ok_or(Errno::ENOENT)?;
                Ok(first + u64::from(place.index.resolve(slot).0) + 1)
            }
            _ => self.find(parent, name),
        }
    }

    fn list(&self, ino: u64, offset: u64, reply: &mut ReplyDirectory) -> Result<(), Errno> {
        let node = self.node(ino)?;
        for (at, name) in [(1, "."), (2, "..")] {
            if offset < at && reply.add(INodeNo(ino), at, FileType::Directory, name) {
                return Ok(());
            }
        }
        match node {
            // Who looks for an image knows its name.
            Node::Root | Node::Name => Ok(()),
            Node::Dir(first, _) => {
                let all = [
                    (3, "diff", 1, FileType::Directory),
                    (4, "info", INFO, FileType::RegularFile),
                    (5, "blob", BLOB, FileType::RegularFile),
                ];
                for (at, name, low, kind) in all {
                    if offset < at && reply.add(INodeNo(first + low), at, kind, name) {
                        break;
                    }
                }
                Ok(())
            }
            Node::Row(first, place, dir) => {
                let RowData::Dir { children } = place.row(dir)?.data() else { return Err(Errno::ENOTDIR) };
                // An entry's position is its row + 2.
                let start = u64::from(children.start).max((offset + 1).saturating_sub(2));
                for slot in start..u64::from(children.end) {
                    let row = place.index.row(Slot(slot as u32)).ok_or(Errno::EIO)?;
                    let (name, inode) = (row.name().ok_or(Errno::EIO)?, row.resolve());
                    let number = INodeNo(first + u64::from(inode.slot().0) + 1);
                    if reply.add(number, slot + 2, kind(of_row(&inode).kind), OsStr::from_bytes(name.as_bytes())) {
                        break;
                    }
                }
                Ok(())
            }
            Node::Info(_) | Node::Blob(_) => Err(Errno::ENOTDIR),
        }
    }
}

fn sized(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size as usize {
        0 => reply.size(value.len() as u32),
        size if size < value.len() => reply.error(fuser::Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl<L: Lender> Filesystem for Shelf<L> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wish in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_CACHE_SYMLINKS] {
            // A wish, not a need.
            config.add_capabilities(wish).ok();
        }
        if let Err(nearest) = config.set_max_readahead(1 << 20) {
            config.set_max_readahead(nearest).ok(); // else it stays as it is
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = or_reply!(reply, self.child(parent.0, name));
        let (node, stat) = (or_reply!(reply, self.node(ino)), or_reply!(reply, self.stat(ino)));
        reply.entry(&Self::ttl(&node), &file_attr(&stat, ino), GENERATION);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (node, stat) = (or_reply!(reply, self.node(ino.0)), or_reply!(reply, self.stat(ino.0)));
        reply.attr(&Self::ttl(&node), &file_attr(&stat, ino.0));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let Node::Row(_, place, slot) = or_reply!(reply, self.node(ino.0)) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        match or_reply!(reply, place.row(slot)).data() {
            RowData::Symlink(target) => reply.data(target),
            _ => reply.error(fuser::Errno::EINVAL),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & libc::O_TRUNC != 0 {
            return reply.error(fuser::Errno::EROFS);
        }
        let node = or_reply!(reply, self.node(ino.0));
        if let Node::Blob(place) = node {
            return self.open_blob(place, reply);
        }
        let handle = or_reply!(reply, self.open_file(&node)).map_or(0, |file| self.open.keep(file));
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if fh.0 == 0 {
            let cut = |bytes: &[u8]| {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let end = start.saturating_add(size as usize).min(bytes.len());
                bytes[start..end].to_vec()
            };
            let bytes = or_reply!(reply, self.with_bytes(ino.0, cut));
            return reply.data(&bytes);
        }
        let Some(file) = self.open.files.lock().get(&fh.0).cloned() else { return reply.error(fuser::Errno::EBADF) };
        let mut buf = vec![0; size as usize];
        let mut len = 0;
        while len < buf.len() {
            match file.read_at(&mut buf[len..], offset + len as u64) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::error!("read node {}: {error}", ino.0);
                    return reply.error(fuser::Errno::EIO);
                }
            }
        }
        reply.data(&buf[..len]);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // The kernel does not ask again.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.open.files.lock().remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        or_reply!(reply, self.list(ino.0, offset, &mut reply));
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let all = or_reply!(reply, self.xattrs(ino.0));
        match all.iter().find(|(known, _)| known == name.as_bytes()) {
            Some((_, value)) => sized(reply, size, value),
            None => reply.error(fuser::Errno::ENODATA),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let mut list = Vec::new();
        for (name, _) in or_reply!(reply, self.xattrs(ino.0)) {
            list.extend(name);
            list.push(0);
        }
        sized(reply, size, &list);
    }

    fn lseek(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _offset: i64, _whence: i32, reply: ReplyLseek) {
        // The kernel takes all of it for data then.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: fuser::PollNotifier,
        _events: fuser::PollEvents,
        _flags: fuser::PollFlags,
        reply: fuser::ReplyPoll,
    ) {
        // The kernel says that everything is ready then.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(answer_with(self.begins(parent.0, name).unwrap_or(Errno::EROFS)));
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(answer_with(self.ends(parent.0, name).unwrap_or(Errno::EROFS)));
    }

    fn mkdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn symlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _from: &OsStr,
        _newparent: INodeNo,
        _to: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }
}
