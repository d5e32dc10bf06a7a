//! Small steps on the disk: publish a file by rename, sync a directory, measure or delete a tree.

mod usage;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use layer::index::Index;

use crate::error::{Error, Result};
use crate::layout::Layout;

#[cfg(test)]
pub(crate) use usage::tests::Deep;
pub(crate) use usage::{DIRECTORY, Identity, above, allocated, identity};

/// Makes a directory 0700 unless it is there.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(Error::at("make directory", path)),
    }
}

/// Makes what was renamed into or out of a directory survive a power cut.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::at("sync", path))
}

/// Returns the file's bytes; `None` if there is no such file.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::at("read", path)(cause)),
    }
}

/// Returns the names in a directory, sorted; none if it is not there.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(names),
        entries => entries.map_err(Error::at("list", dir))?,
    };
    for entry in entries {
        let name = entry.map_err(Error::at("list", dir))?.file_name();
        // The store gives out ASCII names only; what is not ours has no business here and is left alone.
        names.extend(name.into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// Returns a path in `ingest/` that nobody else has. Its user holds the store's lock.
pub(crate) fn unfinished(layout: &Layout) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map(|t| t.as_nanos()).unwrap_or_default();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    layout.ingest().join(format!("{}-{nanos:x}-{number}", std::process::id()))
}

/// Opens a new file of that mode for writing.
pub(crate) fn create(path: &Path, mode: u32) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(mode).open(path).map_err(Error::at("create", path))
}

/// Writes `bytes` as the file `path`, replacing it, whole and durably or not at all. The caller holds the store's lock.
pub(crate) fn publish(layout: &Layout, path: &Path, bytes: &[u8]) -> Result<()> {
    publish_with(layout, path, bytes, |_| {})
}

/// As [`publish`], of an index that mounts are to open without checking it again.
///
/// # Errors
/// As [`publish`]; the bytes are no index.
pub(crate) fn publish_index(layout: &Layout, path: &Path, bytes: Vec<u8>) -> Result<()> {
    let index = Index::open(bytes).map_err(|why| Error::corrupt(path.display(), why))?;
    publish_with(layout, path, index.bytes(), |file| {
        if let Err(errno) = backing::index_note::write(file, &index) {
            log::debug!("{}: no note that it is checked: {errno}; each mount checks it", path.display());
        }
    })
}

fn publish_with(layout: &Layout, path: &Path, bytes: &[u8], finish: impl FnOnce(&File)) -> Result<()> {
    let unfinished = unfinished(layout);
    let written = create(&unfinished, 0o600).and_then(|mut file| {
        file.write_all(bytes).map_err(Error::at("write", path))?;
        finish(&file);
        file.sync_all().map_err(Error::at("write", path))?;
        fs::rename(&unfinished, path).map_err(Error::at("write", path))
    });
    if let Err(error) = written {
        // Already failing; what stays is swept at the next start.
        fs::remove_file(&unfinished).ok();
        return Err(error);
    }
    path.parent().map_or(Ok(()), sync_dir)
}

/// Returns 64 random hex digits.
pub(crate) fn random_id() -> Result<String> {
    let mut bytes = [0; 32];
    let source = Path::new("/dev/urandom");
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).map_err(Error::at("read", source))?;
    Ok(layer::Digest::from_bytes(bytes).hex())
}

/// Deletes a file, or a directory with all below it; what is not there is deleted already.
///
/// Directories below are moved up beside the first before they are emptied: any depth is deleted with one descriptor. They get
/// mode 0700 first, so that an ordinary user can delete what a container has closed to its owner.
pub(crate) fn remove_tree(top: &Path) -> Result<()> {
    let is_dir = match fs::symlink_metadata(top) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(Error::at("delete", top))?.is_dir(),
    };
    if !is_dir {
        return gone(fs::remove_file(top)).map_err(Error::at("delete", top));
    }
    open_up(top)?;
    let mut moved = 0u64;
    let mut queue = VecDeque::from([top.to_owned()]);
    let mut emptied = Vec::new();
    while let Some(dir) = queue.pop_front() {
        for entry in fs::read_dir(&dir).map_err(Error::at("delete", &dir))? {
            let entry = entry.map_err(Error::at("delete", &dir))?;
            let path = entry.path();
            if !entry.file_type().map_err(Error::at("delete", &path))?.is_dir() {
                gone(fs::remove_file(&path)).map_err(Error::at("delete", &path))?;
            } else if gone(fs::remove_dir(&path)).is_err() {
                open_up(&path)?;
                let beside = match dir == top {
                    true => path,
                    false => {
                        moved += 1;
                        let beside = top.join(format!(".moved-{moved}"));
                        fs::rename(&path, &beside).map_err(Error::at("delete", &path))?;
                        beside
                    }
                };
                queue.push_back(beside);
            }
        }
        if dir != top {
            emptied.push(dir);
        }
    }
    for dir in emptied {
        gone(fs::remove_dir(&dir)).map_err(Error::at("delete", &dir))?;
    }
    gone(fs::remove_dir(top)).map_err(Error::at("delete", top))
}

/// Deletes what lies in `trash/` or `ingest/`. What was written in a user namespace, by users who exist there only, may be closed to
/// us: it is left, and the next command in such a namespace deletes it.
pub(crate) fn discard(top: &Path) -> Result<()> {
    match remove_tree(top) {
        Err(Error::Io { cause, doing }) if cause.kind() == io::ErrorKind::PermissionDenied => {
            log::info!("{doing}: {cause}; it is left");
            Ok(())
        }
        removed => removed,
    }
}

fn open_up(dir: &Path) -> Result<()> {
    let mode = fs::symlink_metadata(dir).map_err(Error::at("delete", dir))?.permissions().mode();
    if mode & 0o700 == 0o700 {
        return Ok(());
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(Error::at("open up", dir))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_of_any_depth_and_mode_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        // Deeper than PATH_MAX allows in one path.
        for round in 0..5 {
            let deep = dir.path().join(format!("part-{round}"));
            fs::create_dir_all(deep.join("d/".repeat(1000))).unwrap();
            fs::write(deep.join("file"), b"x").unwrap();
        }
        for round in 0..5 {
            let inner = dir.path().join(format!("part-{round}"));
            match round {
                4 => fs::rename(inner, top.join("a")).unwrap(),
                _ => {
                    fs::rename(inner, dir.path().join(format!("part-{}", round + 1)).join("d/".repeat(1000)).join("x"))
                        .unwrap()
                }
            }
        }
        let closed = top.join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("file"), b"x").unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        remove_tree(&top).unwrap();
    }
}
