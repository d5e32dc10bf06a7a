//! A private read-only clone of the mount that holds a directory.
//!
//! Whatever is opened beneath the clone cannot be written through: the kernel itself refuses, also to passthrough and to a
//! mistake of ours. The clone is detached: it has no place in the tree of mounts and is gone with its last descriptor. Until
//! then its filesystem stays in use, as it does with any open file, but the mount that was cloned can be unmounted at any time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result, retry_on_intr};
use rustix::mount::OpenTreeFlags;

use crate::readonly_setattr::make_read_only;

/// A directory, open by `O_PATH`, to open files beneath for reading.
#[derive(Debug)]
pub struct ReadOnly {
    dir: OwnedFd,
    kept_by: KeptBy,
}

/// Who keeps the files beneath from being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptBy {
    /// The kernel: they are reached through a read-only mount.
    Kernel,
    /// Nobody but the discipline of this program, because the clone was refused with this error (`EPERM`: no privilege over
    /// mounts; `ENOSYS`: before Linux 5.12).
    Us(Errno),
}

impl ReadOnly {
    /// Opens the directory `path` (a symbolic link is followed) through a read-only clone of its mount, or plainly where that
    /// is not permitted.
    ///
    /// # Errors
    /// As open(2) of a directory.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(ReadOnly::over(retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?))
    }

    /// Reaches an open directory again through a read-only clone of its mount, or keeps it as it is where that is not permitted.
    pub fn over(dir: OwnedFd) -> Self {
        match clone(dir.as_fd()) {
            Ok(clone) => ReadOnly { dir: clone, kept_by: KeptBy::Kernel },
            Err(refused) => ReadOnly { dir, kept_by: KeptBy::Us(refused) },
        }
    }

    /// Tells who keeps the files beneath from being written.
    pub fn kept_by(&self) -> KeptBy {
        self.kept_by
    }
}

impl AsFd for ReadOnly {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn clone(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    // As in the kernel's overlayfs, other mounts below a layer are no part of it. In a user namespace mounts that hide
    // something may not be taken away, and EINVAL asks for all of them.
    let tree = match rustix::mount::open_tree(dir, "", flags) {
        Err(Errno::INVAL) => rustix::mount::open_tree(dir, "", flags | OpenTreeFlags::AT_RECURSIVE),
        answer => answer,
    }?;
    make_read_only(tree.as_fd())?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    #[test]
    fn the_kernel_refuses_writes_beneath_the_clone() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("f"), b"whole").unwrap();
        let kept = ReadOnly::open(top.path()).unwrap();
        assert!(sys::open_beneath(&kept, b"f", OFlags::RDONLY).is_ok());
        match kept.kept_by() {
            KeptBy::Kernel => {
                assert_eq!(sys::open_beneath(&kept, b"f", OFlags::RDWR).unwrap_err(), Errno::ROFS);
                assert_eq!(rustix::fs::unlinkat(&kept, "f", rustix::fs::AtFlags::empty()), Err(Errno::ROFS));
            }
            KeptBy::Us(refused) => assert!(!rustix::process::geteuid().is_root(), "root is refused a clone: {refused}"),
        }
        // The original stays as writable as it was.
        std::fs::write(top.path().join("f"), b"new").unwrap();
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("f"), b"").unwrap();
        assert_eq!(ReadOnly::open(&top.path().join("f")).unwrap_err(), Errno::NOTDIR);
        assert_eq!(ReadOnly::open(&top.path().join("none")).unwrap_err(), Errno::NOENT);
    }
}
