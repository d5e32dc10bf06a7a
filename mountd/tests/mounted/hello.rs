//! The filesystem under the daemon: a root with the file `pid`, which holds the daemon's process id, and names that make
//! trouble on purpose.

use std::ffi::OsStr;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEntry, Request,
};
use mountd::options::{LowerDirs, Options};
use mountd::{Daemon, Failure};

const TTL: Duration = Duration::from_secs(1);
const PID: INodeNo = INodeNo(2);

/// What goes wrong, told by the name of the first lower directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// The root cannot be asked.
    RootFails,
    /// The process ends at the first question.
    RootDies,
    /// The kernel's greeting is not answered.
    NoHandshake,
}

pub(crate) fn serve(options: &Options, daemon: Daemon) -> Result<(), Failure> {
    let LowerDirs::Plain(dirs) = &options.lower else { return Err(Failure::new("plain directories only")) };
    let trouble = match dirs[0].file_name().and_then(OsStr::to_str) {
        Some("root-fails") => Trouble::RootFails,
        Some("root-dies") => Trouble::RootDies,
        Some("no-handshake") => Trouble::NoHandshake,
        Some(early) => early_trouble(early)?,
        None => Trouble::None,
    };
    log::info!("hello");
    daemon.serve(options, Hello { trouble }, |_notifier| ())
}

/// What goes wrong before there is a mount.
fn early_trouble(name: &str) -> Result<Trouble, Failure> {
    match name {
        "not-built" => return Err(Failure::new("cannot\nbe built")),
        "dies-early" => std::process::exit(7),
        "slow" => std::thread::sleep(Duration::from_secs(30)),
        _ => {}
    }
    Ok(Trouble::None)
}

struct Hello {
    trouble: Trouble,
}

fn content() -> String {
    format!("{}\n", std::process::id())
}

fn attributes(ino: INodeNo) -> FileAttr {
    let (kind, perm, size) = match ino {
        INodeNo::ROOT => (FileType::Directory, 0o755, 0),
        _ => (FileType::RegularFile, 0o644, content().len() as u64),
    };
    FileAttr {
        ino,
        size,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Hello {
    fn init(&mut self, _: &Request, _: &mut fuser::KernelConfig) -> std::io::Result<()> {
        match self.trouble {
            Trouble::NoHandshake => Err(std::io::Error::from_raw_os_error(libc::EPROTO)),
            _ => Ok(()),
        }
    }

    fn destroy(&mut self) {
        log::info!("destroyed");
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("pid") if parent == INodeNo::ROOT => reply.entry(&TTL, &attributes(PID), Generation(0)),
            Some("panic") => panic!("asked to"),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.trouble {
            Trouble::RootFails => reply.error(Errno::EIO),
            Trouble::RootDies => std::process::exit(7),
            _ => reply.attr(&TTL, &attributes(ino)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let content = content();
        let from = content.len().min(offset as usize);
        reply.data(&content.as_bytes()[from..content.len().min(from + size as usize)]);
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if offset == 0 {
            assert!(!reply.add(PID, 1, FileType::RegularFile, "pid"), "one entry fits");
        }
        reply.ok();
    }
}
