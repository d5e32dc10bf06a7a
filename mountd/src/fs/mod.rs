//! What the kernel talks to: each request becomes one call of the union and one reply.
//!
//! A file handle is made of the open flags alone and a directory has none, so that nothing of a session lives in numbers
//! that die with the process. Slow work (copies of large bodies, syncs) is done by a few threads of its own.

mod ahead;
mod content;
mod convert;
mod executed;
mod follow;
mod open;
mod passthrough;
mod pool;
mod skin;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{InitFlags, KernelConfig, Notifier};
use layer::{Ino, Name};
use overlay::{Attr, Caller, Lower, Overlay, Privilege, Upper};

use passthrough::Passthrough;
use pool::Pool;

pub use convert::answer;
pub(crate) use convert::{answer_with, file_attr, kind};

/// A FUSE filesystem over a union.
pub struct Fs<L: Lower, U: Upper> {
    core: Arc<Core<L, U>>,
}

/// What the threads share.
pub(crate) struct Core<L: Lower, U: Upper> {
    pub(crate) overlay: Overlay<L, U>,
    pub(crate) wishes: Wishes,
    pub(crate) pass: Passthrough,
    pub(crate) executed: executed::Executed,
    pub(crate) pool: Pool,
    pub(crate) ahead: ahead::Ahead,
    pub(crate) content: content::Content,
    pub(crate) follow: Arc<follow::Follow>,
    /// The means to tell the kernel what changed behind its back.
    pub(crate) notifier: OnceLock<Notifier>,
}

/// What of the kernel's offers is used.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Reads and writes of large files go past the daemon.
    pub passthrough: bool,
    /// The backing files may lie on a stacked filesystem themselves.
    pub stacked: bool,
    /// Directories are listed with attributes where the kernel finds that they are used.
    pub readdirplus: bool,
    /// All of them are. Such a listing tells the number that the kernel knows an inode by, which in a union with an upper need not be
    /// the one that programs are to see.
    pub always_plus: bool,
    /// Requests about one directory come side by side.
    pub parallel_dirops: bool,
    /// Directories are opened without a request.
    pub no_opendir: bool,
    /// The kernel keeps the targets of links.
    pub cache_symlinks: bool,
    /// The mount can be idmapped.
    pub idmap: bool,
    /// The kernel can be asked for unanswered requests again.
    pub resend: bool,
    /// The daemon drops set-user-ID bits.
    pub killpriv: bool,
    /// POSIX ACLs.
    pub acl: bool,
    /// Missing names are remembered.
    pub negative: bool,
    /// A program that walks through a union without an extended attribute is told that there are none.
    pub bare: bool,
    /// How long entries and attributes are kept.
    pub ttl: Duration,
    /// The longest write in bytes.
    pub max_write: u32,
    /// The reader goes to the processor of its only client.
    pub follow: bool,
    /// The content of a small file comes with its first open; there is one reader of requests then.
    pub content: bool,
    /// fsync is passed on.
    pub sync: bool,
    /// The link count of every directory is 1.
    pub static_nlink: bool,
    /// Where to ask for the space of a read-only union.
    pub space_of: Option<Arc<std::os::fd::OwnedFd>>,
}

/// Long enough for any mount: entries and attributes change only through us.
pub const FOREVER: Duration = Duration::from_secs(1 << 32);

impl<L, U> Fs<L, U>
where
    L: Lower,
    U: Upper,
    U::File: std::os::fd::AsFd,
{
    /// Puts a filesystem over a union.
    pub fn new(overlay: Overlay<L, U>, wishes: Wishes) -> Self {
        let follow = follow::Follow::new(wishes.follow);
        let ordinary = follow.clone();
        let content = content::Content::new(wishes.content);
        let core = Core {
            overlay,
            wishes,
            pass: Passthrough::new(),
            executed: executed::Executed::default(),
            pool: Pool::new(move || ordinary.part()),
            ahead: ahead::Ahead::new(),
            content,
            follow,
            notifier: OnceLock::new(),
        };
        Fs { core: Arc::new(core) }
    }

    /// Returns what takes the notifier once the session has begun.
    pub fn on_start(&self) -> impl FnOnce(Notifier) + use<L, U> {
        let core = self.core.clone();
        move |notifier| {
            if core.notifier.set(notifier).is_err() {
                log::error!("the session began twice");
            }
        }
    }

    /// Tells the kernel what is wanted of its offers; each is a wish, not a need.
    fn negotiate(&self, config: &mut KernelConfig) {
        let wishes = &self.core.wishes;
        let mut ask = |wanted: bool, flags: InitFlags| -> bool { wanted && config.add_capabilities(flags).is_ok() };
        ask(wishes.parallel_dirops, InitFlags::FUSE_PARALLEL_DIROPS);
        ask(wishes.readdirplus, InitFlags::FUSE_DO_READDIRPLUS);
        ask(wishes.readdirplus && !wishes.always_plus, InitFlags::FUSE_READDIRPLUS_AUTO);
        ask(wishes.no_opendir, InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        ask(wishes.cache_symlinks, InitFlags::FUSE_CACHE_SYMLINKS);
        ask(wishes.idmap, InitFlags::FUSE_ALLOW_IDMAP);
        ask(wishes.resend, InitFlags::FUSE_HAS_RESEND);
        ask(wishes.killpriv, InitFlags::FUSE_HANDLE_KILLPRIV_V2);
        ask(wishes.acl, InitFlags::FUSE_POSIX_ACL);
        ask(true, InitFlags::FUSE_DONT_MASK);
        ask(true, InitFlags::FUSE_EXPORT_SUPPORT);
        ask(true, InitFlags::FUSE_ATOMIC_O_TRUNC);
        ask(true, InitFlags::FUSE_ASYNC_DIO);
        ask(true, InitFlags::FUSE_EXPLICIT_INVAL_DATA);
        if ask(wishes.passthrough, InitFlags::FUSE_PASSTHROUGH) {
            let depth = if wishes.stacked { 2 } else { 1 };
            if config.set_max_stack_depth(depth).is_ok() {
                self.core.pass.enable();
            }
        }
        if let Err(nearest) = config.set_max_write(wishes.max_write) {
            log::debug!("max_write {} is out of range; {nearest} is not asked for", wishes.max_write);
        }
        if let Err(nearest) = config.set_max_readahead(1 << 20) {
            config.set_max_readahead(nearest).map_or_else(|_| log::debug!("read-ahead stays as it is"), |_| ());
        }
        config.set_max_background(64).map_or_else(|_| log::debug!("max_background stays as it is"), |_| ());
    }
}

impl<L: Lower, U: Upper> Core<L, U> {
    pub(crate) fn ttl(&self, attr: &Attr) -> Duration {
        // A spare's number is not what programs are to see: only GETATTR tells the right one, so it must be asked.
        if attr.id == attr.stat.ino { self.own_ttl(attr) } else { Duration::ZERO }
    }

    /// How long attributes hold that were asked for by the inode's number.
    pub(crate) fn own_ttl(&self, attr: &Attr) -> Duration {
        // A write past the daemon takes these bits: the kernel must look before it believes in them.
        let may_lose_bits = attr.stat.perm & 0o6000 != 0 && self.pass.is_backed(attr.id);
        if may_lose_bits { Duration::ZERO } else { self.wishes.ttl }
    }

    pub(crate) fn caller(&self, req: &fuser::Request, umask: u32) -> Caller {
        Caller { uid: req.uid(), gid: req.gid(), umask }
    }

    /// Tells the kernel to forget an inode's attributes.
    pub(crate) fn invalidate_attr(&self, ino: Ino) {
        let Some(notifier) = self.notifier.get() else { return };
        // A negative offset: what it has read of the file stays good.
        if let Err(error) = notifier.inval_inode(fuser::INodeNo(ino.0), -1, 0) {
            log::debug!("the kernel keeps attributes: {error}");
        }
    }

    /// Tells the kernel, from another thread than the one that answers, that a name leads elsewhere now.
    pub(crate) fn invalidate_names(self: &Arc<Self>, names: Vec<(Ino, layer::NameBuf)>)
    where
        U::File: std::os::fd::AsFd,
    {
        let core = self.clone();
        self.pool.run(move || {
            let Some(notifier) = core.notifier.get() else { return };
            for (parent, name) in names {
                let name = std::os::unix::ffi::OsStrExt::from_bytes(name.as_bytes());
                if let Err(error) = notifier.inval_entry(fuser::INodeNo(parent.0), name) {
                    log::debug!("the kernel keeps a name: {error}");
                }
            }
        });
    }
}

/// Who may keep set-user-ID bits when a file's content changes: the superuser, as the kernel sends no capabilities.
pub(crate) fn privilege(uid: u32) -> Privilege {
    if uid == 0 { Privilege::Keeps } else { Privilege::Drops }
}

/// Checks a name from the kernel.
pub(crate) fn name(name: &std::ffi::OsStr) -> Result<Name<'_>, fuser::Errno> {
    Name::new(std::os::unix::ffi::OsStrExt::as_bytes(name)).map_err(|error| match error {
        layer::NameError::TooLong => fuser::Errno::ENAMETOOLONG,
        layer::NameError::Empty => fuser::Errno::ENOENT,
        _ => fuser::Errno::EINVAL,
    })
}
