//! Copying a directory of a mounted image, with all that belongs to it: owners, modes, times, attributes, hard links.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use backing::sys;
use layer::{FileType, Stat};
use rustix::fs::{AtFlags, FileType as RawType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::disk::{self, DIRECTORY, Identity};
use crate::error::{Error, Result, shown};

/// As much of a path as a system call is given: less than `PATH_MAX`, more than a name can have.
const STRIDE: usize = 4000;

/// Copies what is in `from`, and what `from` itself is, to the empty directory `to`. The depth is not limited: a few descriptors
/// do for any.
///
/// # Errors
/// The disk, the image. Sockets are left out; devices and attributes that an ordinary user cannot make are told and left out.
pub(super) fn content(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let mut copy = Copy { top: to.as_fd(), linked: HashMap::new() };
    let mut path = Vec::new();
    let mut at = open_both(from.as_fd(), to.as_fd(), b".", &path)?;
    let mut levels = vec![Level::of(&at, 0, &path)?];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path);
        if let Some(name) = level.names.pop() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(&name);
            if let Some(below) = copy.entry(at.0.as_fd(), at.1.as_fd(), &name, &path)? {
                at = below;
                levels.push(Level::of(&at, path.len(), &path)?);
            }
            continue;
        }
        dress_directory(at.0.as_fd(), at.1.as_fd(), &path)?;
        levels.pop();
        if let Some(level) = levels.last() {
            let above = |dir, known| disk::above(dir, known, DIRECTORY).map_err(failed("leave", &path));
            let (Some(from), Some(to)) = (above(&at.0, level.identity.0)?, above(&at.1, level.identity.1)?) else {
                return Err(failed("leave", &path)(io::Error::other("the directory was moved meanwhile")));
            };
            at = (from, to);
        }
    }
    Ok(())
}

/// A directory that is being copied: the image's and ours.
type Both = (OwnedFd, OwnedFd);

/// One of the directories from the top to where the copy is.
struct Level {
    /// What it has left to copy.
    names: Vec<Vec<u8>>,
    /// Length of its path.
    path: usize,
    /// What both are, to be known again from below.
    identity: (Identity, Identity),
}

impl Level {
    fn of((from, to): &Both, length: usize, path: &[u8]) -> Result<Self> {
        let mut names = Vec::new();
        let listed = sys::read_dir(from, |entry| {
            names.push(entry.name.to_vec());
            ControlFlow::Continue(())
        });
        listed.map_err(failed("list", path))?;
        names.reverse();
        let identity = |dir| disk::identity(dir).map_err(failed("look at", path));
        Ok(Level { names, path: length, identity: (identity(from)?, identity(to)?) })
    }
}

fn open_both(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Both> {
    let open =
        |dir: BorrowedFd<'_>| rustix::fs::openat(dir, name, DIRECTORY, Mode::empty()).map_err(failed("open", path));
    Ok((open(from)?, open(to)?))
}

struct Copy<'a> {
    top: BorrowedFd<'a>,
    /// Of files with several names, by inode number: the path of the first.
    linked: HashMap<u64, Vec<u8>>,
}

impl Copy<'_> {
    /// Copies one entry; a directory is made and returned open, still empty.
    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Option<Both>> {
        let stat = sys::stat_at(from, name).map_err(failed("look at", path))?.stat;
        if stat.kind != FileType::Dir
            && let Some(first) = self.linked.get(&stat.ino.0)
        {
            link(self.top, first, to, name).map_err(failed("link", path))?;
            return Ok(None);
        }
        match stat.kind {
            FileType::Dir => {
                rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(failed("make directory", path))?;
                return open_both(from, to, name, path).map(Some);
            }
            FileType::File => body(from, to, name).map_err(failed("copy", path))?,
            FileType::Symlink => {
                let target = sys::read_link_at(from, name).map_err(failed("read link", path))?;
                rustix::fs::symlinkat(&target[..], to, name).map_err(failed("make link", path))?;
            }
            FileType::Socket => return Ok(None),
            FileType::Fifo | FileType::Char | FileType::Block => {
                let device = rustix::fs::makedev(stat.rdev.major, stat.rdev.minor);
                let kind = RawType::from_raw_mode(stat.kind.mode_bits());
                match rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, device) {
                    Err(Errno::PERM) => {
                        log::warn!("device {} is left out for want of privilege", shown(path));
                        return Ok(None);
                    }
                    made => made.map_err(failed("make", path))?,
                }
            }
        }
        // Not before: what is left out has no name that others could be linked to.
        if stat.nlink > 1 {
            self.linked.insert(stat.ino.0, path.to_vec());
        }
        dress(from, to, name, path, &stat)?;
        Ok(None)
    }
}

/// Links to `first`, a path below `top` of any length.
fn link(top: BorrowedFd<'_>, mut first: &[u8], to: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let mut reached = None::<OwnedFd>;
    while first.len() > STRIDE
        && let Some(slash) = first[..STRIDE].iter().rposition(|&byte| byte == b'/')
    {
        let flags = DIRECTORY | OFlags::PATH;
        let dir = reached.as_ref().map_or(top, AsFd::as_fd);
        reached = Some(rustix::fs::openat(dir, &first[..slash], flags, Mode::empty())?);
        first = &first[slash + 1..];
    }
    rustix::fs::linkat(reached.as_ref().map_or(top, AsFd::as_fd), first, to, name, AtFlags::empty())
}

/// Gives a directory that is filled what the image's has.
fn dress_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
    let stat = sys::stat_of(from).map_err(failed("look at", path))?.stat;
    let attributes = sys::xattr_names_of(from).map_err(failed("read the attributes of", path))?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))
        .map_err(failed("set the owner of", path))?;
    for name in split(&attributes) {
        let value = sys::xattr_of(from, name).map_err(failed("read the attributes of", path))?;
        let set = |value: Vec<u8>| sys::set_xattr_of(to, name, &value, XattrFlags::empty());
        kept(value.map_or(Ok(()), set), name, path)?;
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.perm.into())).map_err(failed("change the mode of", path))?;
    rustix::fs::futimens(to, &times(&stat)).map_err(failed("set the times of", path))
}

fn body(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut from = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
    let mut to = File::from(rustix::fs::openat(to, name, write, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut from, &mut to)?;
    Ok(())
}

/// Gives a name that was just made what the image's has.
fn dress(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8], path: &[u8], stat: &Stat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set the owner of", path))?;
    // A change of owner takes capabilities and set-user-ID bits, so these come after it.
    let attributes = sys::xattr_names_at(from, name).map_err(failed("read the attributes of", path))?;
    for attribute in split(&attributes) {
        let value = sys::xattr_at(from, name, attribute).map_err(failed("read the attributes of", path))?;
        let set = |value: Vec<u8>| sys::set_xattr_at(to, name, attribute, &value, XattrFlags::empty());
        kept(value.map_or(Ok(()), set), attribute, path)?;
    }
    if stat.kind != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.perm.into());
        rustix::fs::chmodat(to, name, mode, AtFlags::empty()).map_err(failed("change the mode of", path))?;
    }
    rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set the times of", path))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |time: layer::Time| Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() };
    Timestamps { last_access: time(stat.atime), last_modification: time(stat.mtime) }
}

fn split(names: &[u8]) -> impl Iterator<Item = &[u8]> {
    // The host's policy labels what is new by itself.
    names.split(|&byte| byte == 0).filter(|name| !name.is_empty() && *name != b"security.selinux")
}

fn kept(set: rustix::io::Result<()>, attribute: &[u8], path: &[u8]) -> Result<()> {
    match set {
        // Not everybody may set all of them, and not every filesystem has them.
        Err(Errno::PERM | Errno::OPNOTSUPP) => {
            log::warn!("{}: '{}' is lost for want of privilege", shown(path), shown(attribute));
            Ok(())
        }
        set => set.map_err(failed("set an extended attribute of", path)),
    }
}

fn failed<E: Into<io::Error>>(verb: &str, path: &[u8]) -> impl FnOnce(E) -> Error {
    move |cause| Error::io(format!("{verb} '{}'", shown(path)), cause)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::disk::Deep;

    fn scratch() -> (tempfile::TempDir, [Deep; 2]) {
        let scratch = tempfile::tempdir().unwrap();
        let made = ["from", "to"].map(|name| Deep::new(scratch.path().join(name)));
        (scratch, made)
    }

    #[test]
    fn a_tree_of_any_depth_is_copied_with_its_links() {
        const DEPTH: usize = 3000;
        let (_scratch, [from, to]) = scratch();
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let dir = from.dig(DEPTH);
        let file = rustix::fs::openat(&dir, "first", write, Mode::RUSR).unwrap();
        rustix::io::write(&file, b"deep").unwrap();
        rustix::fs::linkat(&dir, "first", &dir, "second", AtFlags::empty()).unwrap();

        content(&from.open(), &to.open()).unwrap();

        let mut dir = to.open();
        for _ in 0..DEPTH {
            dir = rustix::fs::openat(&dir, "down", DIRECTORY, Mode::empty()).unwrap();
        }
        let [first, second] = ["first", "second"].map(|name| sys::stat_at(&dir, name.as_bytes()).unwrap().stat);
        assert_eq!((first.size, first.nlink), (4, 2));
        assert_eq!(second.ino, first.ino);
    }

    #[test]
    fn a_special_file_that_is_left_out_is_under_none_of_its_names() {
        let (_scratch, [from, to]) = scratch();
        std::fs::create_dir(from.0.join("below")).unwrap();
        let _socket = UnixListener::bind(from.0.join("one")).unwrap();
        std::fs::hard_link(from.0.join("one"), from.0.join("two")).unwrap();
        std::fs::hard_link(from.0.join("one"), from.0.join("below/three")).unwrap();
        std::fs::write(from.0.join("file"), b"file").unwrap();

        content(&from.open(), &to.open()).unwrap();

        let names = |dir: std::path::PathBuf| {
            let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(to.0.clone()), ["below", "file"]);
        assert!(names(to.0.join("below")).is_empty());
    }
}
