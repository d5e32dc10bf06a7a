//! Layers' blobs as they came, compressed: kept only where that is asked for, in `blobs/` by digest.
//!
//! With them an image can be pushed again under the same manifest digest. They go when no manifest names them any more.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;

use layer::Digest;

use crate::disk;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::store::Store;

/// A blob that is being kept; deleted when dropped before it is published.
pub(crate) struct Kept {
    unfinished: PathBuf,
    path: PathBuf,
    file: File,
    published: bool,
}

/// Reads, and writes what was read into a file.
struct Tee<'a> {
    reader: Box<dyn Read + Send>,
    file: &'a File,
}

impl Kept {
    /// The caller holds the store's lock.
    pub(crate) fn begin(layout: &Layout, digest: Digest) -> Result<Self> {
        let unfinished = disk::unfinished(layout);
        let file = disk::create(&unfinished, 0o400)?;
        Ok(Kept { unfinished, path: layout.blobs().join(digest.hex()), file, published: false })
    }

    /// Keeps what is read from now on.
    pub(crate) fn tee(&mut self, reader: Box<dyn Read + Send>) -> impl Read + Send + use<'_> {
        Tee { reader, file: &self.file }
    }

    /// Makes it visible; the caller has verified what was read.
    pub(crate) fn publish(mut self) -> Result<()> {
        self.file.sync_all().map_err(Error::at("write", &self.path))?;
        fs::rename(&self.unfinished, &self.path).map_err(Error::at("write", &self.path))?;
        self.published = true;
        self.path.parent().map_or(Ok(()), disk::sync_dir)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.published
            && let Err(cause) = fs::remove_file(&self.unfinished)
        {
            log::warn!("delete {}: {cause}; it is deleted at the next start", self.unfinished.display());
        }
    }
}

impl Read for Tee<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(buf)?;
        self.file.write_all(&buf[..len])?;
        Ok(len)
    }
}

impl Store {
    /// Opens a layer's blob as it came, if it was kept.
    ///
    /// # Errors
    /// The disk.
    pub fn kept_blob(&self, digest: &Digest) -> Result<Option<File>> {
        let path = self.layout().blobs().join(digest.hex());
        match File::open(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some).map_err(Error::at("open", &path)),
        }
    }
}
