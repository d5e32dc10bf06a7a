//! What one image layer is: names, digests, entries, whiteouts, and the index format.
//!
//! This crate is pure: it reads bytes that it is given and returns bytes, and never touches the system. Everything
//! above it (`overlay`, `backing`, `store`, `mountd`) speaks in its nouns.

pub mod digest;
#[doc(hidden)]
pub mod fixture;
pub mod index;
pub mod name;
pub mod stat;
pub mod tree;
pub mod whiteout;

pub use digest::{ChainId, DiffId, Digest};
pub use name::{Name, NameBuf, NameError, TreePath};
pub use stat::{Dev, FileType, Ino, LayerNo, Slot, Stat, Time};
