//! The requests, one method each: translate, call the union, reply.

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use layer::{FileType, Ino};
use overlay::upper::{Seek, SetAttr, SetXattr};
use overlay::{Access, Attr, Detail, Error, Lower, Make, Privilege, Result, Upper};

use super::convert::{answer, decode_dev, file_attr, kind, set_time};
use super::open::{By, access, handle, with_buffer};
use super::passthrough::{Chosen, Side};
use super::{Core, Fs, name, privilege};

const GENERATION: Generation = Generation(0);

/// Replies with the error and returns, where a call failed.
macro_rules! or_reply {
    ($reply:ident, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return $reply.error(answer(&error)),
        }
    };
}

/// The same for a name from the kernel.
macro_rules! checked {
    ($reply:ident, $name:expr) => {
        match name($name) {
            Ok(name) => name,
            Err(errno) => return $reply.error(errno),
        }
    };
}

fn ino(ino: INodeNo) -> Ino {
    Ino(ino.0)
}

impl<L: Lower, U: Upper> Core<L, U>
where
    U::File: AsFd,
{
    fn attr(&self, attr: &Attr) -> fuser::FileAttr {
        let mut stat = attr.stat;
        if self.wishes.static_nlink && stat.kind == FileType::Dir {
            stat.nlink = 1;
        }
        file_attr(&stat, attr.id.0)
    }

    fn entry(&self, reply: ReplyEntry, attr: &Attr) {
        reply.entry_with_ttls(&self.ttl(attr), &self.wishes.ttl, &self.attr(attr), GENERATION);
    }

    /// Finds what the kernel has forgotten and a file handle names, or the directory above that.
    fn by_number(&self, ino: Ino, name: &[u8], reply: ReplyEntry) {
        let found = match name {
            b"." => self.overlay.lookup_number(ino),
            _ => self.overlay.lookup_parent(ino),
        };
        match or_reply!(reply, found) {
            Some(attr) => self.entry(reply, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn attributes(&self, reply: ReplyAttr, attr: &Attr) {
        let shown = fuser::FileAttr { ino: INodeNo(attr.stat.ino.0), ..self.attr(attr) };
        // What was left to old readers changes by another node.
        let ttl = if self.is_left(attr.id) { Duration::ZERO } else { self.own_ttl(attr) };
        reply.attr(&ttl, &shown);
    }

    /// Tells whether a number means what was left to those who read a lower file past the daemon.
    fn is_left(&self, ino: Ino) -> bool {
        self.pass.left_any() && self.overlay.is_left(ino)
    }

    /// Changes a file by a number that may mean what was left to old readers, and answers when the kernel knows that its other
    /// number is changed too. The kernel may wait for us there, so that is for another thread.
    fn change<T: Send + 'static>(
        self: &Arc<Self>,
        ino: Ino,
        change: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static,
        reply: impl FnOnce(&Self, Result<T>) + Send + 'static,
    ) {
        let heir = if self.pass.left_any() { self.overlay.heir(ino) } else { None };
        let Some(heir) = heir else { return reply(self, change(self)) };
        let core = self.clone();
        self.pool.run(move || {
            let changed = change(&core);
            core.invalidate_attr(heir);
            reply(&core, changed);
        });
    }

    /// Tells whether the kernel need not ask for extended attributes any more, as there are none; it stops after one `ENOSYS`,
    /// and programs get `EOPNOTSUPP`.
    fn has_no_attributes(&self) -> bool {
        self.ahead.asked();
        self.wishes.bare && self.overlay.is_bare()
    }

    fn setattr(self: &Arc<Self>, ino: Ino, set: &SetAttr, size: Option<u64>, by: By, by_handle: bool) -> Result<Attr> {
        if size.is_some() && !by_handle && self.pass.reads_lower(ino) {
            let access = if size == Some(0) { Access::Truncate } else { Access::Write };
            let errno = self.take_other_node(ino, access, by);
            return Err(Error::Answer(overlay::Errno(errno.code())));
        }
        self.pass.came_through(by.thread);
        self.overlay.setattr(ino, set, size, privilege(by.uid))
    }

    fn read_dir(&self, ino: Ino, offset: u64, mut reply: ReplyDirectory) {
        let done = self.overlay.read_dir(ino, offset, Detail::Names, |entry| {
            let full = reply.add(INodeNo(entry.ino.0), entry.cookie, kind(entry.kind), OsStr::from_bytes(entry.name));
            if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(answer(&error)),
        }
    }

    fn read_dir_plus(&self, ino: Ino, offset: u64, mut reply: ReplyDirectoryPlus) {
        let done = self.overlay.read_dir(ino, offset, Detail::Attrs, |entry| {
            let (attr, ttl) = match &entry.attr {
                Some(attr) => (self.attr(attr), self.ttl(attr)),
                None => (dot(entry.ino), Duration::ZERO),
            };
            let name = OsStr::from_bytes(entry.name);
            let full = reply.add(attr.ino, entry.cookie, name, &ttl, &attr, GENERATION);
            if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(answer(&error)),
        }
    }

    fn seek(&self, ino: Ino, offset: i64, whence: i32) -> Result<u64> {
        let offset = u64::try_from(offset).map_err(|_| overlay::Errno::ENXIO)?;
        match whence {
            libc::SEEK_DATA => self.overlay.seek(ino, offset, Seek::Data),
            libc::SEEK_HOLE => self.overlay.seek(ino, offset, Seek::Hole),
            _ => Err(overlay::Errno::EINVAL.into()),
        }
    }

    fn statfs(&self, reply: ReplyStatfs) {
        let space = match or_reply!(reply, self.overlay.statfs()) {
            Some(space) => space,
            None => match self.wishes.space_of.as_ref().map(rustix::fs::fstatvfs) {
                Some(Ok(vfs)) => overlay::upper::StatFs {
                    block: u32::try_from(vfs.f_frsize).unwrap_or(4096),
                    blocks: vfs.f_blocks,
                    free: 0,
                    available: 0,
                    files: vfs.f_files,
                    files_free: 0,
                },
                _ => return reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096),
            },
        };
        reply.statfs(
            space.blocks,
            space.free,
            space.available,
            space.files,
            space.files_free,
            space.block,
            255,
            space.block,
        );
    }
}

fn dot(ino: Ino) -> fuser::FileAttr {
    let stat = layer::Stat {
        ino,
        kind: FileType::Dir,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: layer::Dev::default(),
        size: 0,
        blocks: 0,
        atime: layer::Time::default(),
        mtime: layer::Time::default(),
        ctime: layer::Time::default(),
    };
    file_attr(&stat, ino.0)
}

fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size {
        0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        size if value.len() > size as usize => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

fn done(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(answer(&error)),
    }
}

impl<L, U> Filesystem for Fs<L, U>
where
    L: Lower,
    U: Upper,
    U::File: AsFd,
{
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn destroy(&mut self) {
        if let Err(error) = self.core.overlay.settle() {
            log::error!("the upper is not settled, the next mount resumes: {error}");
        }
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.core.follow.took(req.pid());
        if matches!(name.as_bytes(), b"." | b"..") {
            return self.core.by_number(ino(parent), name.as_bytes(), reply);
        }
        let name = checked!(reply, name);
        match or_reply!(reply, self.core.overlay.lookup(ino(parent), name)) {
            Some(attr) => self.core.entry(reply, &attr),
            // Number 0 with a time to live: the kernel remembers that the name is missing.
            None if self.core.wishes.negative => {
                reply.entry_with_ttls(&Duration::ZERO, &self.core.wishes.ttl, &dot(Ino(0)), GENERATION);
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn forget(&self, _req: &Request, node: INodeNo, nlookup: u64) {
        self.core.overlay.forget(ino(node), nlookup);
    }

    fn getattr(&self, req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.core.follow.took(req.pid());
        let attr = or_reply!(reply, self.core.overlay.getattr(ino(node)));
        self.core.attributes(reply, &attr);
    }

    fn setattr(
        &self,
        req: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.core.follow.took(req.pid());
        let set = SetAttr {
            perm: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let (node, by, by_handle) = (ino(node), By::of(req), fh.is_some());
        let change = move |core: &Arc<Core<L, U>>| core.setattr(node, &set, size, by, by_handle);
        self.core.change(node, change, move |core, changed| {
            let attr = or_reply!(reply, changed);
            core.attributes(reply, &attr);
        });
    }

    fn readlink(&self, req: &Request, node: INodeNo, reply: ReplyData) {
        self.core.follow.took(req.pid());
        let target = or_reply!(reply, self.core.overlay.readlink(ino(node)));
        reply.data(&target);
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        self.core.follow.took(req.pid());
        let name = checked!(reply, name);
        let make = match FileType::from_mode(mode) {
            Some(FileType::File) => Make::File,
            Some(kind @ (FileType::Char | FileType::Block)) => Make::Device(kind, decode_dev(rdev)),
            Some(kind @ (FileType::Fifo | FileType::Socket)) => Make::Special(kind),
            _ => return reply.error(Errno::EINVAL),
        };
        let caller = self.core.caller(req, umask);
        let attr = or_reply!(reply, self.core.overlay.make(ino(parent), name, (mode & 0o7777) as u16, caller, make));
        self.core.entry(reply, &attr);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.core.follow.took(req.pid());
        let name = checked!(reply, name);
        let caller = self.core.caller(req, umask);
        let attr =
            or_reply!(reply, self.core.overlay.make(ino(parent), name, (mode & 0o7777) as u16, caller, Make::Dir));
        self.core.entry(reply, &attr);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.core.follow.took(req.pid());
        let name = checked!(reply, name);
        done(reply, self.core.overlay.unlink(ino(parent), name));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.core.follow.took(req.pid());
        let name = checked!(reply, name);
        done(reply, self.core.overlay.rmdir(ino(parent), name));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.core.follow.took(req.pid());
        let name = checked!(reply, name);
        let make = Make::Symlink(target.as_os_str().as_bytes());
        let caller = self.core.caller(req, 0);
        let attr = or_reply!(reply, self.core.overlay.make(ino(parent), name, 0o777, caller, make));
        self.core.entry(reply, &attr);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        from: &OsStr,
        newparent: INodeNo,
        to: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.core.follow.took(req.pid());
        let (from, to) = (checked!(reply, from), checked!(reply, to));
        let how = match flags.bits() {
            0 => overlay::RenameFlags::Replace,
            libc::RENAME_NOREPLACE => overlay::RenameFlags::NoReplace,
            libc::RENAME_EXCHANGE => overlay::RenameFlags::Exchange,
            // A whiteout of a union inside ours would be one of ours: refused, as the kernel's overlayfs does.
            _ => return reply.error(Errno::EINVAL),
        };
        done(reply, self.core.overlay.rename((ino(parent), from), (ino(newparent), to), how));
    }

    fn link(&self, req: &Request, node: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.core.follow.took(req.pid());
        let name = checked!(reply, newname);
        let attr = or_reply!(reply, self.core.overlay.link(ino(node), ino(newparent), name));
        self.core.entry(reply, &attr);
    }

    fn open(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.core.follow.took(req.pid());
        let (node, by) = (ino(node), By::of(req));
        if access(flags.0) == Access::Read || !self.core.overlay.copies_much(node) {
            return self.core.open(node, flags.0, by, reply);
        }
        let core = self.core.clone();
        self.core.pool.run(move || core.open(node, flags.0, by, reply));
    }

    fn read(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.core.follow.took(req.pid());
        with_buffer(size as usize, |buffer| {
            let mut reply = Some(reply);
            let read = self.core.overlay.read(ino(node), offset, buffer, |bytes| {
                if let Some(reply) = reply.take() {
                    reply.data(bytes);
                }
            });
            if let (Err(error), Some(reply)) = (read, reply) {
                reply.error(answer(&error));
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.core.follow.took(req.pid());
        let privilege = match write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            true => Privilege::Drops,
            false => Privilege::Keeps,
        };
        let written = or_reply!(reply, self.core.overlay.write(ino(node), offset, data, privilege));
        reply.written(u32::try_from(written).unwrap_or(u32::MAX));
    }

    /// Closing needs nothing of us: the kernel stops asking after the first answer.
    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        self.core.executed.released(ino(node), fh.0);
        self.core.pass.released(ino(node));
        self.core.overlay.release(ino(node));
    }

    /// Where nothing is to be synced, the kernel says so by itself after the first answer.
    fn fsync(&self, _req: &Request, node: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        if !self.core.wishes.sync {
            return reply.error(Errno::ENOSYS);
        }
        let (core, node) = (self.core.clone(), ino(node));
        self.core.pool.run(move || done(reply, core.overlay.sync(node, datasync)));
    }

    /// The kernel opens directories by itself once it was told that we need no part in it.
    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.core.wishes.no_opendir {
            true => reply.error(Errno::ENOSYS),
            false => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR),
        }
    }

    fn readdir(&self, req: &Request, node: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.core.follow.took(req.pid());
        if offset == 0 {
            self.core.read_ahead(ino(node));
        }
        self.core.read_dir(ino(node), offset, reply);
    }

    fn readdirplus(&self, req: &Request, node: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.core.follow.took(req.pid());
        if offset == 0 {
            self.core.read_ahead(ino(node));
        }
        self.core.read_dir_plus(ino(node), offset, reply);
    }

    fn fsyncdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        if !self.core.wishes.sync {
            return reply.error(Errno::ENOSYS);
        }
        let (core, node) = (self.core.clone(), ino(node));
        self.core.pool.run(move || done(reply, core.overlay.sync_dir(node)));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.core.statfs(reply);
    }

    fn setxattr(
        &self,
        _req: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let how = match flags {
            libc::XATTR_CREATE => SetXattr::Create,
            libc::XATTR_REPLACE => SetXattr::Replace,
            _ => SetXattr::Any,
        };
        let node = ino(node);
        if !self.core.is_left(node) {
            return done(reply, self.core.overlay.set_xattr(node, name.as_bytes(), value, how));
        }
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        let change = move |core: &Arc<Core<L, U>>| core.overlay.set_xattr(node, &name, &value, how);
        self.core.change(node, change, |_, changed| done(reply, changed));
    }

    fn getxattr(&self, req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.core.follow.took(req.pid());
        if self.core.has_no_attributes() {
            return reply.error(Errno::ENOSYS);
        }
        let value = or_reply!(reply, self.core.overlay.xattr(ino(node), name.as_bytes()));
        reply_xattr(reply, size, &value);
    }

    fn listxattr(&self, req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.core.follow.took(req.pid());
        if self.core.has_no_attributes() {
            return reply.error(Errno::ENOSYS);
        }
        let names = or_reply!(reply, self.core.overlay.xattr_names(ino(node)));
        let list: Vec<u8> = names.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
        reply_xattr(reply, size, &list);
    }

    fn removexattr(&self, _req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (node, name) = (ino(node), name.as_bytes().to_vec());
        let change = move |core: &Arc<Core<L, U>>| core.overlay.remove_xattr(node, &name);
        self.core.change(node, change, |_, changed| done(reply, changed));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.core.follow.took(req.pid());
        let name = checked!(reply, name);
        let caller = self.core.caller(req, umask);
        let attr = or_reply!(reply, self.core.overlay.create(ino(parent), name, (mode & 0o7777) as u16, caller));
        let file = self.core.overlay.upper_body(attr.id);
        let wanted = match &file {
            Some(file) if attr.stat.perm & 0o6000 == 0 => Some((Side::Upper, file.as_fd())),
            _ => None,
        };
        let chosen = self.core.pass.opened(attr.id, wanted, |fd| reply.open_backing(fd));
        let (ttl, attr) = (self.core.wishes.ttl, self.core.attr(&attr));
        match chosen {
            Chosen::Backed(id) => {
                reply.created_passthrough(&ttl, &attr, GENERATION, FileHandle(handle(flags)), FopenFlags::empty(), &id);
            }
            Chosen::Cached => reply.created(&ttl, &attr, GENERATION, FileHandle(handle(flags)), FopenFlags::empty()),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        done(reply, self.core.overlay.allocate(ino(node), mode, offset, length));
    }

    fn lseek(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = or_reply!(reply, self.core.seek(ino(node), offset, whence));
        reply.offset(i64::try_from(found).unwrap_or(i64::MAX));
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The answer's count has 32 bits.
        let len = len.min(1 << 30);
        let copied = self.core.overlay.copy_range((ino(ino_in), offset_in), (ino(ino_out), offset_out), len);
        let copied = or_reply!(reply, copied);
        reply.written(u32::try_from(copied).unwrap_or(u32::MAX));
    }

    /// Files are always ready: the kernel stops asking after this answer.
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
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: fuser::ReplyBmap) {
        reply.error(Errno::ENOSYS);
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
        reply.error(Errno::ENOTTY);
    }
}
