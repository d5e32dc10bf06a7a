//! Which files run as programs.
//!
//! The kernel refuses to open a running program for writing, and we are never asked. Where a program is opened for reading
//! and cut in the same call, it refuses only after our part, the cutting, is done: so that part is refused here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use layer::Ino;
use parking_lot::Mutex;

/// The kernel's flag for an open that is to run the file (`FMODE_EXEC` in include/linux/fs.h); it comes with OPEN.
const EXEC: u64 = 0x20;

/// Counts the opens by which files run.
#[derive(Default)]
pub(crate) struct Executed {
    opens: Mutex<HashMap<Ino, u32>>,
    /// How many files there are in `opens`: most requests need no lock.
    files: AtomicUsize,
}

impl Executed {
    /// Notes an open, by its handle.
    pub(crate) fn opened(&self, ino: Ino, handle: u64) {
        if handle & EXEC != 0 {
            let mut opens = self.opens.lock();
            *opens.entry(ino).or_default() += 1;
            self.files.store(opens.len(), Ordering::Relaxed);
        }
    }

    /// Notes that an open ended.
    pub(crate) fn released(&self, ino: Ino, handle: u64) {
        if handle & EXEC != 0 {
            let mut opens = self.opens.lock();
            match opens.get_mut(&ino) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(opens.remove(&ino)),
            }
            self.files.store(opens.len(), Ordering::Relaxed);
        }
    }

    /// Tells whether a file runs.
    pub(crate) fn runs(&self, ino: Ino) -> bool {
        self.files.load(Ordering::Relaxed) > 0 && self.opens.lock().contains_key(&ino)
    }
}
