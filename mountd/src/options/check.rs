//! What the disk says to the options: every directory is there, and the two sides do not overlap.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{ImageLower, LowerDirs, Options, UpperDirs};
use crate::failure::{Failure, errno_text};

pub(super) fn check(options: &Options) -> Result<(), Failure> {
    let lower = match &options.lower {
        LowerDirs::Plain(dirs) => dirs.iter().map(|dir| Place::find("lowerdir", dir)).collect::<Result<Vec<_>, _>>()?,
        LowerDirs::Image(image) => {
            check_image(image)?;
            Vec::new()
        }
        LowerDirs::Layers(store) => {
            Place::find("plyfs.objects", &store.objects)?;
            Place::find("plyfs.layers", &store.layers)?;
            Vec::new()
        }
    };
    match &options.upper {
        Some(dirs) => check_upper(dirs, &lower),
        None => Ok(()),
    }
}

fn check_image(image: &ImageLower) -> Result<(), Failure> {
    Place::find("plyfs.objects", &image.objects)?;
    Place::find("plyfs.layers", &image.layers)?;
    match rustix::fs::stat(&image.index) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() => Ok(()),
        Ok(_) => Err(failure("plyfs.index", &image.index, "is no file; name the folded index of an image")),
        Err(errno) => Err(failure("plyfs.index", &image.index, Reason(errno, "load the image first"))),
    }
}

fn check_upper(dirs: &UpperDirs, lower: &[Place]) -> Result<(), Failure> {
    let upper = Place::find("upperdir", &dirs.upper)?;
    let work = Place::find("workdir", &dirs.work)?;
    if upper.device != work.device {
        return Err(failure("workdir", &dirs.work, "is not on the filesystem of upperdir=: put the two side by side"));
    }
    if upper.holds(&work) || work.holds(&upper) {
        return Err(failure("workdir", &dirs.work, "and upperdir= lie one in the other: put the two side by side"));
    }
    for layer in lower {
        for mine in [&upper, &work] {
            if layer.holds(mine) || mine.holds(layer) {
                let why = format!("overlaps lowerdir {}: keep it outside of every layer", layer.given.display());
                return Err(failure(mine.option, &mine.given, why));
            }
        }
    }
    Ok(())
}

/// A directory named by an option, found on the disk.
struct Place {
    option: &'static str,
    given: PathBuf,
    /// Where it is after all symbolic links.
    real: PathBuf,
    device: u64,
}

impl Place {
    fn find(option: &'static str, given: &Path) -> Result<Self, Failure> {
        let opened = rustix::fs::openat(CWD, given, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let found = opened.and_then(|fd| Ok((rustix::fs::fstat(&fd)?.st_dev, real_path(&fd, given)?)));
        let (device, real) = found.map_err(|errno| {
            let remedy = match errno {
                Errno::NOENT if option == "upperdir" || option == "workdir" => "create it first (mkdir -p)",
                Errno::NOENT => "check the path, it must be there before the mount",
                Errno::NOTDIR => "name a directory",
                Errno::ACCESS => "give the daemon's user access to it and to the directories above it",
                Errno::NOTCONN => "it is a mount whose daemon is gone; unmount it (umount -l, or fusermount3 -uz)",
                _ => "check the path",
            };
            failure(option, given, Reason(errno, remedy))
        })?;
        Ok(Place { option, given: given.to_owned(), real, device })
    }

    /// Tells whether `other` is this directory or lies in it. Another filesystem mounted below is not ours to look into.
    fn holds(&self, other: &Place) -> bool {
        self.device == other.device && other.real.starts_with(&self.real)
    }
}

/// Asks the kernel for the path of an open directory: one call, where resolving it by hand takes one for each component.
fn real_path(fd: &OwnedFd, given: &Path) -> rustix::io::Result<PathBuf> {
    use std::os::fd::AsRawFd as _;
    match std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())) {
        Ok(real) => Ok(real),
        // No /proc here.
        Err(_) => std::fs::canonicalize(given).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO)),
    }
}

struct Reason(Errno, &'static str);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", errno_text(self.0), self.1)
    }
}

fn failure(option: &str, path: &Path, why: impl fmt::Display) -> Failure {
    Failure::new(format!("{option} {}: {why}", path.display()))
}
