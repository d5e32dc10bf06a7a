//! Folders of ours in the work directory that most mounts never need: each is made when something is put there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

/// Such a folder, below `plyfs/`.
pub(super) struct Folder {
    name: &'static str,
    opened: OnceLock<OwnedFd>,
}

impl Folder {
    /// Opens the folder if an earlier mount made it.
    pub(super) fn find(own: &OwnedFd, name: &'static str) -> Result<Self> {
        let opened = match open(own, name) {
            Ok(opened) => OnceLock::from(opened),
            Err(Errno::NOENT) => OnceLock::new(),
            Err(errno) => return Err(errno),
        };
        Ok(Folder { name, opened })
    }

    /// Returns the folder; `None` as long as nothing was put there.
    pub(super) fn there(&self) -> Option<&OwnedFd> {
        self.opened.get()
    }

    /// Returns the folder, to put something there.
    pub(super) fn made(&self, own: &OwnedFd) -> Result<BorrowedFd<'_>> {
        if let Some(opened) = self.there() {
            return Ok(opened.as_fd());
        }
        let opened = made(own, self.name)?;
        // Of two that open it at once, one does for both.
        Ok(self.opened.get_or_init(|| opened).as_fd())
    }
}

/// Makes a folder unless it is there, and opens it.
pub(super) fn made(dir: &OwnedFd, name: &str) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open(dir, name),
        Err(errno) => Err(errno),
    }
}

fn open(dir: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_there_once_something_was_put_there() {
        let top = tempfile::tempdir().unwrap();
        let own = rustix::fs::open(top.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let folder = Folder::find(&own, "folder").unwrap();
        assert!(folder.there().is_none() && !top.path().join("folder").exists());
        let made = folder.made(&own).unwrap();
        rustix::fs::mkdirat(made, "in it", Mode::RWXU).unwrap();
        folder.made(&own).unwrap();
        assert!(top.path().join("folder/in it").exists());
        assert!(folder.there().is_some() && Folder::find(&own, "folder").unwrap().there().is_some());
    }

    #[test]
    fn what_is_no_folder_is_an_error() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("folder"), b"").unwrap();
        let own = rustix::fs::open(top.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert_eq!(Folder::find(&own, "folder").err(), Some(Errno::NOTDIR));
    }
}
