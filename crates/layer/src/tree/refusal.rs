//! Why a member is no part of a layer.

use crate::index::{TARGET_MAX, WriteError};
use crate::name::NameError;

/// A member that a layer must not hold, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("member '{member}': {why}")]
pub struct TreeError {
    /// The member's path, escaped for a terminal and cut to some hundred characters; empty for the layer as a whole.
    pub member: String,
    /// The rule that it breaks.
    pub why: Refusal,
}

/// The rule that a member breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `..`, a NUL byte, a name over 255 bytes.
    #[error("{0}")]
    Path(NameError),
    /// `.wh.`, `.wh..` or `.wh...`.
    #[error("a whiteout that names nothing: {0}")]
    BareWhiteout(NameError),
    /// A name below `.wh.x`.
    #[error("it lies below the whiteout '{0}'")]
    BelowWhiteout(String),
    /// A name below a file, device, pipe, socket or unresolved hard link of the same layer.
    #[error("it lies below '{0}', which is no directory in this layer")]
    BelowNonDirectory(String),
    /// Too many symbolic links of this layer on the way.
    #[error("too many symbolic links lead to it")]
    TooManySymlinks,
    /// `/` as anything but a directory.
    #[error("the root of a layer must be a directory")]
    Root,
    /// No or too long a target, or a NUL byte in it.
    #[error("a symbolic link's target must have 1 to {TARGET_MAX} bytes, none of them NUL")]
    SymlinkTarget,
    /// A device 0:0, a whiteout in the kernel's spelling.
    #[error("a character device 0:0 would be a whiteout of overlayfs")]
    DeviceZero,
    /// Nanoseconds of a second or more.
    #[error("a time with {0} nanoseconds")]
    Time(u32),
    /// A body that ends past 2^63 - 1.
    #[error("a body that is too long")]
    Body,
    /// A name of 0 or more than 255 bytes or with a NUL byte, or a value over 64 KiB.
    #[error("the extended attribute '{0}' has a bad name or too long a value")]
    Xattr(String),
    /// A hard link's target starts with `/`.
    #[error("a hard link to the absolute path '{0}'")]
    AbsoluteLink(String),
    /// A hard link's target is no path in a layer.
    #[error("a hard link to '{target}': {why}")]
    LinkPath {
        /// The target.
        target: String,
        /// What is wrong with it.
        why: NameError,
    },
    /// A hard link to its own name, or to something below it.
    #[error("a hard link to itself")]
    LinkToItself,
    /// Hard links whose targets are each other.
    #[error("a hard link in a circle, by '{0}'")]
    LinkCircle(String),
    /// Directories have one name.
    #[error("a hard link to '{0}', a directory")]
    LinkToDirectory(String),
    /// The target is below a non-directory of this layer, in a whiteout's name, or the root.
    #[error("a hard link to '{0}', where nothing can be")]
    LinkToNowhere(String),
    /// The target is in lower layers at best, and a whiteout or opaque marker of this layer hides it there.
    #[error("a hard link to '{0}', which this layer hides or does not hold")]
    LinkToHidden(String),
    /// What the format cannot hold.
    #[error("{0}")]
    Write(WriteError),
}
