//! A few threads for slow work, so that the reader of requests goes on.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

type Job = Box<dyn FnOnce() + Send>;

const MAX_THREADS: usize = 8;

/// Threads that start when there is work for them, and end after they were idle for a while.
pub(crate) struct Pool {
    queue: Arc<Queue>,
}

struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    /// What every thread does first.
    first: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    /// A pool whose threads do `first` when they start.
    pub(crate) fn new(first: impl Fn() + Send + Sync + 'static) -> Self {
        let (state, wake) = Default::default();
        Pool { queue: Arc::new(Queue { state, wake, first: Box::new(first) }) }
    }

    /// Does `job` on another thread; on this one when no thread can be had.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.queue.state.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() || state.threads == MAX_THREADS {
            self.queue.wake.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let queue = self.queue.clone();
        if let Err(error) = std::thread::Builder::new().name("plyfs-slow".into()).spawn(move || work(&queue)) {
            log::warn!("no thread for slow work: {error}");
            let mut state = self.queue.state.lock();
            state.threads -= 1;
            let job = state.jobs.pop_back();
            drop(state);
            if let Some(job) = job {
                job();
            }
        }
    }
}

fn work(queue: &Queue) {
    (queue.first)();
    let mut state = queue.state.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            job();
            state = queue.state.lock();
            continue;
        }
        state.idle += 1;
        let timed_out = queue.wake.wait_for(&mut state, std::time::Duration::from_secs(10)).timed_out();
        state.idle -= 1;
        if timed_out && state.jobs.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}
