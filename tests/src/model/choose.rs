//! Choosing the next operation: mostly one that makes sense in the tree as it is, sometimes one that does not.

use layer::{Dev, FileType, Time};
use overlay::upper::{Seek, SetXattr};
use overlay::{Access, Caller, Privilege, RenameFlags};

use super::op::{Fill, Handle, Kind, Op, Path, p};
use super::random::Random;
use super::stack::{capability, random_name, random_path};
use super::tree::{CAPABILITY, Id, Tree};

/// What operations may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Means {
    /// Owners other than root make files.
    pub callers: bool,
    /// Attributes in `trusted.*` and `security.*`, owners of links and devices, any mode: what needs privilege.
    pub privileged: bool,
    /// Remounts happen.
    pub remounts: bool,
}

impl Means {
    /// Everything.
    pub const ALL: Means = Means { callers: true, privileged: true, remounts: true };
}

/// Chooses operations.
pub struct Chooser<'a> {
    random: &'a mut Random,
    tree: &'a Tree,
    means: Means,
}

/// Chooses one operation.
pub fn choose(random: &mut Random, tree: &Tree, means: Means) -> Op {
    Chooser { random, tree, means }.op()
}

impl Chooser<'_> {
    fn op(&mut self) -> Op {
        // Weights of: names, rename, attributes, opening, open files, directories, the rest.
        match self.random.weighted(&[24, 16, 14, 10, 22, 10, 4]) {
            0 => self.name_op(),
            1 => self.rename(),
            2 => self.attribute_op(),
            3 => self.open(),
            4 => self.file_op(),
            5 => self.dir_op(),
            _ => self.rest(),
        }
    }

    /// A path of something that is there, or could be.
    fn path(&mut self, wanted: Option<FileType>) -> Path {
        let there = self.tree.paths();
        let fit: Vec<_> = there
            .iter()
            .filter(|(path, id)| !path.0.is_empty() && wanted.is_none_or(|kind| self.tree.inode(*id).kind() == kind))
            .map(|(path, _)| path.clone())
            .collect();
        if fit.is_empty() || self.random.chance(12) { random_path(self.random) } else { self.random.pick(&fit).clone() }
    }

    fn one_of(&mut self, fits: impl Fn(&Tree, Id) -> bool) -> Path {
        let there = self.tree.paths();
        let fit: Vec<_> = there.into_iter().filter(|(path, id)| !path.0.is_empty() && fits(self.tree, *id)).collect();
        if fit.is_empty() || self.random.chance(10) { self.path(None) } else { self.random.pick(&fit).0.clone() }
    }

    fn empty_dir(&mut self) -> Path {
        self.one_of(|tree, id| tree.inode(id).kind() == FileType::Dir && tree.entries(id).is_empty())
    }

    fn not_dir(&mut self) -> Path {
        self.one_of(|tree, id| tree.inode(id).kind() != FileType::Dir)
    }

    /// A path in a directory that is there.
    fn new_path(&mut self) -> Path {
        if self.random.chance(10) {
            return random_path(self.random);
        }
        let dirs: Vec<_> = self
            .tree
            .paths()
            .into_iter()
            .filter(|(_, id)| self.tree.inode(*id).kind() == FileType::Dir)
            .map(|(path, _)| path)
            .collect();
        let dir = self.random.pick(&dirs).clone();
        dir.join(&random_name(self.random))
    }

    fn handle(&mut self) -> Handle {
        let open: Vec<_> = self.tree.opened().map(|(handle, ..)| handle).collect();
        if open.is_empty() || self.random.chance(3) { self.random.below(4) as Handle } else { *self.random.pick(&open) }
    }

    /// A number that is not in use, mostly.
    fn fresh_handle(&mut self) -> Handle {
        let free: Vec<Handle> = (0..4).filter(|handle| self.tree.opened().all(|(open, ..)| open != *handle)).collect();
        if free.is_empty() { 0 } else { *self.random.pick(&free) }
    }

    fn dir_handle(&mut self) -> Handle {
        let open: Vec<_> = self.tree.dirs_opened().map(|(handle, _)| handle).collect();
        if open.is_empty() { self.random.below(3) as Handle } else { *self.random.pick(&open) }
    }

    fn privilege(&mut self) -> Privilege {
        *self.random.pick(&[Privilege::Keeps, Privilege::Drops])
    }

    fn caller(&mut self) -> Caller {
        let umask = *self.random.pick(&[0, 0o022, 0o077]);
        if self.means.callers && self.random.chance(30) {
            return Caller { uid: 1000, gid: 1000, umask };
        }
        Caller { uid: 0, gid: 0, umask }
    }

    fn perm(&mut self) -> u16 {
        if !self.means.privileged {
            // What its owner may not read or write an ordinary user's daemon cannot either.
            return *self.random.pick(&[0o755, 0o700, 0o4755, 0o2755, 0o1777, 0o777]);
        }
        *self.random.pick(&[0o644, 0o755, 0o600, 0o4755, 0o2755, 0o2644, 0o1777, 0o000, 0o666])
    }

    fn recordable(&self, path: &Path) -> bool {
        let kind = self.tree.walk(path).map(|id| self.tree.inode(id).kind());
        matches!(kind, Ok(FileType::File | FileType::Dir))
    }

    fn kind(&mut self) -> Kind {
        match self.random.below(12) {
            0..=5 => Kind::Dir,
            6 | 7 => Kind::File,
            8 => Kind::Symlink(p(random_name(self.random))),
            9 => Kind::Device(FileType::Char, Dev { major: self.random.below(2) as u32, minor: 0 }),
            10 => Kind::Device(FileType::Block, Dev { major: 7, minor: 9 }),
            _ => Kind::Special(*self.random.pick(&[FileType::Fifo, FileType::Socket])),
        }
    }

    fn name_op(&mut self) -> Op {
        match self.random.weighted(&[4, 6, 5, 8, 6]) {
            0 => Op::Create(self.fresh_handle(), self.new_path(), self.perm(), self.caller()),
            1 => Op::Make(self.new_path(), self.perm(), self.caller(), self.kind()),
            2 => {
                let kind = if self.random.chance(80) { Some(FileType::File) } else { None };
                Op::Link(self.path(kind), self.new_path())
            }
            3 => Op::Unlink(self.not_dir()),
            _ => Op::Rmdir(self.empty_dir()),
        }
    }

    fn rename(&mut self) -> Op {
        let kind = if self.random.chance(50) { Some(FileType::Dir) } else { None };
        let from = self.path(kind);
        let flags = *self.random.pick(&[
            RenameFlags::Replace,
            RenameFlags::Replace,
            RenameFlags::Replace,
            RenameFlags::NoReplace,
            RenameFlags::Exchange,
        ]);
        let onto_something = flags == RenameFlags::Exchange || self.random.chance(40);
        let mut to = from.clone();
        for _ in 0..4 {
            to = if onto_something { self.path(kind) } else { self.new_path() };
            let related = to == from || to.holds(&from) || from.holds(&to);
            let full =
                flags == RenameFlags::Replace && self.tree.walk(&to).is_ok_and(|id| !self.tree.entries(id).is_empty());
            if !related && !full {
                break;
            }
        }
        Op::Rename(from, to, flags)
    }

    fn attribute_op(&mut self) -> Op {
        let path = if self.random.chance(5) { p("") } else { self.path(None) };
        match self.random.below(6) {
            0 => Op::Chmod(path, self.perm()),
            // A link or a device bears no record of an owner that cannot be set.
            1 if self.means.privileged || self.recordable(&path) => match self.random.below(3) {
                0 => Op::Chown(path, Some(1000), None),
                1 => Op::Chown(path, None, Some(2000)),
                _ => Op::Chown(path, Some(0), Some(1000)),
            },
            2 => {
                let times = [None, Some(-1), Some(0), Some(1_234_567_890), Some(4_000_000_000)];
                let mut time = || self.random.pick(&times).map(|sec| Time { sec, nsec: 500 });
                Op::Utimens(path, time(), time())
            }
            3 => {
                let path = self.path(Some(FileType::File));
                let size = *self.random.pick(&[0, 0, 3, 10, 30, 6000, 8192]);
                Op::Truncate(path, size, self.privilege())
            }
            4 => {
                let how = *self.random.pick(&[SetXattr::Any, SetXattr::Any, SetXattr::Create, SetXattr::Replace]);
                let (path, name, value) = self.attribute(path);
                Op::SetXattr(path, name, value, how)
            }
            _ => {
                let (path, name, _) = self.attribute(path);
                Op::RemoveXattr(path, name)
            }
        }
    }

    fn attribute(&mut self, path: Path) -> (Path, Path, Vec<u8>) {
        match self.random.below(4) {
            0 if self.means.privileged => (path, p("trusted.t"), vec![b't'; self.random.below(4)]),
            1 if self.means.privileged => (self.path(Some(FileType::File)), p(CAPABILITY), capability()),
            _ => (path, p("user.x"), vec![b'x'; self.random.below(30)]),
        }
    }

    fn open(&mut self) -> Op {
        let access = *self.random.pick(&[Access::Read, Access::Read, Access::Write, Access::Write, Access::Truncate]);
        let path = self.path(Some(FileType::File));
        Op::Open(self.fresh_handle(), path, access, self.privilege())
    }

    fn file_op(&mut self) -> Op {
        let handle = self.handle();
        let offset = self.random.below(if self.random.clone().chance(30) { 16_000 } else { 40 }) as u64;
        match self.random.below(16) {
            0..=2 => Op::Read(handle, offset, self.random.below(80) * if offset > 40 { 100 } else { 1 }),
            3..=5 => {
                let len = 1 + self.random.below(if offset > 40 { 5000 } else { 50 });
                let fill = Fill(self.random.below(256) as u8, len);
                Op::Write(handle, offset, fill, self.privilege())
            }
            6 => Op::TruncateOpen(handle, offset, self.privilege()),
            7 => Op::ChmodOpen(handle, self.perm()),
            8 => Op::ChownOpen(handle, Some(1000), None),
            9 => Op::SetXattrOpen(handle, p("user.y"), b"y".to_vec()),
            10 if self.random.chance(50) => Op::XattrsOpen(handle),
            10 => Op::Stat(handle),
            11 => Op::Seek(handle, offset, *self.random.pick(&[Seek::Data, Seek::Hole])),
            12 => {
                let mode = *self.random.pick(&[0, 1, 3]);
                Op::Allocate(handle, mode, offset, 1 + self.random.below(if offset > 40 { 6000 } else { 30 }) as u64)
            }
            13 => {
                let to = self.handle();
                Op::CopyRange(handle, self.random.below(10) as u64, to, offset, 1 + self.random.below(30))
            }
            14 => Op::LinkOpen(handle, self.new_path()),
            15 if self.random.chance(30) => Op::Sync(handle),
            _ => Op::Close(handle),
        }
    }

    fn dir_op(&mut self) -> Op {
        match self.random.below(10) {
            0 | 1 => {
                let path = if self.random.chance(30) { p("") } else { self.path(Some(FileType::Dir)) };
                Op::DirOpen(self.random.below(3) as Handle, path)
            }
            2..=6 => Op::DirNext(self.dir_handle(), 1 + self.random.below(5)),
            7 => Op::DirRewind(self.dir_handle()),
            8 => Op::MkdirAt(self.dir_handle(), p(random_name(self.random))),
            _ => Op::DirClose(self.dir_handle()),
        }
    }

    fn rest(&mut self) -> Op {
        match self.random.below(8) {
            0 if self.means.remounts && self.random.chance(50) => Op::Rest,
            0 if self.means.remounts => Op::Remount,
            1..=4 => Op::Forget(if self.random.chance(40) { p("") } else { self.path(None) }),
            _ => Op::Look(self.path(None)),
        }
    }
}
