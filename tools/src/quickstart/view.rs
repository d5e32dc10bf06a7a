//! What is changed in a container, what a file looks like, and what lies in an upper.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::print::table::visible;
use crate::print::units;

/// The longest file that is changed, in bytes.
const CHANGEABLE: u64 = 64 * 1024;

/// How much of a file is compared, in bytes: all of a changed one.
const LOOKED_AT: u64 = 2 * CHANGEABLE;

/// What the quickstart does to the files of one container.
pub(super) struct Changes {
    /// Gets one more line.
    append: Option<PathBuf>,
    /// Goes.
    delete: Option<PathBuf>,
    /// Comes.
    add: PathBuf,
}

impl Changes {
    pub(super) fn of_sample() -> Self {
        Changes {
            append: Some("etc/motd".into()),
            delete: Some("usr/share/doc/README".into()),
            add: "srv/news.txt".into(),
        }
    }

    /// Finds two files in an image that is mounted at `root`.
    pub(super) fn find(root: &Path) -> Result<Self> {
        const KNOWN: [&str; 5] = ["etc/motd", "etc/hostname", "etc/os-release", "etc/passwd", "etc/group"];
        let known = KNOWN.iter().map(PathBuf::from).filter(|path| is_changeable(&root.join(path)));
        let mut files: Vec<PathBuf> = known.take(2).collect();
        if files.len() < 2 {
            for found in walk(root)? {
                if !files.contains(&found) {
                    files.push(found);
                }
            }
        }
        let mut files = files.into_iter();
        Ok(Changes { append: files.next(), delete: files.next(), add: "plyfs-was-here".into() })
    }

    /// Returns the paths that change.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.append.iter().chain(&self.delete).chain([&self.add]).map(PathBuf::as_path)
    }

    /// Changes the files below `root`; returns what one would type for it in the directory above.
    pub(super) fn make(&self, root: &Path) -> Result<Vec<String>> {
        let mut commands = Vec::new();
        let name = Path::new(root.file_name().unwrap_or_default());
        let shown = |path: &Path| visible(&name.join(path).display().to_string());
        if let Some(path) = &self.append {
            let text = "Closed for repairs.";
            let file = fs::OpenOptions::new().append(true).open(root.join(path));
            file.and_then(|mut file| writeln!(file, "{text}")).with_context(|| shown(path))?;
            commands.push(format!("echo '{text}' >> {}", shown(path)));
        }
        if let Some(path) = &self.delete {
            fs::remove_file(root.join(path)).with_context(|| shown(path))?;
            commands.push(format!("rm {}", shown(path)));
        }
        let text = "A new file.";
        fs::write(root.join(&self.add), format!("{text}\n")).with_context(|| shown(&self.add))?;
        commands.push(format!("echo '{text}' > {}", shown(&self.add)));
        Ok(commands)
    }
}

/// Finds up to two changeable files, nearest to the root first.
fn walk(root: &Path) -> Result<Vec<PathBuf>> {
    let mut directories = VecDeque::from([root.to_path_buf()]);
    let mut found = Vec::new();
    while let Some(directory) = directories.pop_front() {
        let mut entries = fs::read_dir(&directory)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .with_context(|| directory.display().to_string())?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for path in entries.iter().map(fs::DirEntry::path) {
            let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
            match path.strip_prefix(root) {
                _ if is_directory => directories.push_back(path),
                Ok(inside) if is_changeable(&path) => found.push(inside.to_path_buf()),
                _ => {}
            }
            if found.len() == 2 {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// Tells whether this is a small regular file, and no link to one.
fn is_changeable(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= CHANGEABLE)
}

/// What one sees at a path; shown as the last line of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing.
    Absent,
    /// A file with this in it.
    File(Vec<u8>),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Absent => f.write_str("-"),
            Seen::File(content) => {
                let line = content.trim_ascii_end().rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
                f.write_str(&visible(&String::from_utf8_lossy(line)))
            }
        }
    }
}

/// Looks at a file.
pub(super) fn look(path: &Path) -> Result<Seen> {
    match fs::File::open(path) {
        Ok(file) => {
            let mut content = Vec::new();
            file.take(LOOKED_AT).read_to_end(&mut content).with_context(|| path.display().to_string())?;
            Ok(Seen::File(content))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Seen::Absent),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// What a container's upper holds.
pub(super) struct Held {
    /// Everything below its root, in the order of the tree.
    pub(super) entries: Vec<HeldEntry>,
    /// Allocated bytes, the root's included.
    pub(super) bytes: u64,
}

/// An entry of an upper.
pub(super) struct HeldEntry {
    pub(super) path: String,
    pub(super) kind: String,
    pub(super) note: String,
}

/// Lists an upper.
pub(super) fn held(upper: &Path) -> Result<Held> {
    let metadata = upper.symlink_metadata().with_context(|| upper.display().to_string())?;
    let mut held = Held { entries: Vec::new(), bytes: metadata.blocks() * 512 };
    descend(upper, upper, &mut held)?;
    Ok(held)
}

fn descend(upper: &Path, directory: &Path, held: &mut Held) -> Result<()> {
    let mut entries = fs::read_dir(directory)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| directory.display().to_string())?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for path in entries.iter().map(fs::DirEntry::path) {
        let metadata = path.symlink_metadata().with_context(|| path.display().to_string())?;
        held.bytes += metadata.blocks() * 512;
        let inside = path.strip_prefix(upper).unwrap_or(&path).display().to_string();
        let kind = metadata.file_type();
        let (slash, kind, note) = match () {
            () if kind.is_dir() => ("/", "directory", String::new()),
            () if kind.is_symlink() => ("", "link", String::new()),
            () if kind.is_char_device() && metadata.rdev() == 0 => {
                ("", "whiteout", "hides the image's file".to_string())
            }
            () if kind.is_file() => ("", "file", units::size(metadata.len())),
            () => ("", "special file", String::new()),
        };
        held.entries.push(HeldEntry { path: format!("/{inside}{slash}"), kind: kind.to_string(), note });
        if metadata.is_dir() {
            descend(upper, &path, held)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_to_change_are_found_in_any_tree() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("b/c")).unwrap();
        std::os::unix::fs::symlink("b/c/two", dir.path().join("a")).unwrap();
        fs::write(dir.path().join("b/c/two"), "2").unwrap();
        let changes = Changes::find(dir.path()).unwrap();
        assert_eq!(changes.append.as_deref(), Some(Path::new("b/c/two")));
        assert_eq!(changes.delete, None);
        fs::write(dir.path().join("one"), "1").unwrap();
        let changes = Changes::find(dir.path()).unwrap();
        assert_eq!(changes.append.as_deref(), Some(Path::new("one")));
        assert_eq!(changes.delete.as_deref(), Some(Path::new("b/c/two")));
    }

    #[test]
    fn changes_change_what_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("one"), "first\nsecond\n").unwrap();
        fs::write(dir.path().join("two"), "").unwrap();
        let changes = Changes::find(dir.path()).unwrap();
        let look_at_all = || changes.paths().map(|path| look(&dir.path().join(path)).unwrap()).collect::<Vec<_>>();
        let before = look_at_all();
        changes.make(dir.path()).unwrap();
        let after = look_at_all();
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
        assert_eq!(after[0], Seen::File(b"first\nsecond\nClosed for repairs.\n".to_vec()));
        assert_eq!(after[1], Seen::Absent);
    }

    #[test]
    fn upper_is_listed_as_a_tree() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/motd"), "hello").unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        let held = held(dir.path()).unwrap();
        let shown: Vec<String> = held.entries.iter().map(|e| format!("{} {} {}", e.path, e.kind, e.note)).collect();
        assert_eq!(shown, ["/a file 0B", "/etc/ directory ", "/etc/motd file 5B"]);
    }
}
