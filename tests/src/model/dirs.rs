//! Layers as plain directories, and what lies in directories.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use layer::fixture::{Item, ItemKind};
use rustix::fs::{AtFlags, CWD, FileType as RawType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::stack::Stack;

/// Which attribute says that a directory hides what is below it.
pub const OPAQUE: &str = "trusted.overlay.opaque";

/// Writes a stack as directories `0`, `1`... in `top`, and returns them topmost first, as `lowerdir=` wants them. Without layers
/// there is one empty directory.
///
/// # Errors
/// Those of the system.
pub fn write_stack(top: &Path, stack: &Stack) -> io::Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for (number, items) in stack.iter().enumerate() {
        let root = top.join(number.to_string());
        std::fs::create_dir(&root)?;
        write_layer(&root, items)?;
        dirs.insert(0, root);
    }
    if dirs.is_empty() {
        let root = top.join("empty");
        std::fs::create_dir(&root)?;
        dirs.push(root);
    }
    Ok(dirs)
}

fn write_layer(root: &Path, items: &[Item]) -> io::Result<()> {
    for item in items {
        write_item(root, item)?;
    }
    // Inside first: what is made in a directory changes its time.
    for item in items.iter().rev() {
        decorate(root, item)?;
    }
    Ok(())
}

fn at(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
}

/// Makes the directories of a path; one in the place of a whiteout hides what is below.
fn make_dirs(root: &Path, dir: &Path) -> io::Result<()> {
    if dir == root || dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_dirs(root, parent)?;
    }
    let hides = is_whiteout(dir);
    if hides {
        std::fs::remove_file(dir)?;
    }
    std::fs::create_dir(dir)?;
    if hides { hide_below(dir) } else { Ok(()) }
}

fn hide_below(dir: &Path) -> io::Result<()> {
    Ok(rustix::fs::setxattr(dir, OPAQUE, b"y", XattrFlags::empty())?)
}

fn write_item(root: &Path, item: &Item) -> io::Result<()> {
    let path = at(root, &item.path);
    let (dir, name) = (path.parent().unwrap_or(root), path.file_name().unwrap_or_default());
    make_dirs(root, dir)?;
    if name == ".wh..wh..opq" {
        return hide_below(dir);
    }
    if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
        let hidden = dir.join(OsStr::from_bytes(hidden));
        return match hidden.symlink_metadata() {
            Ok(meta) if meta.is_dir() => hide_below(&hidden),
            Ok(_) => Ok(()),
            Err(_) => Ok(rustix::fs::mknodat(CWD, &hidden, RawType::CharacterDevice, Mode::empty(), 0)?),
        };
    }
    if item.kind != ItemKind::Dir && is_whiteout(&path) {
        std::fs::remove_file(&path)?;
    }
    let device = |kind, dev: &layer::Dev| {
        let dev = rustix::fs::makedev(dev.major, dev.minor);
        Ok(rustix::fs::mknodat(CWD, &path, kind, Mode::RUSR, dev)?)
    };
    match &item.kind {
        ItemKind::Dir => make_dirs(root, &path),
        ItemKind::File { content, .. } => std::fs::write(&path, content),
        ItemKind::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), &path),
        ItemKind::Hardlink(target) => std::fs::hard_link(at(root, target), &path),
        ItemKind::Char(dev) => device(RawType::CharacterDevice, dev),
        ItemKind::Block(dev) => device(RawType::BlockDevice, dev),
        ItemKind::Fifo => device(RawType::Fifo, &layer::Dev::default()),
        ItemKind::Socket => device(RawType::Socket, &layer::Dev::default()),
    }
}

fn decorate(root: &Path, item: &Item) -> io::Result<()> {
    let path = at(root, &item.path);
    let whiteout = path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".wh."));
    if whiteout || matches!(item.kind, ItemKind::Hardlink(_)) {
        return Ok(());
    }
    let (uid, gid) = (Some(Uid::from_raw(item.uid)), Some(Gid::from_raw(item.gid)));
    rustix::fs::chownat(CWD, &path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if !matches!(item.kind, ItemKind::Symlink(_)) {
        rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(item.perm), AtFlags::empty())?;
    }
    for (name, value) in &item.xattrs {
        rustix::fs::lsetxattr(&path, OsStr::from_bytes(name), value, XattrFlags::empty())?;
    }
    let time = Timespec { tv_sec: item.mtime.sec, tv_nsec: item.mtime.nsec.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// All that lies below a directory: by path, kind, mode, owner, device, size, time of change, link count, content, attributes.
///
/// # Errors
/// Those of the system.
pub fn survey(root: &Path) -> io::Result<BTreeMap<PathBuf, String>> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata()?;
        let content = match () {
            () if meta.is_file() => std::fs::read(&path)?,
            () if meta.is_symlink() => std::fs::read_link(&path)?.into_os_string().into_vec(),
            () => Vec::new(),
        };
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        }
        let xattrs: Vec<String> = xattrs(&path)?
            .iter()
            .map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()))
            .collect();
        let line = format!(
            "{:o} {}:{} dev {} size {} time {}.{} ino {} nlink {} [{}] '{}'",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.rdev(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ino(),
            meta.nlink(),
            xattrs.join(" "),
            content.escape_ascii(),
        );
        all.insert(path, line);
    }
    Ok(all)
}

/// Reads the extended attributes of a path, itself and not what it points to.
///
/// # Errors
/// Those of the system.
pub fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names)?;
    let mut all = BTreeMap::new();
    for name in names[..len].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let name: OsString = OsStr::from_bytes(name).into();
        let len = rustix::fs::lgetxattr(path, &name, &mut value)?;
        value.truncate(len);
        all.insert(name.into_vec(), value);
    }
    Ok(all)
}

/// Says how two surveys differ.
///
/// # Errors
/// In words, the first path that differs.
pub fn unchanged(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> Result<(), String> {
    for (path, was) in before {
        match after.get(path) {
            None => return Err(format!("{}: gone", path.display())),
            Some(is) if is != was => return Err(format!("{}: was {was}, is {is}", path.display())),
            _ => {}
        }
    }
    match after.keys().find(|path| !before.contains_key(*path)) {
        Some(path) => Err(format!("{}: new", path.display())),
        None => Ok(()),
    }
}
