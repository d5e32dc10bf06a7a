//! What a mount promises to programs, one test a sentence, over plain directories.
//!
//! Each test runs with passthrough and without. Around every test, without a word of its own: the lower trees are hashed
//! before and after, the log must be free of errors, the mount must look the same after a remount (inode numbers included),
//! `d_ino` must be `st_ino`, and, as root, the kernel's overlayfs must show the same tree over the upper at rest.
//! `user_namespace` runs all but `root::` and `disks::` once more without privilege. `TMPDIR` chooses the filesystem under test.

// Modules of a test program are not told to clippy as tests.
#![allow(clippy::unwrap_used)]

mod area;
mod attributes;
mod content;
mod copy_up;
mod directories;
mod disks;
mod documents;
mod exerciser;
mod files;
mod handles;
mod identity;
mod io;
mod lazy;
mod locks;
mod names;
mod owners;
mod passthrough;
mod readdir;
mod renames;
mod root;
mod tree;
mod user_namespace;
