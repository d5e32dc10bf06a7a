//! What the tests of the command share: a store of their own, running the command, and saying what cannot be run here.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

pub(crate) mod proxy;
pub(crate) mod registry;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The command under test.
pub(crate) const PLYFS: &str = env!("CARGO_BIN_EXE_plyfs");

/// A store in a temporary directory, unmounted and removed at the end.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Stage {
    pub(crate) fn new() -> Self {
        // Uppers want a disk: /tmp may be memory.
        let dir = tempfile::Builder::new().prefix("plyfs-test.").tempdir_in("/var/tmp").unwrap();
        Stage { dir }
    }

    /// A store with the sample image in it.
    pub(crate) fn with_sample() -> Self {
        let stage = Stage::new();
        stage.ok(["load", "-q", "-i", stage.sample().to_str().unwrap()]);
        stage
    }

    /// The store is sound, nothing in it is unfinished, and `df` tells what lies there.
    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        assert!(self.ok(["fsck"]).contains("nothing is wrong"));
        for dir in ["ingest", "trash", "leases"] {
            let left: Vec<_> = std::fs::read_dir(self.path("store").join(dir)).unwrap().collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
        let total = self.ok(["df", "--format", "{{.Type}} {{.SizeBytes}}"]);
        let total = total.lines().find_map(|line| line.strip_prefix("Total ")).unwrap();
        let du = Command::new("du").args(["-s", "--block-size=1"]).arg(self.path("store")).output().unwrap();
        let du = String::from_utf8(du.stdout).unwrap();
        assert_eq!(total, du.split_whitespace().next().unwrap());
    }

    /// A path in the temporary directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory in it.
    pub(crate) fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// The sample image as a file.
    pub(crate) fn sample(&self) -> PathBuf {
        let path = self.path("sample.tar");
        if !path.exists() {
            self.ok(["sample", "-o", path.to_str().unwrap()]);
        }
        path
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(PLYFS);
        command.env("PLYFS_ROOT", self.path("store")).stdin(Stdio::null());
        command
    }

    pub(crate) fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        Ran::from(self.command().args(args).output().unwrap())
    }

    /// Runs a command that must succeed; returns what it printed.
    #[track_caller]
    pub(crate) fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out
    }

    /// Runs a command that must fail with one line; returns it.
    #[track_caller]
    pub(crate) fn fails<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.err.starts_with("plyfs: ") && ran.err.lines().count() == 1, "{ran:?}");
        ran.err
    }

    /// Runs a command with bytes on its standard input.
    pub(crate) fn feed<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, input: &[u8]) -> Ran {
        let mut command = self.command();
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).ok(); // A command may have read enough.
        Ran::from(child.wait_with_output().unwrap())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A test that failed may have left mounts; `rm -f` and lazy unmounts end their daemons.
        let run = |args: &[&str]| Ran::from(self.command().args(args).output().unwrap());
        for id in run(&["ps", "-aq"]).out.lines() {
            run(&["rm", "-f", id]);
        }
        for target in mounts_below(self.dir.path()) {
            run(&["umount", "--lazy", target.to_str().unwrap()]);
        }
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The mount points below a directory, the last one first.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let targets = table.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    targets.filter(|target| target.starts_with(dir)).collect()
}

/// Tells that a test cannot run here: it passes, but is listed; where nothing may be skipped, it fails.
pub(crate) fn skip(test: &str, why: &str) {
    let line = format!("plyfs {test}: {why}\n");
    assert!(std::env::var_os("PLYFS_NO_SKIP").is_none(), "nothing may be skipped: {line}");
    eprint!("skipped: {line}");
    if let Some(file) = std::env::var_os("PLYFS_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// Tells whether this process may mount; else skips the test.
pub(crate) fn can_mount(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match (is_root, device) {
        (true, Ok(_)) => true,
        (false, _) => {
            skip(test, "needs root; run the tests with sudo");
            false
        }
        (true, Err(error)) => {
            skip(test, &format!("/dev/fuse: {error}; modprobe fuse, or --device /dev/fuse"));
            false
        }
    }
}
