//! The upper: one container's writable layer, a directory in kernel-overlayfs format.
//!
//! `UpperDir` owns the upper and its work directory. In the work directory it keeps to itself a folder `plyfs`: `lock` (held
//! for as long as the upper is in use), `tmp` (what is being staged; emptied at the next start) and `index` (copies of
//! hard-linked lower files, by the number of their origin). The kernel's own index beside it is taken over when there is one. Every step that the union can see is one rename, link, mknod or
//! attribute call. Whiteouts are character devices 0:0; marks are extended attributes (kernel overlayfs.rst).

mod attr;
mod aufs;
mod copy;
mod file;
mod folder;
mod kept;
mod marks;
mod open;
mod recover;
mod rename;
mod stage;
mod taken_over;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use layer::{FileType, Ino, Name, NameBuf, Stat};
use overlay::upper::{
    CopyUp, Kept, Leave, Listed, Marks, New, Over, Rename, SetAttr, SetXattr, Source, StatFs, Target, What,
};
use overlay::{Errno, Error, Result, Upper};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FileType as RawType, Mode, OFlags};
use rustix::io::Errno as Raw;

use crate::kernel_handle;

pub use aufs::is_aufs;
pub use file::File;
pub use marks::{Mark, OriginRecord};
pub use stage::Staged;

/// An open directory of the upper.
pub type DirFd = Arc<OwnedFd>;

/// The writable layer of one container, on a disk.
pub struct UpperDir {
    root: DirFd,
    tmp: Arc<OwnedFd>,
    index: folder::Folder,
    _lock: OwnedFd,
    space: marks::Space,
    durability: Durability,
    identity: Identity,
    next: AtomicU64,
    /// The filesystem knows `RENAME_WHITEOUT`.
    rename_whiteout: AtomicBool,
    /// The filesystem knows files without a name (`O_TMPFILE`).
    nameless: AtomicBool,
    /// Partial copies, by backing inode number, as further links of theirs.
    partial: folder::Folder,
    /// `plyfs/` in the work directory.
    own: OwnedFd,
    /// `index/` in the work directory, if the kernel's overlayfs made one.
    foreign: Option<OwnedFd>,
    /// An earlier mount left copies unsynced: a power cut since may have emptied them.
    suspect: bool,
    /// Copies of the same epoch that are known to be whole, by backing inode number: looked at once, or made by this mount.
    /// Later a program may cut them.
    whole: Mutex<HashSet<u64>>,
    /// The work directory says that there are copies unsynced.
    noted: Mutex<bool>,
    /// What is noted of those inodes in the index that can bear no mark, by backing inode number.
    unmarked: Mutex<HashMap<u64, marks::OriginRecord>>,
    /// Files that bear a note of this mount ([`kept`]), by backing inode number.
    kept: kept::Notes,
}

/// Whether copies are on disk before they take a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// They are.
    Synced,
    /// They are not: a power cut may lose them (`volatile`).
    Volatile,
}

/// Whom the daemon itself writes as.
#[derive(Clone, Copy, Debug)]
struct Identity {
    uid: u32,
    gid: u32,
}

/// How an upper is opened.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether copies are synced.
    pub durability: Durability,
    /// Owners, modes and kinds are recorded in `user.containers.override_stat` even where they could be set (`xattr_permissions`).
    pub always_override: bool,
    /// Marks are `user.*` attributes even where `trusted.*` could be written (`userxattr`).
    pub user_marks: bool,
}

/// Turns an error of the system into an answer or a fault.
pub(crate) fn error(doing: impl FnOnce() -> String, raw: Raw) -> Error {
    match raw {
        Raw::IO | Raw::BADF | Raw::FAULT => Error::fault(doing(), Errno(raw.raw_os_error()), std::io::Error::from(raw)),
        _ => Error::Answer(Errno(raw.raw_os_error())),
    }
}

fn shown(name: Name<'_>, doing: &str) -> String {
    format!("{doing} {name} in the upper")
}

impl UpperDir {
    /// Tells whether marks lie in `user.*` attributes and owners in records (no privilege over the filesystem).
    pub fn rootless(&self) -> bool {
        self.space.overrides()
    }

    /// Returns the root's descriptor.
    pub fn root_fd(&self) -> &OwnedFd {
        &self.root
    }

    fn open_found(&self, of: &Found<'_>) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = match of {
            Found::At(dir, name) => rustix::fs::openat(dir, name.as_bytes(), flags, Mode::empty()),
            Found::Open(fd) => rustix::io::fcntl_dupfd_cloexec(fd, 3),
        };
        opened.map(File::new).map_err(|raw| error(|| of.doing("open"), raw))
    }

    /// Resolves a target to a directory and a name in it, or to an open descriptor.
    fn resolve<'a>(&'a self, of: Target<'a, Self>) -> Found<'a> {
        match of {
            Target::At(dir, name) => Found::At(dir.as_fd(), name.to_buf()),
            Target::Dir(dir) => Found::Open(dir.as_fd()),
            Target::File(file) => Found::Open(file.as_fd()),
            Target::Index(origin) => Found::At(self.folder(&self.index), index_name(origin)),
            Target::Partial(backing) => Found::At(self.folder(&self.partial), index_name(Ino(backing))),
        }
    }

    /// Returns a folder, to look for a number in it; one that is not there yet has none, and neither has the directory above.
    fn folder<'a>(&'a self, folder: &'a folder::Folder) -> BorrowedFd<'a> {
        folder.there().unwrap_or(&self.own).as_fd()
    }

    fn link_raw(&self, of: Target<'_, Self>, to: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        match self.resolve(of) {
            Found::At(from, old) => rustix::fs::linkat(from, old.as_bytes(), to, name, AtFlags::empty()),
            Found::Open(fd) => {
                let path = marks::fd_path(fd, None);
                rustix::fs::linkat(rustix::fs::CWD, path.as_c_str(), to, name, AtFlags::SYMLINK_FOLLOW)
            }
        }
    }

    fn raw_stat(&self, of: &Found<'_>) -> Result<Stat> {
        let stat = match of {
            Found::At(dir, name) => rustix::fs::statat(dir, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW),
            Found::Open(fd) => rustix::fs::fstat(fd),
        };
        attr::stat_of(&stat.map_err(|raw| error(|| of.doing("stat"), raw))?)
    }

    /// Whiteouts leave room for one name in `tmp` only for as long as they are staged.
    fn staged_whiteout(&self) -> Result<NameBuf> {
        let name = self.fresh_name();
        rustix::fs::mknodat(&self.tmp, name.as_bytes(), RawType::CharacterDevice, Mode::empty(), 0)
            .map_err(|raw| error(|| "make a whiteout".into(), raw))?;
        Ok(name)
    }

    fn fresh_name(&self) -> NameBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        NameBuf::new(format!("{number:x}")).unwrap_or_else(|_| unreachable!("hex digits are a name"))
    }
}

const CAPABILITY: &[u8] = b"security.capability";

/// A target, resolved.
pub(crate) enum Found<'a> {
    At(std::os::fd::BorrowedFd<'a>, NameBuf),
    Open(std::os::fd::BorrowedFd<'a>),
}

impl Found<'_> {
    pub(crate) fn doing(&self, what: &str) -> String {
        match self {
            Found::At(_, name) => format!("{what} {name} in the upper"),
            Found::Open(_) => format!("{what} an open file of the upper"),
        }
    }
}

fn index_name(origin: Ino) -> NameBuf {
    NameBuf::new(format!("{:016x}", origin.0)).unwrap_or_else(|_| unreachable!("hex digits are a name"))
}

/// Reads the numbers that a folder of ours has as names, if it is there.
fn numbers(dir: Option<&OwnedFd>) -> Result<Vec<u64>> {
    let Some(dir) = dir else { return Ok(Vec::new()) };
    let failed = |raw| error(|| "list the work directory".into(), raw);
    let mut found = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        found.extend(entry.file_name().to_str().ok().and_then(|hex| u64::from_str_radix(hex, 16).ok()));
    }
    Ok(found)
}

impl Upper for UpperDir {
    type Dir = DirFd;
    type File = File;
    type Staged = Staged;

    fn root(&self) -> DirFd {
        self.root.clone()
    }

    fn open_dir(&self, dir: &DirFd, name: Name<'_>) -> Result<DirFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name.as_bytes(), flags, Mode::empty())
            .map_err(|raw| error(|| shown(name, "open directory"), raw))?;
        Ok(Arc::new(fd))
    }

    fn list(&self, dir: &DirFd) -> Result<Vec<Listed>> {
        let failed = |raw| error(|| "list a directory of the upper".into(), raw);
        let mut listed = Vec::new();
        let mut by_attribute = None;
        for entry in Dir::read_from(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = Name::new(entry.file_name().to_bytes()) else { continue };
            let mut kind = attr::kind_of(entry.file_type());
            let mut ino = entry.ino();
            if kind.is_none_or(|kind| kind == FileType::Char) {
                let stat = self.raw_stat(&Found::At(dir.as_fd(), name.to_buf()))?;
                let whiteout = stat.kind == FileType::Char && stat.rdev == layer::Dev::default();
                kind = if whiteout { None } else { Some(stat.kind) };
                ino = stat.ino.0;
            } else if kind == Some(FileType::File) {
                // The kernel's other form: an empty file with a mark, in a directory that is marked to hold such.
                let possible = *by_attribute.get_or_insert_with(|| {
                    self.space.get(&Found::Open(dir.as_fd()), marks::OPAQUE).ok().flatten() == Some(b"x".to_vec())
                });
                let at = || Found::At(dir.as_fd(), name.to_buf());
                if possible && self.space.get(&at(), marks::WHITEOUT)?.is_some() {
                    kind = None;
                } else if let Some(stood_for) = self.space.stood_for(&at())? {
                    kind = Some(stood_for);
                }
            }
            listed.push(Listed { name: name.to_buf(), kind, ino });
        }
        Ok(listed)
    }

    fn stat(&self, of: Target<'_, Self>) -> Result<Stat> {
        let of = self.resolve(of);
        let stat = self.raw_stat(&of)?;
        self.space.overridden(&of, stat)
    }

    fn find(&self, of: Target<'_, Self>) -> Result<(Stat, Marks)> {
        let of = self.resolve(of);
        let raw = self.raw_stat(&of)?;
        let (mut marks, mut stat, noted) = self.space.read(&of, raw)?;
        if noted {
            self.recover_kept(&of, &raw)?;
            stat = self.space.overridden(&of, self.raw_stat(&of)?)?;
        }
        if !self.space.marks_all()
            && !marks::bears_marks(stat.kind)
            && let Some(record) = self.unmarked.lock().get(&stat.ino.0)
        {
            (marks.origin, marks.lower_names) = (record.origin, record.lower_names);
        }
        if self.suspect && marks.unsynced {
            let mut whole = self.whole.lock();
            if !whole.contains(&stat.ino.0) {
                self.recover(&of, &mut stat, &mut marks)?;
                whole.insert(stat.ino.0);
            }
        }
        Ok((stat, marks))
    }

    fn link_target(&self, of: Target<'_, Self>) -> Result<Vec<u8>> {
        let Found::At(dir, name) = self.resolve(of) else { return Err(Errno::EINVAL.into()) };
        match rustix::fs::readlinkat(dir, name.as_bytes(), Vec::new()) {
            Ok(target) => Ok(target.into_bytes()),
            // A link whose owner had to be recorded is a file that holds the target.
            Err(Raw::INVAL) if self.space.overrides() => self.open(of)?.read_whole(),
            Err(raw) => Err(error(|| shown(name.as_name(), "read link"), raw)),
        }
    }

    fn open(&self, of: Target<'_, Self>) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match self.resolve(of) {
            Found::At(dir, name) => {
                let fd = match rustix::fs::openat(dir, name.as_bytes(), flags, Mode::empty()) {
                    // Without privilege a file of ours that is not writable opens for reading at least.
                    Err(Raw::ACCESS) => rustix::fs::openat(
                        dir,
                        name.as_bytes(),
                        flags.difference(OFlags::RDWR) | OFlags::RDONLY,
                        Mode::empty(),
                    ),
                    other => other,
                };
                fd.map(File::new).map_err(|raw| error(|| shown(name.as_name(), "open"), raw))
            }
            Found::Open(fd) => {
                let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3)
                    .map_err(|raw| error(|| "duplicate a descriptor".into(), raw))?;
                Ok(File::new(fd))
            }
        }
    }

    fn make(&self, dir: &DirFd, name: Name<'_>, new: &New<'_>, over: Over) -> Result<Stat> {
        if over == Over::Nothing && self.direct(new) {
            self.make_raw(dir.as_fd(), name, new)?;
        } else {
            let staged = self.stage_new(new)?;
            self.place(staged, dir, name, new.what, over)?;
        }
        let at = Found::At(dir.as_fd(), name.to_buf());
        let stat = self.raw_stat(&at)?;
        self.space.overridden(&at, stat)
    }

    fn create(&self, dir: &DirFd, name: Name<'_>, new: &New<'_>, over: Over) -> Result<(Stat, File)> {
        if over == Over::Nothing && self.direct(new) {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, name.as_bytes(), flags, Mode::from_raw_mode(new.perm.into()))
                .map_err(|raw| error(|| shown(name, "create"), raw))?;
            let stat = self.raw_stat(&Found::Open(fd.as_fd()))?;
            return Ok((stat, File::new(fd)));
        }
        let staged = self.stage_new(new)?;
        let file = File::new(
            rustix::fs::openat(
                &self.tmp,
                staged.name().as_bytes(),
                OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|raw| error(|| shown(name, "create"), raw))?,
        );
        self.place(staged, dir, name, new.what, over)?;
        let at = Found::Open(file.as_fd());
        let stat = self.raw_stat(&at)?;
        Ok((self.space.overridden(&at, stat)?, file))
    }

    fn stage(&self, copy: &CopyUp<'_>) -> Result<Staged> {
        self.stage_copy(copy)
    }

    fn publish(&self, mut staged: Staged, dir: &DirFd, name: Name<'_>) -> Result<(Stat, Option<File>)> {
        let Some(file) = staged.file.take() else {
            self.place(staged, dir, name, What::File, Over::Nothing)?;
            return Ok((self.raw_stat(&Found::At(dir.as_fd(), name.to_buf()))?, None));
        };
        self.name_copy(staged, &file, dir.as_fd(), name).map_err(|raw| error(|| shown(name, "name"), raw))?;
        Ok((self.raw_stat(&Found::Open(file.as_fd()))?, Some(File::new(file))))
    }

    fn publish_index(&self, mut staged: Staged, origin: Ino) -> Result<Stat> {
        let name = index_name(origin);
        let index = self.index.made(&self.own).map_err(|raw| error(|| shown(name.as_name(), "index"), raw))?;
        let unmarked = staged.unmarked.clone();
        if let Some(origin) = unmarked.as_ref().and_then(|record| record.origin) {
            self.space.set_index_key(&Found::Open(index), origin.key)?;
        }
        let indexed = match staged.file.take() {
            Some(file) => self.name_copy(staged, &file, index, name.as_name()),
            None => self.move_staged(staged, index, name.as_name()),
        };
        indexed.map_err(|raw| error(|| shown(name.as_name(), "index"), raw))?;
        let stat = self.raw_stat(&Found::At(index, name))?;
        if let Some(record) = unmarked {
            self.unmarked.lock().insert(stat.ino.0, record);
        }
        Ok(stat)
    }

    fn remove_index(&self, origin: Ino) -> Result<()> {
        let name = index_name(origin);
        rustix::fs::unlinkat(self.folder(&self.index), name.as_bytes(), AtFlags::empty())
            .map_err(|raw| error(|| shown(name.as_name(), "remove from the index"), raw))?;
        self.unmarked.lock().retain(|_, record| record.origin.is_none_or(|known| known.ino != origin));
        Ok(())
    }

    fn indexed(&self) -> Result<Vec<Ino>> {
        Ok(numbers(self.index.there())?.into_iter().map(Ino).collect())
    }

    fn foreign_index(&self) -> Result<Vec<(Vec<u8>, FileType)>> {
        let Some(index) = &self.foreign else { return Ok(Vec::new()) };
        let failed = |raw| error(|| "list the kernel's index in the work directory".into(), raw);
        let mut found = Vec::new();
        for entry in Dir::read_from(index).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            let (Some(handle), Ok(named)) = (kernel_handle::from_hex(name), NameBuf::new(name)) else { continue };
            let stat = self.raw_stat(&Found::At(index.as_fd(), named))?;
            // Directories are there for network filesystems alone, whiteouts for files that have no name left.
            let whiteout = stat.kind == FileType::Char && stat.rdev == layer::Dev::default();
            if stat.kind != FileType::Dir && !whiteout {
                found.push((handle, stat.kind));
            }
        }
        Ok(found)
    }

    fn adopt_foreign(&self, handle: &[u8], origin: overlay::upper::Origin) -> Result<()> {
        let Some(index) = &self.foreign else { return Ok(()) };
        let failed = |raw| error(|| "take over the kernel's index of the work directory".into(), raw);
        let Ok(name) = NameBuf::new(kernel_handle::to_hex(handle)) else { return Err(Errno::EINVAL.into()) };
        let found = Found::At(index.as_fd(), name.clone());
        let record = marks::OriginRecord { origin: Some(origin), ..marks::OriginRecord::default() };
        self.space.set_origin(&found, &record)?;
        let ours = index_name(origin.ino);
        let linked = self
            .index
            .made(&self.own)
            .and_then(|to| rustix::fs::linkat(index, name.as_bytes(), to, ours.as_bytes(), AtFlags::empty()));
        match linked {
            Ok(()) | Err(Raw::EXIST) => {}
            Err(raw) => return Err(failed(raw)),
        }
        // It counts links against the lower's; from now on the names themselves are counted.
        self.space.remove(&found, marks::NLINK)?;
        rustix::fs::unlinkat(index, name.as_bytes(), AtFlags::empty()).map_err(failed)
    }

    fn keep(&self, of: Target<'_, Self>) -> Result<Kept> {
        self.keep_noted(of)
    }

    fn give_back(&self, of: Target<'_, Self>, kept: &Kept) -> Result<()> {
        self.give_back_noted(&self.resolve(of), kept)
    }

    fn fill(&self, of: Target<'_, Self>, body: Source<'_>, size: u64) -> Result<()> {
        let file = self.open(of)?;
        overlay::upper::unseen(self, of, || {
            if copy::body(body, file.as_fd(), size, self.durability)? == copy::Synced::No {
                // The mark that is dropped below says that the body is there: it must be.
                overlay::UpperFile::sync(&file, true)?;
            }
            Ok(())
        })?;
        let of = self.resolve(of);
        self.space.remove(&of, marks::METACOPY)?;
        self.space.remove(&of, marks::REDIRECT)
    }

    fn sync_copy(&self, of: Target<'_, Self>) -> Result<()> {
        let of = self.resolve(of);
        let record = self.space.origin(&of)?;
        if record.length == 0 {
            return Ok(());
        }
        overlay::UpperFile::sync(&self.open_found(&of)?, true)?;
        self.space.set_origin(&of, &record.synced())
    }

    fn note_path(&self, of: Target<'_, Self>, path: &[u8]) -> Result<()> {
        let record = self.space.origin(&self.resolve(of))?;
        if record.length == 0 || !record.path.is_empty() {
            return Ok(());
        }
        if path.len() > stage::NOTED_PATH_MAX {
            return self.sync_copy(of);
        }
        self.space.set_origin(&self.resolve(of), &marks::OriginRecord { path: path.to_vec(), ..record })
    }

    fn begin_partial(&self, of: Target<'_, Self>, limit: u64) -> Result<()> {
        let stat = self.stat(of)?;
        // The link first: one without the mark is swept at the next start, a mark without the link would never be found.
        let name = index_name(stat.ino);
        match self.partial.made(&self.own).and_then(|to| self.link_raw(of, to, name.as_bytes())) {
            Ok(()) | Err(Raw::EXIST) => {}
            Err(raw) => return Err(error(|| shown(name.as_name(), "note the partial copy"), raw)),
        }
        let marked = self.space.set_partial(&self.resolve(of), limit);
        if marked.is_err() {
            self.drop_partial(stat.ino.0)?;
        }
        marked
    }

    fn limit_partial(&self, of: Target<'_, Self>, limit: u64) -> Result<()> {
        self.space.set_partial(&self.resolve(of), limit)
    }

    fn finish_partial(&self, of: Target<'_, Self>) -> Result<()> {
        let found = self.resolve(of);
        let stat = self.raw_stat(&found)?;
        if self.durability == Durability::Synced {
            overlay::UpperFile::sync(&self.open_found(&found)?, true)?;
        }
        self.space.remove(&found, marks::METACOPY)?;
        self.space.remove(&found, marks::REDIRECT)?;
        self.space.end_partial(&found)?;
        let name = index_name(stat.ino);
        match rustix::fs::unlinkat(self.folder(&self.partial), name.as_bytes(), AtFlags::empty()) {
            Ok(()) | Err(Raw::NOENT) => Ok(()),
            Err(raw) => Err(error(|| shown(name.as_name(), "end the partial copy"), raw)),
        }
    }

    fn drop_partial(&self, backing: u64) -> Result<()> {
        let name = index_name(Ino(backing));
        match rustix::fs::unlinkat(self.folder(&self.partial), name.as_bytes(), AtFlags::empty()) {
            Ok(()) | Err(Raw::NOENT) => Ok(()),
            Err(raw) => Err(error(|| shown(name.as_name(), "drop the partial copy"), raw)),
        }
    }

    fn clone_body(&self, of: Target<'_, Self>, body: &dyn overlay::LowerFile) -> Result<bool> {
        let Some(from) = body.fd() else { return Ok(false) };
        let file = self.open(of)?;
        let cloned = overlay::upper::unseen(self, of, || match rustix::fs::ioctl_ficlone(&file, from) {
            Ok(()) => Ok(true),
            Err(raw @ (Raw::NOSPC | Raw::DQUOT | Raw::IO)) => Err(error(|| "share a body's blocks".into(), raw)),
            Err(_) => Ok(false),
        })?;
        if !cloned {
            return Ok(false);
        }
        let of = self.resolve(of);
        self.space.remove(&of, marks::METACOPY)?;
        self.space.remove(&of, marks::REDIRECT)?;
        Ok(true)
    }

    fn partials(&self) -> Result<Vec<u64>> {
        numbers(self.partial.there())
    }

    fn link(&self, of: Target<'_, Self>, dir: &DirFd, name: Name<'_>, over: Over) -> Result<()> {
        let link = |to, to_name: &[u8]| self.link_raw(of, to, to_name);
        let failed = |raw| error(|| shown(name, "link"), raw);
        if over == Over::Nothing {
            return link(dir.as_fd(), name.as_bytes()).map_err(failed);
        }
        let staged = self.fresh_name();
        link(self.tmp.as_fd(), staged.as_bytes()).map_err(failed)?;
        rustix::fs::renameat(&self.tmp, staged.as_bytes(), dir, name.as_bytes()).map_err(failed)
    }

    fn whiteout(&self, dir: &DirFd, name: Name<'_>) -> Result<()> {
        rustix::fs::mknodat(dir, name.as_bytes(), RawType::CharacterDevice, Mode::empty(), 0)
            .map_err(|raw| error(|| shown(name, "white out"), raw))
    }

    fn unlink(&self, dir: &DirFd, name: Name<'_>, leave: Leave) -> Result<()> {
        let failed = |raw| error(|| shown(name, "unlink"), raw);
        if leave == Leave::Nothing {
            return rustix::fs::unlinkat(dir, name.as_bytes(), AtFlags::empty()).map_err(failed);
        }
        let whiteout = self.staged_whiteout()?;
        rustix::fs::renameat(&self.tmp, whiteout.as_bytes(), dir, name.as_bytes()).map_err(failed)
    }

    fn remove_dir(&self, dir: &DirFd, name: Name<'_>, leave: Leave) -> Result<()> {
        let failed = |raw| error(|| shown(name, "remove directory"), raw);
        if leave == Leave::Whiteout {
            let whiteout = self.staged_whiteout()?;
            self.exchange(&whiteout, dir, name)?;
            return stage::remove_tree(&self.tmp, whiteout.as_name());
        }
        match rustix::fs::unlinkat(dir, name.as_bytes(), AtFlags::REMOVEDIR) {
            Err(Raw::NOTEMPTY | Raw::EXIST) => {
                // Its whiteouts go with it, not before it: a crash must not bring the lower's names back.
                let aside = self.fresh_name();
                rustix::fs::renameat(dir, name.as_bytes(), &self.tmp, aside.as_bytes()).map_err(failed)?;
                stage::remove_tree(&self.tmp, aside.as_name())
            }
            done => done.map_err(failed),
        }
    }

    fn rename(&self, from: (&DirFd, Name<'_>), to: (&DirFd, Name<'_>), how: Rename) -> Result<()> {
        self.rename_names(from, to, how)
    }

    fn set_opaque(&self, dir: &DirFd) -> Result<()> {
        self.space.set(&Found::Open(dir.as_fd()), marks::OPAQUE, b"y")
    }

    fn set_impure(&self, dir: &DirFd) -> Result<()> {
        self.space.set(&Found::Open(dir.as_fd()), marks::IMPURE, b"y")
    }

    fn set_redirect(&self, of: Target<'_, Self>, path: &[u8]) -> Result<()> {
        self.space.set(&self.resolve(of), marks::REDIRECT, path)
    }

    fn remove_redirect(&self, of: Target<'_, Self>) -> Result<()> {
        self.space.remove(&self.resolve(of), marks::REDIRECT)
    }

    fn set_attr(&self, of: Target<'_, Self>, attr: &SetAttr) -> Result<()> {
        let kind = match of {
            Target::File(_) => Some(FileType::File),
            Target::Dir(_) => Some(FileType::Dir),
            _ => None,
        };
        let of = self.resolve(of);
        let kind = match kind {
            Some(kind) => kind,
            None => self.raw_stat(&of)?.kind,
        };
        self.apply_attr(&of, kind, attr)
    }

    fn xattr(&self, of: Target<'_, Self>, name: &[u8]) -> Result<Vec<u8>> {
        if self.space.is_private(name) {
            return Err(Errno::ENODATA.into());
        }
        marks::get(&self.resolve(of), name)?.ok_or(Error::Answer(Errno::ENODATA))
    }

    fn xattr_names(&self, of: Target<'_, Self>) -> Result<Vec<Vec<u8>>> {
        let mut names = marks::list(&self.resolve(of))?;
        names.retain(|name| !self.space.is_private(name));
        Ok(names)
    }

    fn set_xattr(&self, of: Target<'_, Self>, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        if self.space.is_private(name) {
            return Err(Errno::EPERM.into());
        }
        marks::set(&self.resolve(of), name, value, how)
    }

    fn remove_xattr(&self, of: Target<'_, Self>, name: &[u8]) -> Result<()> {
        if self.space.is_private(name) {
            return Err(Errno::EPERM.into());
        }
        marks::remove(&self.resolve(of), name)
    }

    fn set_lower_names(&self, of: Target<'_, Self>, count: u32) -> Result<()> {
        let of = self.resolve(of);
        if !self.space.marks_all() {
            let stat = self.raw_stat(&of)?;
            if let Some(record) = self.unmarked.lock().get_mut(&stat.ino.0) {
                record.lower_names = count;
                return Ok(());
            }
        }
        let record = self.space.origin(&of)?;
        self.space.set_origin(&of, &marks::OriginRecord { lower_names: count, ..record })
    }

    fn sync_dir(&self, dir: &DirFd) -> Result<()> {
        if self.durability == Durability::Volatile {
            return Ok(());
        }
        rustix::fs::fsync(dir).map_err(|raw| error(|| "sync a directory of the upper".into(), raw))
    }

    fn statfs(&self) -> Result<StatFs> {
        let vfs = rustix::fs::fstatvfs(&self.root).map_err(|raw| error(|| "statfs of the upper".into(), raw))?;
        Ok(StatFs {
            block: u32::try_from(vfs.f_frsize).unwrap_or(4096),
            blocks: vfs.f_blocks,
            free: vfs.f_bfree,
            available: vfs.f_bavail,
            files: vfs.f_files,
            files_free: vfs.f_ffree,
        })
    }

    fn has_acls(&self) -> bool {
        true
    }

    fn rest(&self) -> Result<()> {
        self.settle_copies()
    }
}
