//! The AUFS form of an upper at rest, which layers as tars have too: empty files `.wh.NAME` hide names, an empty `.wh..wh..opq` hides all
//! that is below a directory. Who reads that form knows no other; we take it back when the upper is used again (`taken_over.rs`).

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use layer::whiteout::{OPAQUE, PREFIX};
use layer::{FileType, NameBuf, Stat};
use overlay::upper::{Listed, SetAttr, SetTime};
use overlay::{Errno, Error, Result, Upper};
use rustix::fs::{Mode, OFlags};

use super::{DirFd, Found, UpperDir, error, marks, taken_over};

/// The longest name that can be hidden so, in bytes (`NAME_MAX` without the four of `.wh.`).
const LONGEST: usize = 251;

/// Tells by its work directory whether an upper is in the AUFS form, or is being taken over from it.
///
/// # Errors
/// Those of the system.
pub fn is_aufs(work: &Path) -> std::io::Result<bool> {
    match work.join(taken_over::NOTE).symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl UpperDir {
    /// Spells whiteouts and opaque directories in the AUFS form, and takes all marks of a union off. The upper must be plain
    /// (`Overlay::settle_plain`).
    ///
    /// What was done when a crash comes is taken back by the next [`UpperDir::open`], as the whole is.
    /// # Errors
    /// `EINVAL` for a name that means something else in this form, or is too long for it, and for an upper that is not plain: nothing is
    /// changed then. Those of the system.
    pub fn into_aufs(self) -> Result<()> {
        self.walk(|dir, listed| self.can_be_spelled(dir, listed))?;
        self.note_aufs()?;
        self.walk(|dir, listed| self.spell(dir, listed))?;
        rustix::fs::syncfs(&self.root).map_err(|raw| error(|| "sync the upper".into(), raw))
    }

    /// Says in the work directory that the upper is to be taken over when it is used next, and takes our mark off it.
    fn note_aufs(&self) -> Result<()> {
        let failed = |raw| error(|| "note the AUFS form in the work directory".into(), raw);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let work = rustix::fs::openat(&self.own, "..", directory, Mode::empty()).map_err(failed)?;
        let note = rustix::fs::openat(&work, taken_over::NOTE, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        rustix::fs::fsync(note).and_then(|()| rustix::fs::fsync(work)).map_err(failed)?;
        self.space.remove(&Found::Open(self.root.as_fd()), marks::OURS)?;
        rustix::fs::fsync(&self.root).map_err(failed)
    }

    /// Visits every directory, with what it holds.
    fn walk(&self, mut visit: impl FnMut(&DirFd, &[Listed]) -> Result<()>) -> Result<()> {
        let mut pending: Vec<(DirFd, Option<NameBuf>)> = vec![(self.root(), None)];
        while let Some((parent, name)) = pending.pop() {
            let dir = match name {
                Some(name) => self.open_dir(&parent, name.as_name())?,
                None => parent,
            };
            let listed = self.list(&dir)?;
            visit(&dir, &listed)?;
            let dirs = listed.into_iter().filter(|entry| entry.kind == Some(FileType::Dir));
            pending.extend(dirs.map(|entry| (Arc::clone(&dir), Some(entry.name))));
        }
        Ok(())
    }

    fn can_be_spelled(&self, dir: &DirFd, listed: &[Listed]) -> Result<()> {
        let refused = |name: &NameBuf, why: &str| {
            Err(Error::fault(format!("spell {} in the AUFS form", name.as_name()), Errno::EINVAL, why.to_owned()))
        };
        for Listed { name, kind, .. } in listed {
            if name.as_bytes().starts_with(PREFIX) {
                return refused(name, "names that begin with .wh. mean deletions there; rename it first");
            }
            if kind.is_none() && name.as_bytes().len() > LONGEST {
                return refused(name, "it is deleted, and too long for a name with .wh. before it");
            }
            if kind.is_some() {
                let (_, marks) = self.find(overlay::upper::Target::At(dir, name.as_name()))?;
                let moved = *kind == Some(FileType::Dir) && marks.redirect.is_some();
                if moved || marks.metacopy || marks.partial.is_some() {
                    return refused(name, "the upper is not plain");
                }
            }
        }
        Ok(())
    }

    /// What is new comes before what it stands for goes, so that nothing is shown meanwhile that is hidden.
    fn spell(&self, dir: &DirFd, listed: &[Listed]) -> Result<()> {
        let found = Found::Open(dir.as_fd());
        let before = self.raw_stat(&found)?;
        let opaque = self.space.get(&found, marks::OPAQUE)?.as_deref() == Some(b"y");
        if opaque {
            self.make_marker(dir, OPAQUE)?;
        }
        for entry in listed {
            match entry.kind {
                None => {
                    self.make_marker(dir, &[PREFIX, entry.name.as_bytes()].concat())?;
                    self.unlink(dir, entry.name.as_name(), overlay::upper::Leave::Nothing)?;
                }
                Some(FileType::Dir) => {} // It comes by itself.
                Some(_) => remove_marks(&Found::At(dir.as_fd(), entry.name.clone()))?,
            }
        }
        remove_marks(&found)?;
        if opaque || listed.iter().any(|entry| entry.kind.is_none()) {
            self.give_times_back(&found, &before)?;
        }
        Ok(())
    }

    /// Gives a directory the times that it had before names in it changed.
    pub(super) fn give_times_back(&self, dir: &Found<'_>, before: &Stat) -> Result<()> {
        let times = SetAttr {
            atime: Some(SetTime::At(before.atime)),
            mtime: Some(SetTime::At(before.mtime)),
            ..SetAttr::default()
        };
        self.apply_attr(dir, FileType::Dir, &times)
    }

    /// Makes an empty file as fuse-overlayfs has them.
    fn make_marker(&self, dir: &DirFd, name: &[u8]) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(dir, name, flags, Mode::RWXU).and_then(|fd| {
            // Whatever the mask of this process is: by its mode it is told from a program's own.
            rustix::fs::fchmod(fd, Mode::RWXU)
        });
        made.map_err(|raw| error(|| format!("make {} in the upper", String::from_utf8_lossy(name)), raw))
    }
}

/// Takes the marks of every union off.
fn remove_marks(of: &Found<'_>) -> Result<()> {
    const UNIONS: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];
    let names = marks::list(of)?;
    names
        .iter()
        .filter(|name| UNIONS.iter().any(|union| name.starts_with(union)))
        .try_for_each(|name| marks::remove(of, name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::path::{Path, PathBuf};

    use layer::Name;

    use super::*;
    use crate::upper::{Durability, Settings};

    /// An upper that deletes a name, hides a directory's names, and holds a file.
    struct Stage {
        scratch: tempfile::TempDir,
    }

    impl Stage {
        fn new() -> Self {
            let stage = Stage { scratch: tempfile::tempdir().unwrap() };
            for dir in ["upper/dir/anew", "work"] {
                fs::create_dir_all(stage.path(dir)).unwrap();
            }
            // The first use of an empty upper: from then on it is ours.
            fs::rename(stage.path("upper/dir"), stage.path("dir")).unwrap();
            drop(stage.open());
            fs::rename(stage.path("dir"), stage.path("upper/dir")).unwrap();
            fs::write(stage.path("upper/dir/anew/new"), b"new").unwrap();
            let open = stage.open();
            let dir = open.open_dir(&open.root(), Name::new(b"dir").unwrap()).unwrap();
            open.whiteout(&dir, Name::new(b"gone").unwrap()).unwrap();
            open.set_impure(&open.root()).unwrap();
            open.set_opaque(&open.open_dir(&dir, Name::new(b"anew").unwrap()).unwrap()).unwrap();
            stage
        }

        fn path(&self, name: &str) -> PathBuf {
            self.scratch.path().join(name)
        }

        fn open(&self) -> UpperDir {
            let settings = Settings { durability: Durability::Synced, always_override: false, user_marks: true };
            UpperDir::open(&self.path("upper"), &self.path("work"), settings).unwrap()
        }

        /// Every path of the upper: its kind, mode and time (of a directory), and whether it is opaque or impure.
        fn seen(&self) -> BTreeMap<PathBuf, String> {
            let mut seen = BTreeMap::new();
            let mut todo = vec![PathBuf::new()];
            while let Some(at) = todo.pop() {
                let path = self.path("upper").join(&at);
                let meta = fs::symlink_metadata(&path).unwrap();
                let mark = |name: &str| rustix::fs::lgetxattr(&path, name, &mut [0u8; 8][..]).is_ok();
                let kind = match meta.file_type() {
                    kind if kind.is_dir() => {
                        todo.extend(fs::read_dir(&path).unwrap().map(|entry| at.join(entry.unwrap().file_name())));
                        format!("dir {}.{}", meta.mtime(), meta.mtime_nsec())
                    }
                    kind if kind.is_char_device() => "whiteout".into(),
                    _ => format!("file {:o} {}", meta.mode() & 0o7777, meta.len()),
                };
                let marks = [("user.overlay.opaque", " opaque"), ("user.overlay.impure", " impure")];
                let marks: String = marks.iter().filter(|(name, _)| mark(name)).map(|(_, word)| *word).collect();
                seen.insert(at, kind + &marks);
            }
            seen
        }
    }

    fn kind<'a>(seen: &'a BTreeMap<PathBuf, String>, path: &str) -> Option<&'a str> {
        seen.get(Path::new(path)).map(String::as_str)
    }

    #[test]
    fn an_upper_becomes_aufs_and_is_taken_back_when_it_is_used() {
        let stage = Stage::new();
        let before = stage.seen();
        assert_eq!(kind(&before, "dir/gone"), Some("whiteout"));
        assert!(!is_aufs(&stage.path("work")).unwrap());
        stage.open().into_aufs().unwrap();
        assert!(is_aufs(&stage.path("work")).unwrap());
        let aufs = stage.seen();
        assert_eq!(kind(&aufs, "dir/.wh.gone"), Some("file 700 0"));
        assert_eq!(kind(&aufs, "dir/anew/.wh..wh..opq"), Some("file 700 0"));
        assert_eq!(kind(&aufs, "dir/anew/new"), kind(&before, "dir/anew/new"));
        assert_eq!(aufs.len(), before.len() + 1, "nothing else: {aufs:?}");
        assert_eq!(kind(&aufs, "dir"), kind(&before, "dir"), "with its time");
        let word = |path: &str| kind(&before, path).unwrap().split(" opaque").next().unwrap().to_owned();
        assert_eq!(kind(&aufs, "dir/anew").unwrap(), word("dir/anew"), "with its time, without its mark");
        assert!(!aufs.values().any(|kind| kind.contains("impure") || kind.contains("opaque")), "{aufs:?}");

        drop(stage.open());
        assert!(!is_aufs(&stage.path("work")).unwrap());
        let back = stage.seen();
        assert_eq!(kind(&back, "dir/gone"), Some("whiteout"));
        assert!(kind(&back, "dir/anew").unwrap().ends_with(" opaque"));
        let without_impure = |seen: BTreeMap<PathBuf, String>| -> BTreeMap<PathBuf, String> {
            seen.into_iter().map(|(path, kind)| (path, kind.replace(" impure", ""))).collect()
        };
        assert_eq!(back, without_impure(before), "with its times");
        drop(stage.open());
        assert_eq!(stage.seen(), back, "once");
    }

    #[test]
    fn an_upper_that_is_half_aufs_is_taken_back() {
        let stage = Stage::new();
        let before = stage.seen();
        let open = stage.open();
        open.note_aufs().unwrap();
        let dir = open.open_dir(&open.root(), Name::new(b"dir").unwrap()).unwrap();
        open.make_marker(&dir, b".wh.gone").unwrap(); // The whiteout is still there.
        drop((open, dir));
        drop(stage.open());
        let back = stage.seen();
        assert_eq!(kind(&back, "dir/gone"), Some("whiteout"));
        assert_eq!(back.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    }

    #[test]
    fn what_has_no_spelling_is_refused_and_nothing_is_changed() {
        let stage = Stage::new();
        fs::write(stage.path("upper/dir/anew/.wh.own"), b"").unwrap();
        let before = stage.seen();
        let said = stage.open().into_aufs().unwrap_err().to_string();
        assert!(said.contains(".wh.own") && said.contains("rename it"), "{said}");
        assert_eq!(stage.seen(), before);
        fs::remove_file(stage.path("upper/dir/anew/.wh.own")).unwrap();

        let long = "x".repeat(252);
        let open = stage.open();
        open.whiteout(&open.root(), Name::new(long.as_bytes()).unwrap()).unwrap();
        drop(open);
        let before = stage.seen();
        let said = stage.open().into_aufs().unwrap_err().to_string();
        assert!(said.contains("too long"), "{said}");
        assert_eq!(stage.seen(), before);
        fs::remove_file(stage.path("upper").join(&long)).unwrap();

        let redirect = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(stage.path("upper/dir"), "user.overlay.redirect", b"/old", redirect).unwrap();
        let said = stage.open().into_aufs().unwrap_err().to_string();
        assert!(said.contains("not plain"), "{said}");
        stage.open();
        assert_eq!(kind(&stage.seen(), "dir/gone"), Some("whiteout"));
    }
}
