//! Stacks of real directories for tests, and a way to see a tree as a table that can be compared.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use backing::scanned::{Options, Scanned};
use backing::sys;
use layer::{FileType, Name, NameBuf, Slot, Stat, Time, TreePath};
use overlay::{Body, Lower, LowerFile};
use rustix::fs::{AtFlags, CWD, Dev, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use tempfile::TempDir;

/// One thing to put into a layer; parents are made.
#[derive(Clone, Debug)]
pub enum Put {
    Dir(String),
    File(String, Vec<u8>),
    /// A file of this size without content.
    Hole(String, u64),
    Link(String, String),
    /// Another name of what is there already.
    Hard(String, String),
    Fifo(String),
    Device(String, Dev),
    Mode(String, u32),
    Owner(String, u32, u32),
    Time(String, i64, i64),
    Xattr(String, String, Vec<u8>),
}

pub fn dir(path: &str) -> Put {
    Put::Dir(path.into())
}

pub fn file(path: &str, content: &str) -> Put {
    Put::File(path.into(), content.into())
}

pub fn whiteout(path: &str) -> Put {
    Put::Device(path.into(), 0)
}

pub fn xattr(path: &str, name: &str, value: &str) -> Put {
    Put::Xattr(path.into(), name.into(), value.into())
}

/// Directories to be stacked, topmost first.
pub struct Stack {
    pub top: TempDir,
    pub layers: Vec<PathBuf>,
}

impl Stack {
    pub fn of<const N: usize>(layers: [Vec<Put>; N]) -> Self {
        let stack = Stack::new(&layers);
        stack.unwrap()
    }

    pub fn new(layers: &[Vec<Put>]) -> rustix::io::Result<Self> {
        let top = tempfile::tempdir().unwrap();
        let mut stack = Stack { top, layers: Vec::new() };
        for (number, puts) in layers.iter().enumerate() {
            let root = stack.top.path().join(number.to_string());
            std::fs::create_dir(&root).unwrap();
            for put in puts {
                put.apply(&root)?;
            }
            stack.layers.push(root);
        }
        Ok(stack)
    }

    pub fn open(&self, options: Options) -> Scanned {
        Scanned::open(&self.layers, options).unwrap()
    }

    /// The paths that the merged tree has.
    pub fn paths(&self, options: Options) -> Vec<String> {
        tree(&self.open(options)).into_keys().filter(|path| !path.is_empty()).collect()
    }
}

impl Put {
    fn path(&self) -> &str {
        match self {
            Put::Dir(path)
            | Put::File(path, _)
            | Put::Hole(path, _)
            | Put::Link(path, _)
            | Put::Hard(path, _)
            | Put::Fifo(path)
            | Put::Device(path, _)
            | Put::Mode(path, _)
            | Put::Owner(path, _, _)
            | Put::Time(path, _, _)
            | Put::Xattr(path, _, _) => path,
        }
    }

    pub fn apply(&self, root: &Path) -> rustix::io::Result<()> {
        let path = &root.join(self.path());
        let io = |e: std::io::Error| rustix::io::Errno::from_io_error(&e).unwrap();
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        match self {
            Put::Dir(_) => std::fs::create_dir_all(path).map_err(io),
            Put::File(_, content) => std::fs::File::create_new(path).and_then(|mut f| f.write_all(content)).map_err(io),
            Put::Hole(_, size) => std::fs::File::create_new(path).and_then(|f| f.set_len(*size)).map_err(io),
            Put::Link(_, target) => rustix::fs::symlink(target.as_str(), path),
            Put::Hard(_, of) => rustix::fs::linkat(CWD, root.join(of), CWD, path, AtFlags::empty()),
            Put::Fifo(_) => rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, Mode::from(0o644), 0),
            Put::Device(_, dev) => {
                rustix::fs::mknodat(CWD, path, rustix::fs::FileType::CharacterDevice, Mode::from(0o644), *dev)
            }
            Put::Mode(_, mode) => rustix::fs::chmod(path, Mode::from(*mode)),
            Put::Owner(_, uid, gid) => std::os::unix::fs::lchown(path, Some(*uid), Some(*gid)).map_err(io),
            Put::Time(_, tv_sec, tv_nsec) => {
                let time = Timespec { tv_sec: *tv_sec, tv_nsec: *tv_nsec as _ };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Put::Xattr(_, name, value) => rustix::fs::lsetxattr(path, name.as_str(), value, XattrFlags::empty()),
        }
    }
}

/// Everything about one name but the time of access: reading a tree changes that where no read-only mount stands before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Whole {
        stat: Stat,
        xattrs: BTreeMap<String, Vec<u8>>,
        /// A link's target or a file's bytes.
        content: Vec<u8>,
    },
    /// It is there, and cannot be looked at.
    Broken,
}

/// The whole merged tree by path; the root is the empty path. Checks on the way that the answers agree with each other.
pub fn tree(lower: &Scanned) -> BTreeMap<String, Seen> {
    let mut tree = BTreeMap::new();
    see(lower, lower.root(), &TreePath::root(), &mut tree);
    tree
}

fn see(lower: &Scanned, slot: Slot, path: &TreePath, tree: &mut BTreeMap<String, Seen>) {
    let seen = look(lower, slot);
    let children = children(lower, slot);
    let (seen, children) = match (seen, children) {
        (Ok(seen), Ok(children)) => (seen, children),
        _ => (Seen::Broken, Vec::new()),
    };
    tree.insert(path.to_string(), seen);
    for (name, child) in children {
        assert_eq!(lower.lookup(slot, name.as_name()).unwrap(), Some(child));
        assert_eq!(lower.slot(lower.ino(child)), Some(child));
        let first = (lower.path(child).unwrap(), lower.parent(child).unwrap());
        if lower.stat(child).is_ok_and(|stat| stat.nlink == 1) {
            assert_eq!(first, (path.join(name.as_name()), slot));
            assert_eq!(lower.names(child).unwrap(), Some(vec![(slot, name.clone())]));
        }
        see(lower, child, &path.join(name.as_name()), tree);
    }
}

fn look(lower: &Scanned, slot: Slot) -> overlay::Result<Seen> {
    let stat = lower.stat(slot)?;
    assert_eq!(stat.ino, lower.ino(slot));
    let mut xattrs = BTreeMap::new();
    lower.xattrs(slot, &mut |name, value| {
        xattrs.insert(String::from_utf8(name.to_vec()).unwrap(), value.to_vec());
    })?;
    for (name, value) in &xattrs {
        assert_eq!(lower.xattr(slot, name.as_bytes())?.as_deref(), Some(&value[..]));
    }
    let content = match stat.kind {
        FileType::File => read(lower, slot)?,
        FileType::Symlink => lower.link_target(slot)?.into_owned(),
        _ => Vec::new(),
    };
    Ok(Seen::Whole { stat: Stat { atime: Time::default(), ..stat }, xattrs, content })
}

pub fn read(lower: &Scanned, slot: Slot) -> overlay::Result<Vec<u8>> {
    match lower.body(slot)? {
        Body::Bytes(bytes) => Ok(bytes.to_vec()),
        Body::File(file) => {
            let mut content = vec![0; lower.stat(slot)?.size as usize + 1];
            let len = file.read_at(&mut content, 0)?;
            content.truncate(len);
            Ok(content)
        }
    }
}

/// Lists a directory, one entry a call.
pub fn children(lower: &Scanned, dir: Slot) -> overlay::Result<Vec<(NameBuf, Slot)>> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let before = after;
        lower.entries(dir, after, &mut |entry| {
            assert_eq!(entry.kind, lower.stat(entry.slot).map_or(entry.kind, |stat| stat.kind));
            assert!(entry.cookie > after && entry.cookie < 1 << 32);
            all.push((entry.name.to_buf(), entry.slot));
            after = entry.cookie;
            ControlFlow::Break(())
        })?;
        if after == before {
            return Ok(all);
        }
    }
}

pub fn slot(lower: &Scanned, path: &str) -> Slot {
    let path = TreePath::parse(path.as_bytes()).unwrap();
    path.names().fold(lower.root(), |dir, name| lower.lookup(dir, name).unwrap().expect("it is there"))
}

/// The same table for a tree that the kernel shows.
pub fn real_tree(root: impl AsFd) -> BTreeMap<String, Seen> {
    let mut tree = BTreeMap::new();
    let root = sys::open_beneath(root, b"", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    let stat = Stat { atime: Time::default(), ..sys::stat_of(&root).unwrap().stat };
    tree.insert(String::new(), Seen::Whole { stat, xattrs: real_xattrs(&root, None), content: Vec::new() });
    see_real(&root, &TreePath::root(), &mut tree);
    tree
}

fn see_real(dir: &OwnedFd, path: &TreePath, tree: &mut BTreeMap<String, Seen>) {
    let mut names = Vec::new();
    sys::read_dir(dir, |entry| {
        names.push(entry.name.to_vec());
        ControlFlow::Continue(())
    })
    .unwrap();
    for name in names {
        let at = path.join(Name::new(&name).unwrap());
        let seen = match sys::stat_at(dir, &name) {
            // Overlayfs lists whiteouts in directories that it does not merge, but they are not there.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(_) => Seen::Broken,
            Ok(found) => {
                let open = |flags| sys::open_beneath(dir, &name, flags).unwrap();
                let content = match found.stat.kind {
                    FileType::File => {
                        let mut content = vec![0; found.stat.size as usize + 1];
                        let len = sys::read_at(open(OFlags::RDONLY), &mut content, 0).unwrap();
                        content.truncate(len);
                        content
                    }
                    FileType::Symlink => sys::read_link_at(dir, &name).unwrap(),
                    FileType::Dir => {
                        see_real(&open(OFlags::RDONLY | OFlags::DIRECTORY), &at, tree);
                        Vec::new()
                    }
                    _ => Vec::new(),
                };
                let stat = Stat { atime: Time::default(), ..found.stat };
                Seen::Whole { stat, xattrs: real_xattrs(dir, Some(&name)), content }
            }
        };
        tree.insert(at.to_string(), seen);
    }
}

fn real_xattrs(dir: &OwnedFd, name: Option<&[u8]>) -> BTreeMap<String, Vec<u8>> {
    let names = match name {
        Some(name) => sys::xattr_names_at(dir, name).unwrap(),
        None => sys::xattr_names_of(dir).unwrap(),
    };
    let value = |attribute: &[u8]| match name {
        Some(name) => sys::xattr_at(dir, name, attribute).unwrap(),
        None => sys::xattr_of(dir, attribute).unwrap(),
    };
    let names = names.split(|&b| b == 0).filter(|name| !name.is_empty());
    names.filter_map(|name| Some((String::from_utf8(name.to_vec()).unwrap(), value(name)?))).collect()
}

/// Notes that a test cannot run here; fails where that is not allowed.
pub fn skip(test: &str, why: &str, remedy: &str) {
    let line = format!("backing {test}: {why}; {remedy}");
    assert!(std::env::var_os("PLYFS_NO_SKIP").is_none_or(|value| value.is_empty()), "{line}");
    println!("skipped {line}");
    if let Some(list) = std::env::var_os("PLYFS_SKIPS") {
        let list = std::fs::OpenOptions::new().append(true).create(true).open(list);
        writeln!(list.unwrap(), "{line}").unwrap();
    }
}
