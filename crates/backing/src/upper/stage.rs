//! Staging: new inodes and copies are made complete in `tmp`, then take their name in one step.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer::{Dev, FileType, Name, NameBuf};
use overlay::Result;
use overlay::upper::{CopyUp, New, Over, SetAttr, SetTime, SetXattr, Source, What};
use rustix::fs::{AtFlags, Dir, FileType as RawType, Mode, OFlags, RenameFlags};
use rustix::io::Errno as Raw;

use super::{DirFd, Durability, Found, UpperDir, copy, error, marks, shown};
use crate::override_stat::Override;

/// The longest path, in bytes, that is noted on an unsynced copy: attributes share one block on some filesystems.
pub(super) const NOTED_PATH_MAX: usize = 512;

/// An inode in `tmp`, or one without any name, that has no name in the union yet; dropped, it is removed.
pub struct Staged {
    tmp: Arc<OwnedFd>,
    name: Option<NameBuf>,
    /// The copy of a regular file, open.
    pub(super) file: Option<OwnedFd>,
    /// Its backing inode number.
    backing: u64,
    /// What is to be noted of a copy that can bear no mark.
    pub(super) unmarked: Option<marks::OriginRecord>,
}

impl Staged {
    pub(super) fn name(&self) -> NameBuf {
        self.name.clone().unwrap_or_else(|| unreachable!("a staged inode has its name until it is taken"))
    }

    /// Gives the name up: the caller moves the inode.
    pub(super) fn take(mut self) -> NameBuf {
        self.name.take().unwrap_or_else(|| unreachable!("a staged inode has its name until it is taken"))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = remove_tree(&self.tmp, name.as_name())
        {
            log::warn!("a staged copy stays until the next mount: {error}");
        }
    }
}

impl UpperDir {
    fn staged(&self, name: Option<NameBuf>) -> Staged {
        Staged { tmp: self.tmp.clone(), name, file: None, backing: 0, unmarked: None }
    }

    /// Tells whether a new inode can be made under its name at once: then the owner is ours, and nothing is to be added.
    pub(super) fn direct(&self, new: &New<'_>) -> bool {
        let plain = matches!(new.what, What::File | What::Dir { opaque: false } | What::Symlink(_) | What::Special(_));
        plain
            && new.uid == self.identity.uid
            && new.gid == self.identity.gid
            && new.perm & 0o7000 == 0
            && new.xattrs.is_empty()
            && new.times.is_none()
            && !self.space.always_overrides()
    }

    pub(super) fn make_raw(&self, dir: BorrowedFd<'_>, name: Name<'_>, new: &New<'_>) -> Result<()> {
        let mode = Mode::from_raw_mode(new.perm.into());
        let done = match new.what {
            What::File => rustix::fs::openat(
                dir,
                name.as_bytes(),
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                mode,
            )
            .map(drop),
            What::Dir { .. } => rustix::fs::mkdirat(dir, name.as_bytes(), mode),
            What::Symlink(target) => rustix::fs::symlinkat(target, dir, name.as_bytes()),
            What::Device(kind, dev) => make_node(dir, name, kind, mode, dev),
            What::Special(kind) => make_node(dir, name, kind, mode, Dev::default()),
        };
        done.map_err(|raw| error(|| shown(name, "make"), raw))
    }

    /// Makes a new inode complete in `tmp`.
    pub(super) fn stage_new(&self, new: &New<'_>) -> Result<Staged> {
        let staged = self.staged(Some(self.fresh_name()));
        let name = staged.name();
        let at = Found::At(self.tmp.as_fd(), name.clone());
        let kind = match new.what {
            What::File => FileType::File,
            What::Dir { .. } => FileType::Dir,
            What::Symlink(_) => FileType::Symlink,
            What::Device(kind, _) | What::Special(kind) => kind,
        };
        let owner = SetAttr { perm: Some(new.perm), uid: Some(new.uid), gid: Some(new.gid), ..SetAttr::default() };
        if !self.stage_itself(&at, kind, new, &owner)? {
            let (dev, content) = match new.what {
                What::Device(_, dev) => (dev, &b""[..]),
                What::Symlink(target) => (Dev::default(), target),
                _ => (Dev::default(), &b""[..]),
            };
            self.stage_stand_in(&at, (kind, dev), &owner, content)?;
        }
        for (name, value) in new.xattrs {
            self.put_xattr(&at, kind, name, value)?;
        }
        if let What::Dir { opaque: true } = new.what {
            self.space.set(&at, marks::OPAQUE, b"y")?;
        }
        if let Some((atime, mtime)) = new.times {
            let times =
                SetAttr { atime: Some(SetTime::At(atime)), mtime: Some(SetTime::At(mtime)), ..SetAttr::default() };
            self.apply_attr(&at, kind, &times)?;
        }
        Ok(staged)
    }

    /// Makes the inode itself; `false` when a file with a record must stand for it. Links, devices, pipes and sockets carry no
    /// record of an owner or a mode that could not be set (xattr(7)).
    fn stage_itself(&self, at: &Found<'_>, kind: FileType, new: &New<'_>, owner: &SetAttr) -> Result<bool> {
        let recordable = matches!(kind, FileType::File | FileType::Dir);
        if !recordable && self.space.always_overrides() {
            return Ok(false);
        }
        let Found::At(dir, name) = at else { return Ok(false) };
        match self.make_raw(*dir, name.as_name(), &New { perm: 0o700 & new.perm | 0o600, ..new.clone() }) {
            Err(overlay::Error::Answer(overlay::Errno::EPERM)) if self.space.overrides() => return Ok(false),
            done => done?,
        }
        self.apply_attr(at, kind, owner)?;
        if recordable || !self.space.overrides() {
            return Ok(true);
        }
        let made = self.raw_stat(at)?;
        let holds = (made.uid, made.gid) == (new.uid, new.gid) && (kind == FileType::Symlink || made.perm == new.perm);
        if !holds {
            rustix::fs::unlinkat(dir, name.as_bytes(), AtFlags::empty())
                .map_err(|raw| error(|| at.doing("make way for a stand-in of"), raw))?;
        }
        Ok(holds)
    }

    /// Makes a file that stands for what the namespace does not let us make, with a record of what it is.
    fn stage_stand_in(&self, at: &Found<'_>, kind: (FileType, Dev), owner: &SetAttr, content: &[u8]) -> Result<()> {
        let Found::At(dir, name) = at else { return Ok(()) };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name.as_bytes(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|raw| error(|| at.doing("make a stand-in for"), raw))?;
        copy::body(Source::Bytes(content), fd.as_fd(), content.len() as u64, Durability::Volatile).map(drop)?;
        let record = Override {
            uid: owner.uid.unwrap_or(self.identity.uid),
            gid: owner.gid.unwrap_or(self.identity.gid),
            perm: owner.perm.unwrap_or(0o600),
            kind: Some(kind),
        };
        self.space.record(at, &record)
    }

    /// Makes the copy of a lower inode complete: owner, mode, attributes, body, marks, then times; durable, or to be found out.
    pub(super) fn stage_copy(&self, copy: &CopyUp<'_>) -> Result<Staged> {
        let stat = copy.stat;
        let what = match stat.kind {
            FileType::File => What::File,
            FileType::Dir => What::Dir { opaque: false },
            FileType::Symlink => What::Symlink(copy.target.unwrap_or_default()),
            FileType::Char | FileType::Block => What::Device(stat.kind, stat.rdev),
            FileType::Fifo | FileType::Socket => What::Special(stat.kind),
        };
        let new = New { what, perm: stat.perm, uid: stat.uid, gid: stat.gid, xattrs: &[], times: None };
        let mut staged = match stat.kind {
            FileType::File => self.stage_file(&new)?,
            _ => self.stage_new(&new)?,
        };
        let at = match &staged.file {
            Some(file) => Found::Open(file.as_fd()),
            None => Found::At(self.tmp.as_fd(), staged.name()),
        };
        let synced = match &staged.file {
            Some(file) => self.stage_body(file, staged.backing, copy)?,
            None => copy::Synced::Yes,
        };
        for (xattr, value) in copy.xattrs {
            self.put_xattr(&at, stat.kind, xattr, value)?;
        }
        let record = marks::OriginRecord {
            origin: Some(copy.origin),
            lower_names: copy.lower_names,
            length: stat.size,
            epoch: self.space.epoch,
            path: copy.path.unwrap_or_default().to_vec(),
            old: false,
        };
        let record = if synced == copy::Synced::Yes { record.synced() } else { record };
        self.space.set_origin(&at, &record)?;
        let bare = stat.nlink > 1 && !self.space.marks_all() && !marks::bears_marks(self.raw_stat(&at)?.kind);
        // Writing took set-user-ID bits and may have touched the times: both last.
        let attr = SetAttr {
            perm: (stat.perm & 0o6000 != 0 && stat.kind == FileType::File).then_some(stat.perm),
            atime: Some(SetTime::At(stat.atime)),
            mtime: Some(SetTime::At(stat.mtime)),
            ..SetAttr::default()
        };
        self.apply_attr(&at, stat.kind, &attr)?;
        staged.unmarked = bare.then_some(record);
        Ok(staged)
    }

    /// Makes an empty regular file with its owner and mode, without a name where the filesystem knows that: it takes no
    /// directory's entry, and is freed by a crash.
    fn stage_file(&self, new: &New<'_>) -> Result<Staged> {
        let Some(file) = self.make_nameless(new.perm)? else {
            let mut staged = self.stage_new(new)?;
            let name = staged.name();
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let file = rustix::fs::openat(&self.tmp, name.as_bytes(), flags, Mode::empty())
                .map_err(|raw| error(|| shown(name.as_name(), "open the copy of"), raw))?;
            staged.backing = self.raw_stat(&Found::Open(file.as_fd()))?.ino.0;
            staged.file = Some(file);
            return Ok(staged);
        };
        let at = Found::Open(file.as_fd());
        let made = self.raw_stat(&at)?;
        if self.space.always_overrides() || (made.uid, made.gid, made.perm) != (new.uid, new.gid, new.perm) {
            let owner = SetAttr { perm: Some(new.perm), uid: Some(new.uid), gid: Some(new.gid), ..SetAttr::default() };
            self.apply_attr(&at, FileType::File, &owner)?;
        }
        let mut staged = self.staged(None);
        (staged.file, staged.backing) = (Some(file), made.ino.0);
        Ok(staged)
    }

    fn make_nameless(&self, perm: u16) -> Result<Option<OwnedFd>> {
        if !self.nameless.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat(&self.tmp, ".", flags, Mode::from_raw_mode((perm & 0o777).into())) {
            Ok(file) => Ok(Some(file)),
            Err(Raw::OPNOTSUPP | Raw::ISDIR | Raw::INVAL | Raw::NOSYS) => {
                self.nameless.store(false, Ordering::Relaxed);
                Ok(None)
            }
            Err(raw) => Err(error(|| "make a copy".into(), raw)),
        }
    }

    /// Gives a copy that is open its name.
    pub(super) fn name_copy(
        &self,
        staged: Staged,
        file: &OwnedFd,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
    ) -> rustix::io::Result<()> {
        if staged.name.is_some() {
            return self.move_staged(staged, dir, name);
        }
        match rustix::fs::linkat(file, "", dir, name.as_bytes(), AtFlags::EMPTY_PATH) {
            // That takes a privilege (CAP_DAC_READ_SEARCH); by /proc it takes none.
            Err(Raw::NOENT | Raw::PERM) => {
                let path = marks::fd_path(file.as_fd(), None);
                rustix::fs::linkat(rustix::fs::CWD, path.as_c_str(), dir, name.as_bytes(), AtFlags::SYMLINK_FOLLOW)
            }
            done => done,
        }
    }

    /// Moves a staged inode out of `tmp`.
    pub(super) fn move_staged(&self, staged: Staged, dir: BorrowedFd<'_>, name: Name<'_>) -> rustix::io::Result<()> {
        let from = staged.name();
        rustix::fs::renameat_with(&self.tmp, from.as_bytes(), dir, name.as_bytes(), RenameFlags::NOREPLACE)?;
        staged.take();
        Ok(())
    }

    fn stage_body(&self, file: &OwnedFd, backing: u64, copy: &CopyUp<'_>) -> Result<copy::Synced> {
        let at = Found::Open(file.as_fd());
        let Some(body) = copy.body else {
            rustix::fs::ftruncate(file, copy.stat.size).map_err(|raw| error(|| at.doing("size the copy of"), raw))?;
            self.space.set(&at, marks::METACOPY, b"")?;
            if let Some(path) = copy.redirect {
                self.space.set(&at, marks::REDIRECT, path)?;
            }
            return Ok(copy::Synced::Yes);
        };
        let synced = copy::body(body, file.as_fd(), copy.stat.size, self.durability)?;
        if synced == copy::Synced::No && copy.path.is_some_and(|path| path.len() > NOTED_PATH_MAX) {
            rustix::fs::fdatasync(file).map_err(|raw| error(|| at.doing("sync the copy of"), raw))?;
            return Ok(copy::Synced::Yes);
        }
        if synced == copy::Synced::No {
            self.note_unsynced()?;
            self.whole.lock().insert(backing);
        }
        Ok(synced)
    }

    /// Carries one attribute over. What this namespace may not set is left out with a word in the log, never silently.
    fn put_xattr(&self, at: &Found<'_>, kind: FileType, name: &[u8], value: &[u8]) -> Result<()> {
        match marks::set(at, name, value, SetXattr::Any) {
            Err(overlay::Error::Answer(overlay::Errno::EPERM | overlay::Errno::EOPNOTSUPP))
                if self.space.overrides() || !matches!(kind, FileType::File | FileType::Dir) =>
            {
                log::debug!("attribute {} cannot be kept on a copy", name.escape_ascii());
                Ok(())
            }
            done => done,
        }
    }

    /// Gives a staged inode its name.
    pub(super) fn place(&self, staged: Staged, dir: &DirFd, name: Name<'_>, what: What<'_>, over: Over) -> Result<()> {
        let failed = |raw| error(|| shown(name, "name"), raw);
        let from = staged.name();
        match (over, what) {
            (Over::Whiteout, What::Dir { .. }) => match self.exchange(&from, dir, name) {
                // What is staged now is the whiteout; dropping it removes it.
                Ok(()) => Ok(()),
                // A rename onto this directory failed after its whiteouts were taken out.
                Err(overlay::Error::Answer(overlay::Errno::ENOENT)) => {
                    rustix::fs::renameat(&self.tmp, from.as_bytes(), dir, name.as_bytes()).map_err(failed)?;
                    staged.take();
                    Ok(())
                }
                Err(error) => Err(error),
            },
            (Over::Whiteout, _) => {
                rustix::fs::renameat(&self.tmp, from.as_bytes(), dir, name.as_bytes()).map_err(failed)?;
                staged.take();
                Ok(())
            }
            (Over::Nothing, _) => self.move_staged(staged, dir.as_fd(), name).map_err(failed),
        }
    }
}

fn make_node(dir: BorrowedFd<'_>, name: Name<'_>, kind: FileType, mode: Mode, dev: Dev) -> rustix::io::Result<()> {
    let raw = match kind {
        FileType::Char => RawType::CharacterDevice,
        FileType::Block => RawType::BlockDevice,
        FileType::Fifo => RawType::Fifo,
        FileType::Socket => RawType::Socket,
        FileType::File | FileType::Dir | FileType::Symlink => return Err(Raw::INVAL),
    };
    rustix::fs::mknodat(dir, name.as_bytes(), raw, mode, rustix::fs::makedev(dev.major, dev.minor))
}

/// Removes a name and all below it, never through a link; directories are emptied in a loop, not by recursion.
pub(super) fn remove_tree(dir: &OwnedFd, name: Name<'_>) -> Result<()> {
    let failed = |raw| error(|| format!("sweep {name} in the work directory"), raw);
    match rustix::fs::unlinkat(dir, name.as_bytes(), AtFlags::empty()) {
        Ok(()) | Err(Raw::NOENT) => return Ok(()),
        Err(Raw::ISDIR | Raw::PERM) => {}
        Err(raw) => return Err(failed(raw)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(dir, name.as_bytes(), flags, Mode::empty()).map_err(failed)?;
    empty_dir(&top)?;
    rustix::fs::unlinkat(dir, name.as_bytes(), AtFlags::REMOVEDIR).map_err(failed)
}

/// Removes all that a directory holds.
pub(super) fn empty_dir(top: &OwnedFd) -> Result<()> {
    let failed = |raw| error(|| "sweep the work directory".into(), raw);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Each directory met is moved up to the top before it is emptied, so that depth costs neither stack nor descriptors.
    // A name that an interrupted sweep cannot have left.
    let mut round = std::time::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_nanos() as u64);
    loop {
        let mut dirs = Vec::new();
        for entry in Dir::read_from(top).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = Name::new(entry.file_name().to_bytes()) else { continue };
            match rustix::fs::unlinkat(top, name.as_bytes(), AtFlags::empty()) {
                Ok(()) | Err(Raw::NOENT) => {}
                Err(Raw::ISDIR | Raw::PERM) => dirs.push(name.to_buf()),
                Err(raw) => return Err(failed(raw)),
            }
        }
        if dirs.is_empty() {
            return Ok(());
        }
        for name in dirs {
            let fd = rustix::fs::openat(top, name.as_bytes(), flags, Mode::empty()).map_err(failed)?;
            for entry in Dir::read_from(&fd).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let Ok(child) = Name::new(entry.file_name().to_bytes()) else { continue };
                match rustix::fs::unlinkat(&fd, child.as_bytes(), AtFlags::empty()) {
                    Ok(()) | Err(Raw::NOENT) => {}
                    Err(Raw::ISDIR | Raw::PERM) => {
                        round += 1;
                        let up = format!(".sweep-{round:x}");
                        rustix::fs::renameat(&fd, child.as_bytes(), top, up.as_bytes()).map_err(failed)?;
                    }
                    Err(raw) => return Err(failed(raw)),
                }
            }
            rustix::fs::unlinkat(top, name.as_bytes(), AtFlags::REMOVEDIR).map_err(failed)?;
        }
    }
}
