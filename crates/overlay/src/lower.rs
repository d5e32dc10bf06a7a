//! The lower side of a union: one read-only tree that never changes, however many layers it was made of.

use std::borrow::Cow;
use std::ops::ControlFlow;

use layer::{FileType, Ino, Name, Slot, Stat, TreePath};

use crate::error::Result;
use crate::upper::Seek;

/// The merged, read-only tree below a union.
///
/// Two tenants: `Folded` (an image of the store: a mapped index, no syscalls) and `Scanned` (plain directories given as
/// `lowerdir=`, merged by the same rules, each directory read once). A [`Slot`] names one inode for as long as the lower
/// lives; hard links of one file share a slot. Every method takes slots that this lower gave out.
///
/// # Errors
/// Every method answers a fault (`EIO`) when the disk or the index fails; absence is `Ok(None)`, never an error.
pub trait Lower: Send + Sync + 'static {
    /// An open body; the daemon also asks it for a descriptor.
    type File: LowerFile;

    /// Tells which layers these are, in 64 bits: an origin noted in an upper counts only where the key is equal.
    fn key(&self) -> u64 {
        0
    }

    /// Returns the slot of the root directory.
    fn root(&self) -> Slot;

    /// Returns the number that programs and the kernel know `slot` by (`st_ino`, and the FUSE nodeid): never 0 or 1 but for
    /// the root (1), below 2^62, the same in every mount of the same layers.
    fn ino(&self, slot: Slot) -> Ino;

    /// Tells whether [`Lower::slot`] finds every number at once, not only those of what was read.
    fn finds_all_numbers(&self) -> bool {
        true
    }

    /// Returns the slot behind a number from [`Lower::ino`]; `None` for a number that this lower never gave out.
    fn slot(&self, ino: Ino) -> Option<Slot>;

    /// Returns the numbers of all files that a file handle of the kernel's overlayfs may mean (`struct ovl_fb`); none where
    /// files of this lower have no handles.
    fn by_handle(&self, _handle: &[u8]) -> Vec<Ino> {
        Vec::new()
    }

    /// Looks `name` up in the directory `dir`; a `dir` that is no directory has no names.
    fn lookup(&self, dir: Slot, name: Name<'_>) -> Result<Option<Slot>>;

    /// Returns all attributes (`ino` as [`Lower::ino`] tells it, `nlink` counting the names visible in this merged tree).
    fn stat(&self, slot: Slot) -> Result<Stat>;

    /// Returns the directory that holds `slot`'s (first) name; the root holds itself.
    fn parent(&self, slot: Slot) -> Result<Slot>;

    /// Returns the path of `slot`'s (first) name.
    fn path(&self, slot: Slot) -> Result<TreePath>;

    /// Returns every name of a hard-linked file, as (directory, name), first name first; `None` when that is not known
    /// without reading the whole tree (`Scanned`).
    fn names(&self, slot: Slot) -> Result<Option<Vec<(Slot, layer::NameBuf)>>>;

    /// Visits the entries of `dir` whose cookie is greater than `after` (0: all), in ascending cookies, until told to stop.
    ///
    /// A cookie is the entry's position, greater than 0 and below 2^32, and never changes. `.` and `..` are not visited.
    fn entries(&self, dir: Slot, after: u64, visit: &mut dyn FnMut(LowerEntry<'_>) -> ControlFlow<()>) -> Result<()>;

    /// Returns the target of a symbolic link (not NUL-terminated).
    fn link_target(&self, slot: Slot) -> Result<Cow<'_, [u8]>>;

    /// Returns one extended attribute; the union's own (`*.overlay.*`, override_stat...) are never shown.
    fn xattr(&self, slot: Slot, name: &[u8]) -> Result<Option<Cow<'_, [u8]>>>;

    /// Visits all extended attributes as (name, value).
    fn xattrs(&self, slot: Slot, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()>;

    /// Tells whether [`Lower::read_ahead`] gains anything.
    fn reads_ahead(&self) -> bool {
        false
    }

    /// Reads what lies below a directory that is being walked, for who asks next; called from a thread beside.
    fn read_ahead(&self, _dir: Slot) {}

    /// Reads all that is needed to answer [`Lower::is_bare`].
    fn find_whether_bare(&self) {}

    /// Tells whether it is known that nothing in this tree has an extended attribute.
    fn is_bare(&self) -> bool {
        false
    }

    /// Tells whether any file or directory has a POSIX ACL (a guess on the safe side where that is not known).
    fn has_acls(&self) -> bool;

    /// Opens the content of a regular file for reading.
    fn body(&self, slot: Slot) -> Result<Body<'_, Self::File>>;
}

/// One entry of a lower directory.
#[derive(Clone, Copy, Debug)]
pub struct LowerEntry<'a> {
    /// Its name.
    pub name: Name<'a>,
    /// Its inode.
    pub slot: Slot,
    /// Its kind.
    pub kind: FileType,
    /// Its position; pass it as `after` to go on behind it.
    pub cookie: u64,
}

/// The content of a lower file.
pub enum Body<'a, F> {
    /// A small body, straight from the map.
    Bytes(&'a [u8]),
    /// A file on the disk, opened read-only.
    File(F),
}

/// An open file of the lower.
pub trait LowerFile: Send + Sync + 'static {
    /// Reads at `offset` into `buf`; returns the number of bytes read, 0 at the end.
    ///
    /// # Errors
    /// A fault from the disk.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Finds the next data or hole at or behind `offset` in a file of `size` bytes; without holes all of it is data.
    ///
    /// # Errors
    /// `ENXIO` when there is no data behind `offset` (lseek(2)).
    fn seek(&self, offset: u64, what: Seek, size: u64) -> Result<u64> {
        Ok(if what == Seek::Data { offset } else { size })
    }

    /// Returns the descriptor behind it, for copies inside the kernel and passthrough; `None` where there is none.
    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}
