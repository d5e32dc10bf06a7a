//! Uppers that fuse-overlayfs wrote: its spellings become ours, once, before such an upper is first used.
//!
//! It hides names by empty files `.wh.NAME` where it cannot make devices, and marks opaque directories by an empty `.wh..wh..opq`
//! and by attributes of several names (seen with 1.10 and 2.0.0). In a mount of ours such names are ordinary, so they are understood
//! only in an upper that was never ours: a note beside `plyfs/` in the work directory, made before it, says that this is under way.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use layer::whiteout::{Spelling, spelling};
use layer::{FileType, Name, NameBuf};
use overlay::{Result, Upper};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir};
use rustix::io::Errno as Raw;

use super::{DirFd, Found, UpperDir, error, marks};

/// Lies in the work directory until an upper is taken over.
const NOTE: &str = "plyfs.taking-over";

/// Notes that the upper is to be taken over, if it holds something and was never ours; tells whether it is.
pub(super) fn begin(root: &OwnedFd, work: &OwnedFd) -> rustix::io::Result<bool> {
    let there = |name: &str| match rustix::fs::statat(work, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Raw::NOENT) => Ok(false),
        Err(raw) => Err(raw),
    };
    if there("plyfs")? || is_empty(root)? || is_the_kernels(root) {
        return there(NOTE);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let note = rustix::fs::openat(work, NOTE, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::fsync(&note)?;
    Ok(true)
}

/// Tells whether the kernel's overlayfs wrote this upper: there too names that begin with `.wh.` are ordinary. It notes its own UUID on
/// the root when that is new, and else that something was copied up into it (kernel overlayfs.rst); fuse-overlayfs notes neither.
fn is_the_kernels(root: &OwnedFd) -> bool {
    let names = ["trusted.overlay.uuid", "user.overlay.uuid", "trusted.overlay.impure", "user.overlay.impure"];
    names.iter().any(|name| rustix::fs::fgetxattr(root, *name, &mut [0u8; 0][..]).is_ok())
}

fn is_empty(dir: &OwnedFd) -> rustix::io::Result<bool> {
    let own = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buf = Vec::with_capacity(1024);
    let mut entries = RawDir::new(&own, buf.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

impl UpperDir {
    /// Takes the upper over. A crash on the way leaves the note, and what is still in the other spelling is found again.
    pub(super) fn take_over(&self, work: &OwnedFd) -> Result<()> {
        // Each directory is opened from its parent's descriptor, which is kept for as long as it has children to come.
        let mut pending: Vec<(DirFd, NameBuf)> = self.take_over_dir(&self.root)?;
        while let Some((parent, name)) = pending.pop() {
            let dir = self.open_dir(&parent, name.as_name())?;
            pending.extend(self.take_over_dir(&dir)?);
        }
        let failed = |raw| error(|| "take over an upper of fuse-overlayfs".into(), raw);
        rustix::fs::syncfs(work).map_err(failed)?;
        rustix::fs::unlinkat(work, NOTE, AtFlags::empty()).map_err(failed)
    }

    /// Takes one directory over; returns those in it.
    fn take_over_dir(&self, dir: &DirFd) -> Result<Vec<(DirFd, NameBuf)>> {
        let found = Found::Open(dir.as_fd());
        let mut opaque = marks::opaque_elsewhere(&found)?;
        let (mut dirs, mut spelled) = (Vec::new(), Vec::new());
        let listed = self.list(dir)?;
        for entry in &listed {
            if entry.kind == Some(FileType::Dir) {
                dirs.push((Arc::clone(dir), entry.name.clone()));
            } else if entry.kind == Some(FileType::File)
                && entry.name.as_bytes().starts_with(b".wh.")
                && self.is_empty_file(dir, entry.name.as_name())?
            {
                spelled.push(entry.name.clone());
            }
        }
        for name in &spelled {
            match spelling(name.as_name()) {
                Ok(Spelling::Opaque) => opaque = true,
                // A sibling of that name is not hidden by it.
                Ok(Spelling::Whiteout(hidden)) if !listed.iter().any(|entry| entry.name.as_name() == hidden) => {
                    self.whiteout(dir, hidden)?;
                }
                _ => {}
            }
        }
        if opaque {
            self.set_opaque(dir)?;
        }
        for name in &spelled {
            rustix::fs::unlinkat(dir, name.as_bytes(), AtFlags::empty())
                .map_err(|raw| error(|| format!("take over {} in the upper", name.as_name()), raw))?;
        }
        Ok(dirs)
    }

    /// Tells whether it is a file as fuse-overlayfs makes them for this: empty, and of mode 0700.
    fn is_empty_file(&self, dir: &DirFd, name: Name<'_>) -> Result<bool> {
        let stat = self.raw_stat(&Found::At(dir.as_fd(), name.to_buf()))?;
        Ok(stat.kind == FileType::File && stat.size == 0 && stat.perm == 0o700)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::upper::{Durability, Settings};

    fn settings() -> Settings {
        Settings { durability: Durability::Synced, always_override: false, user_marks: true }
    }

    fn private(path: &Path) {
        fs::write(path, b"").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }

    /// The names of a directory, whiteouts with a dash before them.
    fn listed(upper: &UpperDir, dir: &DirFd) -> Vec<String> {
        let shown = |entry: &overlay::upper::Listed| match entry.kind {
            None => format!("-{}", entry.name.as_name()),
            Some(_) => entry.name.as_name().to_string(),
        };
        let mut names: Vec<_> = upper.list(dir).unwrap().iter().map(shown).collect();
        names.sort();
        names
    }

    fn is_opaque(upper: &UpperDir, dir: &DirFd) -> bool {
        upper.find(overlay::upper::Target::Dir(dir)).unwrap().1.opaque
    }

    #[test]
    fn what_fuse_overlayfs_wrote_is_taken_over_once() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir_all(upper.join("dir/anew")).unwrap();
        fs::create_dir_all(upper.join("marked")).unwrap();
        fs::create_dir(&work).unwrap();
        private(&upper.join("dir/.wh.gone"));
        private(&upper.join("dir/anew/.wh..wh..opq"));
        fs::write(upper.join("dir/anew/new"), b"new").unwrap();
        // It has come back beside its whiteout.
        private(&upper.join(".wh.back"));
        fs::write(upper.join("back"), b"back").unwrap();
        // A program's own.
        fs::write(upper.join(".wh.own"), b"content").unwrap();
        fs::write(upper.join(".wh.public"), b"").unwrap();
        fs::set_permissions(upper.join(".wh.public"), fs::Permissions::from_mode(0o644)).unwrap();
        rustix::fs::setxattr(upper.join("marked"), "user.fuseoverlayfs.opaque", b"y", rustix::fs::XattrFlags::empty())
            .unwrap();

        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        let root = open.root();
        let name = |name: &'static str| Name::new(name.as_bytes()).unwrap();
        let dir = open.open_dir(&root, name("dir")).unwrap();
        let anew = open.open_dir(&dir, name("anew")).unwrap();
        assert_eq!(listed(&open, &root), [".wh.own", ".wh.public", "back", "dir", "marked"]);
        assert_eq!(listed(&open, &dir), ["-gone", "anew"]);
        assert_eq!(listed(&open, &anew), ["new"]);
        assert!(is_opaque(&open, &anew) && is_opaque(&open, &open.open_dir(&root, name("marked")).unwrap()));
        assert!(!is_opaque(&open, &root) && !is_opaque(&open, &dir));
        drop((open, root, dir, anew));

        // From now on such a name is whatever a program means by it.
        private(&upper.join("dir/.wh.later"));
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        let dir = open.open_dir(&open.root(), name("dir")).unwrap();
        assert_eq!(listed(&open, &dir), ["-gone", ".wh.later", "anew"]);
    }

    #[test]
    fn an_upper_of_the_kernels_overlayfs_is_never_taken_over() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        private(&upper.join(".wh.name"));
        rustix::fs::setxattr(&upper, "user.overlay.uuid", b"0123456789abcdef", rustix::fs::XattrFlags::empty())
            .unwrap();
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        assert_eq!(listed(&open, &open.root()), [".wh.name"]);
        assert!(!work.join(NOTE).exists());
    }

    #[test]
    fn an_upper_that_was_empty_at_first_is_never_taken_over() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        drop(UpperDir::open(&upper, &work, settings()).unwrap());
        private(&upper.join(".wh.name"));
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        assert_eq!(listed(&open, &open.root()), [".wh.name"]);
    }

    #[test]
    fn a_take_over_that_was_cut_off_goes_on() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir_all(work.join("plyfs")).unwrap();
        fs::write(work.join(NOTE), b"").unwrap();
        private(&upper.join(".wh.gone"));
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        assert_eq!(listed(&open, &open.root()), ["-gone"]);
        assert!(!work.join(NOTE).exists());
    }
}
