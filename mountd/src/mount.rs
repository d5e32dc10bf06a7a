//! The mount itself: made by mount(2) where we may, else by fusermount3, and taken away again.
//!
//! A [`Mount`] knows which mount is its own: it never takes away one that somebody else made on the same directory.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::failure::{Failure, errno_text};
use crate::options::{Access, LowerDirs, Options};

const DEVICE: &str = "/dev/fuse";

/// fusermount3 tells by this variable on which of its descriptors it shall send the device (fusermount3(1), libfuse).
const COMMFD: &str = "_FUSE_COMMFD";

/// The names of libfuse's set-user-ID helper, the current one first.
const FUSERMOUNT: [&str; 2] = ["fusermount3", "fusermount"];

/// `STATX_MNT_ID_UNIQUE` (linux/stat.h, since 6.8): an id of the mount that is never given again.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// What the kernel is asked to read ahead, in KiB; its default is 128.
const READ_AHEAD_KIB: u32 = 1024;

/// A mount of ours.
#[derive(Debug)]
pub struct Mount {
    target: PathBuf,
    identity: Identity,
}

/// What tells our mount from another one on the same directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    /// The filesystem's device number, ours as long as the filesystem lives.
    device: (u32, u32),
    /// Where the kernel has it.
    unique_id: Option<u64>,
}

/// How a mount is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// At once out of sight; it ends when the last program leaves it.
    Lazily,
    /// Only when nobody uses it.
    WhenIdle,
}

impl Mount {
    /// Mounts on the options' target; returns the device on which the kernel now waits for answers.
    ///
    /// A target that is a mount point already is mounted over, as mount(8) does.
    ///
    /// # Errors
    /// One line with the remedy; nothing is mounted then.
    pub fn new(options: &Options, kind: &str) -> Result<(OwnedFd, Mount), Failure> {
        let (target, mode) = find_target(&options.target)?;
        let plan = Plan { options, kind, target: &target, mode };
        let device = match plan.mount_directly()? {
            Direct::Mounted(device) => device,
            Direct::NotAllowed(why) => plan.mount_by_helper(&why)?,
        };
        let identity = match identify(&target) {
            Ok(identity) => identity,
            Err(errno) => {
                unmount(&target, Unmount::Lazily)?;
                return Err(on(&target, format_args!("cannot find the new mount: {}", errno_text(errno))));
            }
        };
        let mount = Mount { target, identity };
        if let Some(propagation) = options.mount.propagation {
            // An ordinary user may not; the mount is good without.
            if let Err(errno) = rustix::mount::mount_change(&mount.target, propagation) {
                log::warn!("propagation of {}: {}", mount.target.display(), errno_text(errno));
            }
        }
        Ok((device, mount))
    }

    /// Returns where it is, without symbolic links.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Returns the filesystem's device number, as `st_dev` has it.
    pub fn device(&self) -> u64 {
        rustix::fs::makedev(self.identity.device.0, self.identity.device.1)
    }

    /// Tells whether our mount is what lies on the target; asks the kernel alone, never the daemon.
    pub fn is_there(&self) -> bool {
        identify(&self.target).is_ok_and(|found| found == self.identity)
    }

    /// Takes the mount out of sight, if it is still there.
    ///
    /// # Errors
    /// One line.
    pub fn detach(&self) -> Result<(), Failure> {
        if !self.is_there() { Ok(()) } else { unmount(&self.target, Unmount::Lazily) }
    }

    /// Lets the kernel read ahead far: without passthrough, sequential reads are two to three times as fast.
    ///
    /// Only root on the host may; for everybody else the default stays.
    pub fn read_ahead(&self) {
        let (major, minor) = self.identity.device;
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
            log::debug!("read-ahead stays as it is: {file}: {error}");
        }
    }

    /// Ends the connection to the daemon, where fusectl is mounted: whoever still uses the mount gets an error. Tells whether it
    /// could be done.
    pub fn abort(&self) -> bool {
        std::fs::write(format!("/sys/fs/fuse/connections/{}/abort", self.identity.device.1), "1").is_ok()
    }
}

/// Takes away whatever is mounted on `target`, a dead mount too.
///
/// # Errors
/// One line: nothing is mounted there, it is busy, or it is not the caller's.
pub fn unmount(target: &Path, how: Unmount) -> Result<(), Failure> {
    let flags = match how {
        Unmount::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        Unmount::WhenIdle => UnmountFlags::NOFOLLOW,
    };
    match rustix::mount::unmount(target, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_by_helper(target, how),
        Err(Errno::INVAL) => Err(not_mounted(target)),
        Err(Errno::BUSY) => Err(busy(target)),
        Err(errno) => Err(on(target, format_args!("cannot unmount: {}", errno_text(errno)))),
    }
}

fn unmount_by_helper(target: &Path, how: Unmount) -> Result<(), Failure> {
    let args: &[&str] = match how {
        Unmount::Lazily => &["-u", "-z"],
        Unmount::WhenIdle => &["-u"],
    };
    let mut command = |name: &str| {
        let mut command = Command::new(name);
        command.args(args).arg("--").arg(target).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn()
    };
    let child = start_helper(&mut command).ok_or_else(|| {
        on(target, "cannot unmount: Operation not permitted, and there is no fusermount3; be root, or install fuse3")
    })?;
    finish_helper(child).map_err(|said| {
        if said.contains("busy") {
            busy(target)
        } else if said.contains("not found in") {
            not_mounted(target)
        } else {
            on(target, format_args!("cannot unmount: {said}"))
        }
    })
}

fn not_mounted(target: &Path) -> Failure {
    on(target, "is not a mount point")
}

fn busy(target: &Path) -> Failure {
    on(target, "is busy; leave it first, or unmount it lazily")
}

/// Finds the target's true path and its file type bits.
fn find_target(target: &Path) -> Result<(PathBuf, u32), Failure> {
    let found = std::fs::canonicalize(target).and_then(|real| {
        let mode = rustix::fs::stat(&real)?.st_mode;
        Ok((real, mode))
    });
    let (real, mode) = found.map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let remedy = match errno {
            Errno::NOENT => "; create the directory first (mkdir -p)",
            Errno::NOTCONN => {
                "; a mount whose daemon is gone is in the way: unmount it (umount -l, or fusermount3 -uz)"
            }
            _ => "",
        };
        on(target, format_args!("cannot mount: {}{remedy}", errno_text(errno)))
    })?;
    if !rustix::fs::FileType::from_raw_mode(mode).is_dir() {
        return Err(on(target, "cannot mount: it is no directory; name a directory"));
    }
    Ok((real, mode & libc::S_IFMT))
}

fn identify(target: &Path) -> rustix::io::Result<Identity> {
    // DONT_SYNC: answered by the kernel, also while nobody serves yet or any more.
    let stat = rustix::fs::statx(CWD, target, AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT, MNT_ID_UNIQUE)?;
    let has_unique_id = stat.stx_mask & MNT_ID_UNIQUE.bits() != 0;
    Ok(Identity {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        unique_id: has_unique_id.then_some(stat.stx_mnt_id),
    })
}

/// A mount about to be made.
struct Plan<'a> {
    options: &'a Options,
    /// The part behind `fuse.`.
    kind: &'a str,
    target: &'a Path,
    mode: u32,
}

/// What came of mount(2).
enum Direct {
    Mounted(OwnedFd),
    /// We may not; the reason in words.
    NotAllowed(String),
}

impl Plan<'_> {
    fn mount_directly(&self) -> Result<Direct, Failure> {
        let device = match rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(device) => device,
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                return Ok(Direct::NotAllowed(format!("cannot open {DEVICE}: {}", errno_text(errno))));
            }
            Err(errno) => {
                return Err(Failure::new(format!(
                    "cannot open {DEVICE}: {}; load the module (modprobe fuse), or give the container the device \
                     (--device {DEVICE})",
                    errno_text(errno)
                )));
            }
        };
        let kind = [b"fuse.", self.subtype().as_bytes()].concat();
        match rustix::mount::mount(
            self.source(),
            self.target,
            kind,
            self.direct_flags(),
            &*self.kernel_options(&device)?,
        ) {
            Ok(()) => Ok(Direct::Mounted(device)),
            Err(errno @ (Errno::PERM | Errno::ACCESS)) => {
                Ok(Direct::NotAllowed(format!("mount(2): {}", errno_text(errno))))
            }
            Err(errno) => {
                let remedy = match errno {
                    Errno::INVAL if !self.options.mount.contexts.is_empty() => {
                        "; does this kernel run SELinux (context=)?"
                    }
                    Errno::NODEV => "; load the module (modprobe fuse)",
                    Errno::NOSPC => "; there are too many mounts (/proc/sys/fs/mount-max)",
                    _ => "",
                };
                Err(on(self.target, format_args!("cannot mount: {}{remedy}", errno_text(errno))))
            }
        }
    }

    fn kernel_options(&self, device: &OwnedFd) -> Result<CString, Failure> {
        let mut data = format!(
            "fd={},rootmode={:o},user_id={},group_id={},default_permissions,allow_other",
            device.as_raw_fd(),
            self.mode,
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw()
        )
        .into_bytes();
        for option in self.further_options() {
            data.push(b',');
            data.extend_from_slice(option.as_bytes());
        }
        CString::new(data).map_err(|_| on(self.target, "cannot mount: an option holds a NUL byte"))
    }

    /// Options that the kernel reads, beyond those that depend on the way we mount.
    fn further_options(&self) -> impl Iterator<Item = OsString> + '_ {
        let mount = &self.options.mount;
        let max_read = mount.max_read.map(|max_read| OsString::from(format!("max_read={max_read}")));
        max_read.into_iter().chain(mount.contexts.iter().cloned())
    }

    fn direct_flags(&self) -> MountFlags {
        self.options.mount.flags.over(MountFlags::NOATIME) | self.forced_flags()
    }

    fn forced_flags(&self) -> MountFlags {
        // Who uses a layer says so by making and removing names that never come to be.
        let told = matches!(self.options.lower, LowerDirs::Layers(_));
        if self.options.upper.is_none() && !told { MountFlags::RDONLY } else { MountFlags::empty() }
    }

    fn source(&self) -> &OsStr {
        let named = self.options.mount.fsname.as_deref().or(self.options.source.as_deref());
        named.unwrap_or(OsStr::new(self.kind))
    }

    fn subtype(&self) -> &OsStr {
        self.options.mount.subtype.as_deref().unwrap_or(OsStr::new(self.kind))
    }

    /// Has fusermount3 mount; it sends the device back over a socket.
    fn mount_by_helper(&self, why: &str) -> Result<OwnedFd, Failure> {
        let sockets = UnixStream::pair().map(|(ours, theirs)| (ours, OwnedFd::from(theirs)));
        let (ours, theirs) =
            sockets.map_err(|error| on(self.target, format_args!("cannot mount: socketpair: {error}")))?;
        let options = self.helper_options();
        let mut command = |name: &str| {
            let mut command = Command::new(name);
            // The socket travels as standard input: no descriptor has to be made inheritable by hand.
            command.arg("-o").arg(&options).arg("--").arg(self.target).env(COMMFD, "0");
            command.stdin(theirs.try_clone()?).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
        };
        let child = start_helper(&mut command).ok_or_else(|| {
            on(self.target, format_args!(
                "cannot mount: {why}, and there is no fusermount3; be root, use a user namespace (unshare -Urm), or install fuse3"
            ))
        })?;
        drop(theirs);
        let device = receive_device(&ours);
        finish_helper(child).map_err(|said| {
            let remedy = if said.contains("user_allow_other") {
                "; add that line to it, or leave allow_other out"
            } else if said.contains(DEVICE) && said.contains("ermission denied") {
                "; open it to users (chmod 666 /dev/fuse), or be root"
            } else {
                ""
            };
            on(self.target, format_args!("cannot mount: {said}{remedy}"))
        })?;
        device.ok_or_else(|| on(self.target, "cannot mount: fusermount3 sent no device"))
    }

    fn helper_options(&self) -> OsString {
        let mut options = b"default_permissions,fsname=".to_vec();
        crate::options::escape(self.source().as_bytes(), b",\\", &mut options);
        options.extend_from_slice(b",subtype=");
        crate::options::escape(self.subtype().as_bytes(), b",\\", &mut options);
        let flags = self.options.mount.flags.over(MountFlags::NOATIME) | self.forced_flags();
        for (_, word) in HELPER_WORDS.iter().filter(|(flag, _)| flags.contains(*flag)) {
            options.push(b',');
            options.extend_from_slice(word.as_bytes());
        }
        // Others, root among them, see nothing unless /etc/fuse.conf lets the user say so.
        if self.options.mount.access != Access::Default {
            options.extend_from_slice(b",allow_other");
        }
        for option in self.further_options() {
            options.push(b',');
            crate::options::escape(option.as_bytes(), b",\\", &mut options);
        }
        OsString::from_vec(options)
    }
}

/// Flags as fusermount3 spells them; `nosuid` and `nodev` it adds itself for an ordinary user.
const HELPER_WORDS: [(MountFlags, &str); 9] = [
    (MountFlags::RDONLY, "ro"),
    (MountFlags::NOSUID, "nosuid"),
    (MountFlags::NODEV, "nodev"),
    (MountFlags::NOEXEC, "noexec"),
    (MountFlags::NOATIME, "noatime"),
    (MountFlags::NODIRATIME, "nodiratime"),
    (MountFlags::SYNCHRONOUS, "sync"),
    (MountFlags::DIRSYNC, "dirsync"),
    (MountFlags::NOSYMFOLLOW, "nosymfollow"),
];

/// Starts the first helper that there is.
fn start_helper(start: &mut dyn FnMut(&str) -> std::io::Result<Child>) -> Option<Child> {
    FUSERMOUNT.iter().find_map(|name| start(name).ok())
}

/// Waits for a helper; its last line of complaint is the error.
fn finish_helper(mut child: Child) -> Result<(), String> {
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let mut bytes = Vec::new();
        // What could be read is what there is to tell.
        stderr.by_ref().take(4096).read_to_end(&mut bytes).ok();
        said = String::from_utf8_lossy(&bytes).trim_end().lines().next_back().unwrap_or_default().to_owned();
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) if said.is_empty() => Err(format!("fusermount3 ended with {status}")),
        Ok(_) => Err(said),
        Err(error) => Err(format!("fusermount3: {error}")),
    }
}

/// Receives the device; `None` when the helper went away without sending one.
fn receive_device(socket: &UnixStream) -> Option<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut byte = [0u8];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [std::io::IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| recvmsg(socket, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC)).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// A failure that names the target.
fn on(target: &Path, what: impl fmt::Display) -> Failure {
    Failure::new(format!("{}: {what}", target.display()))
}
