//! Reading directories before they are asked for, while somebody walks a tree of plain directories.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use layer::Ino;
use overlay::{Lower, Upper};
use parking_lot::Mutex;

use super::Core;
use super::follow::NOWHERE;

/// Listings that follow each other this fast are a walk.
const WALK: Duration = Duration::from_millis(50);
/// The most directories that wait; older ones are forgotten, the walk is past them.
const WAITING: usize = 1024;

/// Whoever asks for attributes so often on a walk goes through all of it.
const MANY: u32 = 256;

/// The directories that were listed a moment ago, and whether somebody reads below them.
pub(crate) struct Ahead {
    state: Mutex<State>,
    busy: AtomicBool,
    /// How often extended attributes were asked for.
    attributes: AtomicU32,
    /// Whether there are any at all was looked for.
    looked: AtomicBool,
}

struct State {
    last: Option<Instant>,
    waiting: Vec<Ino>,
}

impl Ahead {
    pub(super) fn new() -> Self {
        Ahead {
            state: Mutex::new(State { last: None, waiting: Vec::new() }),
            busy: AtomicBool::new(false),
            attributes: AtomicU32::new(0),
            looked: AtomicBool::new(false),
        }
    }

    /// Notes that extended attributes were asked for.
    pub(super) fn asked(&self) {
        self.attributes.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells, once, whether it is worth to read all for attributes.
    fn looks_through(&self) -> bool {
        self.attributes.load(Ordering::Relaxed) >= MANY && !self.looked.swap(true, Ordering::Relaxed)
    }

    /// Notes a listing; tells whether a thread is to be started.
    fn listed(&self, dir: Ino) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        let walks = state.last.is_some_and(|last| now - last < WALK);
        state.last = Some(now);
        if !walks {
            state.waiting.clear();
            return false;
        }
        if state.waiting.len() == WAITING {
            state.waiting.remove(0);
        }
        state.waiting.push(dir);
        !self.busy.swap(true, Ordering::AcqRel)
    }

    /// The newest first: a walk goes on where it is.
    fn next(&self) -> Option<Ino> {
        let mut state = self.state.lock();
        let next = state.waiting.pop();
        if next.is_none() {
            self.busy.store(false, Ordering::Release);
        }
        next
    }
}

impl<L: Lower, U: Upper> Core<L, U>
where
    U::File: std::os::fd::AsFd,
{
    /// Reads the directories below `dir` in another thread, if the lower gains by it and this is a walk.
    pub(super) fn read_ahead(self: &Arc<Self>, dir: Ino) {
        if !self.overlay.lower().reads_ahead() || !self.ahead.listed(dir) {
            return;
        }
        let core = self.clone();
        self.pool.run(move || {
            let mut off = NOWHERE;
            while let Some(dir) = core.ahead.next() {
                core.follow.keep_off(&mut off);
                if let Some(slot) = core.overlay.lower().slot(dir) {
                    core.overlay.lower().read_ahead(slot);
                }
                if core.wishes.bare && core.ahead.looks_through() {
                    core.overlay.lower().find_whether_bare();
                    log::debug!("nothing here has an extended attribute: {}", core.overlay.is_bare());
                }
            }
            core.follow.part();
        });
    }
}
