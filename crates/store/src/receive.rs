//! Images that come from elsewhere: their documents are at hand, their layers are read only when the store lacks them.

use std::io::{self, Read};
use std::sync::Arc;

use layer::{DiffId, Digest};

use crate::error::{Error, Result};
use crate::images::{Catalogue, Image, NewImage};
use crate::load::{LoadOptions, Loaded};
use crate::lock::Lock;
use crate::manifest::{self, Descriptor, Document};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::source::{FoundImage, FoundLayer, LayerContent, check_layers};
use crate::store::Store;

/// An image whose documents have arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The names that it gets.
    pub names: Vec<Reference>,
    /// As received.
    pub manifest: Vec<u8>,
    /// As received.
    pub config: Vec<u8>,
    /// The index that the manifest was chosen from.
    pub index: Option<Digest>,
}

/// Where the layers of an [`Arrival`] are read from; used by several threads.
pub trait Blobs: Send + Sync {
    /// Opens a blob for reading from its start. What is read is verified by the store.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn open(&self, digest: &Digest, size: u64) -> io::Result<Box<dyn Read + Send>>;

    /// Hears that the load has failed: readers end as soon as they can.
    fn give_up(&self) {}
}

impl Store {
    /// Takes in images as [`Store::load`] does; their layers are read from `blobs`, which messages call `label`.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn receive(
        &self,
        arrivals: Vec<Arrival>,
        blobs: &Arc<dyn Blobs>,
        label: &str,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>> {
        let found = arrivals.into_iter().map(|arrival| found(arrival, blobs)).collect::<Result<Vec<_>>>();
        self.load_found(&found.map_err(|error| error.within(label))?, label, options, progress)
    }

    /// Returns every blob that a layer is known to have travelled as: what the manifests of the store's images say.
    ///
    /// # Errors
    /// The disk.
    pub fn blobs_of(&self, layer: &DiffId) -> Result<Vec<Descriptor>> {
        Catalogue::read(self)?.travelled(self, layer)
    }

    /// Notes a manifest under which an image has travelled, and that these names lead to it.
    ///
    /// # Errors
    /// The disk; a manifest that is not the image's.
    pub fn note_manifest(&self, image: &Image, manifest: &[u8], names: &[Reference]) -> Result<()> {
        match manifest::read_document(manifest, "manifest", None)? {
            Document::Manifest(read)
                if read.config.digest == image.id.0 && read.layers.len() == image.diff_ids.len() => {}
            _ => return Err(Error::invalid("manifest", format!("it is not one of image {}", image.label()))),
        }
        let _store = Lock::shared(&self.layout().lock())?;
        self.record_image(NewImage { names, manifest, config: &image.config, index: None }).map(drop)
    }
}

fn found(arrival: Arrival, blobs: &Arc<dyn Blobs>) -> Result<FoundImage> {
    let what = format!("manifest {}", Digest::of(&arrival.manifest));
    let Document::Manifest(manifest) = manifest::read_document(&arrival.manifest, &what, None)? else {
        return Err(Error::invalid(what, "it is an index, not one image"));
    };
    if Digest::of(&arrival.config) != manifest.config.digest {
        return Err(Error::invalid(what, "its config has another digest"));
    }
    let config = manifest::read_config(&arrival.config, &format!("config {}", manifest.config.digest))?;
    check_layers(&config, manifest.layers.len(), &what)?;
    let layer = |(diff_id, descriptor): (&DiffId, &Descriptor)| FoundLayer {
        diff_id: *diff_id,
        what: format!("layer blob {}", descriptor.digest),
        expected: Some((descriptor.digest, descriptor.size)),
        content: Some(LayerContent::Remote {
            blobs: Arc::clone(blobs),
            digest: descriptor.digest,
            size: descriptor.size,
        }),
    };
    let layers = config.diff_ids.iter().zip(&manifest.layers).map(layer).collect();
    let (names, manifest) = (arrival.names, Some(arrival.manifest));
    Ok(FoundImage { names, manifest, config: arrival.config, index: arrival.index, layers })
}
