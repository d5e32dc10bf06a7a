//! The daemon's life: into the background, ready once the mount answers, and away without leaving a dead mount behind.
//!
//! There is no fork. The caller starts its own program again with [`DAEMON_WORD`], and waits for one line on that process's
//! standard output: `ready` and the mount's device number, or `error` and why. Then it asks the mount for the first time.

mod background;
mod life;
mod start;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use fuser::{Filesystem, Notifier};

use crate::logging::{self, Destination};
use crate::options::{self, Call, Options};
use crate::{Failure, Program, Serve, session};

use life::{Life, Report};
pub(crate) use start::start_again;
pub use start::{Mounted, spawn};

/// The first word behind the program's name that makes it the daemon.
pub const DAEMON_WORD: &str = "__mountd";

/// A daemon that is set up and has not mounted yet.
pub struct Daemon {
    life: Arc<Life>,
    program: Program,
}

impl Daemon {
    /// Tells whether this mount may be one without extended attributes, which programs see by `EOPNOTSUPP` instead of `ENODATA`: podman
    /// takes either; containerd, which calls the program by fuse-overlayfs's name, compares no layers then.
    pub(crate) fn may_lack_attributes(&self) -> bool {
        self.program == Program::Mountd
    }

    /// Mounts, tells the caller that the mount answers, and serves `fs` until the mount is gone.
    ///
    /// `started` gets the means to tell the kernel what changed, after the handshake and before the first request.
    /// However it ends, nothing of ours stays mounted.
    ///
    /// # Errors
    /// One line: the mount was refused, did not answer, or the session broke off.
    pub fn serve<F: Filesystem>(self, options: &Options, fs: F, started: impl FnOnce(Notifier)) -> Result<(), Failure> {
        let device = self.life.mount(options, self.program.kind())?;
        let served = session::serve(fs, device, options, |notifier| {
            started(notifier);
            self.life.announce()
        });
        self.life.leave();
        served
    }
}

/// Is the daemon that [`start_again`] or [`spawn`] started.
pub(crate) fn run_in_background(words: &[OsString], program: Program, serve: Serve) -> ExitCode {
    background::close_what_was_inherited();
    let report = match background::report_instead_of_output() {
        Ok(report) => report,
        Err(failure) => {
            eprintln!("{}: {failure}", program.name());
            return ExitCode::FAILURE;
        }
    };
    let life = Life::begin(report);
    let done = read_options(words).and_then(|options| {
        let destination = options.log.as_deref().map_or(Destination::Nowhere, Destination::File);
        background::leave_the_caller(program)?;
        run(&life, &options, destination, program, serve)
    });
    end(&life, done)
}

/// Serves in this process.
pub(crate) fn run_in_foreground(
    mut options: Options,
    program: Program,
    serve: impl FnOnce(&Options, Daemon) -> Result<(), Failure>,
) -> Result<(), Failure> {
    options.resolve(&current_dir()?);
    let life = Life::begin(Report::ToNobody);
    let destination = options.log.as_deref().map_or(Destination::Terminal, Destination::File);
    let done = run(&life, &options, destination, program, serve);
    if let (Err(failure), Some(_)) = (&done, &options.log) {
        // Standard error tells it too, but may have no reader.
        log::error!("{failure}");
    }
    log::logger().flush();
    done
}

fn run(
    life: &Arc<Life>,
    options: &Options,
    destination: Destination<'_>,
    program: Program,
    serve: impl FnOnce(&Options, Daemon) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let level = if options.debug { log::LevelFilter::Debug } else { log::LevelFilter::Info };
    logging::init(destination, level)?;
    background::prepare_process();
    life.watch_signals()?;
    options.check()?;
    for note in &options.notes {
        log::info!("{note}");
    }
    serve(options, Daemon { life: life.clone(), program })
}

fn read_options(words: &[OsString]) -> Result<Options, Failure> {
    match options::parse(words)? {
        Call::Mount(mut options) => {
            options.resolve(&current_dir()?);
            Ok(*options)
        }
        Call::Help | Call::Version => Err(Failure::new("the daemon mounts, and does nothing else")),
    }
}

/// Paths are made absolute with it, as the daemon leaves that directory.
fn current_dir() -> Result<std::path::PathBuf, Failure> {
    std::env::current_dir()
        .map_err(|error| Failure::new(format!("the current directory: {error}; change to another one first")))
}

fn end(life: &Life, done: Result<(), Failure>) -> ExitCode {
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log::error!("{failure}");
            life.report_failure(&failure);
            ExitCode::FAILURE
        }
    };
    log::logger().flush();
    code
}
