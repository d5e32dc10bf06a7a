//! Looking at files: one at a time, and whole trees to compare.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::Hasher;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags};

/// What two trees are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    /// All that programs see.
    All,
    /// The same without inode numbers and what kernel overlayfs counts otherwise.
    Content,
    /// What lies on disk, ctime and marks included.
    Raw,
}

/// A tree: one line of facts for each path.
pub(crate) struct Tree(BTreeMap<PathBuf, Facts>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    nlink: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    target: Option<PathBuf>,
    content: u64,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl Tree {
    /// Looks at a mount; d_ino must be st_ino.
    pub(crate) fn of(root: &Path) -> Self {
        Self::read(root, true, false)
    }

    /// Looks at a mount, whatever `d_ino` is there.
    pub(crate) fn of_any(root: &Path) -> Self {
        Self::read(root, false, false)
    }

    /// Looks at a directory of a disk.
    pub(crate) fn raw(root: &Path) -> Self {
        Self::read(root, false, true)
    }

    fn read(root: &Path, check_ino: bool, marks: bool) -> Self {
        let mut all = BTreeMap::new();
        let mut dirs = vec![PathBuf::new()];
        all.insert(PathBuf::new(), Facts::of(root, marks));
        while let Some(dir) = dirs.pop() {
            let mut names = std::collections::BTreeSet::new();
            for entry in list(&root.join(&dir)) {
                let path = dir.join(&entry.name);
                assert!(names.insert(entry.name.clone()), "{path:?} is listed twice");
                let facts = Facts::of(&root.join(&path), marks);
                if check_ino {
                    assert_eq!(entry.ino, facts.ino, "d_ino and st_ino of {path:?}");
                }
                assert_eq!(entry.kind, rustix::fs::FileType::from_raw_mode(facts.mode), "d_type of {path:?}");
                if entry.kind.is_dir() {
                    dirs.push(path.clone());
                }
                all.insert(path, facts);
            }
        }
        Tree(all)
    }

    pub(crate) fn assert_same(&self, other: &Tree, when: &str, by: Compare) {
        let mut wrong = Vec::new();
        for (path, facts) in &self.0 {
            match other.0.get(path) {
                None => wrong.push(format!("{path:?}: missing")),
                Some(found) => {
                    let (old, new) = (facts.seen(by), found.seen(by));
                    if old != new {
                        wrong.push(format!("{path:?}:\n  was {old:?}\n  is  {new:?}"));
                    }
                }
            }
        }
        wrong.extend(
            other.0.keys().filter(|path| !self.0.contains_key(*path)).map(|path| format!("{path:?}: too many")),
        );
        wrong.truncate(8);
        assert!(wrong.is_empty(), "{when}:\n{}", wrong.join("\n"));
    }
}

impl Facts {
    fn of(path: &Path, marks: bool) -> Self {
        let meta = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let kind = meta.file_type();
        let mut xattrs = xattrs(path);
        if !marks {
            xattrs.retain(|name, _| !is_mark(name));
        }
        Facts {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            rdev: meta.rdev(),
            nlink: meta.nlink(),
            ino: meta.ino(),
            size: if kind.is_dir() && !marks { 0 } else { meta.size() },
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            target: kind.is_symlink().then(|| std::fs::read_link(path).unwrap()),
            content: if kind.is_file() { hash(path) } else { 0 },
            xattrs,
        }
    }

    fn seen(&self, by: Compare) -> Facts {
        let mut seen = self.clone();
        if by != Compare::Raw {
            seen.ctime = (0, 0);
        }
        let kind = rustix::fs::FileType::from_raw_mode(self.mode);
        if by == Compare::Content {
            seen.ino = 0;
            if kind.is_dir() {
                seen.nlink = 1;
            }
        }
        // See `a_copied_up_symlink_keeps_its_number_without_privilege_until_a_remount`.
        if by == Compare::All && !kind.is_dir() && !kind.is_file() && crate::area::in_user_namespace() {
            seen.ino = 0;
        }
        seen
    }
}

fn is_mark(name: &OsStr) -> bool {
    ["trusted.overlay.", "user.overlay.", "trusted.plyfs.", "user.plyfs.", "user.containers.override_stat"]
        .iter()
        .any(|mark| name.as_bytes().starts_with(mark.as_bytes()))
}

/// Hashes a file; zeros count for nothing, so that holes are cheap.
fn hash(path: &Path) -> u64 {
    // Looking must not change what is looked at.
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(path);
    let file = opened.unwrap_or_else(|error| panic!("open {path:?}: {error}"));
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data / 4096 * 4096,
            Err(_) => break,
        };
        let len = file.read_at(&mut buf, at).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
        if len == 0 {
            break;
        }
        for (index, block) in buf[..len].chunks(4096).enumerate() {
            if block.iter().any(|&byte| byte != 0) {
                hasher.write_u64(at + index as u64 * 4096);
                hasher.write(block.trim_end_with_zeros());
            }
        }
        at += len as u64;
    }
    hasher.finish()
}

trait TrimZeros {
    fn trim_end_with_zeros(&self) -> &[u8];
}

impl TrimZeros for [u8] {
    fn trim_end_with_zeros(&self) -> &[u8] {
        let end = self.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        &self[..end]
    }
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: OsString,
    pub(crate) ino: u64,
    pub(crate) kind: rustix::fs::FileType,
    /// Where the next one begins.
    pub(crate) next: u64,
}

/// Lists a directory without `.` and `..`.
pub(crate) fn list(path: &Path) -> Vec<Listed> {
    let dir = open_dir(path);
    rest(&dir).into_iter().filter(|entry| entry.name != "." && entry.name != "..").collect()
}

pub(crate) fn open_dir(path: &Path) -> std::os::fd::OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .unwrap_or_else(|error| panic!("open {path:?}: {error}"))
}

/// Lists what an open directory still has.
pub(crate) fn rest(dir: &impl std::os::fd::AsFd) -> Vec<Listed> {
    some(dir, 32 << 10, usize::MAX)
}

/// Lists at most `count` entries of what an open directory still has; the rest of the buffer is lost.
pub(crate) fn some(dir: &impl std::os::fd::AsFd, size: usize, count: usize) -> Vec<Listed> {
    let mut buf = vec![MaybeUninit::uninit(); size];
    let mut raw = rustix::fs::RawDir::new(dir, &mut buf);
    let mut all = Vec::new();
    while all.len() < count {
        let Some(entry) = raw.next() else { break };
        let entry = entry.unwrap();
        all.push(Listed {
            name: OsString::from_vec(entry.file_name().to_bytes().to_vec()),
            ino: entry.ino(),
            kind: entry.file_type(),
            next: entry.next_entry_cookie(),
        });
    }
    all
}

/// The names in a directory, sorted.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = list(path).into_iter().map(|entry| entry.name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// Bytes that a tree takes on the disk, each inode once.
pub(crate) fn allocated(path: &Path) -> u64 {
    let mut inodes = BTreeMap::new();
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        inodes.insert(meta.ino(), meta.blocks() * 512);
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    inodes.values().sum()
}

pub(crate) fn meta(path: impl AsRef<Path>) -> std::fs::Metadata {
    let path = path.as_ref();
    std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("stat {path:?}: {error}"))
}

pub(crate) fn perm(path: impl AsRef<Path>) -> u32 {
    meta(path).mode() & 0o7777
}

pub(crate) fn mtime(path: impl AsRef<Path>) -> (i64, i64) {
    let meta = meta(path);
    (meta.mtime(), meta.mtime_nsec())
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap_or_else(|error| panic!("{path:?}: {error}"));
}

/// Sets both times, not following links.
pub(crate) fn set_times(path: &Path, sec: i64, nsec: i64) {
    let at = Timespec { tv_sec: sec, tv_nsec: nsec as _ };
    let times = Timestamps { last_access: at, last_modification: at };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
}

pub(crate) fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut buf = vec![0; 65536];
    match rustix::fs::lgetxattr(path, name, &mut buf[..]) {
        Ok(len) => Some(buf[..len].to_vec()),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => None,
        Err(error) => panic!("{name} of {path:?}: {error}"),
    }
}

pub(crate) fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut buf = vec![0; 65536];
    let len = match rustix::fs::llistxattr(path, &mut buf[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => panic!("xattrs of {path:?}: {error}"),
    };
    let names = buf[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = OsStr::from_bytes(name);
            (name.to_owned(), xattr(path, name.to_str().unwrap()).unwrap_or_else(|| b"(cannot be read)".to_vec()))
        })
        .collect()
}

/// Bytes that are nowhere alike.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect()
}

/// Makes a file of `len` bytes, all of them data.
pub(crate) fn file(path: &Path, len: usize) {
    std::fs::write(path, pattern(len)).unwrap();
}

pub(crate) fn dir(path: &Path) {
    std::fs::create_dir_all(path).unwrap();
}

pub(crate) fn put(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("write {path:?}: {error}"));
}

pub(crate) fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path:?}: {error}"))
}

/// Opens for reading and writing.
pub(crate) fn open_rw(path: &Path) -> std::fs::File {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(path);
    opened.unwrap_or_else(|error| panic!("open {path:?} for writing: {error}"))
}

pub(crate) fn open(path: &Path) -> std::fs::File {
    std::fs::File::open(path).unwrap_or_else(|error| panic!("open {path:?}: {error}"))
}

/// Reads `len` bytes at `offset`.
pub(crate) fn at(file: &std::fs::File, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut buf[done..], offset + done as u64).unwrap() {
            0 => break,
            count => done += count,
        }
    }
    buf.truncate(done);
    buf
}

/// The error number of what must fail.
pub(crate) trait Refused {
    fn errno(self) -> i32;
}

impl<T> Refused for io::Result<T> {
    fn errno(self) -> i32 {
        match self {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        }
    }
}

impl<T> Refused for rustix::io::Result<T> {
    fn errno(self) -> i32 {
        self.map_or_else(rustix::io::Errno::raw_os_error, |_| 0)
    }
}

/// Tells whether something is there, not following a link.
pub(crate) fn exists(path: &Path) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => panic!("{path:?}: {error}"),
    }
}

/// Tells whether the upper holds a whiteout there.
pub(crate) fn is_whiteout(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
}

/// Runs a shell script with `$1`, `$2`... and returns what it says.
pub(crate) fn sh(script: &str, args: &[&Path]) -> String {
    let output = std::process::Command::new("sh").arg("-ec").arg(script).arg("sh").args(args).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
