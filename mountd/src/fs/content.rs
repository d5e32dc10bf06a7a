//! Content that comes with an open: a small file of the lower is put into the kernel's page cache when it is opened for the
//! first time, so that reading it takes no request of its own.
//!
//! The kernel locks a page that we put there (`fuse_notify_store`, fs/fuse/dev.c), and a read that waits for us has locked
//! its pages too. So content is brought only where no such read can be: at the first open of all, by the only reader of requests.

use layer::Slot;
use parking_lot::Mutex;

/// Which files were opened before.
pub(crate) struct Content {
    /// One bit for each slot; grows as it is needed.
    opened: Option<Mutex<Vec<u64>>>,
}

impl Content {
    pub(crate) fn new(wanted: bool) -> Self {
        Content { opened: wanted.then(Mutex::default) }
    }

    /// Notes an open, and tells whether content is to come with it.
    pub(crate) fn opened_first(&self, slot: Slot) -> bool {
        let Some(opened) = &self.opened else { return false };
        let (word, bit) = (slot.0 as usize / 64, 1 << (slot.0 % 64));
        let mut opened = opened.lock();
        if word >= opened.len() {
            opened.resize(word + 1, 0);
        }
        let first = opened[word] & bit == 0;
        opened[word] |= bit;
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_comes_with_the_first_open_of_each_file_alone() {
        let content = Content::new(true);
        let opens: Vec<bool> = [700, 0, 700, 1, 63, 64, 0, 64].map(|slot| content.opened_first(Slot(slot))).to_vec();
        assert_eq!(opens, [true, true, false, true, true, true, false, false]);
    }

    #[test]
    fn where_it_is_not_wanted_it_never_comes() {
        assert!(!Content::new(false).opened_first(Slot(3)));
    }
}
