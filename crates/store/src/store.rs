//! The store: its directory, its locks, and what is done when it is opened.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk;
use crate::error::{Error, Result};
use crate::gc;
use crate::layout::{Layout, VERSION};
use crate::lock::Lock;

/// A store of images and containers on this host; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    layout: Arc<Layout>,
}

impl Store {
    /// Opens the store at `root`, makes what is missing of it, and sweeps up what a killed process left, if no other process
    /// works in it.
    ///
    /// # Errors
    /// The disk; a directory that is neither a store nor empty; a store of another version.
    pub fn open(root: &Path) -> Result<Self> {
        let opening = |error: Error| error.within(format!("open the store {}", root.display()));
        // Records name absolute paths, and daemons change their directory.
        let root = std::path::absolute(root).map_err(Error::at("find", root))?;
        let store = Store { layout: Arc::new(Layout::new(root.clone())) };
        store.prepare().map_err(opening)?;
        store.sweep().map_err(opening)?;
        Ok(store)
    }

    /// Returns where the store is unless told otherwise: `PLYFS_ROOT`; `/var/lib/plyfs` for root; else `plyfs` in
    /// `XDG_DATA_HOME`, which is `~/.local/share` unless set.
    pub fn default_root() -> PathBuf {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(root) = set("PLYFS_ROOT") {
            return root;
        }
        if rustix::process::geteuid().is_root() {
            return PathBuf::from("/var/lib/plyfs");
        }
        let data = set("XDG_DATA_HOME").filter(|path| path.is_absolute());
        let data = data.or_else(|| set("HOME").map(|home| home.join(".local/share")));
        data.unwrap_or_else(|| PathBuf::from("/var/tmp").join(format!("plyfs-{}", rustix::process::geteuid().as_raw())))
            .join("plyfs")
    }

    /// Returns the store's directory.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn prepare(&self) -> Result<()> {
        let root = self.layout.root();
        let version = self.layout.version();
        match disk::read_if_there(&version)?.as_deref() {
            Some(found) if found == VERSION.as_bytes() => {}
            Some(found) => {
                let found = crate::error::shown(found.trim_ascii());
                let why = format!("it says '{found}', this plyfs keeps a '{}'; use another --root", VERSION.trim());
                return Err(Error::unsupported(version.display(), why));
            }
            None => return self.create(root, &version),
        }
        // A directory that somebody deleted comes back empty; the rest of the store stays usable.
        self.layout.directories().filter(|dir| !dir.is_dir()).try_for_each(|dir| disk::make_dir(&dir))
    }

    fn create(&self, root: &Path, version: &Path) -> Result<()> {
        if let Some(parent) = root.parent() {
            fs::create_dir_all(parent).map_err(Error::at("make directory", parent))?;
        }
        disk::make_dir(root)?;
        let ours = |name: &String| {
            ["lock", "records.lock", "version"].contains(&name.as_str())
                || self.layout.directories().any(|dir| dir == root.join(name))
        };
        if let Some(other) = disk::names(root)?.iter().find(|name| !ours(name)) {
            let why = format!("it is no store and not empty: it holds '{other}'; choose an empty or new directory");
            return Err(Error::invalid(root.display(), why));
        }
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(Error::at("close to others", root))?;
        self.layout.directories().try_for_each(|dir| disk::make_dir(&dir))?;
        let _store = Lock::shared(&self.layout.lock())?;
        disk::publish(&self.layout, version, VERSION.as_bytes())
    }

    /// Deletes what lies in `ingest/` and `trash/`, unless another process may be working on it.
    fn sweep(&self) -> Result<()> {
        let unfinished = disk::names(&self.layout.ingest())?;
        let condemned = disk::names(&self.layout.trash())?;
        if unfinished.is_empty() && condemned.is_empty() {
            return Ok(());
        }
        let Some(_store) = Lock::try_exclusive(&self.layout.lock())? else { return Ok(()) };
        for dir in [self.layout.ingest(), self.layout.trash()] {
            for name in disk::names(&dir)? {
                log::info!("{name} in {} was left unfinished or condemned; deleting it", dir.display());
                disk::discard(&dir.join(name))?;
            }
        }
        if unfinished.is_empty() { Ok(()) } else { gc::collect_orphans(self) }
    }
}
