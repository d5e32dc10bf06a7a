//! What stacking means: precedence, the fold of many layers into one lower, the two-sided union, and its changes.
//!
//! This crate is pure: no I/O, no system call. The disk is behind two traits, [`Lower`] (read-only, never changes) and
//! [`Upper`] (one container's writable layer), so that the same core runs over real directories and over a model in memory.

pub mod acl;
mod adopt;
mod attr;
mod copy_up;
pub mod error;
mod file;
pub mod fold;
pub mod folded;
pub mod ids;
mod links;
pub mod lower;
mod make;
mod names;
mod node;
mod numbers;
mod partial;
mod plain;
mod read;
mod remove;
mod rename;
pub mod session;
mod union;
pub mod upper;

pub use attr::Privilege;
pub use error::{Errno, Error, Result};
pub use file::{Access, BodyAt};
pub use lower::{Body, Lower, LowerEntry, LowerFile};
pub use make::Make;
pub use node::{BORN, ROOT, SPARE};
pub use read::{Detail, DirEntry};
pub use rename::Flags as RenameFlags;
pub use union::{Attr, Caller, Options, Overlay};
pub use upper::{Upper, UpperFile};
