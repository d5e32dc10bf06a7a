//! Operations as a program asks for them, printed so that a failed sequence can be pasted into a test.

use std::fmt;

use layer::{Dev, FileType, Time};
use overlay::upper::{Seek, SetXattr};
use overlay::{Access, Caller, Privilege, RenameFlags};

/// A path below the root; the root itself is empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(pub Vec<u8>);

/// Makes a path; for tests.
pub fn p(path: impl AsRef<[u8]>) -> Path {
    Path(path.as_ref().to_vec())
}

impl Path {
    /// Returns the directory's path and the last name; `None` for the root.
    pub fn split(&self) -> Option<(Path, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (p(&self.0[..slash]), &self.0[slash + 1..]),
            None => (p(""), &self.0),
        })
    }

    /// Goes through the names from the top.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|name| !name.is_empty())
    }

    /// Appends a name.
    pub fn join(&self, name: &[u8]) -> Path {
        let slash: &[u8] = if self.0.is_empty() { b"" } else { b"/" };
        Path([&self.0, slash, name].concat())
    }

    /// Tells whether `other` lies below this path.
    pub fn holds(&self, other: &Path) -> bool {
        self.0.is_empty() && !other.0.is_empty()
            || other.0.len() > self.0.len() && other.0.starts_with(&self.0) && other.0[self.0.len()] == b'/'
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.contains('\\') => write!(f, "p({text:?})"),
            _ => write!(f, "p(b\"{}\")", self.0.escape_ascii()),
        }
    }
}

/// An open file or directory, numbered by the test.
pub type Handle = u8;

/// Bytes to write: `len` of a pattern that `seed` chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill(pub u8, pub usize);

impl Fill {
    /// Returns the bytes.
    pub fn bytes(self) -> Vec<u8> {
        (0..self.1).map(|i| self.0 ^ (i as u8).wrapping_mul(31)).collect()
    }
}

/// A kind to make.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kinds of inodes")]
pub enum Kind {
    File,
    Dir,
    Symlink(Path),
    Device(FileType, Dev),
    Special(FileType),
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// lstat(2).
    Look(Path),
    /// creat(2) with `O_EXCL`, the file kept open for writing.
    Create(Handle, Path, u16, Caller),
    /// mkdir, mknod, symlink.
    Make(Path, u16, Caller, Kind),
    /// link(2).
    Link(Path, Path),
    /// unlink(2).
    Unlink(Path),
    /// rmdir(2).
    Rmdir(Path),
    /// renameat2(2).
    Rename(Path, Path, RenameFlags),
    /// chmod(2).
    Chmod(Path, u16),
    /// lchown(2).
    Chown(Path, Option<u32>, Option<u32>),
    /// utimensat(2), without following; access, modification. `None` is now.
    Utimens(Path, Option<Time>, Option<Time>),
    /// truncate(2).
    Truncate(Path, u64, Privilege),
    /// lsetxattr(2).
    SetXattr(Path, Path, Vec<u8>, SetXattr),
    /// lremovexattr(2).
    RemoveXattr(Path, Path),
    /// open(2) of a regular file.
    Open(Handle, Path, Access, Privilege),
    /// pread(2).
    Read(Handle, u64, usize),
    /// pwrite(2).
    Write(Handle, u64, Fill, Privilege),
    /// ftruncate(2).
    TruncateOpen(Handle, u64, Privilege),
    /// fchmod(2).
    ChmodOpen(Handle, u16),
    /// fchown(2).
    ChownOpen(Handle, Option<u32>, Option<u32>),
    /// fsetxattr(2).
    SetXattrOpen(Handle, Path, Vec<u8>),
    /// fstat(2).
    Stat(Handle),
    /// flistxattr(2), and fgetxattr(2) of each.
    XattrsOpen(Handle),
    /// fsync(2).
    Sync(Handle),
    /// lseek(2) for data and holes.
    Seek(Handle, u64, Seek),
    /// fallocate(2).
    Allocate(Handle, i32, u64, u64),
    /// copy_file_range(2).
    CopyRange(Handle, u64, Handle, u64, usize),
    /// linkat(2) of an open file.
    LinkOpen(Handle, Path),
    /// close(2).
    Close(Handle),
    /// opendir(3).
    DirOpen(Handle, Path),
    /// The next entries.
    DirNext(Handle, usize),
    /// rewinddir(3).
    DirRewind(Handle),
    /// mkdirat(2) in an open directory, which may have been removed.
    MkdirAt(Handle, Path),
    /// closedir(3).
    DirClose(Handle),
    /// The kernel lets go of what it knows below a path, where it is not in use.
    Forget(Path),
    /// The mount ends (all handles are closed) and begins again.
    Remount,
    /// The mount ends in order, its upper at rest, and begins again.
    Rest,
}
