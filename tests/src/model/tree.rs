//! The plain tree: what one ordinary POSIX filesystem answers. It knows nothing of layers.

use std::collections::{BTreeMap, BTreeSet};

use layer::{Dev, FileType, Name, NameError, Time};
use overlay::upper::{Seek, SetXattr};
use overlay::{Access, Caller, Errno, Privilege, RenameFlags};

use super::op::{Handle, Kind, Op, Path};

/// An inode of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u32);

/// The root directory.
pub const ROOT: Id = Id(0);

/// What is known of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// This time.
    At(Time),
    /// This time or later: it was set by the clock.
    Since(Time),
    /// POSIX leaves it open.
    Unknown,
}

/// What an inode holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kinds of inodes")]
pub enum Body {
    Dir { parent: Id, entries: BTreeMap<Vec<u8>, Id> },
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Device(FileType, Dev),
    Special(FileType),
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in inode(7)")]
pub struct Inode {
    pub body: Body,
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub atime: When,
    pub mtime: When,
    /// How many names lead here; a directory's is 1.
    pub names: u32,
    /// How many handles are open.
    pub opens: u32,
}

impl Inode {
    /// Returns the kind.
    pub fn kind(&self) -> FileType {
        match &self.body {
            Body::Dir { .. } => FileType::Dir,
            Body::File(_) => FileType::File,
            Body::Symlink(_) => FileType::Symlink,
            Body::Device(kind, _) | Body::Special(kind) => *kind,
        }
    }

    /// Returns the content of a file.
    pub fn content(&self) -> Option<&Vec<u8>> {
        match &self.body {
            Body::File(content) => Some(content),
            _ => None,
        }
    }
}

/// What the tree answers to an operation that succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The operation makes no sense here (a handle that is not open): it is left out.
    Skip,
    /// No more than success.
    Done,
    /// The attributes of this inode.
    Inode(Id),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A number.
    Count(u64),
    /// An offset that fits this content.
    Seek(Vec<u8>, u64, Seek),
    /// Entries for this stream.
    Entries(Handle),
    /// The attributes of this inode.
    Xattrs(Id),
}

#[derive(Clone, Copy, Debug)]
struct Open {
    id: Id,
    access: Access,
}

/// A directory being read.
#[derive(Clone, Debug)]
struct Stream {
    id: Id,
    /// Names that were there all the time since the start, and are to be seen exactly once.
    steady: BTreeSet<Vec<u8>>,
    /// Names that were there at some time since the start.
    possible: BTreeSet<Vec<u8>>,
    seen: Vec<Vec<u8>>,
    ended: bool,
}

/// The tree, and what is open in it.
#[derive(Clone, Debug)]
pub struct Tree {
    inodes: BTreeMap<Id, Inode>,
    next: u32,
    open: BTreeMap<Handle, Open>,
    streams: BTreeMap<Handle, Stream>,
}

type Answer<T> = Result<T, Errno>;

/// The attribute that a write takes away.
pub const CAPABILITY: &[u8] = b"security.capability";

fn dir(parent: Id) -> Body {
    Body::Dir { parent, entries: BTreeMap::new() }
}

/// Checks one name, as the system call layer does.
pub fn check_name(name: &[u8]) -> Answer<()> {
    match Name::new(name) {
        Ok(_) => Ok(()),
        Err(NameError::TooLong) => Err(Errno::ENAMETOOLONG),
        Err(_) => Err(Errno::EINVAL),
    }
}

/// Tells what the system call layer says of an attribute before any filesystem is asked (xattr(7)).
pub fn check_xattr(kind: FileType, name: &[u8]) -> Answer<()> {
    if name.starts_with(b"user.") && !matches!(kind, FileType::File | FileType::Dir) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

impl Tree {
    /// Makes a tree of a root directory alone.
    pub fn new(root: Inode) -> Self {
        let body = dir(ROOT);
        let inodes = BTreeMap::from([(ROOT, Inode { body, names: 1, opens: 0, ..root })]);
        Tree { inodes, next: 1, open: BTreeMap::new(), streams: BTreeMap::new() }
    }

    /// Adds an inode under a name; for building what was there before.
    pub fn add(&mut self, parent: Id, name: &[u8], inode: Inode) -> Id {
        let id = Id(self.next);
        self.next += 1;
        let body = match inode.body {
            Body::Dir { .. } => dir(parent),
            other => other,
        };
        self.inodes.insert(id, Inode { body, names: 0, opens: 0, ..inode });
        self.add_name(parent, name, id);
        id
    }

    /// Gives an inode one more name; for building what was there before.
    pub fn add_name(&mut self, parent: Id, name: &[u8], id: Id) {
        self.inode_mut(id).names += 1;
        self.entries_mut(parent).insert(name.to_vec(), id);
        for stream in self.streams.values_mut().filter(|stream| stream.id == parent) {
            stream.steady.remove(name);
            stream.possible.insert(name.to_vec());
        }
    }

    /// Returns an inode.
    ///
    /// # Panics
    /// If there is none of that number.
    pub fn inode(&self, id: Id) -> &Inode {
        &self.inodes[&id]
    }

    fn inode_mut(&mut self, id: Id) -> &mut Inode {
        self.inodes.get_mut(&id).expect("the inode is there")
    }

    /// Returns the names in a directory; nothing for anything else.
    pub fn entries(&self, id: Id) -> &BTreeMap<Vec<u8>, Id> {
        const EMPTY: &BTreeMap<Vec<u8>, Id> = &BTreeMap::new();
        match &self.inode(id).body {
            Body::Dir { entries, .. } => entries,
            _ => EMPTY,
        }
    }

    fn entries_mut(&mut self, id: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.inode_mut(id).body {
            Body::Dir { entries, .. } => entries,
            _ => panic!("entries of something that is no directory"),
        }
    }

    /// Returns every path with its inode, the root first, directories before what they hold.
    pub fn paths(&self) -> Vec<(Path, Id)> {
        let mut all = vec![(Path(Vec::new()), ROOT)];
        let mut at = 0;
        while let Some((path, id)) = all.get(at).cloned() {
            all.extend(self.entries(id).iter().map(|(name, child)| (path.join(name), *child)));
            at += 1;
        }
        all
    }

    /// Returns the directory above one.
    pub fn parent(&self, id: Id) -> Id {
        match &self.inode(id).body {
            Body::Dir { parent, .. } => *parent,
            _ => ROOT,
        }
    }

    /// Returns the link count that fstat tells.
    pub fn links(&self, id: Id) -> u32 {
        let inode = self.inode(id);
        if inode.kind() != FileType::Dir {
            return inode.names;
        }
        let below = self.entries(id).values().filter(|child| self.inode(**child).kind() == FileType::Dir).count();
        if inode.names == 0 { 0 } else { 2 + below as u32 }
    }

    /// Returns the inodes that are open.
    pub fn opened(&self) -> impl Iterator<Item = (Handle, Id, Access)> {
        self.open.iter().map(|(handle, open)| (*handle, open.id, open.access))
    }

    /// Returns the directories that are open.
    pub fn dirs_opened(&self) -> impl Iterator<Item = (Handle, Id)> {
        self.streams.iter().map(|(handle, stream)| (*handle, stream.id))
    }

    /// Finds one path of an inode that is not removed.
    pub fn path_of(&self, id: Id) -> Option<Path> {
        self.paths().into_iter().find(|(_, other)| *other == id).map(|(path, _)| path)
    }

    /// Walks to what a path names; symbolic links are not followed.
    pub fn walk(&self, path: &Path) -> Answer<Id> {
        let mut at = ROOT;
        for name in path.names() {
            if self.inode(at).kind() != FileType::Dir {
                return Err(Errno::ENOTDIR);
            }
            check_name(name)?;
            at = *self.entries(at).get(name).ok_or(Errno::ENOENT)?;
        }
        Ok(at)
    }

    /// Walks to the directory of a path.
    fn walk_parent<'a>(&self, path: &'a Path) -> Answer<(Id, &'a [u8])> {
        let Some((parent, _)) = path.split() else { return Err(Errno::EBUSY) };
        let name = path.names().last().ok_or(Errno::EBUSY)?;
        let dir = self.walk(&parent)?;
        if self.inode(dir).kind() != FileType::Dir {
            return Err(Errno::ENOTDIR);
        }
        check_name(name)?;
        Ok((dir, name))
    }

    fn vacant<'a>(&self, path: &'a Path) -> Answer<(Id, &'a [u8])> {
        let (dir, name) = match self.walk_parent(path) {
            Err(Errno::EBUSY) => return Err(Errno::EEXIST),
            found => found?,
        };
        if self.entries(dir).contains_key(name) { Err(Errno::EEXIST) } else { Ok((dir, name)) }
    }

    fn handle(&self, handle: Handle) -> Option<Open> {
        self.open.get(&handle).copied()
    }

    fn touch(&mut self, id: Id, now: Time) {
        self.inode_mut(id).mtime = When::Since(now);
    }

    /// Takes a name away; the inode goes with its last one, unless it is open.
    fn drop_name(&mut self, dir: Id, name: &[u8], now: Time) {
        let Some(id) = self.entries_mut(dir).remove(name) else { return };
        self.inode_mut(id).names -= 1;
        self.touch(dir, now);
        for stream in self.streams.values_mut().filter(|stream| stream.id == dir) {
            stream.steady.remove(name);
        }
        self.drop_unused(id);
    }

    fn put_name(&mut self, dir: Id, name: &[u8], id: Id, now: Time) {
        self.add_name(dir, name, id);
        self.touch(dir, now);
        if let Body::Dir { parent, .. } = &mut self.inode_mut(id).body {
            *parent = dir;
        }
    }

    fn drop_unused(&mut self, id: Id) {
        let inode = self.inode(id);
        if inode.names == 0 && inode.opens == 0 {
            self.inodes.remove(&id);
        }
    }

    /// Takes set-user-ID and set-group-ID of a file, as a change of its content does.
    pub fn strip_mode(&mut self, path: &Path, privilege: Privilege) {
        if let Ok(id) = self.walk(path)
            && privilege == Privilege::Drops
            && self.inode(id).kind() == FileType::File
        {
            self.inode_mut(id).perm = without_privileges(self.inode(id).perm);
        }
    }

    /// Takes the capability of a file, as a change of its content does.
    pub fn strip_capability(&mut self, path: &Path) {
        if let Ok(id) = self.walk(path) {
            self.inode_mut(id).xattrs.remove(CAPABILITY);
        }
    }

    /// Cuts a file to nothing and leaves all else as it is.
    ///
    /// # Errors
    /// As [`Tree::walk`]; `EINVAL` for what is no file.
    pub fn empty(&mut self, path: &Path) -> Answer<()> {
        let id = self.walk(path)?;
        match &mut self.inode_mut(id).body {
            Body::File(content) => {
                content.clear();
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Returns the tree as it is when nothing is open.
    pub fn at_rest(&self) -> Tree {
        let mut tree = self.clone();
        tree.close_all();
        tree
    }

    /// Closes everything.
    pub fn close_all(&mut self) {
        let ids: Vec<Id> = self.open.values().map(|open| open.id).chain(self.streams.values().map(|s| s.id)).collect();
        self.open.clear();
        self.streams.clear();
        for id in ids {
            self.close(id);
        }
    }

    fn close(&mut self, id: Id) {
        self.inode_mut(id).opens -= 1;
        self.drop_unused(id);
    }

    /// Applies an operation that begins at `now`.
    ///
    /// # Errors
    /// What a program gets.
    pub fn apply(&mut self, op: &Op, now: Time) -> Answer<Expected> {
        let handle_of = |tree: &Tree, handle: &Handle| tree.handle(*handle).map(|open| open.id);
        match op {
            Op::Look(path) => Ok(Expected::Inode(self.walk(path)?)),
            Op::Create(handle, path, perm, caller) => {
                if self.open.contains_key(handle) {
                    return Ok(Expected::Skip);
                }
                let id = self.make(path, *perm, *caller, &Kind::File, now)?;
                self.inode_mut(id).opens += 1;
                self.open.insert(*handle, Open { id, access: Access::Write });
                Ok(Expected::Inode(id))
            }
            Op::Make(path, perm, caller, kind) => Ok(Expected::Inode(self.make(path, *perm, *caller, kind, now)?)),
            Op::Link(from, to) => {
                let id = self.walk(from)?;
                self.link(id, to, now)
            }
            Op::LinkOpen(handle, to) => match handle_of(self, handle) {
                Some(id) => self.link(id, to, now),
                None => Ok(Expected::Skip),
            },
            Op::Unlink(path) => self.unlink(path, now),
            Op::Rmdir(path) => self.rmdir(path, now),
            Op::Rename(from, to, flags) => self.rename(from, to, *flags, now),
            Op::Chmod(path, perm) => {
                let id = self.walk(path)?;
                self.chmod(id, *perm)
            }
            Op::ChmodOpen(handle, perm) => match handle_of(self, handle) {
                Some(id) => self.chmod(id, *perm),
                None => Ok(Expected::Skip),
            },
            Op::Chown(path, uid, gid) => {
                let id = self.walk(path)?;
                self.chown(id, *uid, *gid)
            }
            Op::ChownOpen(handle, uid, gid) => match handle_of(self, handle) {
                Some(id) => self.chown(id, *uid, *gid),
                None => Ok(Expected::Skip),
            },
            Op::Utimens(path, atime, mtime) => {
                let id = self.walk(path)?;
                let set = |time: &Option<Time>| time.map_or(When::Since(now), When::At);
                let inode = self.inode_mut(id);
                (inode.atime, inode.mtime) = (set(atime), set(mtime));
                Ok(Expected::Inode(id))
            }
            Op::Truncate(path, size, privilege) => {
                let id = self.walk(path)?;
                match self.inode(id).kind() {
                    FileType::File => Ok(self.truncate(id, *size, *privilege, now)),
                    FileType::Dir => Err(Errno::EISDIR),
                    _ => Err(Errno::EINVAL),
                }
            }
            Op::SetXattr(path, name, value, how) => {
                let id = self.walk(path)?;
                self.set_xattr(id, &name.0, value, *how)
            }
            Op::SetXattrOpen(handle, name, value) => match handle_of(self, handle) {
                Some(id) => self.set_xattr(id, &name.0, value, SetXattr::Any),
                None => Ok(Expected::Skip),
            },
            Op::RemoveXattr(path, name) => {
                let id = self.walk(path)?;
                check_xattr(self.inode(id).kind(), &name.0)?;
                self.inode_mut(id).xattrs.remove(&name.0).ok_or(Errno::ENODATA)?;
                Ok(Expected::Done)
            }
            Op::Open(handle, path, access, privilege) => self.open(*handle, path, *access, *privilege, now),
            Op::Read(..)
            | Op::Write(..)
            | Op::TruncateOpen(..)
            | Op::Stat(_)
            | Op::XattrsOpen(_)
            | Op::Sync(_)
            | Op::Seek(..) => Ok(self.file_op(op, now).unwrap_or(Expected::Skip)),
            Op::Allocate(..) | Op::CopyRange(..) => Ok(self.range_op(op, now).unwrap_or(Expected::Skip)),
            Op::Close(handle) => match self.open.remove(handle) {
                Some(open) => {
                    self.close(open.id);
                    Ok(Expected::Done)
                }
                None => Ok(Expected::Skip),
            },
            Op::DirOpen(..) | Op::DirNext(..) | Op::DirRewind(_) | Op::MkdirAt(..) | Op::DirClose(_) => {
                self.dir_op(op, now)
            }
            Op::Forget(_) => Ok(Expected::Done),
            Op::Remount | Op::Rest => {
                self.close_all();
                Ok(Expected::Done)
            }
        }
    }

    fn make(&mut self, path: &Path, perm: u16, caller: Caller, kind: &Kind, now: Time) -> Answer<Id> {
        let (dir, name) = self.vacant(path)?;
        self.make_in(dir, name, perm, caller, kind, now)
    }

    fn make_in(&mut self, dir: Id, name: &[u8], perm: u16, caller: Caller, kind: &Kind, now: Time) -> Answer<Id> {
        if let Kind::Device(FileType::Char, Dev { major: 0, minor: 0 }) = kind {
            return Err(Errno::EPERM);
        }
        let above = self.inode(dir);
        let inherits = above.perm & 0o2000 != 0;
        let gid = if inherits { above.gid } else { caller.gid };
        let masked = perm & !(caller.umask as u16);
        let (body, perm) = match kind {
            Kind::File => (Body::File(Vec::new()), masked),
            Kind::Dir => (
                Body::Dir { parent: dir, entries: BTreeMap::new() },
                (masked & 0o1777) | if inherits { 0o2000 } else { 0 },
            ),
            Kind::Symlink(target) => (Body::Symlink(target.0.clone()), 0o777),
            Kind::Device(kind, dev) => (Body::Device(*kind, *dev), masked),
            Kind::Special(kind) => (Body::Special(*kind), masked),
        };
        let (atime, mtime) = (When::Since(now), When::Since(now));
        let id = self.add(
            dir,
            name,
            Inode { body, perm, uid: caller.uid, gid, xattrs: BTreeMap::new(), atime, mtime, names: 0, opens: 0 },
        );
        self.touch(dir, now);
        Ok(id)
    }

    fn link(&mut self, id: Id, to: &Path, now: Time) -> Answer<Expected> {
        let (dir, name) = self.vacant(to)?;
        if self.inode(id).kind() == FileType::Dir {
            return Err(Errno::EPERM);
        }
        if self.inode(id).names == 0 {
            return Err(Errno::ENOENT);
        }
        self.put_name(dir, name, id, now);
        Ok(Expected::Inode(id))
    }

    fn unlink(&mut self, path: &Path, now: Time) -> Answer<Expected> {
        let (dir, name) = self.walk_parent(path)?;
        let id = *self.entries(dir).get(name).ok_or(Errno::ENOENT)?;
        if self.inode(id).kind() == FileType::Dir {
            return Err(Errno::EISDIR);
        }
        self.drop_name(dir, name, now);
        Ok(Expected::Done)
    }

    fn rmdir(&mut self, path: &Path, now: Time) -> Answer<Expected> {
        let (dir, name) = self.walk_parent(path)?;
        let id = *self.entries(dir).get(name).ok_or(Errno::ENOENT)?;
        if self.inode(id).kind() != FileType::Dir {
            return Err(Errno::ENOTDIR);
        }
        if !self.entries(id).is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.drop_name(dir, name, now);
        Ok(Expected::Done)
    }

    fn rename(&mut self, from: &Path, to: &Path, flags: RenameFlags, now: Time) -> Answer<Expected> {
        let (from_dir, from_name) = self.walk_parent(from)?;
        let (to_dir, to_name) = self.walk_parent(to)?;
        let id = *self.entries(from_dir).get(from_name).ok_or(Errno::ENOENT)?;
        let other = self.entries(to_dir).get(to_name).copied();
        match (flags, other) {
            (RenameFlags::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameFlags::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        if from.holds(to) {
            return Err(Errno::EINVAL);
        }
        if to.holds(from) {
            return Err(if flags == RenameFlags::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if other == Some(id) {
            return Ok(Expected::Done);
        }
        if flags != RenameFlags::Exchange
            && let Some(other) = other
        {
            match (self.inode(id).kind() == FileType::Dir, self.inode(other).kind() == FileType::Dir) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.entries(other).is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        // Held by one name more meanwhile, so that neither goes away.
        self.inode_mut(id).opens += 1;
        self.drop_name(from_dir, from_name, now);
        match other {
            Some(other) if flags == RenameFlags::Exchange => {
                self.inode_mut(other).opens += 1;
                self.drop_name(to_dir, to_name, now);
                self.put_name(from_dir, from_name, other, now);
                self.inode_mut(other).opens -= 1;
            }
            _ => self.drop_name(to_dir, to_name, now),
        }
        self.put_name(to_dir, to_name, id, now);
        self.inode_mut(id).opens -= 1;
        Ok(Expected::Done)
    }

    fn chmod(&mut self, id: Id, perm: u16) -> Answer<Expected> {
        if self.inode(id).kind() == FileType::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        self.inode_mut(id).perm = perm;
        Ok(Expected::Inode(id))
    }

    fn chown(&mut self, id: Id, uid: Option<u32>, gid: Option<u32>) -> Answer<Expected> {
        let inode = self.inode_mut(id);
        (inode.uid, inode.gid) = (uid.unwrap_or(inode.uid), gid.unwrap_or(inode.gid));
        if inode.kind() != FileType::Dir {
            inode.perm = without_privileges(inode.perm);
            inode.xattrs.remove(CAPABILITY);
        }
        Ok(Expected::Inode(id))
    }

    fn set_xattr(&mut self, id: Id, name: &[u8], value: &[u8], how: SetXattr) -> Answer<Expected> {
        check_xattr(self.inode(id).kind(), name)?;
        let xattrs = &mut self.inode_mut(id).xattrs;
        match (how, xattrs.contains_key(name)) {
            (SetXattr::Create, true) => return Err(Errno::EEXIST),
            (SetXattr::Replace, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        Ok(Expected::Done)
    }

    /// A change of content takes set-user-ID, set-group-ID and capabilities.
    fn written(&mut self, id: Id, privilege: Privilege) {
        let inode = self.inode_mut(id);
        if privilege == Privilege::Drops {
            inode.perm = without_privileges(inode.perm);
        }
        inode.xattrs.remove(CAPABILITY);
    }

    fn content_mut(&mut self, id: Id) -> &mut Vec<u8> {
        match &mut self.inode_mut(id).body {
            Body::File(content) => content,
            _ => panic!("content of something that is no file"),
        }
    }

    fn truncate(&mut self, id: Id, size: u64, privilege: Privilege, now: Time) -> Expected {
        let content = self.content_mut(id);
        let same = content.len() as u64 == size;
        content.resize(size as usize, 0);
        self.written(id, privilege);
        self.inode_mut(id).mtime = if same { When::Unknown } else { When::Since(now) };
        Expected::Inode(id)
    }

    fn open(
        &mut self,
        handle: Handle,
        path: &Path,
        access: Access,
        privilege: Privilege,
        now: Time,
    ) -> Answer<Expected> {
        if self.open.contains_key(&handle) {
            return Ok(Expected::Skip);
        }
        let id = self.walk(path)?;
        match self.inode(id).kind() {
            FileType::File => {}
            FileType::Dir if access != Access::Read => return Err(Errno::EISDIR),
            FileType::Symlink => return Err(Errno::ELOOP),
            _ => return Ok(Expected::Skip),
        }
        if access == Access::Truncate {
            self.truncate(id, 0, privilege, now);
            self.inode_mut(id).mtime = When::Unknown;
        }
        self.inode_mut(id).opens += 1;
        self.open.insert(handle, Open { id, access });
        Ok(Expected::Done)
    }

    fn file_op(&mut self, op: &Op, now: Time) -> Option<Expected> {
        let open = match op {
            Op::Read(h, ..)
            | Op::Write(h, ..)
            | Op::TruncateOpen(h, ..)
            | Op::Stat(h)
            | Op::XattrsOpen(h)
            | Op::Sync(h)
            | Op::Seek(h, ..) => self.handle(*h)?,
            _ => return None,
        };
        let (id, writes) = (open.id, open.access != Access::Read);
        Some(match op {
            Op::Read(_, offset, len) => {
                let content = self.inode(id).content()?;
                let start = (*offset as usize).min(content.len());
                let end = (start + len).min(content.len());
                Expected::Bytes(content[start..end].to_vec())
            }
            Op::Write(_, offset, fill, privilege) if writes => {
                let (start, bytes) = (*offset as usize, fill.bytes());
                if bytes.is_empty() {
                    return None;
                }
                self.write(id, start, &bytes, *privilege, now);
                Expected::Count(bytes.len() as u64)
            }
            Op::TruncateOpen(_, size, privilege) if writes => self.truncate(id, *size, *privilege, now),
            Op::Stat(_) => Expected::Inode(id),
            Op::XattrsOpen(_) => Expected::Xattrs(id),
            Op::Sync(_) => Expected::Done,
            Op::Seek(_, offset, what) => Expected::Seek(self.inode(id).content()?.clone(), *offset, *what),
            _ => return None,
        })
    }

    fn write(&mut self, id: Id, start: usize, bytes: &[u8], privilege: Privilege, now: Time) {
        let content = self.content_mut(id);
        if content.len() < start + bytes.len() {
            content.resize(start + bytes.len(), 0);
        }
        content[start..start + bytes.len()].copy_from_slice(bytes);
        self.written(id, privilege);
        self.touch(id, now);
    }

    fn range_op(&mut self, op: &Op, now: Time) -> Option<Expected> {
        match op {
            Op::Allocate(handle, mode, offset, len) => {
                let open = self.handle(*handle).filter(|open| open.access != Access::Read)?;
                let content = self.content_mut(open.id);
                let end = (offset + len) as usize;
                if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && content.len() < end {
                    content.resize(end, 0);
                }
                if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
                    let (start, end) = ((*offset as usize).min(content.len()), end.min(content.len()));
                    content[start..end].fill(0);
                }
                self.written(open.id, Privilege::Keeps);
                self.inode_mut(open.id).mtime = When::Unknown;
                Some(Expected::Done)
            }
            Op::CopyRange(from, from_at, to, to_at, len) => {
                let from = self.handle(*from)?;
                let to = self.handle(*to).filter(|open| open.access != Access::Read)?;
                if from.id == to.id {
                    return None;
                }
                let content = self.inode(from.id).content()?;
                let start = (*from_at as usize).min(content.len());
                let bytes = content[start..(start + len).min(content.len())].to_vec();
                if bytes.is_empty() {
                    return None;
                }
                self.write(to.id, *to_at as usize, &bytes, Privilege::Keeps, now);
                Some(Expected::Count(bytes.len() as u64))
            }
            _ => None,
        }
    }

    fn dir_op(&mut self, op: &Op, now: Time) -> Answer<Expected> {
        match op {
            Op::DirOpen(handle, path) => {
                if self.streams.contains_key(handle) {
                    return Ok(Expected::Skip);
                }
                let id = self.walk(path)?;
                if self.inode(id).kind() != FileType::Dir {
                    return Err(Errno::ENOTDIR);
                }
                self.inode_mut(id).opens += 1;
                self.streams.insert(*handle, self.stream(id));
                Ok(Expected::Done)
            }
            Op::DirNext(handle, _) if self.streams.contains_key(handle) => {
                // A removed directory is not read any more, whatever the filesystem (iterate_dir in the kernel).
                let there = self.inode(self.streams[handle].id).names > 0;
                if there { Ok(Expected::Entries(*handle)) } else { Err(Errno::ENOENT) }
            }
            Op::DirRewind(handle) if self.streams.contains_key(handle) => {
                let fresh = self.stream(self.streams[handle].id);
                self.streams.insert(*handle, fresh);
                Ok(Expected::Done)
            }
            Op::MkdirAt(handle, name) if self.streams.contains_key(handle) => {
                let dir = self.streams[handle].id;
                check_name(&name.0)?;
                if self.inode(dir).names == 0 {
                    return Err(Errno::ENOENT);
                }
                if self.entries(dir).contains_key(&name.0) {
                    return Err(Errno::EEXIST);
                }
                let caller = Caller { umask: 0o022, ..Caller::default() };
                Ok(Expected::Inode(self.make_in(dir, &name.0, 0o777, caller, &Kind::Dir, now)?))
            }
            Op::DirClose(handle) => match self.streams.remove(handle) {
                Some(stream) => {
                    self.close(stream.id);
                    Ok(Expected::Done)
                }
                None => Ok(Expected::Skip),
            },
            _ => Ok(Expected::Skip),
        }
    }

    fn stream(&self, id: Id) -> Stream {
        let names: BTreeSet<Vec<u8>> = self.entries(id).keys().cloned().collect();
        Stream { id, steady: names.clone(), possible: names, seen: Vec::new(), ended: false }
    }

    /// Notes what a stream gave, and tells what is wrong with it; `ended` when there is no more.
    ///
    /// # Errors
    /// In words.
    pub fn stream_gave(&mut self, handle: Handle, names: &[Vec<u8>], ended: bool) -> Result<(), String> {
        let Some(stream) = self.streams.get_mut(&handle) else { return Ok(()) };
        if stream.ended && !names.is_empty() {
            // What was made after the end may come still.
            if let Some(name) = names.iter().find(|name| stream.steady.contains(*name)) {
                return Err(format!("stream {handle}: '{}' after the end", name.escape_ascii()));
            }
        }
        for name in names {
            if !stream.possible.contains(name) {
                return Err(format!("stream {handle}: '{}' was never there", name.escape_ascii()));
            }
            if stream.steady.contains(name) && stream.seen.contains(name) {
                return Err(format!("stream {handle}: '{}' comes twice", name.escape_ascii()));
            }
            stream.seen.push(name.clone());
        }
        stream.ended |= ended;
        if ended && let Some(name) = stream.steady.iter().find(|name| !stream.seen.contains(name)) {
            return Err(format!("stream {handle}: '{}' is missing", name.escape_ascii()));
        }
        Ok(())
    }
}

/// What a change of content or owner leaves of the mode (inode(7)).
fn without_privileges(perm: u16) -> u16 {
    let perm = perm & !0o4000;
    if perm & 0o2010 == 0o2010 { perm & !0o2000 } else { perm }
}
