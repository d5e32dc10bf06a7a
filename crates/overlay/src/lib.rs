//! What stacking means: precedence, the fold of many layers into one lower, the two-sided union, and its changes.
//!
//! This crate is pure: no I/O, no system call. The disk is behind two traits, [`Lower`] (read-only, never changes) and
//! `Upper` (one container's writable layer), so that the same core runs over real directories and over a model in memory.

pub mod error;
pub mod fold;
pub mod folded;
pub mod lower;

pub use error::{Errno, Error, Result};
pub use lower::{Body, Lower, LowerEntry, LowerFile};
