//! Leases: what a running command reads stays until it is done, though images and containers are removed meanwhile.
//!
//! A lease is a file in `leases/` that names layers, and perhaps a container; its holder keeps it locked by `flock`. So a lease
//! counts exactly as long as its holder lives, in whichever process namespace that is; what a killed holder left is swept.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use layer::DiffId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::store::Store;

/// A promise that layers, and perhaps a container, stay; until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    path: PathBuf,
    _file: File,
}

/// What a lease says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    /// For messages: what its holder does.
    pub(crate) doing: String,
    pub(crate) layers: Vec<String>,
    pub(crate) container: Option<String>,
}

impl Store {
    /// Keeps these layers from being removed until the lease is dropped. They may be ones that are still to come. `doing` tells
    /// what for: `save redis`.
    ///
    /// # Errors
    /// The disk. That a layer is missing is told by whoever reads it.
    pub fn lease(&self, layers: &[DiffId], doing: &str) -> Result<Lease> {
        self.take_lease(layers, None, doing)
    }

    /// As [`Store::lease`], for a container and its layers.
    pub(crate) fn take_lease(&self, layers: &[DiffId], container: Option<&str>, doing: &str) -> Result<Lease> {
        let _store = Lock::shared(&self.layout().lock())?;
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let record = LeaseRecord {
            doing: doing.to_owned(),
            layers: layers.iter().map(DiffId::to_string).collect(),
            container: container.map(str::to_owned),
        };
        let text = serde_json::to_vec(&record).map_err(|cause| Error::io("write a lease", cause))?;
        let (unfinished, path) = (disk::unfinished(self.layout()), self.layout().leases().join(disk::random_id()?));
        let mut file = disk::create(&unfinished, 0o600)?;
        // Not synced: after a power cut its holder is gone too.
        let placed = flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(Error::at("lock", &unfinished))
            .and_then(|()| file.write_all(&text).map_err(Error::at("write", &unfinished)))
            .and_then(|()| fs::rename(&unfinished, &path).map_err(Error::at("make", &path)));
        if let Err(error) = placed {
            fs::remove_file(&unfinished).ok(); // already failing; else swept at the next start
            return Err(error);
        }
        Ok(Lease { path, _file: file })
    }

    /// Returns the leases whose holders live.
    pub(crate) fn leases(&self) -> Result<Vec<LeaseRecord>> {
        let mut all = Vec::new();
        for name in disk::names(&self.layout().leases())? {
            let path = self.layout().leases().join(name);
            if is_held(&path)?
                && let Some(bytes) = disk::read_if_there(&path)?
            {
                let corrupt = |why: serde_json::Error| Error::corrupt(path.display(), why);
                all.push(serde_json::from_slice(&bytes).map_err(corrupt)?);
            }
        }
        Ok(all)
    }

    /// Returns the files of leases whose holders are gone.
    pub(crate) fn dead_leases(&self) -> Result<Vec<PathBuf>> {
        let paths = disk::names(&self.layout().leases())?.into_iter().map(|name| self.layout().leases().join(name));
        paths.filter_map(|path| is_held(&path).map(|held| (!held).then_some(path)).transpose()).collect()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_file(&self.path) {
            log::warn!(
                "delete {}: {cause}; it is deleted by the next command that removes something",
                self.path.display()
            );
        }
    }
}

fn is_held(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(Error::at("open", path))?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(Error::at("lock", path)(errno)),
    }
}
