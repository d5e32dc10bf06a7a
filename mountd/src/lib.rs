//! The plyfs daemon: fuse-overlayfs's command line, the mount, the process in the background, and the FUSE session.
//!
//! Two programs are made of it: `plyfs-mountd`, and `plyfs`, which starts itself again as the daemon ([`DAEMON_WORD`]). What a
//! mount shows is built by `build`; everything around it is here.

mod build;
mod daemon;
mod failure;
pub mod fs;
mod helper;
pub mod logging;
pub mod mount;
pub mod options;
pub mod session;
pub mod shelf;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

pub use daemon::{DAEMON_WORD, Daemon, Mounted, spawn};
pub use failure::Failure;
use options::{Call, Options, Stay};

/// What makes a filesystem out of the options and serves it: [`Daemon::serve`] is its last call.
pub type Serve = fn(&Options, Daemon) -> Result<(), Failure>;

/// Runs the daemon's command line; `args` begins with the program's name.
///
/// To be called first in a process: as the daemon it closes every descriptor but standard input, output and error.
pub fn run_from_args(args: Vec<OsString>) -> ExitCode {
    run_with(args, build::build_and_serve)
}

/// As [`run_from_args`], with another filesystem: how the daemon's own tests run it.
pub fn run_with(args: Vec<OsString>, serve: Serve) -> ExitCode {
    let program = Program::called(args.first());
    let words = args.get(1..).unwrap_or_default();
    let asked = (program == Program::MountHelper && words.first().is_none_or(|first| first != DAEMON_WORD))
        .then(|| helper::asked(words));
    let words = asked.as_ref().map_or(words, |asked| asked.words.as_slice());
    if let Some((DAEMON_WORD, words)) = words.split_first().and_then(|(first, rest)| Some((first.to_str()?, rest))) {
        return daemon::run_in_background(words, program, serve);
    }
    let done = options::parse(words).and_then(|call| match call {
        Call::Help => say(&program.help()),
        Call::Version => say(&program.version()),
        Call::Mount(_) if asked.as_ref().is_some_and(|asked| asked.fake) => Ok(()),
        Call::Mount(options) if options.stay == Stay::Foreground => daemon::run_in_foreground(*options, program, serve),
        Call::Mount(_) => daemon::start_again(args.first(), words).map(drop),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}: {failure}", program.name());
            ExitCode::FAILURE
        }
    }
}

/// How far an upper is brought to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// As the end of a mount does: plain kernel-overlayfs format, with redirects and metadata-only copies.
    AtRest,
    /// Without these, so that the kernel's overlayfs shows it to ordinary users too (`userxattr`).
    Plain,
    /// In the AUFS form, without any marks: `.wh.NAME` for what is deleted, `.wh..wh..opq` in opaque directories.
    Aufs,
}

/// Brings the upper that mount options name to rest, without a mount; the mount point that they name is not touched.
///
/// # Errors
/// One line: the upper is in use, something is missing, or the disk is full; what was done until then stays done.
pub fn settle(options: &Options, how: Settle) -> Result<(), Failure> {
    options.check()?;
    build::settle(options, how)
}

fn say(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        // `--help | head` has seen enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Under which name the program was called: runtimes know one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    FuseOverlayfs,
    Mountd,
    /// `mount.fuse3.plyfs`, as mount(8) calls it.
    MountHelper,
}

impl Program {
    fn called(argv0: Option<&OsString>) -> Self {
        match argv0.and_then(|argv0| Path::new(argv0).file_name()) {
            Some(name) if name == OsStr::new("fuse-overlayfs") => Program::FuseOverlayfs,
            Some(name) if helper::is_helper(name) => Program::MountHelper,
            _ => Program::Mountd,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Program::FuseOverlayfs => "fuse-overlayfs",
            Program::Mountd | Program::MountHelper => "plyfs-mountd",
        }
    }

    /// Returns the part behind `fuse.` in the mount table.
    fn kind(self) -> &'static str {
        match self {
            Program::FuseOverlayfs => "fuse-overlayfs",
            Program::Mountd | Program::MountHelper => "plyfs",
        }
    }

    fn version(self) -> String {
        let ours = env!("CARGO_PKG_VERSION");
        match self {
            // Tools that ask expect fuse-overlayfs's own words.
            Program::FuseOverlayfs => format!("fuse-overlayfs: version 2.0.0 (plyfs {ours})"),
            Program::Mountd | Program::MountHelper => {
                format!("plyfs-mountd {ours} (takes the options of fuse-overlayfs 2.0.0)")
            }
        }
    }

    fn help(self) -> String {
        let mut help = format!(
            "usage: {} [-f] [-d] [-o OPTION[,OPTION...]]... [SOURCE] TARGET\n\n\
             Mounts a union of directories, or an image of a plyfs store, on TARGET.\n\n    \
             -f             stay in the foreground\n    \
             -d, --debug    stay in the foreground and log everything\n    \
             -s             read requests with one thread\n    \
             -V, --version  say the version\n    \
             -h, --help     say this\n\n\
             Options (a comma, colon or backslash in a path is written with a backslash before it):\n",
            self.name()
        );
        for known in options::OPTIONS.iter().filter(|known| known.stance == options::Stance::Obeyed) {
            help.push_str(&format!("    -o {:<36} {}\n", known.spelled, known.meaning));
        }
        help.push_str("\nUnderstood, without effect:");
        for known in options::OPTIONS.iter().filter(|known| known.stance == options::Stance::Noted) {
            help.push(' ');
            help.push_str(known.name());
        }
        help.push_str("\n\nTo unmount: umount TARGET, or fusermount3 -u TARGET.\n");
        help
    }
}
