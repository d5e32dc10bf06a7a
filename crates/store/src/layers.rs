//! Layers: what lies in `layers/<diffID>`, and the folded index of a stack of them.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use layer::index::{Index, IndexKind};
use layer::{ChainId, DiffId, Digest};
use sha2::{Digest as _, Sha256};

use crate::disk;
use crate::error::{Error, Result};
use crate::images::Image;
use crate::layout::{BODIES, INDEX, SKELETON};
use crate::lock::Lock;
use crate::skeleton::{self, BodySource, Piece, SkeletonReader};
use crate::store::Store;
use crate::tape::Segment;

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

    /// Folds a stack of layers unless that is done. The caller holds the store's lock.
    pub(crate) fn fold(&self, layers: &[DiffId]) -> Result<()> {
        let Some(chain) = ChainId::of(layers) else { return Ok(()) };
        if self.is_folded(&chain, layers)? {
            return Ok(());
        }
        let indexes = layers.iter().map(|layer| self.layer_index(layer)).collect::<Result<Vec<_>>>()?;
        let indexes: Vec<&Index<Vec<u8>>> = indexes.iter().collect();
        let folded = overlay::fold::fold(&indexes).map_err(|why| Error::invalid("image", why))?;
        disk::publish(self.layout(), &self.layout().folded(&chain), &folded)
    }

    /// Tells whether the folded index is there and is what it should be.
    fn is_folded(&self, chain: &ChainId, layers: &[DiffId]) -> Result<bool> {
        let path = self.layout().folded(chain);
        let Some(bytes) = disk::read_if_there(&path)? else { return Ok(false) };
        let good = Index::open(bytes)
            .is_ok_and(|index| index.kind() == IndexKind::Folded && index.layers().eq(layers.iter().copied()));
        if !good {
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

    /// Writes a layer's tar stream, bit for bit as it came.
    ///
    /// # Errors
    /// The disk, the writer; a layer that is missing or corrupt: then what was written is not the layer.
    pub fn layer_tar(&self, layer: &DiffId, writer: &mut dyn Write) -> Result<()> {
        let dir = self.layout().layer(layer);
        if !dir.is_dir() {
            return Err(no_layer(layer));
        }
        let path = dir.join(BODIES);
        let bodies = File::open(&path).map_err(Error::at("open", &path))?;
        let mut skeleton = SkeletonReader::open(&dir.join(SKELETON))?;
        let mut out = Hashed { writer, hash: Sha256::new() };
        let mut buffer = vec![0; 256 << 10];
        while let Some(piece) = skeleton.next_piece()? {
            match piece {
                Piece::Raw(bytes) => out.write(&bytes)?,
                Piece::Body { source: BodySource::Inline { offset, len }, segments } => {
                    copy(&bodies, offset, len, &segments, &mut buffer, &mut out)
                        .map_err(|e| e.within(path.display()))?;
                }
                Piece::Body { source: BodySource::Object { digest, len }, segments } => {
                    let path = self.layout().object(&digest);
                    let object = File::open(&path).map_err(Error::at("open", &path))?;
                    copy(&object, 0, len, &segments, &mut buffer, &mut out).map_err(|e| e.within(path.display()))?;
                }
            }
        }
        match Digest::from_bytes(out.hash.finalize().into()) == layer.0 {
            true => Ok(()),
            false => Err(Error::corrupt(
                format!("layer {layer}"),
                "its content has changed; move it away and load an image that has it again",
            )),
        }
    }
}

struct Hashed<'a> {
    writer: &'a mut dyn Write,
    hash: Sha256,
}

impl Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.writer.write_all(bytes).map_err(|cause| Error::io("write a layer's tar", cause))
    }
}

/// Writes those parts of a content that travelled.
fn copy(
    file: &File,
    start: u64,
    len: u64,
    segments: &[Segment],
    buffer: &mut [u8],
    out: &mut Hashed<'_>,
) -> Result<()> {
    let whole = [Segment { offset: 0, len }];
    for segment in if segments.is_empty() { &whole } else { segments } {
        let (mut at, mut left) = (start.saturating_add(segment.offset), segment.len);
        while left > 0 {
            let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..part], at).map_err(|cause| match cause.kind() {
                io::ErrorKind::UnexpectedEof => Error::corrupt("content", "it ends too early"),
                _ => Error::io("read", cause),
            })?;
            out.write(&buffer[..part])?;
            at += part as u64;
            left -= part as u64;
        }
    }
    Ok(())
}

fn no_layer(layer: &DiffId) -> Error {
    Error::NotFound(format!("layer {layer} is not in the store; load its image again"))
}
