//! The model: a plain tree that knows nothing of layers, random operations, and what runs them.
//!
//! The promise of a union mount is that nobody can tell. So a random stack of layers is mounted, the same random operations are
//! done to it and to a plain tree, and all that a program can see is compared: after every operation, after a remount, after a
//! crash between any two steps. A failure is shrunk and printed as the code of a test.

#![allow(clippy::unwrap_used, reason = "this is test code: it panics on what cannot be")]

pub mod choose;
pub mod crash;
pub mod dirs;
pub mod in_memory;
pub mod kernel;
pub mod memory;
pub mod mounted;
pub mod on_disk;
pub mod op;
pub mod random;
pub mod run;
pub mod stack;
pub mod tree;
pub mod view;
