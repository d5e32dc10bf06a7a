//! containerd's proxy snapshotter: `containerd.services.snapshots.v1` on a Unix socket, over a store.
//!
//! What containerd commits becomes layers of the store: indexed, and its large files stored once. Layers that the store has already
//! are told to containerd as such (the *remote snapshotter* protocol), so that it fetches nothing. Mounting is left to whoever
//! starts the server ([`Mounter`]): this crate knows no daemon.

mod api;
mod filter;
mod keeper;
mod service;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use store::{Mount, Snapshot, Store};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use api::snapshots::snapshots_server::SnapshotsServer;
use keeper::Keeper;
use service::Service;

/// How containerd is told to mount a snapshot that stands on others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// The server mounts it, and containerd binds that.
    Bind,
    /// containerd runs `mount.fuse3`, which runs this program.
    Fuse3 {
        /// Its absolute path.
        program: String,
    },
}

/// What mounts snapshots, and ends their mounts.
pub trait Mounter: Send + Sync + 'static {
    /// Returns the options of the mount daemon for this snapshot: read-write for an active one.
    ///
    /// # Errors
    /// The disk; a path that no option can hold.
    fn options(&self, store: &Store, snapshot: &Snapshot) -> Result<Vec<String>>;

    /// Mounts a snapshot on its target.
    ///
    /// # Errors
    /// The daemon's one line.
    fn mount(&self, store: &Store, snapshot: &Snapshot) -> Result<Mount>;

    /// Ends a mount whoever uses it, and returns when all is written.
    ///
    /// # Errors
    /// A mount that cannot be ended.
    fn end(&self, mount: &Mount) -> Result<()>;

    /// Waits a while for a daemon that somebody else started and unmounted; tells whether it has written all.
    ///
    /// # Errors
    /// The disk.
    fn is_at_rest(&self, snapshot: &Snapshot) -> Result<bool>;
}

/// Serves until `stop` returns.
///
/// # Errors
/// A socket that cannot be made, or is served by somebody else.
pub fn serve(
    store: Store,
    socket: &Path,
    form: Form,
    mounter: impl Mounter,
    stop: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let keeper = Keeper::new(store, form, Box::new(mounter));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the server's threads")?;
    make_way(socket)?;
    let served = runtime.block_on(async {
        let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("close {} to others", socket.display()))?;
        let stopped = tokio::task::spawn_blocking(stop);
        let service = SnapshotsServer::new(Service::new(Arc::new(keeper)));
        let server = Server::builder().add_service(service);
        let until = async {
            stopped.await.ok(); // However it ended, it is the end.
        };
        server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until).await.context("serve")
    });
    runtime.shutdown_background();
    std::fs::remove_file(socket).with_context(|| format!("remove {}", socket.display()))?;
    served
}

/// Removes a socket that a killed server left.
fn make_way(socket: &Path) -> Result<()> {
    let Ok(found) = socket.symlink_metadata() else { return Ok(()) };
    if !found.file_type().is_socket() {
        bail!("{}: there already, and no socket; choose another address", socket.display());
    }
    match UnixStream::connect(socket) {
        Ok(_) => bail!("{}: another server listens there", socket.display()),
        Err(_) => std::fs::remove_file(socket).with_context(|| format!("remove {}", socket.display())),
    }
}
