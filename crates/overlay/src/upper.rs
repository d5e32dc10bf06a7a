//! The upper side of a union: one writable layer in kernel-overlayfs format, seen as a small set of atomic steps.
//!
//! This is the line between thought and disk. The core decides, and calls one method here per step; each step is atomic on
//! disk: a crash leaves the state before it or after it, and both are a valid union.

use layer::{Dev, FileType, Ino, Name, NameBuf, Stat, Time};

use crate::error::Result;
use crate::lower::LowerFile;

/// One container's writable layer.
///
/// Two tenants: `UpperDir` (a directory of a real filesystem) and the model's, in memory. Names that the union keeps for
/// itself (whiteouts, marks, private attributes) are written and read by the tenant alone; the core speaks of [`Marks`].
///
/// # Errors
/// Answers of the filesystem below (`ENOSPC`, `EDQUOT`, `EEXIST`...) as they are, with nothing changed; all else is a fault.
pub trait Upper: Send + Sync + 'static {
    /// A directory of the upper, held open.
    type Dir: Clone + Send + Sync + 'static;
    /// A regular file of the upper, open for reading and writing.
    type File: UpperFile;
    /// A copy that is complete but has no name yet; dropped unpublished, it leaves nothing.
    type Staged: Send;

    /// Returns the root of the upper.
    fn root(&self) -> Self::Dir;

    /// Opens a directory below `dir`, never through a link.
    fn open_dir(&self, dir: &Self::Dir, name: Name<'_>) -> Result<Self::Dir>;

    /// Reads the names that the upper has in `dir`.
    fn list(&self, dir: &Self::Dir) -> Result<Vec<Listed>>;

    /// Returns the attributes of an inode; `ino` is the backing inode number, `nlink` counts upper names.
    fn stat(&self, of: Target<'_, Self>) -> Result<Stat>;

    /// Returns attributes and marks of an inode.
    fn find(&self, of: Target<'_, Self>) -> Result<(Stat, Marks)>;

    /// Returns the target of a symbolic link.
    fn link_target(&self, of: Target<'_, Self>) -> Result<Vec<u8>>;

    /// Opens a regular file for reading and writing.
    fn open(&self, of: Target<'_, Self>) -> Result<Self::File>;

    /// Makes a new inode under `name` in one step.
    fn make(&self, dir: &Self::Dir, name: Name<'_>, new: &New<'_>, over: Over) -> Result<Stat>;

    /// Makes a new, empty regular file under `name` in one step, and opens it.
    fn create(&self, dir: &Self::Dir, name: Name<'_>, new: &New<'_>, over: Over) -> Result<(Stat, Self::File)>;

    /// Prepares the copy of a lower inode (not a directory: those are [`Upper::make`]d), its body included if given.
    ///
    /// After a power cut the copy is whole, or it is found out and the lower body counts: it is synced, or it bears a mark.
    fn stage(&self, copy: &CopyUp<'_>) -> Result<Self::Staged>;

    /// Gives a staged copy its name; the upper has nothing of that name. Returns a regular file opened, if it is.
    fn publish(&self, staged: Self::Staged, dir: &Self::Dir, name: Name<'_>) -> Result<(Stat, Option<Self::File>)>;

    /// Keeps a staged copy in the index of hard-linked origins, where it has no name in the tree yet.
    fn publish_index(&self, staged: Self::Staged, origin: Ino) -> Result<Stat>;

    /// Removes an inode from the index of hard-linked origins.
    fn remove_index(&self, origin: Ino) -> Result<()>;

    /// Returns the origins that the index of hard-linked origins holds.
    fn indexed(&self) -> Result<Vec<Ino>>;

    /// Returns what the kernel's overlayfs keeps in its own index of hard-linked origins: their file handles and kinds.
    fn foreign_index(&self) -> Result<Vec<(Vec<u8>, FileType)>> {
        Ok(Vec::new())
    }

    /// Takes an inode from the kernel's index into ours. A crash leaves it in the kernel's, to be taken again.
    fn adopt_foreign(&self, _handle: &[u8], _origin: Origin) -> Result<()> {
        Ok(())
    }

    /// Reads what the kernel takes from a file that is written to, before a body is brought up that no program wrote. A crash
    /// before [`Upper::give_back`] takes no privilege for good: the next mount gives it back.
    fn keep(&self, of: Target<'_, Self>) -> Result<Kept>;

    /// Gives it back.
    fn give_back(&self, of: Target<'_, Self>, kept: &Kept) -> Result<()>;

    /// Completes a metadata-only copy: writes the body into the file, makes it durable, then drops the mark.
    fn fill(&self, of: Target<'_, Self>, body: Source<'_>, size: u64) -> Result<()>;

    /// Syncs a copy that took its name unsynced, before its body is cut or punched.
    fn sync_copy(&self, of: Target<'_, Self>) -> Result<()>;

    /// Notes where in the lower a copy that took its name unsynced came from, before it gets another name; `path` starts with `/`.
    fn note_path(&self, of: Target<'_, Self>, path: &[u8]) -> Result<()>;

    /// Notes that a metadata-only copy begins to hold parts of the body; the lower counts up to `limit` bytes.
    fn begin_partial(&self, of: Target<'_, Self>, limit: u64) -> Result<()>;

    /// Lowers the limit of a partial copy.
    fn limit_partial(&self, of: Target<'_, Self>, limit: u64) -> Result<()>;

    /// Notes that a partial copy is whole: syncs it, then drops the marks.
    fn finish_partial(&self, of: Target<'_, Self>) -> Result<()>;

    /// Forgets a partial copy whose last name is gone.
    fn drop_partial(&self, backing: u64) -> Result<()>;

    /// Gives a metadata-only copy its body by sharing the lower's blocks, and drops the mark; `false` where that cannot be.
    fn clone_body(&self, of: Target<'_, Self>, body: &dyn LowerFile) -> Result<bool>;

    /// Returns the backing inode numbers of all partial copies.
    fn partials(&self) -> Result<Vec<u64>>;

    /// Gives an inode another name.
    fn link(&self, of: Target<'_, Self>, dir: &Self::Dir, name: Name<'_>, over: Over) -> Result<()>;

    /// Writes a whiteout where the upper has nothing of that name.
    fn whiteout(&self, dir: &Self::Dir, name: Name<'_>) -> Result<()>;

    /// Removes a non-directory's name, leaving a whiteout or nothing.
    fn unlink(&self, dir: &Self::Dir, name: Name<'_>, leave: Leave) -> Result<()>;

    /// Removes a directory that holds nothing but whiteouts, leaving a whiteout or nothing.
    fn remove_dir(&self, dir: &Self::Dir, name: Name<'_>, leave: Leave) -> Result<()>;

    /// Renames within the upper in one step. An empty directory that is replaced may be found opaque and without its
    /// whiteouts when the step fails or is cut off.
    fn rename(&self, from: (&Self::Dir, Name<'_>), to: (&Self::Dir, Name<'_>), how: Rename) -> Result<()>;

    /// Marks a directory opaque.
    fn set_opaque(&self, dir: &Self::Dir) -> Result<()>;

    /// Notes that a directory holds something with a part in the lower: the kernel's overlayfs looks at the numbers of all it
    /// lists there, so that `d_ino` is `st_ino`.
    fn set_impure(&self, _dir: &Self::Dir) -> Result<()> {
        Ok(())
    }

    /// Notes where in the lower an inode that is about to move came from; `path` starts with `/`.
    fn set_redirect(&self, of: Target<'_, Self>, path: &[u8]) -> Result<()>;

    /// Drops the note of where in the lower an inode came from.
    fn remove_redirect(&self, of: Target<'_, Self>) -> Result<()>;

    /// Changes attributes; those that are `None` stay.
    fn set_attr(&self, of: Target<'_, Self>, attr: &SetAttr) -> Result<()>;

    /// Returns one extended attribute (`ENODATA` if absent).
    fn xattr(&self, of: Target<'_, Self>, name: &[u8]) -> Result<Vec<u8>>;

    /// Returns the names of all extended attributes that a program may see.
    fn xattr_names(&self, of: Target<'_, Self>) -> Result<Vec<Vec<u8>>>;

    /// Sets one extended attribute; `EPERM` for the union's own.
    fn set_xattr(&self, of: Target<'_, Self>, name: &[u8], value: &[u8], how: SetXattr) -> Result<()>;

    /// Removes one extended attribute.
    fn remove_xattr(&self, of: Target<'_, Self>, name: &[u8]) -> Result<()>;

    /// Records how many names a hard-linked origin has in the lower alone.
    fn set_lower_names(&self, of: Target<'_, Self>, count: u32) -> Result<()>;

    /// Makes a directory's entries durable.
    fn sync_dir(&self, dir: &Self::Dir) -> Result<()>;

    /// Returns space and inode counts of the filesystem below.
    fn statfs(&self) -> Result<StatFs>;

    /// Tells whether files or directories of this upper may have POSIX ACLs.
    fn has_acls(&self) -> bool;

    /// Makes all that was done durable, and drops what was noted about copies that were not; the last call of a union that
    /// ends in peace.
    fn rest(&self) -> Result<()> {
        Ok(())
    }
}

/// An open regular file of the upper.
pub trait UpperFile: Send + Sync + 'static {
    /// Reads at `offset`; returns the bytes read, 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// Writes all of `data` at `offset`.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize>;
    /// Sets the size in bytes.
    fn truncate(&self, size: u64) -> Result<()>;
    /// fallocate(2) with the kernel's mode bits.
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()>;
    /// lseek(2) for `SEEK_DATA` and `SEEK_HOLE`.
    fn seek(&self, offset: u64, what: Seek) -> Result<u64>;
    /// Makes the content (and, unless `data_only`, all attributes) durable.
    fn sync(&self, data_only: bool) -> Result<()>;
    /// Copies within the upper, sharing blocks where the filesystem can; returns the bytes copied.
    fn copy_range(&self, offset: u64, to: &Self, to_offset: u64, len: u64) -> Result<u64>;
}

/// How an inode of the upper is named.
pub enum Target<'a, U: Upper + ?Sized> {
    /// A name in a directory; a symbolic link there is meant itself.
    At(&'a U::Dir, Name<'a>),
    /// An open directory.
    Dir(&'a U::Dir),
    /// An open file.
    File(&'a U::File),
    /// A hard-linked origin in the index.
    Index(Ino),
    /// A partial copy, by its backing inode number.
    Partial(u64),
}

impl<U: Upper + ?Sized> Clone for Target<'_, U> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U: Upper + ?Sized> Copy for Target<'_, U> {}

/// One name of an upper directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: NameBuf,
    /// What it is; `None` for a whiteout.
    pub kind: Option<FileType>,
    /// The backing inode number.
    pub ino: u64,
}

/// What the union noted on an upper inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// A directory that hides everything below it.
    pub opaque: bool,
    /// Where in the lower it came from: `/a/b` from the root, or a name beside it.
    pub redirect: Option<Vec<u8>>,
    /// Only the metadata is here; the body is still in the lower.
    pub metacopy: bool,
    /// The lower inode that this was copied from.
    pub origin: Option<Origin>,
    /// How many names a hard-linked origin still has in the lower alone.
    pub lower_names: u32,
    /// The body may not be on disk yet: it is a copy that took its name unsynced.
    pub unsynced: bool,
    /// Part of the body is here, the rest is still in the lower up to this length in bytes; implies `metacopy`.
    pub partial: Option<u64>,
}

/// The lower inode that an upper one was copied from: identity that survives a remount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Which stack of layers ([`crate::Lower::key`]).
    pub key: u64,
    /// The number it had there ([`crate::Lower::ino`]).
    pub ino: Ino,
}

/// What a file has that the kernel takes when it is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its permission bits, where set-user-ID or set-group-ID are among them and the upper's writes take these.
    pub perm: Option<u16>,
    /// Last access.
    pub atime: Time,
    /// Last modification.
    pub mtime: Time,
    /// Its capabilities, as the attribute has them.
    pub capability: Option<Vec<u8>>,
}

impl Kept {
    /// Tells whether there is more to it than times.
    pub fn is_privilege(&self) -> bool {
        self.perm.is_some() || self.capability.is_some()
    }
}

/// Runs what writes to a file though no program does, and gives back what that took, also when it fails.
pub fn unseen<U: Upper + ?Sized, T>(upper: &U, of: Target<'_, U>, write: impl FnOnce() -> Result<T>) -> Result<T> {
    let kept = upper.keep(of)?;
    let written = write();
    let given_back = upper.give_back(of, &kept);
    written.and_then(|value| given_back.map(|()| value))
}

/// A new inode.
#[derive(Clone, Debug)]
pub struct New<'a> {
    /// What to make.
    pub what: What<'a>,
    /// Permission bits, umask and set-group-ID inheritance already applied.
    pub perm: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Attributes it starts with (inherited ACLs, or a copied directory's).
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// For a copied directory: its times.
    pub times: Option<(Time, Time)>,
}

/// The kinds of new inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// An empty regular file.
    File,
    /// A directory, opaque or not.
    Dir {
        /// Hides everything below it.
        opaque: bool,
    },
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A device node.
    Device(FileType, Dev),
    /// A named pipe or socket.
    Special(FileType),
}

/// What the upper has under the name that a new inode takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Nothing.
    Nothing,
    /// A whiteout, which is replaced in the same step.
    Whiteout,
}

/// What a removal leaves under the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing: the lower has no such name.
    Nothing,
    /// A whiteout, put in place by the same step.
    Whiteout,
}

/// How a rename treats the two names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rename {
    /// What stays under the old name.
    pub leave: Leave,
    /// What the upper has under the new name.
    pub onto: Onto,
}

/// What the upper has under a rename's new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// Nothing.
    Nothing,
    /// A whiteout.
    Whiteout,
    /// A non-directory, which is replaced by a non-directory.
    File,
    /// A directory that holds nothing but whiteouts, replaced by a directory.
    EmptyDir,
    /// Anything: the two change places.
    Exchange,
}

/// The copy of a lower inode.
pub struct CopyUp<'a> {
    /// Its attributes.
    pub stat: &'a Stat,
    /// Its extended attributes.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// What a symbolic link points to.
    pub target: Option<&'a [u8]>,
    /// Where it comes from.
    pub origin: Origin,
    /// For a regular file: its body; `None` leaves it in the lower (metadata-only copy).
    pub body: Option<Source<'a>>,
    /// Where in the lower a body that stays there is found after a rename; `/a/b`.
    pub redirect: Option<&'a [u8]>,
    /// For a hard-linked origin: names it has in the lower.
    pub lower_names: u32,
    /// Where in the lower a body that is lost is looked for, if that is not the name that the copy gets; `/a/b`.
    pub path: Option<&'a [u8]>,
}

/// Where bytes come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// No bytes: the file starts empty.
    Empty,
    /// These.
    Bytes(&'a [u8]),
    /// A file of the lower.
    File(&'a dyn LowerFile),
}

/// Changes of attributes (setattr).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits (`07777`).
    pub perm: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New last access.
    pub atime: Option<SetTime>,
    /// New last modification.
    pub mtime: Option<SetTime>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The current time.
    Now,
    /// This time.
    At(Time),
}

/// How setxattr treats what is there (setxattr(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetXattr {
    /// Create or replace.
    Any,
    /// `XATTR_CREATE`.
    Create,
    /// `XATTR_REPLACE`.
    Replace,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

/// Space of a filesystem (statvfs(3)); sizes in units of `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Unit of the block counts in bytes.
    pub block: u32,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Blocks free for ordinary users.
    pub available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}
