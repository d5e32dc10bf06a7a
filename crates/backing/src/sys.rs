//! System calls relative to an open directory, in safe words.
//!
//! Owns how the disk is asked: every path is opened beneath a directory that the caller holds, no symbolic link is ever
//! followed, every descriptor is close-on-exec, and an interrupted call is made again. What an error number means to a
//! program is decided by the callers.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use layer::{Dev, FileType, Ino, Stat, Time};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::{Errno, Result, retry_on_intr};

/// The longest path that the kernel takes in one call, with its NUL (limits.h).
const PATH_MAX: usize = 4096;

/// Attributes of an inode and the device that it lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What lstat(2) tells; `ino` is the backing inode's own number.
    pub stat: Stat,
    /// `st_dev`.
    pub dev: u64,
}

/// One entry of a directory as getdents64(2) tells it.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// The name, whatever bytes the filesystem gives; never `.` or `..`.
    pub name: &'a [u8],
    /// The kind; `None` where the filesystem does not say (`DT_UNKNOWN`).
    pub kind: Option<FileType>,
    /// `d_ino`.
    pub ino: u64,
    /// `d_off`: where lseek(2) goes to read on behind this entry.
    pub next: u64,
}

/// Returns the union's own spelling of an error number.
pub fn errno(errno: Errno) -> overlay::Errno {
    overlay::Errno(errno.raw_os_error())
}

/// Makes a fault out of a failed call: `doing` (with a verb) was done to `what`.
///
/// Programs get `EIO`, never a number that reads as "no such file"; only what they can act on (no permission, out of memory
/// or descriptors) is passed on as it is.
pub fn fault(doing: &str, what: impl Display, failed: Errno) -> overlay::Error {
    let shown = match failed {
        Errno::ACCESS | Errno::PERM | Errno::NOMEM | Errno::MFILE | Errno::NFILE => errno(failed),
        _ => overlay::Errno::EIO,
    };
    overlay::Error::fault(format!("{doing} {what}"), shown, std::io::Error::from(failed))
}

/// Opens `path` (names joined by `/`; empty is `dir` itself) beneath `dir`; `O_CLOEXEC` and `O_NOFOLLOW` are added.
///
/// Paths of any length work.
///
/// # Errors
/// `ELOOP` for a symbolic link anywhere, `EXDEV` for a path that leads out, else as openat(2).
pub fn open_beneath(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    const WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
    let mut rest = path;
    let mut at: Option<OwnedFd> = None;
    while rest.len() >= PATH_MAX {
        let Some(cut) = rest[..PATH_MAX].iter().rposition(|&b| b == b'/') else { return Err(Errno::NAMETOOLONG) };
        at = Some(open_short(at.as_ref().map_or(dir.as_fd(), AsFd::as_fd), &rest[..cut], WAY)?);
        rest = &rest[cut + 1..];
    }
    open_short(at.as_ref().map_or(dir.as_fd(), AsFd::as_fd), rest, flags)
}

/// Set once the kernel has said that it has no openat2(2) (before 5.6).
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

fn open_short(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let path = if path.is_empty() { b"." } else { path };
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
                // EAGAIN: something was renamed meanwhile and the kernel could not be sure (openat2(2)).
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::NOSYS) => break NO_OPENAT2.store(true, Ordering::Relaxed),
                answer => return answer,
            }
        }
    }
    open_by_steps(dir, path, flags)
}

/// Does what openat2(2) does for [`open_beneath`], one name at a time.
fn open_by_steps(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    let mut names = path.split(|&b| b == b'/').filter(|name| !name.is_empty()).peekable();
    while let Some(name) = names.next() {
        if name == b".." {
            return Err(Errno::XDEV);
        }
        let here = at.as_ref().map_or(dir, AsFd::as_fd);
        let flags = if names.peek().is_some() { way } else { flags };
        let next = retry_on_intr(|| rustix::fs::openat(here, name, flags, Mode::empty()));
        // A link in the way is not a directory to O_DIRECTORY; say what openat2 says.
        at = Some(next.map_err(|failed| match failed {
            Errno::NOTDIR if is_link(here, name) => Errno::LOOP,
            other => other,
        })?);
    }
    at.ok_or(Errno::NOENT)
}

fn is_link(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    stat_at(dir, name).is_ok_and(|found| found.stat.kind == FileType::Symlink)
}

/// Returns the attributes of `name` in `dir`; of a symbolic link its own.
///
/// # Errors
/// As fstatat(2).
pub fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<Attributes> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    attributes(&retry_on_intr(|| rustix::fs::statat(&dir, name, flags))?)
}

/// Returns the attributes of what is open as `fd` (also by `O_PATH`).
///
/// # Errors
/// As fstat(2).
pub fn stat_of(fd: impl AsFd) -> Result<Attributes> {
    attributes(&retry_on_intr(|| rustix::fs::fstat(&fd))?)
}

// The fields' types differ between architectures.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
fn attributes(stat: &rustix::fs::Stat) -> Result<Attributes> {
    let time = |sec, nsec| Time { sec, nsec };
    let stat_of = |kind| Stat {
        ino: Ino(stat.st_ino),
        kind,
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: Dev { major: rustix::fs::major(stat.st_rdev), minor: rustix::fs::minor(stat.st_rdev) },
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
        atime: time(stat.st_atime.into(), stat.st_atime_nsec as u32),
        mtime: time(stat.st_mtime.into(), stat.st_mtime_nsec as u32),
        ctime: time(stat.st_ctime.into(), stat.st_ctime_nsec as u32),
    };
    // A kind that inode(7) does not know comes from a broken disk only.
    let kind = FileType::from_mode(stat.st_mode).ok_or(Errno::IO)?;
    Ok(Attributes { stat: stat_of(kind), dev: stat.st_dev })
}

/// Visits the entries of a directory that was just opened for reading, in the order of the filesystem.
///
/// # Errors
/// As getdents64(2); the entries visited until then are not all.
pub fn read_dir(dir: impl AsFd, mut visit: impl FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Result<()> {
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut entries = rustix::fs::RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let entry = DirEntry { name, kind: kind(entry.file_type()), ino: entry.ino(), next: entry.next_entry_cookie() };
        if visit(entry).is_break() {
            break;
        }
    }
    Ok(())
}

fn kind(kind: rustix::fs::FileType) -> Option<FileType> {
    use rustix::fs::FileType as F;
    Some(match kind {
        F::RegularFile => FileType::File,
        F::Directory => FileType::Dir,
        F::Symlink => FileType::Symlink,
        F::CharacterDevice => FileType::Char,
        F::BlockDevice => FileType::Block,
        F::Fifo => FileType::Fifo,
        F::Socket => FileType::Socket,
        F::Unknown => return None,
    })
}

/// Returns the target of the symbolic link `name` in `dir`.
///
/// # Errors
/// `EINVAL` if it is no link, else as readlinkat(2).
pub fn read_link_at(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    Ok(retry_on_intr(|| rustix::fs::readlinkat(&dir, name, Vec::new()))?.into_bytes())
}

/// Returns one extended attribute of `name` in `dir` (of a symbolic link its own); `None` if it has none of that name.
///
/// # Errors
/// As lgetxattr(2), but for `ENODATA` and `EOPNOTSUPP`.
pub fn xattr_at(dir: impl AsFd, name: &[u8], attribute: &[u8]) -> Result<Option<Vec<u8>>> {
    let path = through_proc(dir.as_fd(), Some(name));
    value(|buffer| rustix::fs::lgetxattr(&path[..], attribute, buffer))
}

/// Returns one extended attribute of what is open as `fd` (also by `O_PATH`); `None` if it has none of that name.
///
/// # Errors
/// As fgetxattr(2), but for `ENODATA` and `EOPNOTSUPP`.
pub fn xattr_of(fd: impl AsFd, attribute: &[u8]) -> Result<Option<Vec<u8>>> {
    let fd = fd.as_fd();
    match value(|buffer| rustix::fs::fgetxattr(fd, attribute, buffer)) {
        Err(Errno::BADF) => value(|buffer| rustix::fs::getxattr(&through_proc(fd, None)[..], attribute, buffer)),
        answer => answer,
    }
}

/// Returns the names of the extended attributes of `name` in `dir`, each ended by a NUL byte.
///
/// # Errors
/// As llistxattr(2), but for `EOPNOTSUPP`, which is no names.
pub fn xattr_names_at(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    let path = through_proc(dir.as_fd(), Some(name));
    Ok(value(|buffer| rustix::fs::llistxattr(&path[..], buffer))?.unwrap_or_default())
}

/// Returns the names of the extended attributes of what is open as `fd` (also by `O_PATH`), each ended by a NUL byte.
///
/// # Errors
/// As flistxattr(2), but for `EOPNOTSUPP`, which is no names.
pub fn xattr_names_of(fd: impl AsFd) -> Result<Vec<u8>> {
    let fd = fd.as_fd();
    let names = match value(|buffer| rustix::fs::flistxattr(fd, buffer)) {
        Err(Errno::BADF) => value(|buffer| rustix::fs::listxattr(&through_proc(fd, None)[..], buffer)),
        answer => answer,
    };
    Ok(names?.unwrap_or_default())
}

/// Sets one extended attribute of `name` in `dir`.
///
/// # Errors
/// As lsetxattr(2).
pub fn set_xattr_at(dir: impl AsFd, name: &[u8], attribute: &[u8], value: &[u8], how: XattrFlags) -> Result<()> {
    let path = through_proc(dir.as_fd(), Some(name));
    retry_on_intr(|| rustix::fs::lsetxattr(&path[..], attribute, value, how))
}

/// Sets one extended attribute of what is open as `fd` (also by `O_PATH`).
///
/// # Errors
/// As fsetxattr(2).
pub fn set_xattr_of(fd: impl AsFd, attribute: &[u8], value: &[u8], how: XattrFlags) -> Result<()> {
    let fd = fd.as_fd();
    match retry_on_intr(|| rustix::fs::fsetxattr(fd, attribute, value, how)) {
        Err(Errno::BADF) => retry_on_intr(|| rustix::fs::setxattr(&through_proc(fd, None)[..], attribute, value, how)),
        answer => answer,
    }
}

/// Removes one extended attribute of `name` in `dir`.
///
/// # Errors
/// As lremovexattr(2).
pub fn remove_xattr_at(dir: impl AsFd, name: &[u8], attribute: &[u8]) -> Result<()> {
    let path = through_proc(dir.as_fd(), Some(name));
    retry_on_intr(|| rustix::fs::lremovexattr(&path[..], attribute))
}

/// Removes one extended attribute of what is open as `fd` (also by `O_PATH`).
///
/// # Errors
/// As fremovexattr(2).
pub fn remove_xattr_of(fd: impl AsFd, attribute: &[u8]) -> Result<()> {
    let fd = fd.as_fd();
    match retry_on_intr(|| rustix::fs::fremovexattr(fd, attribute)) {
        Err(Errno::BADF) => retry_on_intr(|| rustix::fs::removexattr(&through_proc(fd, None)[..], attribute)),
        answer => answer,
    }
}

/// Reads up to `buf.len()` bytes at `offset`; 0 at the end.
///
/// # Errors
/// As pread(2).
pub fn read_at(fd: impl AsFd, buf: &mut [u8], offset: u64) -> Result<usize> {
    retry_on_intr(|| rustix::io::pread(&fd, &mut *buf, offset))
}

/// Spells `name` in the open directory `dir` (or what is open as `dir` itself) as a path: the calls for extended attributes
/// take no descriptor and name (setxattrat(2) came with 6.13).
fn through_proc(dir: BorrowedFd<'_>, name: Option<&[u8]>) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if let Some(name) = name {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// Fetches a value of unknown length; `None` when there is none.
fn value(fetch: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Option<Vec<u8>>> {
    let mut buffer = [0; 512];
    let mut large = Vec::new();
    let mut len = match retry_on_intr(|| fetch(&mut buffer)) {
        Err(Errno::RANGE) => 4096,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        answer => return answer.map(|len| Some(buffer[..len].to_vec())),
    };
    // The largest value and the longest list of names are 64 KiB (XATTR_SIZE_MAX, XATTR_LIST_MAX in limits.h), but
    // some filesystems list more.
    while len <= 16 << 20 {
        large.resize(len, 0);
        match retry_on_intr(|| fetch(&mut large)) {
            Err(Errno::RANGE) => len *= 4,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(other) => return Err(other),
            Ok(len) => {
                large.truncate(len);
                return Ok(Some(large));
            }
        }
    }
    Err(Errno::TOOBIG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open(path: &std::path::Path) -> OwnedFd {
        std::fs::File::open(path).unwrap().into()
    }

    #[test]
    fn paths_lead_neither_out_nor_through_links() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(top.path().join("in/a/b")).unwrap();
        std::fs::write(top.path().join("in/a/f"), b"x").unwrap();
        std::fs::write(top.path().join("out"), b"x").unwrap();
        symlink("a", top.path().join("in/link")).unwrap();
        symlink("../out", top.path().join("in/escape")).unwrap();
        let dir = open(&top.path().join("in"));
        for steps in [false, true] {
            let open = |path: &str| match steps {
                false => open_beneath(&dir, path.as_bytes(), OFlags::RDONLY),
                true => open_by_steps(dir.as_fd(), path.as_bytes(), OFlags::RDONLY | OFlags::NOFOLLOW),
            };
            assert!(open("a/f").is_ok() && open("a/b").is_ok());
            assert_eq!(open("../out").unwrap_err(), Errno::XDEV);
            assert_eq!(open("link/f").unwrap_err(), Errno::LOOP);
            assert_eq!(open("link").unwrap_err(), Errno::LOOP);
            assert_eq!(open("escape").unwrap_err(), Errno::LOOP);
            assert_eq!(open("a/f/x").unwrap_err(), Errno::NOTDIR);
            assert_eq!(open("a/none").unwrap_err(), Errno::NOENT);
        }
        assert!(open_beneath(&dir, b"link", OFlags::PATH).is_ok());
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_opened() {
        let top = tempfile::tempdir().unwrap();
        let mut at = open(top.path());
        let name = [b'n'; 200];
        let mut path = Vec::new();
        for _ in 0..50 {
            rustix::fs::mkdirat(&at, &name[..], Mode::from(0o755)).unwrap();
            at = open_beneath(&at, &name, OFlags::RDONLY).unwrap();
            path.extend_from_slice(&name);
            path.push(b'/');
        }
        path.pop();
        let found = open_beneath(open(top.path()), &path, OFlags::RDONLY).unwrap();
        assert_eq!(stat_of(&found).unwrap().stat.ino, stat_of(&at).unwrap().stat.ino);
    }

    #[test]
    fn attributes_are_told_to_the_nanosecond_also_before_1970() {
        let top = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(top.path().join("f")).unwrap();
        let before = std::time::UNIX_EPOCH - std::time::Duration::new(10, 250_000_000);
        file.set_modified(before).unwrap();
        let found = stat_at(open(top.path()), b"f").unwrap();
        assert_eq!(found.stat.mtime, Time { sec: -11, nsec: 750_000_000 });
        assert_eq!(found, stat_of(&file).unwrap());
    }

    #[test]
    fn attributes_with_a_name_are_read_by_name_and_by_descriptor() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("f"), b"").unwrap();
        let dir = open(top.path());
        let by_path = open_beneath(&dir, b"f", OFlags::PATH).unwrap();
        let long = vec![7; 2000];
        set_xattr_at(&dir, b"f", b"user.long", &long, XattrFlags::CREATE).unwrap();
        set_xattr_of(&by_path, b"user.b", b"", XattrFlags::empty()).unwrap();
        assert_eq!(xattr_at(&dir, b"f", b"user.long").unwrap(), Some(long));
        assert_eq!(xattr_of(&by_path, b"user.b").unwrap(), Some(Vec::new()));
        assert_eq!(xattr_of(open_beneath(&dir, b"f", OFlags::RDONLY).unwrap(), b"user.c").unwrap(), None);
        for names in [xattr_names_at(&dir, b"f").unwrap(), xattr_names_of(&by_path).unwrap()] {
            let mut names: Vec<_> = names.split(|&b| b == 0).filter(|n| n.starts_with(b"user.")).collect();
            names.sort();
            assert_eq!(names, [&b"user.b"[..], b"user.long"]);
        }
        remove_xattr_at(&dir, b"f", b"user.long").unwrap();
        remove_xattr_of(&by_path, b"user.b").unwrap();
        assert_eq!(xattr_at(&dir, b"f", b"user.b").unwrap(), None);
    }

    #[test]
    fn faults_never_read_as_absence() {
        let of = |failed| fault("open", "usr/bin", failed).errno();
        assert_eq!(of(Errno::NOENT), overlay::Errno::EIO);
        assert_eq!(of(Errno::NOTDIR), overlay::Errno::EIO);
        assert_eq!(of(Errno::ACCESS), overlay::Errno::EACCES);
        assert_eq!(fault("open", "usr/bin", Errno::IO).to_string(), "open usr/bin: Input/output error (os error 5)");
    }
}
