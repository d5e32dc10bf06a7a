//! The daemon's command line: what fuse-overlayfs takes, what the kernel's overlayfs takes, and the `plyfs.*` options.
//!
//! [`parse`] turns the words into a typed [`Options`] without looking at the disk; [`Options::resolve`] makes its paths
//! absolute, and [`Options::check`] then looks at the disk. Which options there are is told by [`OPTIONS`].

mod apply;
mod check;
mod feature;
mod grammar;
mod ids;
mod spell;
mod table;

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::{Failure, Settle};

pub use feature::{Feature, FeatureSet};
pub use ids::{IdMap, IdRange};
pub(crate) use spell::escape;
pub use spell::{spell, spell_list};
pub use table::{Known, OPTIONS, Stance};

/// The most layers that one mount takes.
pub const MAX_LAYERS: usize = 1000;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Mount.
    Mount(Box<Options>),
    /// Say how to call the program.
    Help,
    /// Say the version.
    Version,
}

/// Everything a mount is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where to mount.
    pub target: PathBuf,
    /// What the mount table shows as the source, where the caller named one.
    pub source: Option<OsString>,
    /// Where the daemon stays.
    pub stay: Stay,
    /// Log everything (`-d`).
    pub debug: bool,
    /// The read-only side.
    pub lower: LowerDirs,
    /// The writable side; none makes the mount read-only.
    pub upper: Option<UpperDirs>,
    /// Owners that are not shown as they are on the disk.
    pub owners: Owners,
    /// Where owner, mode and device numbers are recorded that the upper's filesystem cannot hold.
    pub xattr_permissions: XattrPermissions,
    /// How the link count of a directory is made up.
    pub dir_nlink: DirNlink,
    /// POSIX ACLs are neither shown nor taken (`noacl`).
    pub no_acl: bool,
    /// What fsync means.
    pub durability: Durability,
    /// Marks in the upper are `user.overlay.*` even where `trusted.*` could be written (`userxattr`).
    pub user_xattr: bool,
    /// Which spellings of a whiteout count in the lower.
    pub whiteouts: Whiteouts,
    /// How the upper is left when the mount ends.
    pub leave: Settle,
    /// How long the kernel may keep entries and attributes; `None` as long as it likes.
    pub timeout: Option<Duration>,
    /// The longest write request in bytes.
    pub max_write: Option<u32>,
    /// Threads that read requests.
    pub threads: NonZeroUsize,
    /// Each of those threads has its own descriptor of the device.
    pub clone_fd: bool,
    /// What is switched off.
    pub disabled: FeatureSet,
    /// The log; without one, a daemon in the background says nothing.
    pub log: Option<PathBuf>,
    /// How the mount itself looks.
    pub mount: MountOptions,
    /// Options that were understood and have no effect here, one line each, for the log.
    pub notes: Vec<String>,
}

/// Where the daemon stays while it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// In the caller's terminal (`-f`).
    Foreground,
    /// In the background; the call returns once the mount answers.
    Background,
}

/// The read-only side of the union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LowerDirs {
    /// Plain directories (`lowerdir=`), topmost first; 1..=[`MAX_LAYERS`] of them.
    Plain(Vec<PathBuf>),
    /// An image of the store.
    Image(ImageLower),
    /// All layers of a store side by side, not as a union; no option asks for it ([`shelf`](crate::shelf)).
    Layers(StoreDirs),
}

/// A folded image of the store (`plyfs.index=`, `plyfs.objects=`, `plyfs.layers=`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLower {
    /// The folded index.
    pub index: PathBuf,
    /// The directory of large bodies.
    pub objects: PathBuf,
    /// The directory of layers, with their small bodies.
    pub layers: PathBuf,
}

/// Where a store has what its layers are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreDirs {
    /// The directory of large bodies.
    pub objects: PathBuf,
    /// The directory of layers, with their small bodies.
    pub layers: PathBuf,
}

/// The writable side of the union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpperDirs {
    /// Where changes go.
    pub upper: PathBuf,
    /// Where they are prepared; on the same filesystem.
    pub work: PathBuf,
}

/// How owners are shown; each empty or `None` where the caller asked for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// `uidmapping=`
    pub uids: IdMap,
    /// `gidmapping=`
    pub gids: IdMap,
    /// Everything belongs to this user (`squash_to_uid=`, or 0 by `squash_to_root`).
    pub squash_uid: Option<u32>,
    /// Everything belongs to this group (`squash_to_gid=`, or 0 by `squash_to_root`).
    pub squash_gid: Option<u32>,
}

/// Where owner and mode are recorded beside the inode (`xattr_permissions=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrPermissions {
    /// Nothing was asked for.
    #[default]
    Unset,
    /// `2`: in `user.containers.override_stat`.
    User,
}

/// How the link count of a directory is made up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirNlink {
    /// Two and one for each subdirectory, as on a disk.
    #[default]
    Counted,
    /// Always one (`static_nlink`).
    One,
}

/// What fsync means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// What the program asks for.
    #[default]
    Full,
    /// A program's fsync and sync are not passed on (`fsync=0`).
    NoFsync,
    /// Nothing is synced, the union's own steps included (`volatile`): a crash of the machine may cost the upper.
    Volatile,
}

/// Which spellings of a whiteout count in the lower (`plyfs.whiteouts=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// Kernel overlayfs's, fuse-overlayfs's, and `.wh.` names.
    #[default]
    Every,
    /// Kernel overlayfs's alone: a file named `.wh.x` is an ordinary file.
    Overlay,
}

/// How the mount itself looks, to the kernel and in the mount table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags that the caller chose.
    pub flags: ChosenFlags,
    /// Who may use the mount.
    pub access: Access,
    /// The longest read request in bytes.
    pub max_read: Option<u32>,
    /// The mount table's source (`fsname=`); it wins over the positional SOURCE.
    pub fsname: Option<OsString>,
    /// The part behind `fuse.` in the mount table's type.
    pub subtype: Option<OsString>,
    /// SELinux contexts as they were given (`context=...`), for the kernel.
    pub contexts: Vec<OsString>,
    /// Propagation of the new mount (`private`, `rshared`...).
    pub propagation: Option<MountPropagationFlags>,
}

/// Mount flags of which some were chosen; the others keep their default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChosenFlags {
    /// Which flags the caller decided, on or off.
    pub chosen: MountFlags,
    /// Those that are on.
    pub on: MountFlags,
}

impl Default for ChosenFlags {
    fn default() -> Self {
        ChosenFlags { chosen: MountFlags::empty(), on: MountFlags::empty() }
    }
}

impl ChosenFlags {
    /// Returns the flags to mount with, where `default` says what was not chosen.
    pub fn over(self, default: MountFlags) -> MountFlags {
        (default - self.chosen) | self.on
    }
}

/// Who may use the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everybody where we may mount ourselves, else the mounting user alone.
    #[default]
    Default,
    /// Everybody (`allow_other`).
    Everybody,
    /// The mounting user and root (`allow_root`).
    OwnerAndRoot,
}

impl Options {
    /// Tells whether `feature` may be used.
    pub fn enabled(&self, feature: Feature) -> bool {
        !self.disabled.contains(feature)
    }

    /// Makes every path absolute, as seen from `cwd`; the daemon leaves that directory.
    pub fn resolve(&mut self, cwd: &Path) {
        // `join` keeps an absolute path as it is.
        let absolute = |path: &mut PathBuf| *path = cwd.join(&*path);
        absolute(&mut self.target);
        match &mut self.lower {
            LowerDirs::Plain(dirs) => dirs.iter_mut().for_each(absolute),
            LowerDirs::Image(image) => {
                [&mut image.index, &mut image.objects, &mut image.layers].into_iter().for_each(absolute);
            }
            LowerDirs::Layers(store) => [&mut store.objects, &mut store.layers].into_iter().for_each(absolute),
        }
        if let Some(dirs) = &mut self.upper {
            [&mut dirs.upper, &mut dirs.work].into_iter().for_each(absolute);
        }
        self.log.iter_mut().for_each(absolute);
    }

    /// Looks at the disk: every directory is there, and the writable side does not overlap the read-only one.
    ///
    /// # Errors
    /// One line with the remedy.
    pub fn check(&self) -> Result<(), Failure> {
        check::check(self)
    }
}

/// Reads the words behind the program's name.
///
/// # Errors
/// One line that names the word at fault.
pub fn parse<W: AsRef<OsStr>>(words: &[W]) -> Result<Call, Failure> {
    let line = match grammar::read(words)? {
        grammar::Line::Help => return Ok(Call::Help),
        grammar::Line::Version => return Ok(Call::Version),
        grammar::Line::Mount(line) => line,
    };
    apply::apply(line).map(|options| Call::Mount(Box::new(options)))
}

#[cfg(test)]
mod tests;
