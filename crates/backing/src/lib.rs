//! How layers and uppers lie on a disk: system calls relative to directories, maps, and the tenants of the union's two sides.

pub mod bodies;
pub mod index_note;
mod kernel_handle;
pub mod mmap;
pub mod override_stat;
pub mod readonly;
mod readonly_setattr;
pub mod scanned;
pub mod sys;
pub mod upper;
