//! Layers: what lies in `layers/<diffID>`, and the folded index of a stack of them.

use std::path::PathBuf;

use layer::index::{Index, IndexKind};
use layer::{ChainId, DiffId, Digest};

use crate::disk;
use crate::error::{Error, Result};
use crate::images::Image;
use crate::layout::{BODIES, INDEX, SKELETON};
use crate::lock::Lock;
use crate::skeleton;
use crate::store::Store;

/// Where a daemon finds an image's merged tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lower {
    /// The folded index.
    pub index: PathBuf,
    /// The directory of the objects.
    pub objects: PathBuf,
    /// The directory of the layers, for their `bodies`.
    pub layers: PathBuf,
}

impl Store {
    /// Returns where the image's merged tree lies; folds its layers if that was not done or is no longer readable.
    ///
    /// # Errors
    /// The disk; a layer that is missing or corrupt.
    pub fn lower(&self, image: &Image) -> Result<Lower> {
        self.lower_of(&image.diff_ids)
    }

    /// As [`Store::lower`], for a stack of layers, base first: those of a container's record.
    ///
    /// # Errors
    /// As [`Store::lower`].
    pub fn lower_of(&self, layers: &[DiffId]) -> Result<Lower> {
        let chain = ChainId::of(layers).ok_or_else(|| Error::unsupported("image", "it has no layers"))?;
        let index = self.layout().folded(&chain);
        if !self.is_folded(&chain, layers)? {
            let _store = Lock::shared(&self.layout().lock())?;
            self.fold(layers)?;
        }
        Ok(Lower { index, objects: self.layout().objects(), layers: self.layout().layers() })
    }

    /// Reads the folded index of a stack of layers; makes it if need be.
    pub(crate) fn folded_index(&self, layers: &[DiffId]) -> Result<Index<Vec<u8>>> {
        let chain = ChainId::of(layers).ok_or_else(|| Error::unsupported("image", "it has no layers"))?;
        if let Some(index) = self.read_folded(&chain, layers)? {
            return Ok(index);
        }
        let lower = self.lower_of(layers)?;
        let corrupt = || Error::corrupt(lower.index.display(), "it was changed as soon as it was made");
        self.read_folded(&chain, layers)?.ok_or_else(corrupt)
    }

    /// Folds a stack of layers unless that is done. The caller holds the store's lock.
    pub(crate) fn fold(&self, layers: &[DiffId]) -> Result<()> {
        let Some(chain) = ChainId::of(layers) else { return Ok(()) };
        if self.is_folded(&chain, layers)? {
            return Ok(());
        }
        let indexes = layers.iter().map(|layer| self.layer_index(layer)).collect::<Result<Vec<_>>>()?;
        let indexes: Vec<&Index<Vec<u8>>> = indexes.iter().collect();
        let folded = overlay::fold::fold(&indexes).map_err(|why| Error::invalid("image", why))?;
        disk::publish_index(self.layout(), &self.layout().folded(&chain), folded)
    }

    /// Tells whether the folded index is there and is what it should be.
    fn is_folded(&self, chain: &ChainId, layers: &[DiffId]) -> Result<bool> {
        Ok(self.read_folded(chain, layers)?.is_some())
    }

    /// Reads a folded index; `None` if it is not there, or not what it should be.
    fn read_folded(&self, chain: &ChainId, layers: &[DiffId]) -> Result<Option<Index<Vec<u8>>>> {
        let path = self.layout().folded(chain);
        let Some(bytes) = disk::read_if_there(&path)? else { return Ok(None) };
        let is_it =
            |index: &Index<Vec<u8>>| index.kind() == IndexKind::Folded && index.layers().eq(layers.iter().copied());
        let good = Index::open(bytes).ok().filter(is_it);
        if good.is_none() {
            log::warn!("{} is damaged; it is made again", path.display());
        }
        Ok(good)
    }

    /// Tells whether the layer is in the store.
    pub fn has_layer(&self, layer: &DiffId) -> bool {
        self.layout().layer(layer).is_dir()
    }

    /// Tells whether the layer is in the store and can be used. One that is damaged, or of an older format, is unpacked again.
    pub(crate) fn is_whole(&self, layer: &DiffId) -> bool {
        let dir = self.layout().layer(layer);
        self.layer_index(layer).is_ok() && self.layer_size(layer).is_ok() && dir.join(BODIES).is_file()
    }

    /// Reads a layer's index and checks it.
    pub(crate) fn layer_index(&self, layer: &DiffId) -> Result<Index<Vec<u8>>> {
        let path = self.layout().layer(layer).join(INDEX);
        let bytes = disk::read_if_there(&path)?.ok_or_else(|| no_layer(layer))?;
        Index::open(bytes)
            .map_err(|why| Error::corrupt(path.display(), format!("{why}; load an image that has this layer again")))
    }

    /// Returns all layers of the store, ascending by diffID.
    ///
    /// # Errors
    /// The disk; something in `layers/` that is no layer.
    pub fn layers(&self) -> Result<Vec<DiffId>> {
        let dir = self.layout().layers();
        let read = |name: String| {
            let stray = |_| Error::corrupt(dir.join(&name).display(), "not a layer of the store; move it away");
            Digest::from_hex(&name).map(DiffId).map_err(stray)
        };
        disk::names(&dir)?.into_iter().map(read).collect()
    }

    /// Returns the length of a layer's tar stream, in bytes.
    ///
    /// # Errors
    /// The disk; a layer that is missing or corrupt.
    pub fn layer_size(&self, layer: &DiffId) -> Result<u64> {
        let summary = skeleton::summary(&self.layout().layer(layer).join(SKELETON))?;
        summary.map(|summary| summary.size).ok_or_else(|| no_layer(layer))
    }
}

pub(crate) fn no_layer(layer: &DiffId) -> Error {
    Error::NotFound(format!("layer {layer} is not in the store; load its image again"))
}
