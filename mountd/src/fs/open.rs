//! Opening files: which node, which file the kernel may read and write by itself, and the content that comes along.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use fuser::{Errno, FileHandle, FopenFlags, INodeNo, ReplyOpen, Request};
use layer::Ino;
use overlay::{Access, BodyAt, Lower, LowerFile, Result, Upper};

use super::convert::answer;
use super::passthrough::{Chosen, LARGE, Side};
use super::{Core, privilege};

impl<L: Lower, U: Upper> Core<L, U>
where
    U::File: AsFd,
{
    /// Opens for the kernel. A lower file that is read past the daemon cannot be written under the same node: it gets
    /// another one, and `ESTALE` makes the kernel look the name up again.
    pub(super) fn open(self: &Arc<Self>, ino: Ino, flags: i32, by: By, reply: ReplyOpen) {
        let access = access(flags);
        if access == Access::Truncate && flags & libc::O_ACCMODE == libc::O_RDONLY && self.executed.runs(ino) {
            return reply.error(Errno::ETXTBSY);
        }
        if access != Access::Read && self.pass.reads_lower(ino) {
            return reply.error(self.take_other_node(ino, access, by));
        }
        self.pass.came_through(by.thread);
        let body = match self.overlay.open(ino, access, privilege(by.uid)) {
            Ok(body) => body,
            Err(error) => return reply.error(answer(&error)),
        };
        if flags & (libc::O_DIRECT | libc::O_DSYNC) != 0
            && access == Access::Write
            && let Err(error) = self.overlay.settle_copy(ino)
        {
            self.overlay.release(ino);
            return reply.error(answer(&error));
        }
        let chosen = match self.wanted(ino, &body) {
            Ok(wanted) => self.pass.opened(ino, wanted, |fd| reply.open_backing(fd)),
            Err(error) => {
                self.overlay.release(ino);
                return reply.error(answer(&error));
            }
        };
        if matches!(chosen, Chosen::Cached) && access == Access::Read {
            self.bring_content(ino, flags);
        }
        self.executed.opened(ino, handle(flags));
        match chosen {
            Chosen::Backed(id) => reply.opened_passthrough(FileHandle(handle(flags)), FopenFlags::empty(), &id),
            Chosen::Cached => reply.opened(FileHandle(handle(flags)), self.cache_flags(&body)),
        }
    }

    /// Puts the whole content of a small file of the lower that is opened for the first time where the kernel looks for it.
    fn bring_content(&self, ino: Ino, flags: i32) {
        let (Some(notifier), Some(slot)) = (self.notifier.get(), self.overlay.slot_below(ino)) else { return };
        // Who reads past the cache now may go through it later: that open counts.
        if !self.content.opened_first(slot) || flags & libc::O_DIRECT != 0 {
            return;
        }
        let Ok(attr) = self.overlay.getattr(ino) else { return };
        if !(1..LARGE).contains(&attr.stat.size) {
            return;
        }
        let size = attr.stat.size as usize;
        let brought = with_buffer(size, |buffer| {
            self.overlay.read(ino, 0, buffer, |bytes| notifier.store(INodeNo(ino.0), 0, bytes))
        });
        match brought {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("the kernel did not take the content of {}: {error}", ino.0),
            // A reader is told in its turn what is wrong with the file.
            Err(error) => log::debug!("the content of {} could not be read: {error}", ino.0),
        }
    }

    fn cache_flags(&self, body: &BodyAt<L, U>) -> FopenFlags {
        // What was written past the daemon is not in the page cache of our inode: that must not be kept.
        match body {
            BodyAt::Upper(_) | BodyAt::Both if self.pass.enabled() => FopenFlags::empty(),
            _ => FopenFlags::FOPEN_KEEP_CACHE,
        }
    }

    /// Chooses the file that the kernel may read and write by itself.
    fn wanted<'a>(&self, ino: Ino, body: &'a BodyAt<L, U>) -> Result<Option<(Side, BorrowedFd<'a>)>> {
        if !self.pass.enabled() {
            return Ok(None);
        }
        Ok(match body {
            BodyAt::Mapped | BodyAt::Both => None,
            BodyAt::Lower(file) => match file.fd() {
                Some(fd) if self.overlay.getattr(ino)?.stat.size >= LARGE => Some((Side::Lower, fd)),
                _ => None,
            },
            // The kernel would not learn that a write took the set-user-ID bit away.
            BodyAt::Upper(_) if self.overlay.getattr(ino)?.stat.perm & 0o6000 != 0 => None,
            BodyAt::Upper(file) => Some((Side::Upper, file.as_fd())),
        })
    }

    pub(super) fn take_other_node(self: &Arc<Self>, ino: Ino, access: Access, by: By) -> Errno {
        match self.overlay.detach(ino, access) {
            Ok(names) => {
                if names.is_some() {
                    self.pass.leaves();
                    // Nobody writes to it, so the kernel has no reason to wait for us.
                    self.invalidate_attr(ino);
                }
                self.invalidate_names(names.unwrap_or_default());
                // One that was given another node already is asked for by a name that the kernel still has, or by descriptor.
                if self.pass.send_back(by.thread, ino) { Errno::ESTALE } else { Errno::ETXTBSY }
            }
            Err(error) => answer(&error),
        }
    }
}

/// Who asks.
#[derive(Clone, Copy)]
pub(super) struct By {
    pub(super) uid: u32,
    pub(super) thread: u32,
}

impl By {
    pub(super) fn of(req: &Request) -> Self {
        By { uid: req.uid(), thread: req.pid() }
    }
}

/// How a program opens, from its flags.
pub(super) fn access(flags: i32) -> Access {
    match (flags & libc::O_ACCMODE, flags & libc::O_TRUNC != 0) {
        (libc::O_RDONLY, false) => Access::Read,
        (_, true) => Access::Truncate,
        (_, false) => Access::Write,
    }
}

/// A handle is the open flags: a successor of this process can make it again.
pub(super) fn handle(flags: i32) -> u64 {
    u64::from(flags as u32)
}

thread_local! {
    static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Lends the thread's scratch space, `size` bytes of it.
pub(super) fn with_buffer<T>(size: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        work(&mut buffer[..size])
    })
}
