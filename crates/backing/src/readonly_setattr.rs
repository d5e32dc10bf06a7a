//! mount_setattr(2), which no safe binding has.
#![allow(unsafe_code)]

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// The kernel's `struct mount_attr` in its first version (`MOUNT_ATTR_SIZE_VER0`).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// linux/mount.h.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// linux/mount.h. A device node of a layer is never to be opened as a device.
const MOUNT_ATTR_NODEV: u64 = 0x4;

/// Makes a detached tree of mounts read-only, without devices, and private. Reading leaves no access times then either.
pub(crate) fn make_read_only(tree: BorrowedFd<'_>) -> Result<()> {
    let attr =
        MountAttr { set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV, clear: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the kernel reads a NUL-terminated path and `size_of::<MountAttr>()` bytes of `attr`, both alive during the
    // call, and writes nothing to memory; `tree` is an open descriptor.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}
