//! A stand-in for the kernel above the core: it walks paths, remembers what it was told, forgets, and answers by itself what no
//! filesystem is asked.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use layer::{FileType, Ino, Name};
use overlay::session::Written;
use overlay::upper::{SetAttr, SetTime, SetXattr};
use overlay::{Access, Attr, Caller, Detail, Errno, Error, Lower, Make, Overlay, Privilege, RenameFlags, Upper};

use super::op::{Handle, Kind, Op, Path};
use super::tree::{check_name, check_xattr};
use super::view::{Found, Seen, View};

/// What an operation gave.
#[derive(Clone, Debug)]
pub enum Got {
    /// Success.
    Done,
    /// Attributes.
    Attr(Seen),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A number.
    Count(u64),
    /// Names of a directory, and whether that was all.
    Names(Vec<Vec<u8>>, bool),
    /// Extended attributes.
    Xattrs(BTreeMap<Vec<u8>, Vec<u8>>),
}

/// An answer to a program; a fault of the disk is an error too, told apart by its words.
pub type Answer = Result<Got, Failed>;

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// By an answer.
    Answer(Errno),
    /// By a fault.
    Fault(String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error {
            Error::Answer(errno) => Failed::Answer(errno),
            fault => Failed::Fault(fault.to_string()),
        }
    }
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Failed::Answer(errno)
    }
}

/// An inode that the kernel knows.
struct Known {
    lookups: u64,
    kind: FileType,
    uses: u32,
}

struct OpenDir {
    ino: Ino,
    after: u64,
    detail: Detail,
}

/// A union with a kernel above it.
pub struct Kernel<L: Lower, U: Upper> {
    /// The union.
    pub overlay: Overlay<L, U>,
    dentries: BTreeMap<(Ino, Vec<u8>), Ino>,
    inodes: HashMap<Ino, Known>,
    files: BTreeMap<Handle, Ino>,
    dirs: BTreeMap<Handle, OpenDir>,
}

fn seen(attr: &Attr) -> Seen {
    let stat = &attr.stat;
    Seen {
        ino: stat.ino.0,
        node: Some(attr.id.0),
        kind: stat.kind,
        perm: stat.perm,
        uid: stat.uid,
        gid: stat.gid,
        nlink: stat.nlink,
        size: stat.size,
        rdev: stat.rdev,
        atime: stat.atime,
        mtime: stat.mtime,
    }
}

type Walked<T> = Result<T, Failed>;

impl<L: Lower, U: Upper> Kernel<L, U> {
    /// Puts a kernel above a union.
    pub fn new(overlay: Overlay<L, U>) -> Self {
        let root = Known { lookups: 0, kind: FileType::Dir, uses: 1 };
        Kernel {
            overlay,
            dentries: BTreeMap::new(),
            inodes: HashMap::from([(overlay::ROOT, root)]),
            files: BTreeMap::new(),
            dirs: BTreeMap::new(),
        }
    }

    /// Drops the union and puts the one that `make` makes of its written session in its place.
    ///
    /// # Errors
    /// In words.
    pub fn resume(self, make: impl FnOnce(Written<U::File>) -> Result<Overlay<L, U>, Error>) -> Result<Self, String> {
        let failed = |error: Error| format!("resume: {error}");
        let Kernel { overlay, dentries, inodes, files, dirs } = self;
        let written = overlay.write_session().map_err(failed)?;
        let bytes = written.bytes.clone();
        drop(overlay);
        let overlay = make(written).map_err(failed)?;
        let again = overlay.write_session().map_err(failed)?;
        // Where numbers are found by reading, they are found in another order.
        let same =
            if overlay.lower().finds_all_numbers() { again.bytes == bytes } else { again.bytes.len() == bytes.len() };
        if !same {
            return Err("a session that was taken up is written in another way".into());
        }
        Ok(Kernel { overlay, dentries, inodes, files, dirs })
    }

    fn kind(&self, ino: Ino) -> FileType {
        self.inodes.get(&ino).map_or(FileType::File, |known| known.kind)
    }

    /// Notes an answer that named an inode.
    fn told(&mut self, dir: Ino, name: &[u8], attr: &Attr) -> Walked<()> {
        let known = self.inodes.entry(attr.id).or_insert(Known { lookups: 0, kind: attr.stat.kind, uses: 0 });
        known.lookups += 1;
        if known.kind != attr.stat.kind {
            return Err(Failed::Fault(format!(
                "nodeid {:#x} was a {:?}, is a {:?}",
                attr.id.0, known.kind, attr.stat.kind
            )));
        }
        self.dentries.insert((dir, name.to_vec()), attr.id);
        Ok(())
    }

    fn child(&mut self, dir: Ino, name: &[u8]) -> Walked<Option<Ino>> {
        if self.kind(dir) != FileType::Dir {
            return Err(Errno::ENOTDIR.into());
        }
        check_name(name)?;
        if let Some(child) = self.dentries.get(&(dir, name.to_vec())) {
            return Ok(Some(*child));
        }
        match self.overlay.lookup(dir, checked(name)?)? {
            Some(attr) => {
                self.told(dir, name, &attr)?;
                Ok(Some(attr.id))
            }
            None => Ok(None),
        }
    }

    fn walk(&mut self, path: &Path) -> Walked<Ino> {
        let mut at = overlay::ROOT;
        for name in path.names() {
            at = self.child(at, name)?.ok_or(Failed::Answer(Errno::ENOENT))?;
        }
        Ok(at)
    }

    fn walk_parent<'a>(&mut self, path: &'a Path, of_root: Errno) -> Walked<(Ino, &'a [u8])> {
        let (parent, name) = path.split().ok_or(Failed::Answer(of_root))?;
        let dir = self.walk(&parent)?;
        if self.kind(dir) != FileType::Dir {
            return Err(Errno::ENOTDIR.into());
        }
        check_name(name)?;
        Ok((dir, name))
    }

    fn attr(&self, ino: Ino) -> Answer {
        Ok(Got::Attr(seen(&self.overlay.getattr(ino)?)))
    }

    fn file(&self, handle: Handle) -> Walked<Ino> {
        self.files.get(&handle).copied().ok_or(Failed::Answer(Errno::EBADF))
    }

    fn use_inode(&mut self, ino: Ino) {
        if let Some(known) = self.inodes.get_mut(&ino) {
            known.uses += 1;
        }
    }

    fn unuse(&mut self, ino: Ino) {
        if let Some(known) = self.inodes.get_mut(&ino) {
            known.uses -= 1;
        }
    }

    /// Performs an operation.
    ///
    /// # Errors
    /// What a program gets.
    pub fn run(&mut self, op: &Op) -> Answer {
        let answer = self.perform(op);
        self.evict();
        answer
    }

    fn perform(&mut self, op: &Op) -> Answer {
        match op {
            Op::Look(path) => {
                let ino = self.walk(path)?;
                self.attr(ino)
            }
            Op::Create(handle, path, perm, caller) => {
                let (dir, name) = self.walk_parent(path, Errno::EEXIST)?;
                self.child(dir, name)?;
                let attr = self.overlay.create(dir, checked(name)?, *perm, *caller)?;
                self.told(dir, name, &attr)?;
                self.use_inode(attr.id);
                self.files.insert(*handle, attr.id);
                Ok(Got::Attr(seen(&attr)))
            }
            Op::Make(path, perm, caller, kind) => {
                let (dir, name) = self.walk_parent(path, Errno::EEXIST)?;
                self.make(dir, name, *perm, *caller, kind)
            }
            Op::Link(from, to) => {
                let ino = self.walk(from)?;
                self.link(ino, to)
            }
            Op::LinkOpen(handle, to) => {
                let ino = self.file(*handle)?;
                self.link(ino, to)
            }
            Op::Unlink(path) => {
                let (dir, name) = self.walk_parent(path, Errno::EBUSY)?;
                self.child(dir, name)?;
                self.overlay.unlink(dir, checked(name)?)?;
                self.dentries.remove(&(dir, name.to_vec()));
                Ok(Got::Done)
            }
            Op::Rmdir(path) => {
                let (dir, name) = self.walk_parent(path, Errno::EBUSY)?;
                self.child(dir, name)?;
                self.overlay.rmdir(dir, checked(name)?)?;
                self.dentries.remove(&(dir, name.to_vec()));
                Ok(Got::Done)
            }
            Op::Rename(from, to, flags) => self.rename(from, to, *flags),
            Op::Chmod(..)
            | Op::ChmodOpen(..)
            | Op::Chown(..)
            | Op::ChownOpen(..)
            | Op::Utimens(..)
            | Op::Truncate(..)
            | Op::TruncateOpen(..) => self.set_attr(op),
            Op::SetXattr(path, name, value, how) => {
                let ino = self.walk(path)?;
                self.set_xattr(ino, name, value, *how)
            }
            Op::SetXattrOpen(handle, name, value) => {
                let ino = self.file(*handle)?;
                self.set_xattr(ino, name, value, SetXattr::Any)
            }
            Op::RemoveXattr(path, name) => {
                let ino = self.walk(path)?;
                check_xattr(self.kind(ino), &name.0)?;
                self.overlay.remove_xattr(ino, &name.0)?;
                Ok(Got::Done)
            }
            Op::Open(handle, path, access, privilege) => {
                let ino = self.walk(path)?;
                match self.kind(ino) {
                    FileType::Symlink => return Err(Errno::ELOOP.into()),
                    FileType::Dir => return Err(Errno::EISDIR.into()),
                    _ => {}
                }
                self.overlay.open(ino, *access, *privilege)?;
                self.use_inode(ino);
                self.files.insert(*handle, ino);
                Ok(Got::Done)
            }
            Op::Read(..)
            | Op::Write(..)
            | Op::Stat(_)
            | Op::XattrsOpen(_)
            | Op::Sync(_)
            | Op::Seek(..)
            | Op::Allocate(..)
            | Op::CopyRange(..) => self.file_op(op),
            Op::Close(handle) => {
                let ino = self.file(*handle)?;
                self.files.remove(handle);
                self.overlay.release(ino);
                self.unuse(ino);
                Ok(Got::Done)
            }
            Op::DirOpen(..) | Op::DirNext(..) | Op::DirRewind(_) | Op::MkdirAt(..) | Op::DirClose(_) => self.dir_op(op),
            Op::Forget(path) => {
                if let Ok(ino) = self.walk(path) {
                    self.prune(ino);
                }
                Ok(Got::Done)
            }
            Op::Remount | Op::Rest => unreachable!("a remount replaces the kernel"),
        }
    }

    fn make(&mut self, dir: Ino, name: &[u8], perm: u16, caller: Caller, kind: &Kind) -> Answer {
        let what = match kind {
            Kind::File => Make::File,
            Kind::Dir => Make::Dir,
            Kind::Symlink(target) => Make::Symlink(&target.0),
            Kind::Device(kind, dev) => Make::Device(*kind, *dev),
            Kind::Special(kind) => Make::Special(*kind),
        };
        // The kernel looks every name up first; what is there it need not ask about, but the core is to know by itself.
        if self.child(dir, name)?.is_some() && matches!(kind, Kind::Device(..)) {
            return Err(Errno::EEXIST.into());
        }
        // mkdir(2) takes permission bits and the sticky bit alone.
        let perm = if *kind == Kind::Dir { perm & 0o1777 } else { perm };
        let attr = self.overlay.make(dir, checked(name)?, perm, caller, what)?;
        self.told(dir, name, &attr)?;
        Ok(Got::Attr(seen(&attr)))
    }

    fn link(&mut self, ino: Ino, to: &Path) -> Answer {
        let (dir, name) = self.walk_parent(to, Errno::EEXIST)?;
        if self.kind(ino) == FileType::Dir || self.overlay.getattr(ino)?.stat.nlink == 0 {
            let exists = self.child(dir, name)?.is_some();
            let refused = if self.kind(ino) == FileType::Dir { Errno::EPERM } else { Errno::ENOENT };
            return Err(if exists { Errno::EEXIST } else { refused }.into());
        }
        self.child(dir, name)?;
        let attr = self.overlay.link(ino, dir, checked(name)?)?;
        if attr.id != ino {
            return Err(Failed::Fault(format!("a link of nodeid {:#x} is {:#x}", ino.0, attr.id.0)));
        }
        self.told(dir, name, &attr)?;
        Ok(Got::Attr(seen(&attr)))
    }

    fn rename(&mut self, from: &Path, to: &Path, flags: RenameFlags) -> Answer {
        let (from_dir, from_name) = self.walk_parent(from, Errno::EBUSY)?;
        let (to_dir, to_name) = self.walk_parent(to, Errno::EBUSY)?;
        if from.holds(to) || to.holds(from) {
            let source = self.child(from_dir, from_name)?;
            let target = self.child(to_dir, to_name)?;
            return Err(match (source, target, flags) {
                (None, ..) => Errno::ENOENT,
                (_, Some(_), RenameFlags::NoReplace) => Errno::EEXIST,
                (_, None, RenameFlags::Exchange) => Errno::ENOENT,
                _ if from.holds(to) || flags == RenameFlags::Exchange => Errno::EINVAL,
                _ => Errno::ENOTEMPTY,
            }
            .into());
        }
        let (source, target) = (self.child(from_dir, from_name)?, self.child(to_dir, to_name)?);
        if source.is_some() && source == target && flags != RenameFlags::NoReplace {
            return Ok(Got::Done);
        }
        self.overlay.rename((from_dir, checked(from_name)?), (to_dir, checked(to_name)?), flags)?;
        let (old, new) = ((from_dir, from_name.to_vec()), (to_dir, to_name.to_vec()));
        let moved = self.dentries.remove(&old);
        let replaced = self.dentries.remove(&new);
        if let Some(moved) = moved {
            self.dentries.insert(new, moved);
        }
        if flags == RenameFlags::Exchange
            && let Some(replaced) = replaced
        {
            self.dentries.insert(old, replaced);
        }
        Ok(Got::Done)
    }

    fn set_attr(&mut self, op: &Op) -> Answer {
        let ino = match op {
            Op::Chmod(path, _) | Op::Chown(path, ..) | Op::Utimens(path, ..) | Op::Truncate(path, ..) => {
                self.walk(path)?
            }
            Op::ChmodOpen(handle, _) | Op::ChownOpen(handle, ..) | Op::TruncateOpen(handle, ..) => {
                self.file(*handle)?
            }
            _ => return Err(Errno::EINVAL.into()),
        };
        let none = SetAttr::default();
        let time = |time: &Option<layer::Time>| Some(time.map_or(SetTime::Now, SetTime::At));
        let (set, size, privilege) = match op {
            Op::Chmod(_, perm) | Op::ChmodOpen(_, perm) => {
                (SetAttr { perm: Some(*perm), ..none }, None, Privilege::Keeps)
            }
            Op::Chown(_, uid, gid) | Op::ChownOpen(_, uid, gid) => {
                (SetAttr { uid: *uid, gid: *gid, ..none }, None, Privilege::Keeps)
            }
            Op::Utimens(_, atime, mtime) => {
                (SetAttr { atime: time(atime), mtime: time(mtime), ..none }, None, Privilege::Keeps)
            }
            Op::Truncate(_, size, privilege) | Op::TruncateOpen(_, size, privilege) => (none, Some(*size), *privilege),
            _ => (none, None, Privilege::Keeps),
        };
        match (self.kind(ino), size) {
            (FileType::Symlink, None) if set.perm.is_some() => return Err(Errno::EOPNOTSUPP.into()),
            (FileType::Dir, Some(_)) => return Err(Errno::EISDIR.into()),
            (kind, Some(_)) if kind != FileType::File => return Err(Errno::EINVAL.into()),
            _ => {}
        }
        Ok(Got::Attr(seen(&self.overlay.setattr(ino, &set, size, privilege)?)))
    }

    fn set_xattr(&mut self, ino: Ino, name: &Path, value: &[u8], how: SetXattr) -> Answer {
        check_xattr(self.kind(ino), &name.0)?;
        self.overlay.set_xattr(ino, &name.0, value, how)?;
        Ok(Got::Done)
    }

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Walked<Vec<u8>> {
        let mut buf = vec![0; len];
        Ok(self.overlay.read(ino, offset, &mut buf, <[u8]>::to_vec)?)
    }

    fn file_op(&mut self, op: &Op) -> Answer {
        match op {
            Op::Read(handle, offset, len) => Ok(Got::Bytes(self.read(self.file(*handle)?, *offset, *len)?)),
            Op::Write(handle, offset, fill, privilege) => {
                let count = self.overlay.write(self.file(*handle)?, *offset, &fill.bytes(), *privilege)?;
                Ok(Got::Count(count as u64))
            }
            Op::Stat(handle) => self.attr(self.file(*handle)?),
            Op::XattrsOpen(handle) => Ok(Got::Xattrs(self.xattrs(self.file(*handle)?)?)),
            Op::Sync(handle) => {
                self.overlay.sync(self.file(*handle)?, false)?;
                Ok(Got::Done)
            }
            Op::Seek(handle, offset, what) => Ok(Got::Count(self.overlay.seek(self.file(*handle)?, *offset, *what)?)),
            Op::Allocate(handle, mode, offset, len) => {
                self.overlay.allocate(self.file(*handle)?, *mode, *offset, *len)?;
                Ok(Got::Done)
            }
            Op::CopyRange(from, from_at, to, to_at, len) => {
                let (from, to) = (self.file(*from)?, self.file(*to)?);
                match self.overlay.copy_range((from, *from_at), (to, *to_at), *len as u64) {
                    Ok(count) => Ok(Got::Count(count)),
                    Err(Error::Answer(Errno::EXDEV)) => {
                        let bytes = self.read(from, *from_at, *len)?;
                        let count = self.overlay.write(to, *to_at, &bytes, Privilege::Keeps)?;
                        Ok(Got::Count(count as u64))
                    }
                    Err(error) => Err(error.into()),
                }
            }
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn dir_op(&mut self, op: &Op) -> Answer {
        match op {
            Op::DirOpen(handle, path) => {
                let ino = self.walk(path)?;
                if self.kind(ino) != FileType::Dir {
                    return Err(Errno::ENOTDIR.into());
                }
                self.use_inode(ino);
                let detail = if handle % 2 == 0 { Detail::Names } else { Detail::Attrs };
                self.dirs.insert(*handle, OpenDir { ino, after: 0, detail });
                Ok(Got::Done)
            }
            Op::DirNext(handle, count) => self.next_entries(*handle, *count),
            Op::DirRewind(handle) => {
                if let Some(dir) = self.dirs.get_mut(handle) {
                    dir.after = 0;
                }
                Ok(Got::Done)
            }
            Op::MkdirAt(handle, name) => {
                let Some(OpenDir { ino, .. }) = self.dirs.get(handle) else { return Err(Errno::EBADF.into()) };
                let (ino, caller) = (*ino, Caller { umask: 0o022, ..Caller::default() });
                check_name(&name.0)?;
                self.make(ino, &name.0, 0o777, caller, &Kind::Dir)
            }
            Op::DirClose(handle) => {
                if let Some(dir) = self.dirs.remove(handle) {
                    self.unuse(dir.ino);
                }
                Ok(Got::Done)
            }
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn next_entries(&mut self, handle: Handle, count: usize) -> Answer {
        let Some(dir) = self.dirs.get(&handle) else { return Err(Errno::EBADF.into()) };
        let (ino, mut after, detail) = (dir.ino, dir.after, dir.detail);
        if self.overlay.getattr(ino)?.stat.nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        let (mut entries, mut more) = (Vec::new(), false);
        self.overlay.read_dir(ino, after, detail, |entry| {
            if entries.len() >= count {
                more = true;
                return ControlFlow::Break(());
            }
            entries.push((entry.name.to_vec(), entry.cookie, entry.attr));
            ControlFlow::Continue(())
        })?;
        let mut names = Vec::new();
        for (name, cookie, attr) in entries {
            if cookie <= after && after != 0 {
                return Err(Failed::Fault(format!("cookie {cookie:#x} comes behind {after:#x}")));
            }
            after = cookie;
            if name == b"." || name == b".." {
                continue;
            }
            if let Some(attr) = attr {
                if let Some(known) = self.dentries.get(&(ino, name.clone()))
                    && *known != attr.id
                {
                    return Err(Failed::Fault(format!(
                        "readdirplus gives another nodeid for '{}'",
                        name.escape_ascii()
                    )));
                }
                self.told(ino, &name, &attr)?;
            }
            names.push(name);
        }
        if let Some(dir) = self.dirs.get_mut(&handle) {
            dir.after = after;
        }
        Ok(Got::Names(names, !more))
    }

    /// Drops names below a directory, and its own, that nothing holds.
    fn prune(&mut self, top: Ino) {
        loop {
            let held: Vec<Ino> = self.dentries.keys().map(|(dir, _)| *dir).collect();
            let before = self.dentries.len();
            let below = self.below(top);
            let inodes = &self.inodes;
            self.dentries.retain(|(dir, _), child| {
                !(below.contains(dir) || child == &top)
                    || held.contains(child)
                    || inodes.get(child).is_some_and(|known| known.uses > 0)
            });
            if self.dentries.len() == before {
                return;
            }
        }
    }

    fn below(&self, top: Ino) -> Vec<Ino> {
        let mut all = vec![top];
        let mut at = 0;
        while let Some(dir) = all.get(at).copied() {
            all.extend(self.dentries.iter().filter(|((above, _), _)| *above == dir).map(|(_, child)| *child));
            at += 1;
        }
        all
    }

    /// Forgets inodes that no name and no handle leads to.
    fn evict(&mut self) {
        let unused: Vec<Ino> = self
            .inodes
            .iter()
            .filter(|(ino, known)| {
                known.uses == 0 && !self.dentries.iter().any(|((dir, _), child)| child == *ino || dir == *ino)
            })
            .map(|(ino, _)| *ino)
            .collect();
        for ino in unused {
            if let Some(known) = self.inodes.remove(&ino) {
                self.overlay.forget(ino, known.lookups);
            }
        }
    }

    /// Closes everything.
    pub fn close_all(&mut self) {
        for ino in std::mem::take(&mut self.files).into_values() {
            self.overlay.release(ino);
            self.unuse(ino);
        }
        for dir in std::mem::take(&mut self.dirs).into_values() {
            self.unuse(dir.ino);
        }
        self.evict();
    }

    /// Looks at everything.
    ///
    /// # Errors
    /// In words: a fault, or what the kernel would stumble over.
    pub fn view(&mut self) -> Result<View, String> {
        let mut view = View::new();
        let mut told = Vec::new();
        let looked = self.look_below(&mut view, &mut told);
        for ino in told.into_iter().rev() {
            self.overlay.forget(ino, 1);
        }
        looked.map(|()| view)
    }

    fn look_below(&mut self, view: &mut View, told: &mut Vec<Ino>) -> Result<(), String> {
        let root = self.overlay.getattr(overlay::ROOT).map_err(|error| format!("root: {error}"))?;
        view.insert(Path(Vec::new()), self.found(&root, None).map_err(|error| format!("root: {error}"))?);
        let mut todo = vec![(Path(Vec::new()), overlay::ROOT, overlay::ROOT)];
        let mut turn = 0;
        while let Some((path, dir, above)) = todo.pop() {
            turn += 1;
            let detail = if turn % 2 == 0 { Detail::Attrs } else { Detail::Names };
            let entries = self.list(dir, detail, told).map_err(|error| format!("{path:?}: {error}"))?;
            for (name, ino, kind) in entries {
                if name == b"." || name == b".." {
                    self.check_dot(&path, &name, ino, dir, above)?;
                    continue;
                }
                let child = path.join(&name);
                let at = |error: Error| format!("{child:?}: {error}");
                let looked = self.overlay.lookup(dir, Name::new(&name).expect("it was listed")).map_err(at)?;
                let Some(attr) = looked else { return Err(format!("{child:?}: listed, and not there")) };
                told.push(attr.id);
                if let Some(known) = self.dentries.get(&(dir, name.clone()))
                    && *known != attr.id
                {
                    return Err(format!(
                        "{child:?}: the kernel knows it as {:#x}, now it is {:#x}",
                        known.0, attr.id.0
                    ));
                }
                view.insert(child.clone(), self.found(&attr, Some((ino, kind))).map_err(at)?);
                if attr.stat.kind == FileType::Dir {
                    todo.push((child, attr.id, dir));
                }
            }
        }
        Ok(())
    }

    fn check_dot(&self, path: &Path, name: &[u8], ino: u64, dir: Ino, above: Ino) -> Result<(), String> {
        let meant = if name == b"." { dir } else { above };
        let shown = self.overlay.getattr(meant).map_err(|error| error.to_string())?.stat.ino.0;
        if ino != shown {
            return Err(format!("{path:?}: d_ino of '{}' is {ino:#x}, should be {shown:#x}", name.escape_ascii()));
        }
        Ok(())
    }

    fn list(&self, dir: Ino, detail: Detail, told: &mut Vec<Ino>) -> Result<Vec<(Vec<u8>, u64, FileType)>, Error> {
        let mut entries = Vec::new();
        self.overlay.read_dir(dir, 0, detail, |entry| {
            if let Some(attr) = entry.attr {
                told.push(attr.id);
            }
            entries.push((entry.name.to_vec(), entry.ino.0, entry.kind));
            ControlFlow::Continue(())
        })?;
        Ok(entries)
    }

    fn found(&self, attr: &Attr, entry: Option<(u64, FileType)>) -> Result<Found, Error> {
        let id = attr.id;
        let fresh = self.overlay.getattr(id)?;
        // A disk may count the look itself as an access.
        if (layer::Stat { atime: attr.stat.atime, ..fresh.stat }) != attr.stat {
            let why = format!("lookup says {:?}, getattr {:?}", attr.stat, fresh.stat);
            return Err(Error::fault("look at an inode", Errno::EIO, why));
        }
        let data = match attr.stat.kind {
            FileType::Symlink => self.overlay.readlink(id)?,
            FileType::File => {
                self.overlay.open(id, Access::Read, Privilege::Keeps)?;
                let mut buf = vec![0; attr.stat.size as usize + 16];
                let read = self.overlay.read(id, 0, &mut buf, <[u8]>::to_vec);
                self.overlay.release(id);
                read?
            }
            _ => Vec::new(),
        };
        Ok(Found { seen: seen(attr), data, xattrs: self.xattrs(id)?, entry, numbered: true })
    }

    fn xattrs(&self, id: Ino) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Error> {
        let mut xattrs = BTreeMap::new();
        for name in self.overlay.xattr_names(id)? {
            let value = self.overlay.xattr(id, &name)?;
            xattrs.insert(name, value);
        }
        Ok(xattrs)
    }
}

fn checked(name: &[u8]) -> Walked<Name<'_>> {
    Name::new(name).map_err(|_| Failed::Answer(Errno::EINVAL))
}
