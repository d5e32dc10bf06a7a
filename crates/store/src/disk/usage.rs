//! What a tree takes on the disk, however deep it is.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use backing::sys::{self, Attributes};
use layer::FileType;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, shown};

/// How a directory is opened in a walk: never through a link.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Device and inode number: by these a directory is known again that is reached from below.
pub(crate) type Identity = (u64, u64);

pub(crate) fn identity(dir: impl AsFd) -> rustix::io::Result<Identity> {
    sys::stat_of(dir).map(|found| (found.dev, found.stat.ino.0))
}

/// Opens the directory above; `None` if that is not the one that is `known`, for somebody moved `dir`.
pub(crate) fn above(dir: impl AsFd, known: Identity, flags: OFlags) -> rustix::io::Result<Option<OwnedFd>> {
    let above = rustix::fs::openat(dir, "..", flags, Mode::empty())?;
    Ok((identity(&above)? == known).then_some(above))
}

/// Returns what a file, or a directory with all below it, takes on the disk: allocated bytes, each inode once; 0 if it is
/// not there. Others may delete and move meanwhile. The depth is not limited: a few descriptors do for any.
pub(crate) fn allocated(top: &Path) -> Result<u64> {
    let mut walk = Walk::default();
    match walk.all(top) {
        Ok(()) => Ok(walk.sum),
        Err(errno) => Err(Error::io(format!("measure {}", walk.place(top)), errno)),
    }
}

#[derive(Default)]
struct Walk {
    sum: u64,
    /// The files with several names that were met.
    linked: HashSet<Identity>,
    /// The directories from the top to where the walk is.
    levels: Vec<Level>,
}

struct Level {
    name: Vec<u8>,
    identity: Identity,
    /// The directories in it that are left to measure.
    below: Vec<Vec<u8>>,
}

impl Walk {
    fn all(&mut self, path: &Path) -> rustix::io::Result<()> {
        let path = path.as_os_str().as_bytes();
        let Some(found) = there(sys::stat_at(CWD, path))? else { return Ok(()) };
        self.add(&found);
        if found.stat.kind != FileType::Dir {
            return Ok(());
        }
        let Some(top) = enter(CWD, path, DIRECTORY)? else { return Ok(()) };
        let below = self.list(top.as_fd())?;
        self.levels.push(Level { name: Vec::new(), identity: identity(&top)?, below });
        // Where the walk is, if it is below the top.
        let mut here = None;
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.below.pop() {
                let Some(dir) = enter(here.as_ref().unwrap_or(&top), &name, DIRECTORY)? else { continue };
                let below = self.list(dir.as_fd())?;
                if !below.is_empty() {
                    self.levels.push(Level { name, identity: identity(&dir)?, below });
                    here = Some(dir);
                }
                continue;
            }
            self.levels.pop();
            here = here.map_or(Ok(None), |dir| self.climb(&top, &dir))?;
        }
        Ok(())
    }

    /// Adds what is in a directory; returns the names of the directories among it.
    fn list(&mut self, dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
        let mut below = Vec::new();
        let mut failed = Ok(());
        let listed = sys::read_dir(dir, |entry| {
            match there(sys::stat_at(dir, entry.name)) {
                Ok(Some(found)) => {
                    self.add(&found);
                    if found.stat.kind == FileType::Dir {
                        below.push(entry.name.to_vec());
                    }
                }
                Ok(None) => {}
                Err(errno) => {
                    failed = Err(errno);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        there(listed)?;
        failed.map(|()| below)
    }

    fn add(&mut self, found: &Attributes) {
        let Attributes { stat, dev } = found;
        if stat.kind == FileType::Dir || stat.nlink == 1 || self.linked.insert((*dev, stat.ino.0)) {
            self.sum += stat.blocks * 512;
        }
    }

    /// Returns the directory of the last level, `None` if that is the top; `dir` was entered from it.
    fn climb(&mut self, top: &OwnedFd, dir: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
        let [_, .., last] = &self.levels[..] else { return Ok(None) };
        // A directory that may be listed but not searched has no '..' for us.
        if let Ok(Some(above)) = above(dir, last.identity, DIRECTORY | OFlags::PATH) {
            return Ok(Some(above));
        }
        // Moved meanwhile: down again, as far as everything is where it was.
        let mut here = None;
        for depth in 1..self.levels.len() {
            let level = &self.levels[depth];
            let found = enter(here.as_ref().unwrap_or(top), &level.name, DIRECTORY | OFlags::PATH)?;
            match found {
                Some(dir) if identity(&dir)? == level.identity => here = Some(dir),
                _ => {
                    self.levels.truncate(depth);
                    break;
                }
            }
        }
        Ok(here)
    }

    /// Where the walk is, for people.
    fn place(&self, top: &Path) -> String {
        let names: Vec<_> = self.levels.iter().skip(1).map(|level| &level.name[..]).collect();
        match names.is_empty() {
            true => top.display().to_string(),
            false => format!("{}, in '{}'", top.display(), shown(&names.join(&b'/'))),
        }
    }
}

/// Opens a directory; `None` if it is none, or not there, any more.
fn enter(dir: impl AsFd, name: &[u8], flags: OFlags) -> rustix::io::Result<Option<OwnedFd>> {
    there(rustix::fs::openat(dir, name, flags, Mode::empty()))
}

/// `None` for what others deleted or replaced.
fn there<T>(found: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match found {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use rustix::fs::AtFlags;

    use super::*;
    use crate::disk;

    /// A new directory that is deleted at the end, however deep it is: the scratch directory's own end fails on that.
    pub(crate) struct Deep(pub(crate) PathBuf);

    impl Deep {
        pub(crate) fn new(path: PathBuf) -> Self {
            fs::create_dir(&path).unwrap();
            Deep(path)
        }

        pub(crate) fn open(&self) -> OwnedFd {
            rustix::fs::open(&self.0, DIRECTORY, Mode::empty()).unwrap()
        }

        /// Makes directories named "down", each in the one before; returns the last.
        pub(crate) fn dig(&self, depth: usize) -> OwnedFd {
            (0..depth).fold(self.open(), |dir, _| {
                rustix::fs::mkdirat(&dir, "down", Mode::RWXU).unwrap();
                rustix::fs::openat(&dir, "down", DIRECTORY, Mode::empty()).unwrap()
            })
        }
    }

    impl Drop for Deep {
        fn drop(&mut self) {
            disk::remove_tree(&self.0).unwrap();
        }
    }

    #[test]
    fn a_tree_of_any_depth_is_measured() {
        const DEPTH: usize = 3000;
        let scratch = tempfile::tempdir().unwrap();
        let outside = scratch.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), [1; 40_000]).unwrap();
        let tree = Deep::new(scratch.path().join("tree"));
        let bottom = tree.dig(DEPTH);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let file = fs::File::from(rustix::fs::openat(&bottom, "file", flags, Mode::RUSR).unwrap());
        std::io::Write::write_all(&mut &file, &[1; 70_000]).unwrap();
        file.sync_all().unwrap();
        rustix::fs::linkat(&bottom, "file", &bottom, "second", AtFlags::empty()).unwrap();
        rustix::fs::symlinkat(&outside, &bottom, "link").unwrap();

        let blocks = |dir: &OwnedFd, name: &str| sys::stat_at(dir, name.as_bytes()).unwrap().stat.blocks;
        let mut expected = blocks(&bottom, "file") + blocks(&bottom, "link");
        assert!(expected * 512 >= 70_000);
        let mut dir = tree.open();
        for _ in 0..DEPTH {
            expected += blocks(&dir, ".");
            dir = rustix::fs::openat(&dir, "down", DIRECTORY, Mode::empty()).unwrap();
        }
        expected += blocks(&dir, ".");
        assert_eq!(allocated(&tree.0).unwrap(), expected * 512);

        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&tree.0, &link).unwrap();
        assert_eq!(allocated(&link).unwrap(), fs::symlink_metadata(&link).unwrap().blocks() * 512);
        assert_eq!(allocated(&scratch.path().join("none")).unwrap(), 0);
    }

    #[test]
    fn what_is_moved_while_it_is_measured_does_not_lead_astray() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |below: &str| scratch.path().join(below);
        fs::create_dir_all(path("a/b/c")).unwrap();
        let open = |below: &str| rustix::fs::open(path(below), DIRECTORY, Mode::empty()).unwrap();
        let level = |below: &str| Level {
            name: path(below).file_name().unwrap().as_bytes().to_vec(),
            identity: identity(open(below)).unwrap(),
            below: Vec::new(),
        };
        let mut walk = Walk { levels: vec![level("."), level("a"), level("a/b")], ..Walk::default() };
        let [a, b] = ["a", "a/b"].map(|below| identity(open(below)).unwrap());
        let (top, c) = (open("."), open("a/b/c"));
        let mut climb = || {
            let found = walk.climb(&top, &c).unwrap();
            (found.map(|dir| identity(dir).unwrap()), walk.levels.len())
        };
        assert_eq!(climb(), (Some(b), 3));
        fs::rename(path("a/b/c"), path("c")).unwrap();
        assert_eq!(climb(), (Some(b), 3));
        // Another directory under the old name is not the one that was being measured.
        fs::rename(path("a/b"), path("b")).unwrap();
        fs::create_dir(path("a/b")).unwrap();
        assert_eq!(climb(), (Some(a), 2));
        fs::rename(path("a"), path("elsewhere")).unwrap();
        fs::write(path("a"), b"").unwrap();
        assert_eq!(climb(), (None, 1));
    }
}
