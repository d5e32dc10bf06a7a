//! The session: requests from the device to the filesystem, until the mount ends. A thin room over fuser's.

use fuser::{Config, Filesystem, Notifier, SessionACL};
use rustix::fd::OwnedFd;

use crate::Failure;
use crate::options::{Access, Options};

/// Greets the kernel (the INIT handshake, in which it asks `fs` for its wishes), calls `started`, and serves until the mount
/// is gone; then `fs.destroy` has run.
///
/// `started` gets the means to tell the kernel what changed behind its back; requests are answered as soon as it returns.
///
/// A connection that was aborted has ended like any other: there is nobody left to answer. The kernel tells an unmount by that too, when it
/// comes just as a request is handed over (`fuse_dev_do_read`, fs/fuse/dev.c).
///
/// # Errors
/// The handshake failed, `started` did, or the device gave an error other than that the mount is gone.
pub fn serve<F: Filesystem>(
    fs: F,
    device: OwnedFd,
    options: &Options,
    started: impl FnOnce(Notifier) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.get());
    config.clone_fd = options.clone_fd;
    let session = fuser::Session::from_fd(fs, device, access_list(options.mount.access), config)
        .map_err(|error| Failure::new(format!("the kernel and the daemon do not agree: {error}")))?;
    started(session.notifier())?;
    match session.run() {
        Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {
            log::info!("the connection was ended while a request was on its way");
            Ok(())
        }
        ended => ended.map_err(|error| Failure::new(format!("the session broke off: {error}"))),
    }
}

/// Who is let in is the kernel's decision by its mount options, save for one that it does not know.
fn access_list(access: Access) -> SessionACL {
    match access {
        Access::Default | Access::Everybody => SessionACL::All,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
    }
}
