//! Claims: of several loads that lack the same layer, one unpacks it and the others wait and find it there.
//!
//! A claim is a locked file in `ingest/`, so a holder that dies lets go of it. Its user holds the store's lock.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use layer::DiffId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::layout::Layout;

/// How often a waiting load looks whether it is being given up.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The right to unpack a layer, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Claim {
    path: PathBuf,
    _file: File,
}

impl Claim {
    /// Waits until nobody else unpacks this layer; `None` if the load is given up meanwhile.
    pub(crate) fn wait(layout: &Layout, layer: &DiffId, give_up: &AtomicBool) -> Result<Option<Self>> {
        let path = layout.ingest().join(format!("claim-{}", layer.0.hex()));
        while !give_up.load(Ordering::Relaxed) {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = file.map_err(Error::at("open", &path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // The holder before has deleted the file that was opened: the next one counts.
                Ok(()) if file.metadata().map_err(Error::at("look at", &path))?.nlink() == 0 => {}
                Ok(()) => return Ok(Some(Claim { path, _file: file })),
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOOK_AGAIN),
                Err(errno) => return Err(Error::at("lock", &path)(errno)),
            }
        }
        Ok(None)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_file(&self.path) {
            log::warn!("delete {}: {cause}; it is deleted at the next start", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer::Digest;

    #[test]
    fn one_holds_a_claim_and_the_next_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        fs::create_dir(layout.ingest()).unwrap();
        let (layer, go_on, give_up) = (DiffId(Digest::of(b"x")), AtomicBool::new(false), AtomicBool::new(true));
        let first = Claim::wait(&layout, &layer, &go_on).unwrap().unwrap();
        assert!(Claim::wait(&layout, &layer, &give_up).unwrap().is_none());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| Claim::wait(&layout, &layer, &go_on).unwrap().is_some());
            drop(first);
            assert!(second.join().unwrap());
        });
        assert_eq!(fs::read_dir(layout.ingest()).unwrap().count(), 0);
    }
}
