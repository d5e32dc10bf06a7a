//! Where a storm happens: directories, mounts, the daemon. Nothing of it stays, also after a panic.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mountd::Settle;
use mountd::mount::{Unmount, unmount};
use mountd::options::Call;
use rustix::mount::MountPropagationFlags;

/// A directory, a daemon, and mounts.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    /// The filesystem that the power is cut from.
    disk: Option<Disk>,
}

/// A filesystem in a file.
struct Disk {
    kind: &'static str,
}

impl Stage {
    /// Makes the directories; with a kind of filesystem the upper lies on one of its own.
    pub(crate) fn new(kind: Option<&'static str>) -> Self {
        // Who makes a mount namespace elsewhere meanwhile would get a copy of each of our mounts, and hold it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", alone).unwrap();
        let dir = tempfile::Builder::new().prefix("plyfs-crash-").tempdir().unwrap();
        let stage = Stage { dir, daemon: None, disk: kind.map(|kind| Disk { kind }) };
        for name in ["disk", "mount", "kernel"] {
            std::fs::create_dir(stage.path(name)).unwrap();
        }
        if let Some(disk) = &stage.disk {
            let image = stage.path("image");
            std::fs::File::create(&image).unwrap().set_len(640 << 20).unwrap();
            run(Command::new(format!("mkfs.{}", disk.kind)).arg("-q").arg(&image)).unwrap();
            stage.mount_disk();
        }
        std::fs::create_dir(stage.lower()).unwrap();
        stage
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The lower: beside the upper where blocks can be shared, on another filesystem elsewhere.
    pub(crate) fn lower(&self) -> PathBuf {
        match self.disk.as_ref().map(|disk| disk.kind) {
            Some("xfs") => self.path("disk/lower"),
            _ => self.path("lower"),
        }
    }

    fn mount_disk(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.path("image")).arg(self.path("disk"))).unwrap();
    }

    /// Makes an empty upper and work directory; what an earlier round left is removed.
    pub(crate) fn fresh_upper(&self) {
        for name in ["disk/upper", "disk/work", "disk/kernel-work"] {
            if self.path(name).exists() {
                std::fs::remove_dir_all(self.path(name)).unwrap();
            }
            std::fs::create_dir(self.path(name)).unwrap();
        }
        rustix::fs::syncfs(std::fs::File::open(self.path("disk")).unwrap()).unwrap();
    }

    fn options(&self) -> String {
        format!(
            "lowerdir={},upperdir={},workdir={},plyfs.log={}",
            self.lower().display(),
            self.path("disk/upper").display(),
            self.path("disk/work").display(),
            self.path("log").display()
        )
    }

    /// Takes redirects and metadata-only copies out of the upper.
    pub(crate) fn settle_plain(&self) {
        let words: [std::ffi::OsString; 3] = ["-o".into(), self.options().into(), self.path("mount").into()];
        let Ok(Call::Mount(options)) = mountd::options::parse(&words) else { panic!("{words:?}") };
        mountd::settle(&options, Settle::Plain).unwrap();
    }

    /// Starts the daemon and waits until the mount answers.
    pub(crate) fn mount(&mut self, options: &str) {
        let all = format!("{}{options}", self.options());
        let mut command = Command::new(env!("CARGO_BIN_EXE_plyfs-mountd"));
        command.arg("-f").arg("-o").arg(all).arg(self.path("mount")).stdin(Stdio::null());
        let before = device(&self.path("mount"));
        let daemon = self.daemon.insert(command.spawn().unwrap());
        let pid = daemon.id();
        let start = Instant::now();
        while device(&self.path("mount")) == before {
            if let Some(status) = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().unwrap()) {
                panic!("the daemon {pid} ended: {status}; {}", self.log());
            }
            assert!(start.elapsed() < Duration::from_secs(60), "no mount after a minute; {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills the daemon.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().ok();
            daemon.wait().ok();
        }
    }

    /// Takes a dead mount away.
    pub(crate) fn clear(&self) {
        unmount(&self.path("mount"), Unmount::Lazily).unwrap();
    }

    /// Unmounts, and leaves the daemon to its work.
    pub(crate) fn unmount_only(&self) {
        unmount_soon(&self.path("mount"));
    }

    /// Unmounts and waits until the daemon has left.
    pub(crate) fn unmount(&mut self) {
        self.unmount_only();
        let mut daemon = self.daemon.take().unwrap();
        let start = Instant::now();
        while daemon.try_wait().unwrap().is_none() {
            if start.elapsed() > Duration::from_secs(60) {
                self.daemon = Some(daemon);
                panic!("the daemon stays for a minute after its mount; {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Cuts the power of the disk: what its journal has not written is lost.
    pub(crate) fn cut(&self) {
        let disk = self.path("disk");
        let mut command = match self.disk.as_ref().map(|disk| disk.kind) {
            Some("ext4") => {
                // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (fs/ext4/ext4.h).
                let mut python = Command::new("python3");
                python.arg("-c").arg(
                    "import fcntl, os, struct, sys\n\
                     fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))",
                );
                python.arg(&disk);
                python
            }
            _ => {
                let mut xfs_io = Command::new("xfs_io");
                xfs_io.args(["-x", "-c", "shutdown"]).arg(&disk);
                xfs_io
            }
        };
        run(&mut command).unwrap();
    }

    /// Brings the disk back after a cut; the union is not mounted.
    pub(crate) fn power_on(&self) {
        self.unmount_disk();
        self.mount_disk();
    }

    fn unmount_disk(&self) {
        unmount_soon(&self.path("disk"));
        let start = Instant::now();
        // A mount namespace that somebody made meanwhile holds the filesystem for as long as it lives.
        while !self.loop_device().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(30), "the disk stays in use: {}", self.loop_device());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn loop_device(&self) -> String {
        let listed = Command::new("losetup").arg("-j").arg(self.path("image")).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).into_owned()
    }

    /// Mounts the same upper by kernel overlayfs, read-only.
    pub(crate) fn mount_by_kernel(&self) {
        let how = match super::in_user_namespace() {
            true => "userxattr",
            false => "metacopy=on,redirect_dir=on,index=off,xino=off",
        };
        let options = format!(
            "ro,lowerdir={},upperdir={},workdir={},{how}",
            self.lower().display(),
            self.path("disk/upper").display(),
            self.path("disk/kernel-work").display()
        );
        run(Command::new("mount").args(["-t", "overlay", "-o"]).arg(options).arg("overlay").arg(self.path("kernel")))
            .unwrap();
    }

    pub(crate) fn unmount_kernel(&self) {
        unmount_soon(&self.path("kernel"));
    }

    /// The end of the daemon's log.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = lines.len().saturating_sub(30);
        format!("its log ends:\n{}", lines[last..].join("\n"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill();
        for name in ["mount", "kernel", "disk"] {
            while device(&self.path(name)) != device(self.dir.path()) {
                if unmount(&self.path(name), Unmount::Lazily).is_err() {
                    break;
                }
            }
        }
    }
}

/// Unmounts; somebody else may be looking at a mount for a moment.
fn unmount_soon(target: &Path) {
    let start = Instant::now();
    while let Err(error) = unmount(target, Unmount::WhenIdle) {
        assert!(start.elapsed() < Duration::from_secs(30), "{error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The filesystem of a directory; `None` when it cannot be asked, as on a dead mount.
fn device(path: &Path) -> Option<u64> {
    rustix::fs::stat(path).ok().map(|stat| stat.st_dev)
}

/// Runs a program; its complaint is the error.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
