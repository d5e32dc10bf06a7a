//! Where a test happens: its directories, its daemon, and what is looked at after every test.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mountd::Settle;
use mountd::mount::{Unmount, unmount};
use mountd::options::Call;

use crate::tree::{self, Tree};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon: the one that was built with the tests, or a copy of it where an ordinary user can reach it.
fn mountd_program() -> PathBuf {
    std::env::var_os("PLYFS_TEST_MOUNTD").unwrap_or_else(|| env!("CARGO_BIN_EXE_plyfs-mountd").into()).into()
}

/// How large files are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the kernel, past the daemon, where the kernel lets us.
    Passthrough,
    /// By the daemon.
    Served,
}

/// Runs a test in each way, each time in a fresh area.
pub(crate) fn each(test: impl Fn(&Area)) {
    for way in [Way::Passthrough, Way::Served] {
        once(way, &test);
    }
}

/// Runs a test in one way.
///
/// An ordinary user can neither mount the kernel's overlayfs beside ours nor set owners: for one, `user_namespace` runs it.
pub(crate) fn once(way: Way, test: impl Fn(&Area)) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // Without privilege there is no passthrough: one way is enough.
    if way == Way::Passthrough && in_user_namespace() {
        return;
    }
    let area = Area::new(way);
    let done = catch_unwind(AssertUnwindSafe(|| {
        test(&area);
        area.check();
    }));
    if let Err(failed) = done {
        let log = std::fs::read_to_string(area.log()).unwrap_or_default();
        eprintln!("the test failed {way:?}; the daemon's log:\n{log}");
        resume_unwind(failed);
    }
}

/// Tells whether this process has no privilege over the filesystem that it writes to.
pub(crate) fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Tells whether this is the superuser; else a test that needs that is skipped, by name.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root() && !in_user_namespace();
    if !root {
        skip(test, "needs root");
    }
    root
}

/// Tells that a test cannot run here: it passes, but is listed; where nothing may be skipped, it fails. What a user namespace cannot
/// do is no gap: the same test runs outside.
pub(crate) fn skip(test: &str, why: &str) {
    if in_user_namespace() {
        return;
    }
    assert!(std::env::var_os("PLYFS_TEST_NO_SKIPS").is_none(), "{test}: {why}");
    eprintln!("{test}: skipped: {why}");
    if let Some(file) = std::env::var_os("PLYFS_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        file.write_all(format!("plyfs-mountd {test}: {why}\n").as_bytes()).unwrap();
    }
}

/// One test's directories and mounts.
pub(crate) struct Area {
    way: Way,
    daemon: RefCell<Option<Daemon>>,
    others: RefCell<Vec<Daemon>>,
    lowers: RefCell<Vec<PathBuf>>,
    /// What the lower trees were when they were first mounted.
    before: RefCell<Option<Vec<Tree>>>,
    skip_kernel: Cell<bool>,
    odd_d_ino: Cell<bool>,
    faults: Cell<bool>,
    descriptors: Cell<Option<u32>>,
    options: RefCell<String>,
    /// What was said where a mount had to be refused.
    refused: RefCell<Vec<String>>,
    /// Behind the daemons: it is removed when nothing is mounted in it any more.
    dir: tempfile::TempDir,
}

struct Daemon {
    child: Child,
    target: PathBuf,
}

impl Daemon {
    fn start(options: &str, target: &Path) -> Result<Daemon, String> {
        Self::start_by(Command::new(mountd_program()), options, target)
    }

    fn start_by(mut program: Command, options: &str, target: &Path) -> Result<Daemon, String> {
        let outside = std::fs::metadata(target).unwrap().dev();
        program.args(["-f", "-o", options]).arg(target).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = program.spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        while std::fs::metadata(target).unwrap().dev() == outside {
            if child.try_wait().unwrap().is_some() {
                let output = child.wait_with_output().unwrap();
                return Err(String::from_utf8(output.stderr).unwrap());
            }
            assert!(Instant::now() < end, "not mounted after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(Daemon { child, target: target.to_owned() })
    }

    /// Unmounts and waits until the upper is at rest.
    fn end(mut self) {
        retry("unmount", || unmount(&self.target, Unmount::WhenIdle).map_err(|failure| failure.line().to_owned()));
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the daemon is there after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.child.wait().unwrap();
        let said = self.child.stderr.take().map(|stderr| std::io::read_to_string(stderr).unwrap()).unwrap_or_default();
        assert!(status.success(), "the daemon: {status}, {said}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        unmount(&self.target, Unmount::Lazily).unwrap();
    }
}

/// Nothing stays mounted and no process stays, whatever happened.
impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        unmount(&self.target, Unmount::Lazily).ok();
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Gives this thread, and what it starts, a mount namespace of its own. A program anywhere on the machine that makes one
/// takes copies of all mounts of the namespace it was in, and a mount whose copy lives does not end by its unmounting.
fn keep_mounts_to_ourselves() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok() {
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
    }
}

/// Tries for a while: a program that has just ended may not have let go yet.
pub(crate) fn retry<T, E: Debug>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < end, "{what}: {error:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until something holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    retry(what, || if holds() { Ok(()) } else { Err("it is not so") });
}

impl Area {
    pub(crate) fn new(way: Way) -> Self {
        keep_mounts_to_ourselves();
        let dir = tempfile::Builder::new().prefix("plyfs-sem-").tempdir().unwrap();
        let area = Area {
            way,
            daemon: RefCell::new(None),
            others: RefCell::default(),
            lowers: RefCell::new(vec![dir.path().join("lower")]),
            before: RefCell::new(None),
            skip_kernel: Cell::new(false),
            odd_d_ino: Cell::new(false),
            faults: Cell::new(false),
            descriptors: Cell::new(None),
            options: RefCell::default(),
            refused: RefCell::default(),
            dir,
        };
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(area.path(name)).unwrap();
        }
        for open in ["", "lower", "upper", "merged"] {
            tree::chmod(&area.path(open), 0o755);
        }
        area
    }

    /// Something beside the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.dir.path().to_owned() } else { self.dir.path().join(name) }
    }

    /// Something in the lower.
    pub(crate) fn lower(&self, name: &str) -> PathBuf {
        self.path("lower").join(name)
    }

    /// Something in the upper.
    pub(crate) fn upper(&self, name: &str) -> PathBuf {
        self.path("upper").join(name)
    }

    /// Something in the mount.
    pub(crate) fn m(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.path("merged") } else { self.path("merged").join(name) }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path("log")
    }

    pub(crate) fn way(&self) -> Way {
        self.way
    }

    /// Makes one more lower directory, below those there are.
    pub(crate) fn add_lower(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).unwrap();
        tree::chmod(&path, 0o755);
        self.lowers.borrow_mut().push(path.clone());
        path
    }

    /// Options beside the directories, for the mounts to come.
    pub(crate) fn set_options(&self, options: &str) {
        *self.options.borrow_mut() = options.to_owned();
    }

    /// The kernel's overlayfs is known to see this lower otherwise.
    pub(crate) fn kernel_differs(&self) {
        self.skip_kernel.set(true);
    }

    /// A file was written while it was read past the daemon: until a remount `d_ino` is another number than `st_ino`.
    pub(crate) fn d_ino_may_differ(&self) {
        self.odd_d_ino.set(true);
    }

    /// The disk will fail: the log tells of it.
    pub(crate) fn disk_fails(&self) {
        self.faults.set(true);
    }

    /// The daemon is started where programs may have only so many descriptors.
    pub(crate) fn set_descriptors(&self, count: u32) {
        self.descriptors.set(Some(count));
    }

    fn lowerdir(&self) -> String {
        let dirs: Vec<_> = self.lowers.borrow().iter().map(|dir| dir.to_str().unwrap().to_owned()).collect();
        dirs.join(":")
    }

    /// The options of the daemon.
    pub(crate) fn spelled(&self, upper: &str, work: &str) -> String {
        let [upper, work] = [upper, work].map(|name| self.path(name));
        let dirs = format!("lowerdir={},upperdir={},workdir={}", self.lowerdir(), upper.display(), work.display());
        self.with_the_rest(dirs)
    }

    fn with_the_rest(&self, mut options: String) -> String {
        options.push_str(&format!(",plyfs.log={}", self.log().display()));
        if self.way == Way::Served {
            options.push_str(",plyfs.disable=passthrough");
        }
        let more = self.options.borrow();
        if !more.is_empty() {
            options.push(',');
            options.push_str(&more);
        }
        options
    }

    /// Mounts; the lower must not change from now on.
    pub(crate) fn mount(&self) {
        let mut before = self.before.borrow_mut();
        if before.is_none() {
            *before = Some(self.lowers.borrow().iter().map(|dir| Tree::raw(dir)).collect());
        }
        let program = match self.descriptors.get() {
            None => Command::new(mountd_program()),
            Some(count) => {
                let mut shell = Command::new("sh");
                shell.args(["-ec", &format!(r#"ulimit -n {count}; exec "$@""#), "sh"]);
                shell.arg(mountd_program());
                shell
            }
        };
        let daemon = Daemon::start_by(program, &self.spelled("upper", "work"), &self.m("")).unwrap();
        *self.daemon.borrow_mut() = Some(daemon);
    }

    /// Mounts where that must fail, and returns what is said.
    pub(crate) fn refusal(&self, upper: &str, work: &str) -> String {
        std::fs::create_dir_all(self.path("refused")).unwrap();
        match Daemon::start(&self.spelled(upper, work), &self.path("refused")) {
            Ok(_) => panic!("mounted"),
            Err(said) => {
                self.refused.borrow_mut().push(said.clone());
                said
            }
        }
    }

    /// Mounts the same lower once more, with an upper of its own, at `name`.
    pub(crate) fn mount_another(&self, name: &str) -> PathBuf {
        let (upper, work) = (format!("{name}-upper"), format!("{name}-work"));
        for dir in [name, &upper, &work] {
            std::fs::create_dir_all(self.path(dir)).unwrap();
        }
        let daemon = Daemon::start(&self.spelled(&upper, &work), &self.path(name)).unwrap();
        self.others.borrow_mut().push(daemon);
        self.path(name)
    }

    /// Mounts the lower alone at `name`, by the program under the name `called`.
    pub(crate) fn mount_lower(&self, name: &str, called: &str) -> PathBuf {
        std::fs::create_dir_all(self.path(name)).unwrap();
        let mut program = Command::new(mountd_program());
        std::os::unix::process::CommandExt::arg0(&mut program, called);
        let options = format!("lowerdir={},plyfs.log={},debug", self.lowerdir(), self.log().display());
        self.others.borrow_mut().push(Daemon::start_by(program, &options, &self.path(name)).unwrap());
        self.path(name)
    }

    pub(crate) fn unmount(&self) {
        let daemon = self.daemon.take().expect("mounted");
        daemon.end();
    }

    pub(crate) fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// Kills the daemon and mounts again.
    pub(crate) fn crash(&self) {
        let daemon = self.daemon.take().expect("mounted");
        daemon.kill();
        self.mount();
    }

    pub(crate) fn daemon_pid(&self) -> u32 {
        self.daemon.borrow().as_ref().expect("mounted").child.id()
    }

    /// Bytes that the upper and the work directory take on the disk.
    pub(crate) fn used(&self) -> u64 {
        ["upper", "work"].iter().map(|dir| tree::allocated(&self.path(dir))).sum()
    }

    /// Bytes that the daemon wrote so far, to whatever.
    pub(crate) fn written(&self) -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.daemon_pid())).unwrap();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
    }

    /// Asserts that `change` costs the upper less than 64 KiB.
    pub(crate) fn costs_little(&self, what: &str, change: impl FnOnce()) {
        let (used, written) = (self.used(), self.written());
        change();
        let (used, written) = (self.used().saturating_sub(used), self.written() - written);
        // Shared blocks count as used by everyone who has them.
        let used = if self.shares_blocks() { 0 } else { used };
        assert!(used < 64 << 10 && written < 64 << 10, "{what}: {used} bytes on disk, {written} written");
    }

    /// There is nothing to look at any more: the test took the upper away.
    pub(crate) fn forget(&self) {
        assert!(self.daemon.borrow().is_none());
    }

    /// Tells whether the filesystem under test can share blocks between files.
    fn shares_blocks(&self) -> bool {
        let [from, to] = ["from", "to"].map(|name| self.path(name));
        tree::file(&from, 4096);
        let shared = rustix::fs::ioctl_ficlone(std::fs::File::create(to).unwrap(), tree::open(&from));
        shared.is_ok()
    }

    /// What holds after every test.
    fn check(&self) {
        for other in self.others.take() {
            other.end();
        }
        if self.daemon.borrow().is_some() {
            let live = if self.odd_d_ino.get() { Tree::of_any(&self.m("")) } else { Tree::of(&self.m("")) };
            self.unmount();
            self.mount();
            let again = Tree::of(&self.m(""));
            live.assert_same(&again, "after a remount", tree::Compare::All);
            self.unmount();
            self.assert_at_rest();
            if !in_user_namespace() && rustix::process::geteuid().is_root() && !self.skip_kernel.get() {
                again.assert_same(&self.kernels_view(), "under the kernel's overlayfs", tree::Compare::Content);
            }
            if !self.skip_kernel.get() && !self.has_records() {
                self.settle_plain();
                let plain = self.kernels_plain_view();
                again.assert_same(&plain, "under the kernel's overlayfs, settled plainly", tree::Compare::Content);
                self.mount();
                again.assert_same(&Tree::of(&self.m("")), "settled plainly", tree::Compare::Content);
                self.unmount();
            }
            if self.has_aufs_form() {
                self.settle(Settle::Aufs);
                self.assert_aufs_form();
                let layer = self.view_as_a_layer();
                again.assert_same(&layer, "as a layer, in the AUFS form", tree::Compare::Content);
            }
        }
        if let Some(before) = &*self.before.borrow() {
            for (dir, before) in self.lowers.borrow().iter().zip(before) {
                before.assert_same(&Tree::raw(dir), "the lower afterwards", tree::Compare::Raw);
            }
        }
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let bad = |line: &&str| line.contains("Z error ") || line.contains("Z warn ");
        let refused = self.refused.borrow();
        let expected = |line: &&str| {
            let text = line.split_once(" error ").map_or("", |(_, text)| text);
            refused.iter().any(|said| said.trim_end().ends_with(text))
        };
        let said: Vec<_> = log.lines().filter(bad).filter(|line| !expected(line)).collect();
        assert!(said.is_empty() != self.faults.get(), "the log has errors: {said:#?}");
    }

    /// Nothing of ours stays in the work directory but what the lock and empty folders are.
    fn assert_at_rest(&self) {
        let mut left = Vec::new();
        for folder in ["tmp", "index", "partial"] {
            match std::fs::read_dir(self.path("work/plyfs").join(folder)) {
                // Made when something is put there.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder != "tmp" => {}
                entries => left.extend(entries.unwrap().map(|entry| entry.unwrap().path())),
            }
        }
        assert!(left.is_empty(), "left in the work directory: {left:?}");
    }

    /// The tree as the kernel's overlayfs shows it over the upper, read-only.
    fn kernels_view(&self) -> Tree {
        let options =
            format!("lowerdir={}:{},redirect_dir=follow,metacopy=on", self.path("upper").display(), self.lowerdir());
        let _mounted = KernelOverlay::mount(&self.path("merged"), &options);
        Tree::of_any(&self.path("merged"))
    }
}

impl Area {
    /// Takes redirects and metadata-only copies out of the upper at rest.
    pub(crate) fn settle_plain(&self) {
        self.settle(Settle::Plain);
    }

    fn settle(&self, how: Settle) {
        let words: [std::ffi::OsString; 3] = ["-o".into(), self.spelled("upper", "work").into(), self.m("").into()];
        let Ok(Call::Mount(options)) = mountd::options::parse(&words) else { panic!("{words:?}") };
        mountd::settle(&options, how).unwrap_or_else(|failure| panic!("settle: {failure}"));
    }

    /// The upper on top of the lowers, read-only.
    fn view_as_a_layer(&self) -> Tree {
        std::fs::create_dir_all(self.path("merged")).unwrap();
        let lowers = self.with_the_rest(format!("lowerdir={}:{}", self.path("upper").display(), self.lowerdir()));
        let daemon = Daemon::start(&lowers, &self.path("merged")).unwrap();
        let tree = Tree::of(&self.path("merged"));
        daemon.end();
        tree
    }

    /// Tells whether the form has a spelling for all that the upper holds.
    fn has_aufs_form(&self) -> bool {
        let is_read = !self.options.borrow().contains("plyfs.whiteouts=overlay");
        is_read
            && self.lowers.borrow().len() < mountd::options::MAX_LAYERS
            && self.in_upper().iter().all(|(path, meta)| {
                let name = path.file_name().unwrap().as_encoded_bytes();
                !name.starts_with(b".wh.") && (name.len() <= 251 || !is_whiteout(meta))
            })
    }

    /// No whiteout and no mark of a union is left.
    fn assert_aufs_form(&self) {
        for (path, meta) in self.in_upper() {
            assert!(!is_whiteout(&meta), "{path:?} is a whiteout");
            let marks = tree::xattrs(&path);
            let mut marks = marks.keys().filter(|name| name.to_string_lossy().contains(".overlay."));
            assert_eq!(marks.next(), None, "{path:?} bears a mark");
        }
    }

    /// All that lies in the upper.
    fn in_upper(&self) -> Vec<(PathBuf, std::fs::Metadata)> {
        let mut todo = vec![self.path("upper")];
        let mut all = Vec::new();
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let meta = path.symlink_metadata().unwrap();
                if meta.is_dir() {
                    todo.push(path.clone());
                }
                all.push((path, meta));
            }
        }
        all
    }

    /// The tree as the kernel's overlayfs shows it to ordinary users, and to root with nothing switched on.
    pub(crate) fn kernels_plain_view(&self) -> Tree {
        let how = if in_user_namespace() { "userxattr" } else { "redirect_dir=nofollow,metacopy=off" };
        let options = format!("lowerdir={}:{},{how}", self.path("upper").display(), self.lowerdir());
        let _mounted = KernelOverlay::mount(&self.path("merged"), &options);
        Tree::of_any(&self.path("merged"))
    }

    /// Tells whether owners or kinds are recorded in the upper, which the kernel's overlayfs does not heed.
    fn has_records(&self) -> bool {
        let mut todo = vec![self.path("upper")];
        while let Some(path) = todo.pop() {
            if tree::xattr(&path, "user.containers.override_stat").is_some() {
                return true;
            }
            if path.symlink_metadata().unwrap().is_dir() {
                todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        false
    }
}

/// A mount of the kernel's overlayfs.
pub(crate) struct KernelOverlay(PathBuf);

impl KernelOverlay {
    pub(crate) fn mount(target: &Path, options: &str) -> Self {
        let data = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("overlay", target, "overlay", flags, data.as_c_str())
            .unwrap_or_else(|error| panic!("the kernel's overlayfs with {options}: {error}"));
        KernelOverlay(target.to_owned())
    }
}

impl Drop for KernelOverlay {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

fn is_whiteout(meta: &std::fs::Metadata) -> bool {
    rustix::fs::FileType::from_raw_mode(meta.mode()).is_char_device() && meta.rdev() == 0
}
