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

use crate::error::{Error, Result, shown};

/// Copies what is in `from`, and what `from` itself is, to the empty directory `to`.
///
/// # Errors
/// The disk, the image. Sockets are left out; devices and attributes that an ordinary user cannot make are told and left out.
pub(super) fn content(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let mut copy = Copy { top: to.as_fd(), linked: HashMap::new() };
    copy.directory(from.as_fd(), to.as_fd(), b"")
}

struct Copy<'a> {
    top: BorrowedFd<'a>,
    /// Of files with several names, by inode number: the path of the first.
    linked: HashMap<u64, Vec<u8>>,
}

impl Copy<'_> {
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        let mut names = Vec::new();
        let listed = sys::read_dir(from, |entry| {
            names.push(entry.name.to_vec());
            ControlFlow::Continue(())
        });
        listed.map_err(failed("list", path))?;
        for name in names {
            let below = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            self.entry(from, to, &name, &below)?;
        }
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

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        let stat = sys::stat_at(from, name).map_err(failed("look at", path))?.stat;
        if stat.kind != FileType::Dir
            && let Some(first) = self.linked.get(&stat.ino.0)
        {
            return rustix::fs::linkat(self.top, &first[..], to, name, AtFlags::empty()).map_err(failed("link", path));
        }
        match stat.kind {
            FileType::Dir => {
                rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(failed("make directory", path))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let open = |dir: BorrowedFd<'_>| rustix::fs::openat(dir, name, flags, Mode::empty());
                let (from, to) = (open(from).map_err(failed("open", path))?, open(to).map_err(failed("open", path))?);
                return self.directory(from.as_fd(), to.as_fd(), path);
            }
            FileType::File => body(from, to, name).map_err(failed("copy", path))?,
            FileType::Symlink => {
                let target = sys::read_link_at(from, name).map_err(failed("read link", path))?;
                rustix::fs::symlinkat(&target[..], to, name).map_err(failed("make link", path))?;
            }
            FileType::Socket => return Ok(()),
            FileType::Fifo | FileType::Char | FileType::Block => {
                let device = rustix::fs::makedev(stat.rdev.major, stat.rdev.minor);
                let kind = RawType::from_raw_mode(stat.kind.mode_bits());
                match rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, device) {
                    Err(Errno::PERM) => {
                        log::warn!("device {} is left out for want of privilege", shown(path));
                        return Ok(());
                    }
                    made => made.map_err(failed("make", path))?,
                }
            }
        }
        // Not before: what is left out has no name that others could be linked to.
        if stat.nlink > 1 {
            self.linked.insert(stat.ino.0, path.to_vec());
        }
        dress(from, to, name, path, &stat)
    }
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

fn failed<E: Into<io::Error>>(verb: &'static str, path: &[u8]) -> impl FnOnce(E) -> Error {
    let doing = format!("{verb} '{}'", shown(path));
    move |cause| Error::io(doing, cause)
}
