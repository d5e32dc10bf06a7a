//! Walking trees, call by call as find, du and ls do it.

use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::interrupt;

/// What glibc's readdir asks for at once.
const BUFFER: usize = 32 << 10;

/// What is asked of each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// As `find`: its name and kind; of directories also the attributes.
    Names,
    /// As `du`: its attributes.
    Attributes,
}

/// What was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) entries: u64,
    pub(crate) dirs: u64,
    /// Of regular files, where attributes were asked for.
    pub(crate) bytes: u64,
}

/// Walks all below `root`, relative to open directories, as fts(3) does.
pub(super) fn walk(root: &Path, look: Look) -> Result<Tally> {
    let mut tally = Tally::default();
    let dir = rustix::fs::open(root, dir_flags(), Mode::empty()).with_context(|| root.display().to_string())?;
    walk_dir(&dir, look, &mut tally)?;
    Ok(tally)
}

fn dir_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn walk_dir(dir: &OwnedFd, look: Look, tally: &mut Tally) -> Result<()> {
    interrupt::check()?;
    rustix::fs::fstat(dir)?;
    tally.dirs += 1;
    for (name, kind) in entries(dir)? {
        tally.entries += 1;
        let kind = match (look, kind) {
            (Look::Names, known) if known != FileType::Unknown => known,
            _ => {
                let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                let kind = FileType::from_raw_mode(stat.st_mode);
                if kind == FileType::RegularFile {
                    tally.bytes += u64::try_from(stat.st_size).unwrap_or_default();
                }
                kind
            }
        };
        if kind == FileType::Directory {
            walk_dir(&rustix::fs::openat(dir, &name, dir_flags(), Mode::empty())?, look, tally)?;
        }
    }
    Ok(())
}

/// Reads a directory: names and kinds, without `.` and `..`.
fn entries(dir: &OwnedFd) -> Result<Vec<(CString, FileType)>> {
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut raw = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        if ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()) {
            found.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// Does for all below `root` what `ls -lR` does, by path: attributes, names of xattrs, targets of links, sorted by name.
pub(super) fn list(root: &Path) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut queue = vec![root.to_path_buf()];
    let mut xattrs = vec![0_u8; 64 << 10];
    while let Some(path) = queue.pop() {
        interrupt::check()?;
        tally.dirs += 1;
        let dir = rustix::fs::open(&path, dir_flags(), Mode::empty())?;
        let mut names: Vec<CString> = entries(&dir)?.into_iter().map(|(name, _)| name).collect();
        names.sort();
        for name in names {
            tally.entries += 1;
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            let stat = rustix::fs::lstat(&path)?;
            match rustix::fs::llistxattr(&path, &mut xattrs[..]) {
                Ok(_) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno).with_context(|| path.display().to_string()),
            }
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => drop(rustix::fs::readlink(&path, Vec::new())?),
                FileType::Directory => queue.push(path),
                FileType::RegularFile => tally.bytes += u64::try_from(stat.st_size).unwrap_or_default(),
                _ => {}
            }
        }
    }
    Ok(tally)
}

/// What a tree holds, for workloads that go through it by path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    /// Regular files below the root, sorted, and their lengths in bytes.
    pub(crate) files: Vec<(PathBuf, u64)>,
    /// Directories below the root, sorted, the root first.
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) tally: Tally,
}

impl Survey {
    /// Returns the paths of the files.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().map(|(path, _)| path)
    }
}

/// Looks through the tree at `root`.
pub(crate) fn survey(root: &Path) -> Result<Survey> {
    let mut survey = Survey::default();
    let mut queue = vec![PathBuf::new()];
    while let Some(path) = queue.pop() {
        interrupt::check()?;
        let dir = rustix::fs::openat(CWD, root.join(&path), dir_flags(), Mode::empty())
            .with_context(|| format!("{} in the image", path.display()))?;
        for (name, _) in entries(&dir)? {
            survey.tally.entries += 1;
            let stat = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)
                .with_context(|| format!("{} in the image", path.display()))?;
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => queue.push(path),
                FileType::RegularFile => {
                    let size = u64::try_from(stat.st_size).unwrap_or_default();
                    survey.tally.bytes += size;
                    survey.files.push((path, size));
                }
                _ => {}
            }
        }
        survey.tally.dirs += 1;
        survey.dirs.push(path);
    }
    survey.files.sort();
    survey.dirs.sort();
    Ok(survey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn every_walk_meets_the_same() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/f"), b"12345").unwrap();
        fs::write(dir.path().join("a/b/g"), b"123").unwrap();
        std::os::unix::fs::symlink("f", dir.path().join("a/l")).unwrap();
        let whole = Tally { entries: 5, dirs: 3, bytes: 8 };
        assert_eq!(walk(dir.path(), Look::Names).unwrap(), Tally { bytes: 0, ..whole });
        assert_eq!(walk(dir.path(), Look::Attributes).unwrap(), whole);
        assert_eq!(list(dir.path()).unwrap(), whole);
        let survey = survey(dir.path()).unwrap();
        assert_eq!(survey.tally, whole);
        assert_eq!(survey.files, [("a/b/g".into(), 3), ("a/f".into(), 5)]);
        assert_eq!(survey.dirs, [PathBuf::new(), "a".into(), "a/b".into()]);
    }
}
