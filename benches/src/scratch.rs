//! The one directory in which everything happens, and which is gone afterwards, with what is mounted in it.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, IFlags};
use rustix::mount::UnmountFlags;

const PREFIX: &str = "plyfs-bench.";

/// A file in it that is locked as long as its run lives.
const LOCK: &str = "lock";

/// A new directory that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
    numbers: Cell<u32>,
    _lock: File,
}

impl Scratch {
    /// Makes a directory in `parent`, and first takes away what runs that were killed have left there.
    ///
    /// # Errors
    /// The disk; a path with characters that mount options cannot hold.
    pub(crate) fn make(parent: &Path) -> Result<Self> {
        let parent = parent.canonicalize().with_context(|| parent.display().to_string())?;
        if parent.as_os_str().as_bytes().iter().any(|b| b",:\\\"".contains(b) || b.is_ascii_whitespace()) {
            bail!("{}: commas, colons, quotes, backslashes and blanks do not fit into mount options", parent.display());
        }
        sweep(&parent)?;
        let builder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent);
        let dir = builder.with_context(|| parent.display().to_string())?.keep();
        // Containers of other users' files: they must be reachable for whoever a workload becomes.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        // Other filesystems know no such flag, and need none.
        spread(&dir).ok();
        let lock = File::create(dir.join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Scratch { dir, numbers: Cell::new(0), _lock: lock })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a new, empty directory whose short name begins with `name`.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf> {
        self.numbers.set(self.numbers.get() + 1);
        let dir = self.dir.join(format!("{name}{}", self.numbers.get()));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir)
    }

    /// Returns how many bytes the disk has left.
    pub(crate) fn free(&self) -> Result<u64> {
        let disk = rustix::fs::statvfs(&self.dir)?;
        Ok(disk.f_bavail * disk.f_frsize)
    }

    /// Waits until the disk has everything that was written.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.dir)?)?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.dir) {
            eprintln!("plyfs: bench: {error:#}; remove it by hand");
        }
    }
}

/// Has the filesystem put what is made in `dir` in different places (`EXT4_TOPDIR_FL`, chattr(1) `T`). ext4 gives no inode number again that
/// was freed a short while ago, and looks at each of those that lie together: whoever made files where another contestant
/// had just removed his took up to fifteen times as long.
fn spread(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    Ok(rustix::fs::ioctl_setflags(&dir, rustix::fs::ioctl_getflags(&dir)? | IFlags::TOPDIR)?)
}

fn sweep(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let is_ours = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
            && entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw());
        if is_ours && is_orphaned(&entry.path()) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Tells whether the run that made this directory has ended without removing it.
fn is_orphaned(dir: &Path) -> bool {
    // A directory without a lock is one that is being made, or none of ours.
    File::open(dir.join(LOCK))
        .is_ok_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
}

/// Removes a directory with all that is in it; what is mounted in it is unmounted first, never removed.
pub(crate) fn remove_tree(dir: &Path) -> Result<()> {
    let mounted = mounts_below(dir)?;
    for target in mounted.iter().rev() {
        rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .or_else(|_| mountd::mount::unmount(target, mountd::mount::Unmount::Lazily).map_err(io::Error::other))
            .with_context(|| format!("{}: still mounted", target.display()))?;
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Directories of an image may be closed to an ordinary user, who owns them all the same.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(dir);
            fs::remove_dir_all(dir)
        }
        done => done,
    }
    .with_context(|| format!("remove {}", dir.display()))
}

/// Gives the owner all rights on the directories below; what fails shows when they are removed.
fn open_up(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).ok();
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// Returns the mount points in a directory, in the order in which they were mounted.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let targets = table.split(|&b| b == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(4));
    Ok(targets.map(unescape).filter(|target| target.starts_with(dir)).collect())
}

/// Undoes the octal escapes of proc_pid_mountinfo(5).
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| first == b'\\').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &tail[3..];
            }
            None => {
                path.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

/// Returns the allocated bytes of all that lies in a directory, each inode once.
pub(crate) fn disk_use(dir: &Path) -> Result<u64> {
    let mut seen = std::collections::HashSet::new();
    let mut total = 0;
    let mut queue = vec![dir.to_path_buf()];
    while let Some(path) = queue.pop() {
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            // A daemon may tidy up while we look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        if found.nlink() < 2 || found.is_dir() || seen.insert((found.dev(), found.ino())) {
            total += found.blocks() * 512;
        }
        if found.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
                queue.push(entry?.path());
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_gone_afterwards_and_so_is_what_a_killed_run_left() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join("plyfs-bench.killed");
        fs::create_dir_all(left.join("sub")).unwrap();
        fs::write(left.join(LOCK), b"").unwrap();
        let other = parent.path().join("plyfs-bench-notes");
        fs::create_dir(&other).unwrap();

        let scratch = Scratch::make(parent.path()).unwrap();
        assert!(!left.exists() && other.exists());
        let second = Scratch::make(parent.path()).unwrap();
        assert!(scratch.dir().exists(), "a living run's directory stays");
        let fresh = scratch.fresh("m").unwrap();
        fs::create_dir(fresh.join("closed")).unwrap();
        fs::write(fresh.join("closed/file"), b"x").unwrap();
        fs::set_permissions(fresh.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        let dirs = [scratch.dir().to_path_buf(), second.dir().to_path_buf()];
        drop((scratch, second));
        assert!(dirs.iter().all(|dir| !dir.exists()));
    }

    #[test]
    fn paths_that_mount_options_cannot_hold_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a,b");
        fs::create_dir(&dir).unwrap();
        assert!(Scratch::make(&dir).unwrap_err().to_string().contains("commas"));
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(b"/a\\040b\\134c\\"), PathBuf::from("/a b\\c\\"));
    }

    #[test]
    fn disk_use_counts_an_inode_once() {
        let dir = tempfile::tempdir().unwrap();
        let before = disk_use(dir.path()).unwrap();
        fs::write(dir.path().join("a"), [1; 8192]).unwrap();
        rustix::fs::syncfs(File::open(dir.path()).unwrap()).unwrap();
        let one = disk_use(dir.path()).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert!(one >= before);
        assert_eq!(disk_use(dir.path()).unwrap(), one);
    }
}
