//! What all threads of a daemon share: its mount, whom it reports to, and the ways it can end.

use std::fs::File;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;

use super::background;
use crate::Failure;
use crate::failure::errno_text;
use crate::mount::Mount;
use crate::options::Options;

/// How long those who still use a mount may finish after the daemon was told to leave.
const GRACE: Duration = Duration::from_secs(2);
/// How long an aborted session may take to notice.
const ABORTING: Duration = Duration::from_millis(500);

const SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Who waits to hear whether the mount came about.
pub(super) enum Report {
    /// The process that started us, on a pipe.
    ToCaller(File),
    /// Nobody, or it has been told.
    ToNobody,
}

pub(super) struct Life {
    mount: Mutex<Option<Arc<Serving>>>,
    report: Mutex<Report>,
}

/// The mount while it is being served.
struct Serving {
    mount: Mount,
    /// Tells whether the session still runs.
    device: OwnedFd,
}

impl Life {
    /// Begins: signals wait until they are [watched](Life::watch_signals), in this thread and those that it starts, and a
    /// panic in any thread ends the process with nothing left mounted.
    pub(super) fn begin(report: Report) -> Arc<Self> {
        let life = Arc::new(Life { mount: Mutex::new(None), report: Mutex::new(report) });
        // Blocking signals in one's own thread cannot fail.
        signals().thread_block().ok();
        let at_panic = life.clone();
        std::panic::set_hook(Box::new(move |info| at_panic.panicked(info)));
        life
    }

    /// Starts the thread that waits for signals.
    pub(super) fn watch_signals(self: &Arc<Self>) -> Result<(), Failure> {
        let life = self.clone();
        start_thread("signals", move || life.wait_for_signals())
    }

    /// Mounts, and remembers it for whoever ends the process.
    pub(super) fn mount(&self, options: &Options, kind: &str) -> Result<OwnedFd, Failure> {
        // Held while mounting: a signal then finds the mount or comes before it.
        let mut serving = self.mount.lock();
        let (device, mount) = Mount::new(options, kind)?;
        match rustix::io::fcntl_dupfd_cloexec(&device, 3) {
            Ok(second) => *serving = Some(Arc::new(Serving { mount, device: second })),
            Err(errno) => {
                mount.detach()?;
                return Err(Failure::new(format!("the FUSE device: {}", errno_text(errno))));
            }
        }
        Ok(device)
    }

    /// Tells the caller that the mount is about to answer. The caller asks it then, not we: a thread that waits for an answer
    /// of its own process keeps the device open, and so itself alive, even when the process is killed.
    pub(super) fn announce(&self) -> Result<(), Failure> {
        let Some(serving) = self.serving() else { return Ok(()) };
        serving.mount.read_ahead();
        self.report_ready(serving.mount.device())
    }

    /// Ends: nothing of ours stays mounted.
    pub(super) fn leave(&self) {
        if let Some(serving) = self.serving() {
            serving.detach();
        }
    }

    fn serving(&self) -> Option<Arc<Serving>> {
        self.mount.lock().clone()
    }

    fn report_ready(&self, device: u64) -> Result<(), Failure> {
        log::info!("ready");
        let Report::ToCaller(mut pipe) = self.take_report() else { return Ok(()) };
        background::close_standard_error()?;
        // A caller that died has told nobody that there is a mount.
        let told = pipe.write_all(format!("ready {device}\n").as_bytes());
        told.map_err(|error| Failure::new(format!("the caller is gone: {error}")))
    }

    /// Tells the caller why there is no mount; once.
    pub(super) fn report_failure(&self, failure: &Failure) {
        if let Report::ToCaller(mut pipe) = self.take_report() {
            // A caller that is gone does not want to know.
            pipe.write_all(format!("error {failure}\n").as_bytes()).ok();
        }
    }

    fn take_report(&self) -> Report {
        std::mem::replace(&mut *self.report.lock(), Report::ToNobody)
    }

    fn wait_for_signals(&self) {
        let Ok(signal) = signals().wait() else { return };
        self.told_to_leave(signal);
        // Whatever still takes its time, the second signal means now.
        if let Ok(signal) = signals().wait() {
            log::warn!("{signal} again: leaving at once");
            exit(0);
        }
    }

    fn told_to_leave(&self, signal: Signal) {
        let Some(serving) = self.serving() else {
            self.report_failure(&Failure::new(format!("interrupted by {signal}")));
            exit(1);
        };
        log::info!("{signal}: unmounting {}", serving.mount.target().display());
        serving.detach();
        thread::sleep(GRACE);
        if serving.is_connected() {
            log::warn!("somebody still uses the mount: breaking off");
            serving.mount.abort();
            thread::sleep(ABORTING);
        }
        // A session that has ended leaves by itself, when the filesystem has put its things in order.
        if serving.is_connected() {
            exit(0);
        }
    }

    fn panicked(&self, info: &PanicHookInfo<'_>) {
        let failure = Failure::new(format!("internal error: {info}"));
        log::error!("{failure}");
        match self.take_report() {
            Report::ToCaller(mut pipe) => pipe.write_all(format!("error {failure}\n").as_bytes()).ok(),
            // The log may go nowhere.
            Report::ToNobody => writeln!(std::io::stderr(), "{failure}").ok(),
        };
        // The thread that panicked may be the one that is mounting.
        if let Some(serving) = self.mount.try_lock().and_then(|serving| serving.clone()) {
            serving.detach();
        }
        exit(101);
    }
}

impl Serving {
    fn detach(&self) {
        if let Err(failure) = self.mount.detach() {
            log::error!("{failure}");
        }
    }

    fn is_connected(&self) -> bool {
        let mut polled = [PollFd::new(&self.device, PollFlags::IN)];
        // The device polls with an error once there is no connection (fuse_dev_poll, fs/fuse/dev.c).
        match rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => !polled[0].revents().contains(PollFlags::ERR),
            Err(_) => true,
        }
    }
}

fn signals() -> SigSet {
    SIGNALS.into_iter().collect()
}

fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(run);
    started.map(drop).map_err(|error| Failure::new(format!("cannot start a thread: {error}")))
}

fn exit(code: i32) -> ! {
    log::logger().flush();
    std::process::exit(code)
}
