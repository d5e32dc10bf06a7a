//! The reader of requests goes to the processor where its only client is.
//!
//! A request and its answer are two wake-ups. Over two processors each of them has to rouse an idle one, which costs several times
//! what the answer costs; on one processor they are two switches. So while one client asks one thing after the other, the
//! reader stays on its client's processor, and lets it go first (`SCHED_IDLE`): the kernel then wakes the client where it is,
//! because a processor with nothing but such a thread counts as idle.
//!
//! A thread like that must not be left alone: on a busy processor it would get next to nothing. A watcher of ordinary rank looks
//! after it every few milliseconds: it gives the reader its rank back while there is other work for the processors, and lets it
//! go when requests stop or several clients ask. Whoever may not give a rank back (`CAP_SYS_NICE`) does not begin.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadId, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use thread_priority::{ThreadPriority, ThreadPriorityOsValue};

/// After so many requests the reader looks around.
const EVERY: u32 = 32;
/// So many requests within this time are worth it.
const FAST: Duration = Duration::from_millis(32);
/// So often another client may ask in between: programs that follow each other are one client at a time.
const CHANGES: u32 = 6;
/// How often the watcher looks after the reader.
const TICK: Duration = Duration::from_millis(2);
/// After so many ticks without other work the reader gets the lowest rank.
const CALM: u32 = 2;
/// After so many ticks without a request it is let go.
const SILENT: u32 = 5;
/// No processor.
const NOWHERE: u32 = u32::MAX;

/// What the reader and its watcher share.
pub(crate) struct Follow {
    enabled: AtomicBool,
    /// How many processors there are.
    processors: usize,
    /// Requests that the reader took.
    taken: AtomicU64,
    /// The processor where the only client is.
    client: AtomicU32,
    reader: Mutex<Option<Reader>>,
    watcher: Mutex<Option<Thread>>,
}

/// The thread that reads requests, and the processors that it had at first.
#[derive(Clone)]
struct Reader {
    id: Pid,
    native: ThreadId,
    processors: CpuSet,
}

thread_local! {
    /// What this thread saw, if it is the reader.
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

struct Seen {
    follow: Arc<Follow>,
    last: u32,
    count: u32,
    changes: u32,
    since: Instant,
}

impl Follow {
    /// Follows nobody unless there is one reader and more than one processor.
    pub(super) fn new(wanted: bool) -> Arc<Self> {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        Arc::new(Follow {
            enabled: AtomicBool::new(wanted && processors > 1),
            processors,
            taken: AtomicU64::new(0),
            client: AtomicU32::new(NOWHERE),
            reader: Mutex::new(None),
            watcher: Mutex::new(None),
        })
    }

    /// Notes that the calling thread took a request of the thread `client`; 0 where the kernel asks by itself.
    pub(super) fn took(self: &Arc<Self>, client: u32) {
        if client == 0 || !self.enabled.load(Ordering::Relaxed) {
            return;
        }
        SEEN.with_borrow_mut(|seen| seen.get_or_insert_with(|| Seen::begin(self)).took(client));
    }

    /// Asks the watcher to bring the reader to a processor; the watcher sees by itself that it is to go.
    fn come(self: &Arc<Self>, processor: u32) {
        if self.client.swap(processor, Ordering::Relaxed) == processor || processor == NOWHERE {
            return;
        }
        let mut watcher = self.watcher.lock();
        if let Some(watcher) = &*watcher {
            watcher.unpark();
            return;
        }
        let follow = self.clone();
        match thread::Builder::new().name("plyfs-watch".into()).spawn(move || follow.watch()) {
            Ok(started) => *watcher = Some(started.thread().clone()),
            Err(error) => self.give_up(&error),
        }
    }

    /// Makes the calling thread an ordinary one: those that the reader starts are like it.
    pub(super) fn part(&self) {
        let Some(reader) = self.reader.lock().clone() else { return };
        if self.watcher.lock().is_none() {
            return;
        }
        let done = set_policy(thread_native_id(), NormalThreadSchedulePolicy::Other);
        if done.is_err() || sched_setaffinity(None, &reader.processors).is_err() {
            log::debug!("a thread for slow work stays on the reader's processor");
        }
    }

    fn give_up(&self, why: &dyn std::fmt::Display) {
        self.enabled.store(false, Ordering::Relaxed);
        log::debug!("the reader stays where the kernel puts it: {why}");
    }

    /// Tells whether more threads want a processor than there are, beside the client and the reader, of which one waits for the
    /// other, and the watcher, which asks.
    fn is_busy(&self) -> bool {
        running().is_none_or(|running| running > self.processors + 2)
    }

    fn watch(&self) {
        if let Err(error) = may_return() {
            return self.give_up(&error);
        }
        while self.enabled.load(Ordering::Relaxed) {
            let processor = self.client.load(Ordering::Relaxed);
            if processor == NOWHERE {
                thread::park();
            } else if let Err(error) = self.stay_with(processor) {
                self.give_up(&error);
            }
        }
    }

    /// Keeps the reader with its client as long as that is good.
    fn stay_with(&self, processor: u32) -> Result<(), thread_priority::Error> {
        let Some(reader) = self.reader.lock().clone() else { return Ok(()) };
        if !reader.pin(processor) {
            self.client.store(NOWHERE, Ordering::Relaxed);
            return Ok(());
        }
        log::debug!("the reader goes to processor {processor}");
        let done = self.stay(&reader, processor);
        self.client.store(NOWHERE, Ordering::Relaxed);
        let undone = self.set_policy(NormalThreadSchedulePolicy::Other);
        reader.release();
        done.and(undone)
    }

    /// Follows until nobody asks. The reader has the lowest rank as long as the processors have nothing else to do; with other work
    /// it keeps its ordinary one, on the client's processor all the same, because no processor is idle then that the client
    /// could be woken on instead.
    fn stay(&self, reader: &Reader, mut processor: u32) -> Result<(), thread_priority::Error> {
        let mut taken = self.taken.load(Ordering::Relaxed);
        let (mut lowest, mut calm, mut silent) = (false, CALM, 0);
        loop {
            let busy = self.is_busy();
            calm = if busy { 0 } else { calm.saturating_add(1) };
            let wish = calm > CALM && silent == 0;
            if wish != lowest {
                lowest = wish;
                self.set_policy(match lowest {
                    true => NormalThreadSchedulePolicy::Idle,
                    false => NormalThreadSchedulePolicy::Other,
                })?;
            }
            let began = Instant::now();
            while began.elapsed() < TICK {
                thread::park_timeout(TICK.saturating_sub(began.elapsed()));
                let wanted = self.client.load(Ordering::Relaxed);
                if wanted == NOWHERE || !self.enabled.load(Ordering::Relaxed) {
                    return Ok(());
                }
                if wanted != processor {
                    processor = wanted;
                    reader.pin(processor);
                }
            }
            let now = self.taken.load(Ordering::Relaxed);
            // Nobody asks, or the reader does not get to answer: from outside that looks the same.
            silent = if now == taken { silent + 1 } else { 0 };
            if silent == SILENT {
                log::debug!("the reader is let go after {now} requests");
                return Ok(());
            }
            taken = now;
        }
    }

    /// Changes the reader's rank, if it still lives: it takes its name back before it ends.
    fn set_policy(&self, policy: NormalThreadSchedulePolicy) -> Result<(), thread_priority::Error> {
        match &*self.reader.lock() {
            Some(reader) => set_policy(reader.native, policy),
            None => Ok(()),
        }
    }
}

impl Seen {
    fn begin(follow: &Arc<Follow>) -> Self {
        match sched_getaffinity(None) {
            Ok(processors) => {
                *follow.reader.lock() = Some(Reader { id: gettid(), native: thread_native_id(), processors });
            }
            Err(errno) => follow.give_up(&errno),
        }
        Seen { follow: follow.clone(), last: 0, count: 0, changes: 0, since: Instant::now() }
    }

    fn took(&mut self, client: u32) {
        let follow = &self.follow;
        // The reader alone counts.
        follow.taken.store(follow.taken.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if client != self.last {
            self.changes += 1;
            self.last = client;
        }
        self.count += 1;
        if self.count == EVERY {
            let now = Instant::now();
            let alone = self.changes <= CHANGES && now - self.since < FAST;
            let processor = if alone { processor_of(client) } else { None };
            follow.come(processor.unwrap_or(NOWHERE));
            (self.count, self.changes, self.since) = (0, 0, now);
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        *self.follow.reader.lock() = None;
        self.follow.enabled.store(false, Ordering::Relaxed);
        if let Some(watcher) = &*self.follow.watcher.lock() {
            watcher.unpark();
        }
    }
}

impl Reader {
    /// Brings it to a processor and the calling watcher to the others: a client that finds the watcher on its processor when it is
    /// woken goes elsewhere. Tells whether it is there now: a processor that this process may not use is none.
    fn pin(&self, processor: u32) -> bool {
        let processor = processor as usize;
        if processor >= CpuSet::MAX_CPU || !self.processors.is_set(processor) {
            return false;
        }
        let (mut one, mut others) = (CpuSet::new(), self.processors);
        one.set(processor);
        others.unset(processor);
        if others.count() > 0
            && let Err(errno) = sched_setaffinity(None, &others)
        {
            log::debug!("the watcher stays where it is: {errno}");
        }
        sched_setaffinity(Some(self.id), &one).is_ok()
    }

    fn release(&self) {
        if let Err(errno) = sched_setaffinity(Some(self.id), &self.processors) {
            log::debug!("the reader stays on one processor: {errno}");
        }
    }
}

/// Tries on the calling thread whether the way back is open: to an ordinary user it is not.
fn may_return() -> Result<(), thread_priority::Error> {
    set_policy(thread_native_id(), NormalThreadSchedulePolicy::Idle)?;
    set_policy(thread_native_id(), NormalThreadSchedulePolicy::Other)
}

fn set_policy(thread: ThreadId, policy: NormalThreadSchedulePolicy) -> Result<(), thread_priority::Error> {
    let nice = ThreadPriority::Os(ThreadPriorityOsValue::default());
    set_thread_priority_and_policy(thread, nice, ThreadSchedulePolicy::Normal(policy))
}

/// Returns how many threads of the whole machine run or want to.
fn running() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').nth(3)?.split_once('/')?.0.parse().ok()
}

/// Returns the processor where a thread is, or was last (proc_pid_stat(5), field 39).
fn processor_of(thread: u32) -> Option<u32> {
    let mut text = [0; 512];
    let length = File::open(format!("/proc/{thread}/stat")).ok()?.read(&mut text).ok()?;
    parse_processor(&text[..length])
}

fn parse_processor(stat: &[u8]) -> Option<u32> {
    // The name of the program, in parentheses, may hold anything.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace().nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("17 (a) b (c) {}\n", fields.join(" "));
        assert_eq!(parse_processor(stat.as_bytes()), Some(39));
        assert_eq!(parse_processor(b"17 (short) S 1"), None);
        assert_eq!(parse_processor(b""), None);
    }

    #[test]
    fn this_thread_is_on_a_processor_it_may_use() {
        let processor = processor_of(gettid().as_raw_nonzero().get() as u32).unwrap();
        assert!(sched_getaffinity(None).unwrap().is_set(processor as usize));
    }

    #[test]
    fn the_machine_runs_at_least_this_thread() {
        assert!(running().unwrap() >= 1);
    }
}
