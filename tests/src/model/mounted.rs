//! The union through a real mount, by system calls, beside the kernel's own overlayfs.
//!
//! The program that uses this is the daemon too: its `main` hands over to `mountd::run_from_args` when its first word is
//! [`mountd::DAEMON_WORD`]. Nothing stays mounted and no process stays, also after a panic.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path as FsPath, PathBuf};

use layer::{Dev, FileType, Time};
use mountd::mount::{Unmount, unmount};
use overlay::upper::{Seek, SetXattr};
use overlay::{Access, Caller, Errno, RenameFlags};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType as RawType, Gid, Mode, OFlags, RawDir, RenameFlags as RawFlags, SeekFrom,
    Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno as Raw;
use rustix::mount::MountFlags;

use super::dirs;
use super::kernel::{Failed, Got};
use super::op::{Handle, Kind, Op, Path};
use super::run::Subject;
use super::view::{Found, Scope, Seen, View};

/// Who serves a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// Our daemon, with these options beside the directories.
    Ours(Vec<OsString>),
    /// The kernel's overlayfs, with these options.
    Kernel(String),
}

/// The directories of a mount.
#[derive(Clone, Debug)]
pub struct Place {
    /// The layers, topmost first.
    pub layers: Vec<PathBuf>,
    /// The writable side.
    pub upper: PathBuf,
    /// Where it is prepared.
    pub work: PathBuf,
    /// Where it is seen.
    pub target: PathBuf,
}

impl Place {
    fn log(&self) -> PathBuf {
        self.target.with_extension("log")
    }
}

/// A mount, taken away when it is dropped.
struct Mount {
    target: PathBuf,
    daemon: Option<(mountd::Mounted, PathBuf)>,
}

impl Mount {
    fn new(server: &Server, place: &Place) -> Result<Self, String> {
        let target = place.target.clone();
        match server {
            Server::Ours(options) => {
                let mut words: Vec<OsString> = vec![
                    "-o".into(),
                    mountd::options::spell_list("lowerdir", &place.layers),
                    "-o".into(),
                    mountd::options::spell("upperdir", &place.upper),
                    "-o".into(),
                    mountd::options::spell("workdir", &place.work),
                ];
                let log = place.log();
                words.extend(["-o".into(), mountd::options::spell("plyfs.log", &log)]);
                words.extend(options.iter().flat_map(|option| ["-o".into(), option.clone()]));
                words.push(target.clone().into());
                let daemon = mountd::spawn(FsPath::new("/proc/self/exe"), &words).map_err(|error| error.to_string())?;
                Ok(Mount { target, daemon: Some((daemon, log)) })
            }
            Server::Kernel(options) => {
                let layers: Vec<_> = place.layers.iter().map(|layer| layer.display().to_string()).collect();
                let data = format!(
                    "lowerdir={},upperdir={},workdir={},{options}",
                    layers.join(":"),
                    place.upper.display(),
                    place.work.display()
                );
                let data = std::ffi::CString::new(data).map_err(|error| error.to_string())?;
                rustix::mount::mount("overlay", &target, "overlay", MountFlags::empty(), Some(data.as_c_str()))
                    .map_err(|error| format!("the kernel's overlayfs: {error}"))?;
                Ok(Mount { target, daemon: None })
            }
        }
    }

    /// Unmounts in order, and waits until the upper is at rest.
    fn end(mut self) -> Result<(), String> {
        unmount(&self.target, Unmount::WhenIdle).map_err(|error| error.to_string())?;
        let Some((daemon, log)) = self.daemon.take() else { return Ok(()) };
        match daemon.wait() {
            Ok(status) if status.success() => Ok(()),
            ended => {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                Err(format!("the daemon ended with {ended:?}, and said:\n{said}"))
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // After `end` there is nothing left to take away.
        unmount(&self.target, Unmount::Lazily).ok();
        if let Some((daemon, _)) = self.daemon.take() {
            if let Some(pid) = rustix::process::Pid::from_raw(daemon.pid().cast_signed()) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
            daemon.wait().ok();
        }
    }
}

/// A mounted union that operations are done to.
pub struct Mounted {
    server: Server,
    place: Place,
    mount: Option<Mount>,
    files: BTreeMap<Handle, OwnedFd>,
    dirs: BTreeMap<Handle, OwnedFd>,
}

type Done<T> = Result<T, Failed>;

fn failed(raw: Raw) -> Failed {
    match raw {
        Raw::IO | Raw::STALE | Raw::NOTCONN => Failed::Fault(format!("the mount answers {raw}")),
        _ => Failed::Answer(Errno(raw.raw_os_error())),
    }
}

fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn seen(stat: &rustix::fs::Stat) -> Seen {
    let time = |sec, nsec: u64| Time { sec, nsec: nsec as u32 };
    Seen {
        ino: stat.st_ino,
        node: None,
        kind: FileType::from_mode(stat.st_mode).expect("the kernel knows kinds"),
        perm: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: stat.st_nlink as u32,
        size: stat.st_size as u64,
        rdev: Dev { major: rustix::fs::major(stat.st_rdev), minor: rustix::fs::minor(stat.st_rdev) },
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

impl Mounted {
    /// Mounts.
    ///
    /// # Errors
    /// In words.
    pub fn new(server: Server, place: Place) -> Result<Self, String> {
        let mount = Some(Mount::new(&server, &place)?);
        Ok(Mounted { server, place, mount, files: BTreeMap::new(), dirs: BTreeMap::new() })
    }

    /// Unmounts in order.
    ///
    /// # Errors
    /// In words.
    pub fn end(&mut self) -> Result<(), String> {
        self.files.clear();
        self.dirs.clear();
        self.mount.take().map_or(Ok(()), Mount::end)
    }

    /// Returns where it is seen.
    pub fn target(&self) -> &FsPath {
        &self.place.target
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.place.target.join(name(&path.0))
    }

    /// Opens the directory of a path, no link followed, and returns the last name; the root is `.` in itself.
    fn walk<'a>(&self, path: &'a Path) -> Done<(OwnedFd, &'a OsStr)> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir = rustix::fs::open(&self.place.target, flags, Mode::empty()).map_err(failed)?;
        let names: Vec<_> = path.names().collect();
        let Some((last, above)) = names.split_last() else { return Ok((dir, OsStr::new("."))) };
        for part in above {
            dir = rustix::fs::openat(&dir, name(part), flags, Mode::empty()).map_err(failed)?;
        }
        Ok((dir, name(last)))
    }

    fn look(&self, path: &Path) -> Done<Seen> {
        let (dir, last) = self.walk(path)?;
        let stat = rustix::fs::statat(&dir, last, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        Ok(seen(&stat))
    }

    fn file(&self, handle: Handle) -> Done<&OwnedFd> {
        self.files.get(&handle).ok_or(Failed::Answer(Errno::EBADF))
    }

    fn dir(&self, handle: Handle) -> Done<&OwnedFd> {
        self.dirs.get(&handle).ok_or(Failed::Answer(Errno::EBADF))
    }

    fn stat_file(&self, handle: Handle) -> Result<Got, Failed> {
        Ok(Got::Attr(seen(&rustix::fs::fstat(self.file(handle)?).map_err(failed)?)))
    }

    fn perform(&mut self, op: &Op) -> Result<Got, Failed> {
        match op {
            Op::Look(path) => Ok(Got::Attr(self.look(path)?)),
            Op::Create(handle, path, perm, caller) => {
                let (dir, last) = self.walk(path)?;
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd =
                    masked(*caller, || rustix::fs::openat(&dir, last, flags, Mode::from_raw_mode((*perm).into())))?;
                self.files.insert(*handle, fd);
                self.stat_file(*handle)
            }
            Op::Make(path, perm, caller, kind) => {
                let (dir, last) = self.walk(path)?;
                make(&dir, last, *perm, *caller, kind)?;
                Ok(Got::Attr(self.look(path)?))
            }
            Op::Link(from, to) => {
                let (from_dir, from_name) = self.walk(from)?;
                let found = rustix::fs::statat(&from_dir, from_name, AtFlags::SYMLINK_NOFOLLOW);
                found.map_err(failed)?;
                let (to_dir, to_name) = self.walk(to)?;
                rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty()).map_err(failed)?;
                Ok(Got::Attr(self.look(to)?))
            }
            Op::LinkOpen(handle, to) => {
                let from = fd_path(self.file(*handle)?);
                let (to_dir, to_name) = self.walk(to)?;
                rustix::fs::linkat(CWD, &from, &to_dir, to_name, AtFlags::SYMLINK_FOLLOW).map_err(failed)?;
                Ok(Got::Attr(self.look(to)?))
            }
            Op::Unlink(path) => self.unlink(path, AtFlags::empty()),
            Op::Rmdir(path) => self.unlink(path, AtFlags::REMOVEDIR),
            Op::Rename(from, to, flags) => self.rename(from, to, *flags),
            Op::Chmod(..) | Op::Chown(..) | Op::Utimens(..) | Op::Truncate(..) => self.change(op),
            Op::ChmodOpen(handle, perm) => {
                rustix::fs::fchmod(self.file(*handle)?, Mode::from_raw_mode((*perm).into())).map_err(failed)?;
                self.stat_file(*handle)
            }
            Op::ChownOpen(handle, uid, gid) => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::fchown(self.file(*handle)?, uid, gid).map_err(failed)?;
                self.stat_file(*handle)
            }
            Op::SetXattr(path, attribute, value, how) => {
                let flags = match how {
                    SetXattr::Any => XattrFlags::empty(),
                    SetXattr::Create => XattrFlags::CREATE,
                    SetXattr::Replace => XattrFlags::REPLACE,
                };
                self.look(path)?;
                rustix::fs::lsetxattr(self.at(path), name(&attribute.0), value, flags).map_err(failed)?;
                Ok(Got::Done)
            }
            Op::RemoveXattr(path, attribute) => {
                self.look(path)?;
                rustix::fs::lremovexattr(self.at(path), name(&attribute.0)).map_err(failed)?;
                Ok(Got::Done)
            }
            Op::Open(handle, path, access, _) => {
                let (dir, last) = self.walk(path)?;
                let flags = match access {
                    Access::Read => OFlags::RDONLY,
                    Access::Write => OFlags::RDWR,
                    Access::Truncate => OFlags::RDWR | OFlags::TRUNC,
                };
                let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let fd = rustix::fs::openat(&dir, last, flags, Mode::empty()).map_err(failed)?;
                self.files.insert(*handle, fd);
                Ok(Got::Done)
            }
            Op::Close(handle) => {
                self.files.remove(handle);
                Ok(Got::Done)
            }
            Op::DirOpen(..) | Op::DirNext(..) | Op::DirRewind(_) | Op::MkdirAt(..) | Op::DirClose(_) => self.dir_op(op),
            Op::Forget(_) => {
                // The kernel shrinks its cache of names when a filesystem is remounted (reconfigure_super).
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                rustix::mount::mount_remount(&self.place.target, flags, "").map_err(failed)?;
                Ok(Got::Done)
            }
            Op::Remount | Op::Rest => Err(Errno::EINVAL.into()),
            _ => self.file_op(op),
        }
    }

    fn unlink(&self, path: &Path, flags: AtFlags) -> Result<Got, Failed> {
        let (dir, last) = self.walk(path)?;
        rustix::fs::unlinkat(&dir, last, flags).map_err(failed)?;
        Ok(Got::Done)
    }

    fn rename(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<Got, Failed> {
        let ((from_dir, from_name), (to_dir, to_name)) = (self.walk(from)?, self.walk(to)?);
        let flags = match flags {
            RenameFlags::Replace => RawFlags::empty(),
            RenameFlags::NoReplace => RawFlags::NOREPLACE,
            RenameFlags::Exchange => RawFlags::EXCHANGE,
        };
        rustix::fs::renameat_with(&from_dir, from_name, &to_dir, to_name, flags).map_err(failed)?;
        Ok(Got::Done)
    }

    fn change(&self, op: &Op) -> Result<Got, Failed> {
        let (Op::Chmod(path, _) | Op::Chown(path, ..) | Op::Utimens(path, ..) | Op::Truncate(path, ..)) = op else {
            return Err(Errno::EINVAL.into());
        };
        let kind = self.look(path)?.kind;
        let (dir, last) = self.walk(path)?;
        match op {
            Op::Chmod(..) if kind == FileType::Symlink => return Err(Errno::EOPNOTSUPP.into()),
            Op::Chmod(_, perm) => {
                rustix::fs::chmodat(&dir, last, Mode::from_raw_mode((*perm).into()), AtFlags::empty())
            }
            Op::Chown(_, uid, gid) => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(&dir, last, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
            Op::Utimens(_, atime, mtime) => {
                let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
                rustix::fs::utimensat(&dir, last, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Op::Truncate(_, size, _) => {
                match kind {
                    FileType::File => {}
                    FileType::Dir => return Err(Errno::EISDIR.into()),
                    _ => return Err(Errno::EINVAL.into()),
                }
                let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&dir, last, flags, Mode::empty()).and_then(|fd| rustix::fs::ftruncate(&fd, *size))
            }
            _ => Ok(()),
        }
        .map_err(failed)?;
        Ok(Got::Attr(self.look(path)?))
    }

    fn file_op(&self, op: &Op) -> Result<Got, Failed> {
        match op {
            Op::Read(handle, offset, len) => Ok(Got::Bytes(read(self.file(*handle)?, *offset, *len)?)),
            Op::Write(handle, offset, fill, _) => {
                let count = rustix::io::pwrite(self.file(*handle)?, &fill.bytes(), *offset).map_err(failed)?;
                Ok(Got::Count(count as u64))
            }
            Op::TruncateOpen(handle, size, _) => {
                rustix::fs::ftruncate(self.file(*handle)?, *size).map_err(failed)?;
                self.stat_file(*handle)
            }
            Op::SetXattrOpen(handle, attribute, value) => {
                let done = rustix::fs::fsetxattr(self.file(*handle)?, name(&attribute.0), value, XattrFlags::empty());
                done.map_err(failed)?;
                Ok(Got::Done)
            }
            Op::Stat(handle) => self.stat_file(*handle),
            Op::XattrsOpen(handle) => Ok(Got::Xattrs(fxattrs(self.file(*handle)?).map_err(failed)?)),
            Op::Sync(handle) => {
                rustix::fs::fsync(self.file(*handle)?).map_err(failed)?;
                Ok(Got::Done)
            }
            Op::Seek(handle, offset, what) => {
                let from = match what {
                    Seek::Data => SeekFrom::Data(*offset),
                    Seek::Hole => SeekFrom::Hole(*offset),
                };
                Ok(Got::Count(rustix::fs::seek(self.file(*handle)?, from).map_err(failed)?))
            }
            Op::Allocate(handle, mode, offset, len) => {
                let mode = FallocateFlags::from_bits_retain(*mode as u32);
                rustix::fs::fallocate(self.file(*handle)?, mode, *offset, *len).map_err(failed)?;
                Ok(Got::Done)
            }
            Op::CopyRange(from, from_at, to, to_at, len) => {
                let (mut from_at, mut to_at) = (*from_at, *to_at);
                let (from, to) = (self.file(*from)?, self.file(*to)?);
                let copied = rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), *len);
                Ok(Got::Count(copied.map_err(failed)? as u64))
            }
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn dir_op(&mut self, op: &Op) -> Result<Got, Failed> {
        match op {
            Op::DirOpen(handle, path) => {
                let (dir, last) = self.walk(path)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&dir, last, flags, Mode::empty()).map_err(failed)?;
                self.dirs.insert(*handle, fd);
                Ok(Got::Done)
            }
            Op::DirNext(handle, _) => {
                // As many as a small buffer takes.
                let mut buffer = [const { MaybeUninit::uninit() }; 320];
                let mut entries = RawDir::new(self.dir(*handle)?, &mut buffer);
                let (mut names, mut any) = (Vec::new(), false);
                while let Some(entry) = entries.next() {
                    let entry = entry.map_err(failed)?;
                    any = true;
                    let name = entry.file_name().to_bytes().to_vec();
                    if name != b"." && name != b".." {
                        names.push(name);
                    }
                    if entries.is_buffer_empty() {
                        break;
                    }
                }
                Ok(Got::Names(names, !any))
            }
            Op::DirRewind(handle) => {
                rustix::fs::seek(self.dir(*handle)?, SeekFrom::Start(0)).map_err(failed)?;
                Ok(Got::Done)
            }
            Op::MkdirAt(handle, child) => {
                let caller = Caller { umask: 0o022, ..Caller::default() };
                make(self.dir(*handle)?, name(&child.0), 0o777, caller, &Kind::Dir)?;
                let stat = rustix::fs::statat(self.dir(*handle)?, name(&child.0), AtFlags::SYMLINK_NOFOLLOW);
                Ok(Got::Attr(seen(&stat.map_err(failed)?)))
            }
            Op::DirClose(handle) => {
                self.dirs.remove(handle);
                Ok(Got::Done)
            }
            _ => Err(Errno::EINVAL.into()),
        }
    }
}

/// Runs with the caller's mask; nothing else in this program makes files meanwhile.
fn masked<T>(caller: Caller, run: impl FnOnce() -> rustix::io::Result<T>) -> Done<T> {
    let before = rustix::process::umask(Mode::from_raw_mode(caller.umask));
    let done = run();
    rustix::process::umask(before);
    done.map_err(failed)
}

fn make(dir: &OwnedFd, last: &OsStr, perm: u16, caller: Caller, kind: &Kind) -> Done<()> {
    let mode = Mode::from_raw_mode(perm.into());
    masked(caller, || match kind {
        Kind::File => rustix::fs::mknodat(dir, last, RawType::RegularFile, mode, 0),
        Kind::Dir => rustix::fs::mkdirat(dir, last, mode),
        Kind::Symlink(target) => rustix::fs::symlinkat(name(&target.0), dir, last),
        Kind::Device(kind, dev) => {
            let raw = if *kind == FileType::Char { RawType::CharacterDevice } else { RawType::BlockDevice };
            rustix::fs::mknodat(dir, last, raw, mode, rustix::fs::makedev(dev.major, dev.minor))
        }
        Kind::Special(kind) => {
            let raw = if *kind == FileType::Fifo { RawType::Fifo } else { RawType::Socket };
            rustix::fs::mknodat(dir, last, raw, mode, 0)
        }
    })
}

fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn timespec(time: &Option<Time>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(time) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
    }
}

fn read(fd: impl AsFd, offset: u64, len: usize) -> Done<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match rustix::io::pread(&fd, &mut bytes[done..], offset + done as u64).map_err(failed)? {
            0 => break,
            count => done += count,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

fn fxattrs(fd: &OwnedFd) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::flistxattr(fd, &mut names)?;
    let mut all = BTreeMap::new();
    for attribute in names[..len].split(|&b| b == 0).filter(|attribute| !attribute.is_empty()) {
        let mut value = vec![0; 65536];
        let len = rustix::fs::fgetxattr(fd, name(attribute), &mut value)?;
        value.truncate(len);
        all.insert(attribute.to_vec(), value);
    }
    Ok(all)
}

/// What to do about a name that is listed and not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ghosts {
    /// It is an error.
    Refuse,
    /// Leave it out: the kernel's overlayfs lists whiteouts of directories that nothing is merged with.
    Ignore,
}

/// Looks at a directory and all below it.
///
/// # Errors
/// In words.
pub fn look_at(top: &FsPath, ghosts: Ghosts) -> Result<View, String> {
    let mut view = View::new();
    let mut todo = vec![(Path(Vec::new()), top.to_path_buf(), None)];
    while let Some((path, real, entry)) = todo.pop() {
        let found = match found(&real, entry) {
            Err(Raw::NOENT) if ghosts == Ghosts::Ignore => continue,
            found => found.map_err(|raw| format!("{path:?}: {raw}"))?,
        };
        if found.seen.kind == FileType::Dir {
            let entries = entries(&real).map_err(|raw| format!("{path:?}: {raw}"))?;
            for (child, ino, kind) in entries {
                todo.push((path.join(&child), real.join(name(&child)), Some((ino, kind))));
            }
        }
        view.insert(path, found);
    }
    Ok(view)
}

fn is_spare(ino: u64) -> bool {
    ino & (overlay::BORN | overlay::SPARE) == overlay::SPARE
}

fn entries(dir: &FsPath) -> rustix::io::Result<Vec<(Vec<u8>, u64, FileType)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())?;
    let mut buffer = [const { MaybeUninit::uninit() }; 4096];
    let mut raw = RawDir::new(&fd, &mut buffer);
    let mut all = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            RawType::RegularFile => FileType::File,
            RawType::Directory => FileType::Dir,
            RawType::Symlink => FileType::Symlink,
            RawType::Fifo => FileType::Fifo,
            RawType::Socket => FileType::Socket,
            RawType::CharacterDevice => FileType::Char,
            RawType::BlockDevice => FileType::Block,
            RawType::Unknown => return Err(Raw::INVAL),
        };
        all.push((name.to_vec(), entry.ino(), kind));
    }
    Ok(all)
}

fn found(path: &FsPath, entry: Option<(u64, FileType)>) -> rustix::io::Result<Found> {
    let stat = rustix::fs::lstat(path)?;
    let seen = seen(&stat);
    let data = match seen.kind {
        FileType::Symlink => rustix::fs::readlink(path, Vec::new())?.into_bytes(),
        FileType::File => {
            let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            read(&fd, 0, seen.size as usize + 16).map_err(|_| Raw::IO)?
        }
        _ => Vec::new(),
    };
    let io = |error: std::io::Error| Raw::from_io_error(&error).unwrap_or(Raw::IO);
    let xattrs = dirs::xattrs(path).map_err(io)?;
    Ok(Found { seen, data, xattrs, entry, numbered: true })
}

impl Subject for Mounted {
    fn now(&self) -> Time {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Time { sec: now.tv_sec, nsec: now.tv_nsec as u32 }
    }

    fn run(&mut self, op: &Op) -> Result<Got, Failed> {
        self.perform(op)
    }

    fn remount(&mut self) -> Result<(), String> {
        self.end()?;
        self.mount = Some(Mount::new(&self.server, &self.place)?);
        Ok(())
    }

    fn rest(&mut self) -> Result<(), String> {
        self.remount()
    }

    fn view(&mut self) -> Result<View, String> {
        let mut view = look_at(&self.place.target, Ghosts::Refuse)?;
        // Where the kernel still holds a removed inode of the same number, another stands for it, and programs can see that:
        // in listings with attributes, and after a create, until the inode is asked for.
        view.values_mut().for_each(|found| {
            found.entry = found.entry.filter(|(ino, _)| !is_spare(*ino) && !is_spare(found.seen.ino));
            found.numbered = !is_spare(found.seen.ino);
        });
        Ok(view)
    }

    fn scope(&self) -> Scope {
        Scope { dir_links: false, atime: false, ..Scope::ALL }
    }
}
