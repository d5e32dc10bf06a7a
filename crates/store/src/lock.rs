//! The two locks of a store, by `flock`: nothing to clean up after a crash.
//!
//! Order: the store's lock first, then the records'. What adds to the store (load, create) holds the store's lock shared from
//! the first object or layer it reuses until its own record is written; what deletes (gc, the sweep at start) holds it
//! exclusively from the mark to the rename into `trash/`. The records' lock is held while a reference, a container or a mount
//! is looked at and written, and for nothing that takes long.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// A lock that is held until it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until nobody holds it exclusively.
    pub(crate) fn shared(path: &Path) -> Result<Self> {
        Lock::wait(path, FlockOperation::LockShared)
    }

    /// Waits until nobody holds it.
    pub(crate) fn exclusive(path: &Path) -> Result<Self> {
        Lock::wait(path, FlockOperation::LockExclusive)
    }

    /// Takes it if nobody holds it.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::at("lock", path)(errno)),
        }
    }

    fn wait(path: &Path, how: FlockOperation) -> Result<Self> {
        let file = open(path)?;
        rustix::io::retry_on_intr(|| flock(&file, how)).map_err(Error::at("lock", path))?;
        Ok(Lock { _file: file })
    }
}

fn open(path: &Path) -> Result<File> {
    // Read access is enough for flock, so that a store on a read-only filesystem can still be read.
    let existing = OpenOptions::new().read(true).open(path);
    existing
        .or_else(|_| OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path))
        .map_err(Error::at("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_holders_keep_an_exclusive_one_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (one, two) = (Lock::shared(&path).unwrap(), Lock::shared(&path).unwrap());
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        drop((one, two));
        assert!(Lock::try_exclusive(&path).unwrap().is_some());
    }
}
