//! Layers that are lent: another store's images stand on them, and they stay until they are given back.
//!
//! `lent/<diffID>` tells how often, and what images named it by. The record outlives processes and reboots, as those images do. A borrower that ends without
//! giving back leaves a layer too many, never one too few.

use std::fs;
use std::path::PathBuf;

use std::collections::BTreeMap;

use layer::index::RowData;
use layer::{DiffId, Digest};
use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::{Error, Result};
use crate::images::Catalogue;
use crate::layers::no_layer;
use crate::layout::Layout;
use crate::lock::Lock;
use crate::manifest::Descriptor;
use crate::store::Store;

/// A layer that can be lent, as it was found.
#[derive(Clone, Debug)]
pub struct Lendable {
    /// The layer.
    pub layer: DiffId,
    /// As what it travelled.
    pub blob: Descriptor,
    /// The length of its tar stream, in bytes.
    pub size: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct LentRecord {
    /// How often it was lent and not given back.
    uses: u64,
    /// The blobs that it was lent as: the manifests that name them may go.
    blobs: Vec<LentBlob>,
}

#[derive(Clone, Serialize, Deserialize)]
struct LentBlob {
    digest: String,
    size: u64,
    media_type: Option<String>,
}

impl Store {
    /// Finds the layer that an image's manifest names by `digest`; `None` where the store has none, or one that makes no sense
    /// without those below it: one with a hard link to a file that it does not hold.
    ///
    /// # Errors
    /// The disk, or a document or index that cannot be read.
    pub fn lendable(&self, digest: &Digest) -> Result<Option<Lendable>> {
        let named = Catalogue::read(self)?.arrived_as(self, digest)?;
        let Some((layer, blob)) = named.map_or_else(|| self.lent_as(digest), |named| Ok(Some(named)))? else {
            return Ok(None);
        };
        let index = match self.layer_index(&layer) {
            Err(error) if error.is_not_found() => return Ok(None),
            index => index?,
        };
        if index.rows().any(|row| matches!(row.data(), RowData::ForeignLink(_))) {
            return Ok(None);
        }
        Ok(Some(Lendable { layer, blob, size: self.layer_size(&layer)? }))
    }

    /// Finds a layer that was lent as this blob.
    fn lent_as(&self, digest: &Digest) -> Result<Option<(DiffId, Descriptor)>> {
        let text = digest.to_string();
        for layer in self.lent()? {
            let Some(record) = self.lent_record(&layer)? else { continue };
            if let Some(blob) = record.blobs.into_iter().find(|blob| blob.digest == text) {
                let (annotations, platform, data) = (BTreeMap::new(), None, None);
                let (media_type, size) = (blob.media_type, blob.size);
                return Ok(Some((
                    layer,
                    Descriptor { media_type, digest: *digest, size, annotations, platform, data },
                )));
            }
        }
        Ok(None)
    }

    /// Lends a layer once more: nothing removes it before it is [given back](Store::give_back) as often, and until then it is
    /// found by its blob.
    ///
    /// # Errors
    /// The disk; the layer is not there any more.
    pub fn lend(&self, found: &Lendable) -> Result<()> {
        let _store = Lock::shared(&self.layout().lock())?;
        if !self.layout().layer(&found.layer).is_dir() {
            return Err(no_layer(&found.layer));
        }
        let digest = found.blob.digest.to_string();
        self.change_record(&found.layer, |record| {
            record.uses = record.uses.saturating_add(1);
            if !record.blobs.iter().any(|blob| blob.digest == digest) {
                record.blobs.push(LentBlob {
                    digest,
                    size: found.blob.size,
                    media_type: found.blob.media_type.clone(),
                });
            }
        })
    }

    /// Takes a lent layer back once; one that is not lent is back already.
    ///
    /// # Errors
    /// The disk.
    pub fn give_back(&self, layer: &DiffId) -> Result<()> {
        let _store = Lock::shared(&self.layout().lock())?;
        self.change_record(layer, |record| record.uses = record.uses.saturating_sub(1))
    }

    /// Returns the layers that are lent.
    ///
    /// # Errors
    /// The disk.
    pub fn lent(&self) -> Result<Vec<DiffId>> {
        let names = disk::names(&self.layout().lent())?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name).ok()).map(DiffId).collect())
    }

    fn lent_record(&self, layer: &DiffId) -> Result<Option<LentRecord>> {
        let path = record_path(self.layout(), layer);
        let Some(bytes) = disk::read_if_there(&path)? else { return Ok(None) };
        let corrupt = |why| Error::corrupt(path.display(), format!("{why}; delete it if nobody uses the layer"));
        serde_json::from_slice(&bytes).map(Some).map_err(corrupt)
    }

    fn change_record(&self, layer: &DiffId, change: impl FnOnce(&mut LentRecord)) -> Result<()> {
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let path = record_path(self.layout(), layer);
        let before = self.lent_record(layer)?;
        let was_lent = before.is_some();
        let mut record = before.unwrap_or_default();
        change(&mut record);
        match record.uses {
            0 if !was_lent => Ok(()),
            0 => {
                fs::remove_file(&path).map_err(Error::at("delete", &path))?;
                disk::sync_dir(&self.layout().lent())
            }
            _ => {
                let text = serde_json::to_vec(&record)
                    .map_err(|cause| Error::io("write the record of a lent layer", cause))?;
                disk::publish(self.layout(), &path, &text)
            }
        }
    }
}

fn record_path(layout: &Layout, layer: &DiffId) -> PathBuf {
    layout.lent().join(layer.0.hex())
}
