//! The daemon's face, mounted: processes, signals, errors, namespaces, over a filesystem with one file.
//!
//! A runner of its own (`harness = false`): this program is also the daemon under test, under the names `plyfs-mountd` and
//! `fuse-overlayfs`; a test that cannot run is skipped by name, and with `PLYFS_TEST_NO_SKIPS` set a skip is a failure. After
//! each test, also a failed one, nothing stays mounted and no process stays.

// Without the standard harness clippy does not know these for tests.
#![allow(clippy::unwrap_used)]

mod cases;
mod hello;

use std::ffi::OsStr;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mountd::mount::{Unmount, unmount};

/// The longest that a test may take.
const TIMEOUT: Duration = Duration::from_secs(180);

/// What a test tells: done, or why it cannot run here.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let name = Path::new(&args[0]).file_name().unwrap_or_default();
    if name == OsStr::new("plyfs-mountd") || name == OsStr::new("fuse-overlayfs") {
        return mountd::run_with(args, hello::serve);
    }
    run(args.get(1).and_then(|filter| filter.to_str()).filter(|filter| !filter.starts_with('-')).unwrap_or_default())
}

fn run(filter: &str) -> ExitCode {
    keep_mounts_to_ourselves();
    let bench = Bench::set_up();
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), Vec::new());
    for (name, test) in cases::ALL.iter().filter(|(name, _)| name.contains(filter)) {
        match bench.run(name, *test) {
            Ok(Ok(())) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Ok(Err(why)) => {
                println!("test {name} ... skipped: {why}");
                skipped.push(*name);
            }
            Err(()) => {
                println!("test {name} ... FAILED");
                failed.push(*name);
            }
        }
    }
    println!("\nmounted: {passed} passed, {} failed {failed:?}, {} skipped {skipped:?}", failed.len(), skipped.len());
    let skips_allowed = std::env::var_os("PLYFS_TEST_NO_SKIPS").is_none();
    if failed.is_empty() && (skips_allowed || skipped.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Gives this process a mount namespace of its own, where that is allowed. A program anywhere on the machine that makes one
/// takes copies of all mounts of the namespace it was in, and a mount whose copy lives does not end by its unmounting.
fn keep_mounts_to_ourselves() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok() {
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
    }
}

/// Where all tests of a run happen: one directory, which every process of theirs has in its words.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn set_up() -> Self {
        let dir = tempfile::Builder::new().prefix("plyfs-mounted-").tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::fs::copy(std::env::current_exe().unwrap(), bin.join("plyfs-mountd")).unwrap();
        std::os::unix::fs::symlink("plyfs-mountd", bin.join("fuse-overlayfs")).unwrap();
        // An ordinary user must reach the programs.
        make_public(dir.path());
        Bench { dir }
    }

    fn run(&self, name: &str, test: fn(&Area) -> Outcome) -> Result<Outcome, ()> {
        let area = Area::new(self.dir.path(), name);
        let (done, outcome) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let result = match can_mount() {
                Ok(()) => catch_unwind(|| test(&area)).map_err(drop),
                cannot => Ok(cannot),
            };
            done.send(result).unwrap();
        });
        let outcome = outcome.recv_timeout(TIMEOUT).unwrap_or_else(|_| {
            eprintln!("{name}: not done after {TIMEOUT:?}");
            Err(())
        });
        self.sweep();
        thread.join().map_err(drop).and(outcome)
    }

    /// Ends every process and every mount of the test.
    fn sweep(&self) {
        for mount in mounts_below(self.dir.path()).iter().rev() {
            unmount(mount, Unmount::Lazily).ok();
        }
        for pid in processes_naming(self.dir.path()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.sweep();
    }
}

/// Whether this user can mount at all here.
fn can_mount() -> Outcome {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        return Err("there is no /dev/fuse (modprobe fuse)".to_owned());
    }
    if is_root() {
        return Ok(());
    }
    need(&["fusermount3"])?;
    let open = std::fs::OpenOptions::new().read(true).write(true).open(device);
    open.map(drop).map_err(|error| format!("/dev/fuse: {error} (be root, or chmod 666 /dev/fuse)"))
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Checks for programs by name.
fn need(programs: &[&str]) -> Outcome {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    match programs.iter().find(|name| !there(name)) {
        None => Ok(()),
        Some(name) => Err(format!("there is no {name} (install it)")),
    }
}

fn make_public(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}

/// One test's directory: `lower`, `upper`, `work` and `merged`.
struct Area {
    bin: PathBuf,
    root: PathBuf,
}

impl Area {
    fn new(bench: &Path, name: &str) -> Self {
        let area = Area { bin: bench.join("bin"), root: bench.join(name) };
        for dir in ["", "lower", "upper", "work", "merged"] {
            std::fs::create_dir(area.path(dir)).unwrap();
            make_public(&area.path(dir));
        }
        area
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn target(&self) -> PathBuf {
        self.path("merged")
    }

    /// The program with `-o OPTIONS`, where `ROOT` stands for the test's directory.
    fn program(&self, options: &str) -> Command {
        let mut command = Command::new(self.bin.join("plyfs-mountd"));
        command.arg("-o").arg(self.spelled(options)).arg(self.target()).stdin(Stdio::null());
        command
    }

    fn spelled(&self, options: &str) -> String {
        options.replace("ROOT", self.root.to_str().unwrap())
    }

    /// Mounts and returns the daemon's process id.
    fn mount(&self, options: &str) -> u32 {
        let output = self.program(options).output().unwrap();
        assert_quiet_success(&output);
        self.served_by()
    }

    /// The file says which process serves it.
    fn served_by(&self) -> u32 {
        std::fs::read_to_string(self.target().join("pid")).unwrap().trim().parse().unwrap()
    }

    /// Runs the program where it must fail; returns its one line.
    fn refusal(&self, options: &str) -> String {
        let output = self.program(options).output().unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{output:?}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.starts_with("plyfs-mountd: ") && line.ends_with('\n') && line.lines().count() == 1, "{line:?}");
        self.assert_nothing_left();
        line
    }

    fn mount_count(&self) -> usize {
        mounts_below(&self.root).len()
    }

    /// No mount of ours, and no process.
    fn assert_nothing_left(&self) {
        wait_until("every daemon has left", || processes_naming(&self.root).is_empty());
        assert_eq!(mounts_below(&self.root), Vec::<PathBuf>::new());
    }
}

fn assert_quiet_success(output: &Output) {
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not so after 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The line of /proc/self/mountinfo for the topmost mount on `target`.
fn mount_line(target: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let on_target = |line: &&str| line.split(' ').nth(4) == target.to_str();
    table.lines().rev().find(on_target).map(str::to_owned)
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).filter(|p| p.starts_with(dir)).collect()
}

/// Processes other than this one that have the directory in their words.
fn processes_naming(dir: &Path) -> Vec<u32> {
    let needle = dir.to_str().unwrap();
    let names_it = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(needle)
    };
    let numbers =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    numbers.filter(|pid| *pid != std::process::id()).filter(names_it).collect()
}
