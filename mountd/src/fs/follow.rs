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
//!
//! The watcher is kept from the client's processor: a client that finds it there when it is woken goes elsewhere. So when the client
//! has moved, the reader itself goes after it and sends the sleeping watcher away; a watcher that were woken to do it
//! would wake where the client is now, and the three would chase each other.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadId, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use thread_priority::{ThreadPriority, ThreadPriorityOsValue};

/// After so many requests the reader looks around.
const EVERY: u32 = 16;
/// So many requests within this time are worth it.
const FAST: Duration = Duration::from_millis(16);
/// So often another client may ask in between: programs that follow each other are one client at a time.
const CHANGES: u32 = 3;
/// How soon the watcher looks after the reader again, if something was amiss, and if nothing has been for a while: where it wakes, it
/// can drive the client to another processor.
const TICK: Duration = Duration::from_millis(2);
const LONG_TICK: Duration = Duration::from_millis(16);
/// A reader that waits for its processor in a tick so much longer than its client was at work has a stronger neighbour there.
const CROWDED: Duration = Duration::from_micros(500);
/// After so many ticks without such a neighbour the reader gets the lowest rank again.
const CALM: u32 = 12;
/// After so many ticks without a request it is let go.
const SILENT: u32 = 5;
/// No processor.
pub(super) const NOWHERE: u32 = u32::MAX;

/// What the reader and its watcher share.
pub(crate) struct Follow {
    enabled: AtomicBool,
    /// Requests that the reader took.
    taken: AtomicU64,
    /// The processor where the only client is.
    client: AtomicU32,
    /// The only client.
    thread: AtomicU32,
    reader: Mutex<Option<Reader>>,
    watcher: Mutex<Option<Thread>>,
    /// The watcher's number as soon as it is known that it may give a rank back, 0 before.
    watcher_id: AtomicI32,
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
    reader: Option<Reader>,
    last: u32,
    count: u32,
    changes: u32,
    since: Instant,
}

impl Follow {
    /// Follows nobody unless there is one reader and more than one processor.
    pub(super) fn new(wanted: bool) -> Arc<Self> {
        let processors = sched_getaffinity(None).map_or(1, |processors| processors.count());
        Arc::new(Follow {
            enabled: AtomicBool::new(wanted && processors > 1),
            taken: AtomicU64::new(0),
            client: AtomicU32::new(NOWHERE),
            thread: AtomicU32::new(0),
            reader: Mutex::new(None),
            watcher: Mutex::new(None),
            watcher_id: AtomicI32::new(0),
        })
    }

    /// Notes that the calling thread took a request of the thread `client`; 0 where the kernel asks by itself.
    pub(super) fn took(self: &Arc<Self>, client: u32) {
        if client == 0 || !self.enabled.load(Ordering::Relaxed) {
            return;
        }
        SEEN.with_borrow_mut(|seen| seen.get_or_insert_with(|| Seen::begin(self)).took(client));
    }

    /// Goes to a processor, called by the reader; asks the watcher for it if nobody was followed. The watcher sees by itself when the
    /// reader is to go.
    fn come(self: &Arc<Self>, processor: u32, reader: &Reader) {
        let before = self.client.swap(processor, Ordering::Relaxed);
        if before == processor || processor == NOWHERE {
            return;
        }
        if before != NOWHERE {
            if !reader.pin(processor, Pid::from_raw(self.watcher_id.load(Ordering::Relaxed))) {
                self.client.store(NOWHERE, Ordering::Relaxed);
            }
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

    /// Keeps the calling thread, which works ahead of the client, off the processor where the reader is with that client; `off` is
    /// where it was kept off last.
    pub(super) fn keep_off(&self, off: &mut u32) {
        let processor = self.client.load(Ordering::Relaxed);
        if *off == processor {
            return;
        }
        let Some(reader) = self.reader.lock().clone() else { return };
        let others = reader.processors_but(processor as usize);
        if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
            *off = processor;
        }
    }

    fn give_up(&self, why: &dyn std::fmt::Display) {
        self.enabled.store(false, Ordering::Relaxed);
        log::debug!("the reader stays where the kernel puts it: {why}");
    }

    fn watch(&self) {
        if let Err(error) = may_return() {
            return self.give_up(&error);
        }
        self.watcher_id.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
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
        if !reader.pin(processor, Some(gettid())) {
            self.client.store(NOWHERE, Ordering::Relaxed);
            return Ok(());
        }
        log::debug!("the reader goes to processor {processor}");
        let done = self.stay(&reader);
        self.client.store(NOWHERE, Ordering::Relaxed);
        let undone = self.set_policy(NormalThreadSchedulePolicy::Other);
        reader.release();
        done.and(undone)
    }

    /// Follows until nobody asks. The reader has the lowest rank as long as its processor has nothing else to do; beside other work
    /// it keeps its ordinary one, on the client's processor all the same: where there is an idle one that other work goes there.
    fn stay(&self, reader: &Reader) -> Result<(), thread_priority::Error> {
        let reader = format!("/proc/self/task/{}/schedstat", reader.id.as_raw_nonzero());
        if let Err(error) = File::open(&reader) {
            // A kernel without CONFIG_SCHED_INFO: nobody would see that the reader starves.
            self.give_up(&error);
            return Ok(());
        }
        let mut taken = self.taken.load(Ordering::Relaxed);
        let mut waited = Times::of(&reader).waited;
        let mut client = (0, Duration::ZERO);
        let (mut lowest, mut calm, mut silent, mut tick) = (false, CALM, 0, TICK);
        loop {
            let now = Times::of(&reader).waited;
            let thread = self.thread.load(Ordering::Relaxed);
            let worked = Times::of(&format!("/proc/{thread}/schedstat")).worked;
            let since = if client.0 == thread { worked.saturating_sub(client.1) } else { tick };
            client = (thread, worked);
            let crowded = now.saturating_sub(waited) > since + CROWDED;
            waited = now;
            calm = if crowded { 0 } else { calm.saturating_add(1) };
            let wish = calm > CALM && silent == 0;
            if wish != lowest {
                lowest = wish;
                self.set_policy(match lowest {
                    true => NormalThreadSchedulePolicy::Idle,
                    false => NormalThreadSchedulePolicy::Other,
                })?;
            }
            tick = if wish { LONG_TICK.min(tick * 2) } else { TICK };
            let began = Instant::now();
            while began.elapsed() < tick {
                thread::park_timeout(tick.saturating_sub(began.elapsed()));
                if self.client.load(Ordering::Relaxed) == NOWHERE || !self.enabled.load(Ordering::Relaxed) {
                    return Ok(());
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
        let reader = match sched_getaffinity(None) {
            Ok(processors) => Some(Reader { id: gettid(), native: thread_native_id(), processors }),
            Err(errno) => {
                follow.give_up(&errno);
                None
            }
        };
        follow.reader.lock().clone_from(&reader);
        Seen { follow: follow.clone(), reader, last: 0, count: 0, changes: 0, since: Instant::now() }
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
            if let Some(reader) = &self.reader {
                follow.thread.store(client, Ordering::Relaxed);
                follow.come(processor.unwrap_or(NOWHERE), reader);
            }
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
    /// Brings it to a processor and the watcher to the others, first: it is to be gone when the reader wakes its client there. Tells
    /// whether the reader is there now: a processor that this process may not use is none.
    fn pin(&self, processor: u32, watcher: Option<Pid>) -> bool {
        let processor = processor as usize;
        if processor >= CpuSet::MAX_CPU || !self.processors.is_set(processor) {
            return false;
        }
        let (mut one, others) = (CpuSet::new(), self.processors_but(processor));
        one.set(processor);
        if others.count() > 0
            && watcher.is_some()
            && let Err(errno) = sched_setaffinity(watcher, &others)
        {
            log::debug!("the watcher stays where it is: {errno}");
        }
        sched_setaffinity(Some(self.id), &one).is_ok()
    }

    fn processors_but(&self, processor: usize) -> CpuSet {
        let mut others = self.processors;
        if processor < CpuSet::MAX_CPU {
            others.unset(processor);
        }
        others
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

/// How long a thread was at work in its life, and how long it waited for a processor.
#[derive(Default)]
struct Times {
    worked: Duration,
    waited: Duration,
}

impl Times {
    /// Reads a thread's `schedstat`: nanoseconds (Documentation/scheduler/sched-stats.rst). Zero where there is none.
    fn of(schedstat: &str) -> Self {
        let mut text = [0; 64];
        let length = File::open(schedstat).and_then(|mut file| file.read(&mut text)).unwrap_or(0);
        Times::parse(std::str::from_utf8(&text[..length]).unwrap_or(""))
    }

    fn parse(text: &str) -> Self {
        let mut numbers = text.split(' ');
        let mut next = || Duration::from_nanos(numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0));
        Times { worked: next(), waited: next() }
    }
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
    fn a_thread_is_told_how_long_it_worked_and_waited() {
        let times = Times::parse("1500 4000000000 17\n");
        assert_eq!((times.worked, times.waited), (Duration::from_nanos(1500), Duration::from_secs(4)));
        let times = Times::parse("");
        assert_eq!((times.worked, times.waited), (Duration::ZERO, Duration::ZERO));
        let path = format!("/proc/self/task/{}/schedstat", gettid().as_raw_nonzero());
        // The kernel counts at its ticks.
        while Times::of(&path).worked == Duration::ZERO {
            thread::yield_now();
        }
    }
}
