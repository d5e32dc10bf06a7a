//! Attributes of upper inodes: reading them, and setting what the filesystem lets us set; the rest is recorded.

use layer::{Dev, FileType, Stat, Time};
use overlay::upper::{SetAttr, SetTime};
use overlay::{Errno, Error, Result};
use rustix::fs::{AtFlags, FileType as RawType, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno as Raw;

use super::{CAPABILITY, Found, UpperDir, error, marks};
use crate::override_stat::Override;

/// Reads what the system told.
pub(crate) fn stat_of(raw: &rustix::fs::Stat) -> Result<Stat> {
    let kind = FileType::from_mode(raw.st_mode).ok_or_else(|| {
        Error::fault("stat in the upper", Errno::EIO, format!("mode {:o} is of no kind", raw.st_mode))
    })?;
    let time = |sec, nsec: u64| Time { sec, nsec: nsec as u32 };
    Ok(Stat {
        ino: layer::Ino(raw.st_ino),
        kind,
        perm: (raw.st_mode & 0o7777) as u16,
        nlink: u32::try_from(raw.st_nlink).unwrap_or(u32::MAX),
        uid: raw.st_uid,
        gid: raw.st_gid,
        rdev: Dev { major: rustix::fs::major(raw.st_rdev), minor: rustix::fs::minor(raw.st_rdev) },
        size: raw.st_size as u64,
        blocks: raw.st_blocks as u64,
        atime: time(raw.st_atime, raw.st_atime_nsec),
        mtime: time(raw.st_mtime, raw.st_mtime_nsec),
        ctime: time(raw.st_ctime, raw.st_ctime_nsec),
    })
}

/// Reads a directory entry's kind; `None` when the filesystem does not tell.
pub(super) fn kind_of(raw: RawType) -> Option<FileType> {
    Some(match raw {
        RawType::RegularFile => FileType::File,
        RawType::Directory => FileType::Dir,
        RawType::Symlink => FileType::Symlink,
        RawType::Fifo => FileType::Fifo,
        RawType::Socket => FileType::Socket,
        RawType::CharacterDevice => FileType::Char,
        RawType::BlockDevice => FileType::Block,
        RawType::Unknown => return None,
    })
}

fn timespec(time: Option<SetTime>) -> Timespec {
    let special = |nsec| Timespec { tv_sec: 0, tv_nsec: nsec };
    match time {
        None => special(rustix::fs::UTIME_OMIT),
        Some(SetTime::Now) => special(rustix::fs::UTIME_NOW),
        Some(SetTime::At(time)) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
    }
}

fn chown(of: &Found<'_>, uid: Option<u32>, gid: Option<u32>) -> rustix::io::Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    match of {
        Found::At(dir, name) => rustix::fs::chownat(dir, name.as_bytes(), uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        Found::Open(fd) => rustix::fs::fchown(fd, uid, gid),
    }
}

pub(super) fn chmod(of: &Found<'_>, perm: u16) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(perm.into());
    match of {
        Found::At(dir, name) => rustix::fs::chmodat(dir, name.as_bytes(), mode, AtFlags::empty()),
        Found::Open(fd) => rustix::fs::fchmod(fd, mode),
    }
}

fn set_times(of: &Found<'_>, times: &Timestamps) -> rustix::io::Result<()> {
    match of {
        Found::At(dir, name) => rustix::fs::utimensat(dir, name.as_bytes(), times, AtFlags::SYMLINK_NOFOLLOW),
        Found::Open(fd) => rustix::fs::futimens(fd, times),
    }
}

impl UpperDir {
    /// Sets owner, then mode (a change of owner takes set-user-ID bits), then times.
    pub(super) fn apply_attr(&self, of: &Found<'_>, kind: FileType, attr: &SetAttr) -> Result<()> {
        if (attr.uid.is_some() || attr.gid.is_some()) && !self.try_chown(of, attr)? {
            return self.apply_recorded(of, kind, attr);
        }
        if attr.perm.is_some() && self.space.overrides() && self.record_of(of, kind)?.is_some() {
            return self.apply_recorded(of, kind, attr);
        }
        if let Some(perm) = attr.perm
            && kind != FileType::Symlink
        {
            chmod(of, perm).map_err(|raw| error(|| of.doing("change mode of"), raw))?;
        }
        self.apply_times(of, attr)
    }

    fn apply_times(&self, of: &Found<'_>, attr: &SetAttr) -> Result<()> {
        if attr.atime.is_none() && attr.mtime.is_none() {
            return Ok(());
        }
        let times = Timestamps { last_access: timespec(attr.atime), last_modification: timespec(attr.mtime) };
        set_times(of, &times).map_err(|raw| error(|| of.doing("set times of"), raw))
    }

    /// Changes the owner; `false` when the filesystem or the namespace cannot hold it and it is to be recorded.
    fn try_chown(&self, of: &Found<'_>, attr: &SetAttr) -> Result<bool> {
        if self.space.always_overrides() {
            return Ok(false);
        }
        if self.space.overrides() && self.space.recorded(of).ok().flatten().is_some() {
            return Ok(false);
        }
        match chown(of, attr.uid, attr.gid) {
            Ok(()) => Ok(true),
            Err(Raw::PERM | Raw::INVAL) if self.space.overrides() => Ok(false),
            Err(raw) => Err(error(|| of.doing("change owner of"), raw)),
        }
    }

    fn record_of(&self, of: &Found<'_>, kind: FileType) -> Result<Option<Override>> {
        match kind {
            FileType::File | FileType::Dir => self.space.recorded(of),
            _ => Ok(None),
        }
    }

    /// Changes owner and mode in the record; the file itself stays usable for us.
    fn apply_recorded(&self, of: &Found<'_>, kind: FileType, attr: &SetAttr) -> Result<()> {
        let raw = self.raw_stat(of)?;
        let known = self.record_of(of, raw.kind)?.unwrap_or(Override {
            uid: raw.uid,
            gid: raw.gid,
            perm: raw.perm,
            kind: None,
        });
        let mut perm = attr.perm.unwrap_or(known.perm);
        if kind != FileType::Dir && (attr.uid.is_some() || attr.gid.is_some()) {
            if attr.perm.is_none() {
                perm = after_chown(perm);
            }
            // As the kernel does where it changes an owner itself.
            match marks::remove(of, CAPABILITY) {
                Ok(()) | Err(Error::Answer(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EPERM)) => {}
                Err(error) => return Err(error),
            }
        }
        let record =
            Override { uid: attr.uid.unwrap_or(known.uid), gid: attr.gid.unwrap_or(known.gid), perm, kind: known.kind };
        match self.space.record(of, &record) {
            // A link or device cannot carry a record (xattr(7)); it keeps the mounting user as its owner.
            Err(Error::Answer(Errno::EPERM | Errno::EOPNOTSUPP))
                if !matches!(raw.kind, FileType::File | FileType::Dir) => {}
            done => done?,
        }
        if matches!(raw.kind, FileType::File | FileType::Dir) {
            let own = (perm & 0o777) | if raw.kind == FileType::Dir { 0o700 } else { 0o600 };
            chmod(of, own).map_err(|raw| error(|| of.doing("change mode of"), raw))?;
        }
        self.apply_times(of, attr)
    }
}

/// The bits that a change of owner leaves on a file (chown(2)).
fn after_chown(perm: u16) -> u16 {
    let perm = perm & !0o4000;
    if perm & 0o010 != 0 { perm & !0o2000 } else { perm }
}
