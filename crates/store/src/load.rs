//! Loading: a source's images become layers, records and folded indexes of the store.

use layer::{DiffId, Digest};

use crate::error::{Error, Result};
use crate::images::ImageId;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::source::Source;
use crate::store::Store;

/// What to load, and how.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// For which platform; this host's unless told.
    pub platform: Option<Platform>,
    /// How many layers are unpacked at once; as many as there are processors unless told.
    pub parallel: Option<usize>,
}

/// An image that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The names that lead to it now, from the source.
    pub names: Vec<Reference>,
    /// Those of `names` that led to another image before.
    pub moved: Vec<Reference>,
    /// Its ID.
    pub id: ImageId,
    /// Its manifest's digest.
    pub digest: Digest,
    /// Its layers, base first.
    pub layers: Vec<LoadedLayer>,
}

/// A layer of a loaded image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedLayer {
    /// Which layer.
    pub diff_id: DiffId,
    /// Whether it was there.
    pub origin: Origin,
}

/// Where a layer of a loaded image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was unpacked.
    Fetched,
    /// It was in the store.
    Existing,
}

impl Store {
    /// Loads the images of `source`: verifies and unpacks the layers that are not here, records the images, and folds them.
    ///
    /// Layers become visible one by one, each whole; an image with its names only when all its layers are there. So an
    /// interrupted load goes on where it stopped.
    /// # Errors
    /// Each names the image, layer or member. Nothing half-done stays; whole layers do, until the next removal of an image.
    pub fn load(&self, source: &Source, options: &LoadOptions, progress: &dyn Progress) -> Result<Vec<Loaded>> {
        drop((source, options));
        progress.image(&[], &[]);
        Err(Error::unsupported("load", "not built yet"))
    }
}
