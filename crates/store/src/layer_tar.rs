//! A layer's tar stream, put together again from its skeleton, its bodies and the store's objects.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use layer::{DiffId, Digest};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::layers::no_layer;
use crate::layout::{BODIES, Layout, SKELETON};
use crate::skeleton::{BodySource, Piece, SkeletonReader};
use crate::store::Store;
use crate::tape::Segment;

/// Reads ahead at most this much of a body.
const CHUNK: usize = 256 << 10;

/// A layer's tar stream, bit for bit as it came; made by [`Store::open_layer`].
///
/// The end of the stream is told only when all of it had the layer's diffID; else the last read fails, and what was read is not
/// the layer.
#[derive(Debug)]
pub struct LayerTar {
    layout: Layout,
    layer: DiffId,
    size: u64,
    skeleton: SkeletonReader,
    bodies: Arc<File>,
    hash: Sha256,
    /// Bytes on their way out, and how many of them are out.
    chunk: Vec<u8>,
    at: usize,
    body: Option<BodyPart>,
    ended: bool,
}

/// What is still to be read of a body.
#[derive(Debug)]
struct BodyPart {
    file: Arc<File>,
    path: PathBuf,
    start: u64,
    /// In reverse order.
    segments: Vec<Segment>,
}

impl Store {
    /// Opens a layer's tar stream for reading.
    ///
    /// The caller protects the layer from removal by a [`Store::lease`], or takes it that reading may fail.
    /// # Errors
    /// The disk; a layer that is missing or corrupt.
    pub fn open_layer(&self, layer: &DiffId) -> Result<LayerTar> {
        let dir = self.layout().layer(layer);
        if !dir.is_dir() {
            return Err(no_layer(layer));
        }
        let path = dir.join(BODIES);
        let bodies = File::open(&path).map_err(Error::at("open", &path))?;
        Ok(LayerTar {
            layout: self.layout().clone(),
            layer: *layer,
            size: self.layer_size(layer)?,
            skeleton: SkeletonReader::open(&dir.join(SKELETON))?,
            bodies: Arc::new(bodies),
            hash: Sha256::new(),
            chunk: Vec::with_capacity(CHUNK),
            at: 0,
            body: None,
            ended: false,
        })
    }

    /// Writes a layer's tar stream, bit for bit as it came.
    ///
    /// # Errors
    /// The disk, the writer; a layer that is missing or corrupt: then what was written is not the layer.
    pub fn layer_tar(&self, layer: &DiffId, writer: &mut dyn io::Write) -> Result<()> {
        let mut tar = self.open_layer(layer)?;
        while tar.fill()? {
            let bytes = &tar.chunk[tar.at..];
            writer.write_all(bytes).map_err(|cause| Error::io("write a layer's tar", cause))?;
            tar.at = tar.chunk.len();
        }
        Ok(())
    }
}

impl LayerTar {
    /// Returns the length of the whole stream, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes sure that there are bytes to give out; `false` at the end, when all had the layer's diffID.
    fn fill(&mut self) -> Result<bool> {
        while self.at == self.chunk.len() && !self.ended {
            (self.chunk, self.at) = (std::mem::take(&mut self.chunk), 0);
            self.chunk.clear();
            if self.body.is_some() {
                self.read_body()?;
            } else {
                match self.skeleton.next_piece()? {
                    Some(Piece::Raw(bytes)) => self.chunk = bytes,
                    Some(Piece::Body { source, segments }) => self.body = Some(self.open_body(source, segments)?),
                    None => self.end()?,
                }
            }
            self.hash.update(&self.chunk);
        }
        Ok(self.at < self.chunk.len())
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        match Digest::from_bytes(self.hash.clone().finalize().into()) == self.layer.0 {
            true => Ok(()),
            false => Err(Error::corrupt(
                format!("layer {}", self.layer),
                "its content has changed; 'plyfs fsck --repair' moves it away, then load an image that has it again",
            )),
        }
    }

    fn open_body(&self, source: BodySource, segments: Vec<Segment>) -> Result<BodyPart> {
        let (file, path, start, len) = match source {
            BodySource::Inline { offset, len } => {
                (Arc::clone(&self.bodies), self.layout.layer(&self.layer).join(BODIES), offset, len)
            }
            BodySource::Object { digest, len } => {
                let path = self.layout.object(&digest);
                (Arc::new(File::open(&path).map_err(Error::at("open", &path))?), path, 0, len)
            }
        };
        let mut segments = if segments.is_empty() { vec![Segment { offset: 0, len }] } else { segments };
        segments.reverse();
        Ok(BodyPart { file, path, start, segments })
    }

    /// Reads the next piece of the body: those parts of a content that travelled.
    fn read_body(&mut self) -> Result<()> {
        let Some(body) = &mut self.body else { return Ok(()) };
        let Some(segment) = body.segments.last_mut().filter(|segment| segment.len > 0) else {
            body.segments.pop();
            if body.segments.is_empty() {
                self.body = None;
            }
            return Ok(());
        };
        let part = CHUNK.min(usize::try_from(segment.len).unwrap_or(usize::MAX));
        self.chunk.resize(part, 0);
        let at = body.start.saturating_add(segment.offset);
        body.file.read_exact_at(&mut self.chunk, at).map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => Error::corrupt(body.path.display(), "it ends too early"),
            _ => Error::at("read", &body.path)(cause),
        })?;
        segment.offset += part as u64;
        segment.len -= part as u64;
        Ok(())
    }
}

impl Read for LayerTar {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || !self.fill().map_err(io::Error::other)? {
            return Ok(0);
        }
        let len = buf.len().min(self.chunk.len() - self.at);
        buf[..len].copy_from_slice(&self.chunk[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}
