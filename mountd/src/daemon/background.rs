//! What a process does to be a daemon.

use std::ffi::CString;
use std::fs::File;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::life::Report;
use crate::Program;
use crate::failure::{Failure, errno_text};

/// How many descriptors we ask for where we may raise the hard limit.
const DESCRIPTORS: u64 = 1 << 20;

/// The kernel's OOM killer shall take the programs in a container before the daemon that all of them depend on.
const OOM_SCORE: i32 = -500;

/// Takes standard output, which is the caller's pipe, for the report, and puts `/dev/null` in its place.
///
/// Standard error stays the caller's until the mount is ready, for what the loader or a panic has to say.
pub(super) fn report_instead_of_output() -> Result<Report, Failure> {
    let failure = |errno| Failure::new(format!("standard output: {}", errno_text(errno)));
    let pipe = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).map_err(failure)?;
    let null = open_null()?;
    rustix::stdio::dup2_stdin(&null).and_then(|()| rustix::stdio::dup2_stdout(&null)).map_err(failure)?;
    Ok(Report::ToCaller(File::from(pipe)))
}

/// Closes every descriptor that was left open for us by mistake: a lock that a shell holds, a pipe that somebody waits on.
///
/// To be called before this process opens anything that it keeps.
pub(super) fn close_what_was_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number > 2).collect::<Vec<_>>() {
        // One of them was the directory that has just been read.
        nix::unistd::close(number).ok();
    }
}

/// Lets go of standard error: a runtime waits until nobody holds it any more.
pub(super) fn close_standard_error() -> Result<(), Failure> {
    let null = open_null()?;
    rustix::stdio::dup2_stderr(&null).map_err(|errno| Failure::new(format!("standard error: {}", errno_text(errno))))
}

fn open_null() -> Result<rustix::fd::OwnedFd, Failure> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Failure::new(format!("cannot open /dev/null: {}", errno_text(errno))))
}

/// Leaves the caller's session, terminal and directory.
pub(super) fn leave_the_caller(program: Program) -> Result<(), Failure> {
    // Fails only for the leader of a process group, which a process that was started as a child is not.
    rustix::process::setsid().ok();
    rustix::process::chdir("/").map_err(|errno| Failure::new(format!("chdir /: {}", errno_text(errno))))?;
    // Started from /proc/self/exe, the process would be listed as `exe`.
    if let Ok(name) = CString::new(program.name()) {
        rustix::thread::set_name(&name).ok();
    }
    Ok(())
}

/// Sets what a daemon needs of the system; what is not allowed stays as it is.
pub(super) fn prepare_process() {
    // Modes come from requests, which have the client's umask in them already.
    rustix::process::umask(Mode::empty());
    raise_descriptors();
    lower_oom_score();
    respect_quotas();
}

/// Gives up what lets a process write past quotas and into the space that is reserved for the superuser: what is written is
/// for others. Here, before there are other threads, which have what this one has.
fn respect_quotas() {
    let done = capabilities(None).and_then(|own| {
        let less = CapabilitySets { effective: own.effective - CapabilitySet::SYS_RESOURCE, ..own };
        set_capabilities(None, less)
    });
    if let Err(errno) = done {
        log::debug!("quotas of the superuser count: {}", errno_text(errno));
    }
}

fn raise_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let hard = limit.maximum.map_or(DESCRIPTORS, |hard| hard.max(DESCRIPTORS));
    let raised = Rlimit { current: Some(hard), maximum: Some(hard) };
    let as_allowed = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let set = |new| rustix::process::setrlimit(Resource::Nofile, new);
    if let Err(errno) = set(raised).or_else(|_| set(as_allowed)) {
        log::debug!("the limit of descriptors stays {:?}: {}", limit.current, errno_text(errno));
    }
}

fn lower_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(FILE).ok().and_then(|score| score.trim().parse::<i32>().ok());
    if score.is_some_and(|score| score > OOM_SCORE)
        && let Err(error) = std::fs::write(FILE, OOM_SCORE.to_string())
    {
        log::debug!("{FILE} stays {score:?}: {error}");
    }
}
