//! Which backing file the kernel reads and writes by itself, per inode.
//!
//! The kernel holds an inode to one way of I/O for as long as any open or mapping of it lives: one backing file, or the
//! daemon; mixing them ends in EIO. So the first open chooses, and every later one follows. A lower file that is open this
//! way and is to be written takes a new node (see `Overlay::detach`); its readers keep what they have.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::BackingId;
use layer::Ino;
use parking_lot::Mutex;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Bodies of at least this many bytes go past the daemon when they are read from the lower; smaller ones are cached by the
/// kernel for each mount, keep their node over a copy-up, and so their locks and watches.
pub(crate) const LARGE: u64 = 64 << 10;

/// How many locks the open inodes share: while a file is registered, opens of other files wait for it one time in so many.
const SHARDS: usize = 64;

/// The open inodes and their way of I/O.
pub(crate) struct Passthrough {
    enabled: AtomicBool,
    open: [Mutex<HashMap<Ino, Way>>; SHARDS],
    /// A node was left to its readers, some time.
    left: AtomicBool,
    sent_back: SentBack,
}

/// Threads of programs that were told to look a name up again, with the node that they asked for.
#[derive(Default)]
struct SentBack {
    threads: Mutex<HashMap<u32, Ino>>,
    any: AtomicBool,
}

/// How an open inode is read and written.
enum Way {
    /// By the daemon, through the page cache.
    Cached { opens: u32 },
    /// By the kernel, from the registered file.
    Backed { opens: u32, side: Side, id: Arc<BackingId> },
}

/// Which side of the union a backing file is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Lower,
    Upper,
}

/// What to answer to an open.
pub(crate) enum Chosen {
    Cached,
    Backed(Arc<BackingId>),
}

impl Passthrough {
    pub(crate) fn new() -> Self {
        Passthrough {
            enabled: AtomicBool::new(false),
            open: std::array::from_fn(|_| Mutex::default()),
            left: AtomicBool::new(false),
            sent_back: SentBack::default(),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Way>> {
        &self.open[ino.0 as usize % SHARDS]
    }

    pub(crate) fn enable(&self) {
        self.enabled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Tells whether a lower file is being read past the daemon right now.
    pub(crate) fn reads_lower(&self, id: Ino) -> bool {
        matches!(self.shard(id).lock().get(&id), Some(Way::Backed { side: Side::Lower, .. }))
    }

    /// Notes that a node is left to those who read it past the daemon, its file having another one.
    pub(crate) fn leaves(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Tells whether that ever happened; mostly it did not, and nobody needs to look for such nodes.
    pub(crate) fn left_any(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Tells whether an inode may be written past the daemon right now.
    pub(crate) fn is_backed(&self, id: Ino) -> bool {
        matches!(self.shard(id).lock().get(&id), Some(Way::Backed { .. }))
    }

    /// Tells whether a thread that asks for a node that was left behind may be told to look its name up again. The kernel does
    /// so once; a thread that comes back to the same node at once had no name to look up (`/proc/self/fd`).
    pub(crate) fn send_back(&self, thread: u32, id: Ino) -> bool {
        /// More threads than ever open something at one moment.
        const MANY: usize = 4096;
        let mut threads = self.sent_back.threads.lock();
        if threads.get(&thread) == Some(&id) {
            threads.remove(&thread);
            return false;
        }
        if threads.len() >= MANY {
            threads.clear();
        }
        threads.insert(thread, id);
        self.sent_back.any.store(true, Ordering::Relaxed);
        true
    }

    /// Notes that a thread asks for a node that is not left behind: it found its way.
    pub(crate) fn came_through(&self, thread: u32) {
        if self.sent_back.any.load(Ordering::Relaxed) {
            let mut threads = self.sent_back.threads.lock();
            threads.remove(&thread);
            self.sent_back.any.store(!threads.is_empty(), Ordering::Relaxed);
        }
    }

    /// Chooses the way of one more open; `wanted` is the file to register if this is the first and may go past the daemon. A second
    /// open of the inode waits for the first one's choice.
    pub(crate) fn opened(
        &self,
        ino: Ino,
        wanted: Option<(Side, BorrowedFd<'_>)>,
        register: impl FnOnce(BorrowedFd<'_>) -> std::io::Result<BackingId>,
    ) -> Chosen {
        let mut open = self.shard(ino).lock();
        match open.get_mut(&ino) {
            Some(Way::Cached { opens }) => {
                *opens += 1;
                return Chosen::Cached;
            }
            Some(Way::Backed { opens, id, .. }) => {
                *opens += 1;
                return Chosen::Backed(id.clone());
            }
            // Where nothing goes past the daemon there is nothing to keep apart.
            None if !self.enabled() => return Chosen::Cached,
            None => {}
        }
        let registered = wanted.map(|(side, fd)| (side, without_fsetid(|| register(fd))));
        match registered {
            Some((side, Ok(id))) => {
                let id = Arc::new(id);
                open.insert(ino, Way::Backed { opens: 1, side, id: id.clone() });
                Chosen::Backed(id)
            }
            Some((_, Err(error))) => {
                // Said once: from now on everything goes through the daemon, slower but never wrong.
                if self.enabled.swap(false, Ordering::Relaxed) {
                    log::info!("passthrough is not to be had here ({error}): reads and writes go through the daemon");
                }
                Chosen::Cached
            }
            None => {
                open.insert(ino, Way::Cached { opens: 1 });
                Chosen::Cached
            }
        }
    }

    /// Ends one open.
    pub(crate) fn released(&self, ino: Ino) {
        let mut open = self.shard(ino).lock();
        let left = match open.get_mut(&ino) {
            Some(Way::Cached { opens } | Way::Backed { opens, .. }) => {
                *opens -= 1;
                *opens
            }
            None => return,
        };
        let closed = if left == 0 { open.remove(&ino) } else { None };
        drop(open);
        drop(closed);
    }
}

/// Calls `register` without `CAP_FSETID`: what is written past the daemon is written with the credentials of this moment, and
/// must lose its set-user-ID bits as if a program had written it.
fn without_fsetid<T>(register: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let own = rustix::thread::capabilities(None)?;
    if !own.effective.contains(CapabilitySet::FSETID) {
        return register();
    }
    let less = CapabilitySets { effective: own.effective - CapabilitySet::FSETID, ..own };
    rustix::thread::set_capabilities(None, less)?;
    let registered = register();
    rustix::thread::set_capabilities(None, own)?;
    registered
}
