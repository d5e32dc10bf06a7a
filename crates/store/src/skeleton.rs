//! A layer's tar stream without its bodies, so that the tar comes back bit for bit.
//!
//! A file of its own in the layer's directory: a header of 32 bytes (magic `PLYFSKEL`, version u32, zero u32, length of the tar
//! u64, members u64; little-endian), then a zstd stream of records: raw bytes, or a body by where it lies (in the layer's
//! `bodies`, or an object). A sparse member's body is the data between its holes, as it travelled. Every member is named in
//! order, those that a later one replaces included.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use layer::Digest;

use crate::error::{Error, Result};
use crate::tape::Segment;

const MAGIC: &[u8; 8] = b"PLYFSKEL";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 32;
const LEVEL: i32 = 3;
const END: u8 = 0;
const RAW: u8 = 1;
const INLINE: u8 = 2;
const OBJECT: u8 = 3;
/// Bounds what a damaged file can make a reader allocate; longer raw bytes are several records.
const RAW_MAX: usize = 1 << 20;
const SEGMENTS_MAX: u32 = 1 << 17;

/// What a skeleton says of its tar as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// The length of the tar, in bytes.
    pub(crate) size: u64,
    /// How many members it has.
    pub(crate) members: u64,
}

/// A piece of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// These bytes.
    Raw(Vec<u8>),
    /// A file's content, or parts of it.
    Body {
        /// Where the content lies.
        source: BodySource,
        /// The parts of the content that travelled; all of it if empty.
        segments: Vec<Segment>,
    },
}

/// Where a file's content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodySource {
    /// In the layer's `bodies`.
    Inline { offset: u64, len: u64 },
    /// An object of the store.
    Object { digest: Digest, len: u64 },
}

/// Writes a skeleton, piece by piece.
pub(crate) struct SkeletonWriter {
    encoder: zstd::stream::write::Encoder<'static, BufWriter<File>>,
    size: u64,
    members: u64,
}

impl SkeletonWriter {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let mut writer = BufWriter::with_capacity(128 << 10, file);
        writer.write_all(&[0; HEADER_LEN])?;
        let mut encoder = zstd::stream::write::Encoder::new(writer, LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(SkeletonWriter { encoder, size: 0, members: 0 })
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(RAW_MAX) {
            self.encoder.write_all(&[RAW])?;
            self.encoder.write_all(&(part.len() as u32).to_le_bytes())?;
            self.encoder.write_all(part)?;
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn body(&mut self, source: BodySource, segments: &[Segment]) -> io::Result<()> {
        let len = match source {
            BodySource::Inline { offset, len } => {
                self.encoder.write_all(&[INLINE])?;
                self.encoder.write_all(&offset.to_le_bytes())?;
                len
            }
            BodySource::Object { digest, len } => {
                self.encoder.write_all(&[OBJECT])?;
                self.encoder.write_all(digest.as_bytes())?;
                len
            }
        };
        self.encoder.write_all(&len.to_le_bytes())?;
        self.encoder.write_all(&(segments.len() as u32).to_le_bytes())?;
        for segment in segments {
            self.encoder.write_all(&segment.offset.to_le_bytes())?;
            self.encoder.write_all(&segment.len.to_le_bytes())?;
        }
        self.size += if segments.is_empty() { len } else { segments.iter().map(|segment| segment.len).sum() };
        Ok(())
    }

    /// Counts a member.
    pub(crate) fn member(&mut self) {
        self.members += 1;
    }

    pub(crate) fn finish(mut self) -> io::Result<Summary> {
        self.encoder.write_all(&[END])?;
        let file = self.encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&self.size.to_le_bytes());
        header[24..].copy_from_slice(&self.members.to_le_bytes());
        file.write_all_at(&header, 0)?;
        Ok(Summary { size: self.size, members: self.members })
    }
}

/// Reads a skeleton, piece by piece.
pub(crate) struct SkeletonReader {
    decoder: zstd::stream::read::Decoder<'static, BufReader<File>>,
    what: String,
}

impl std::fmt::Debug for SkeletonReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SkeletonReader").field("what", &self.what).finish_non_exhaustive()
    }
}

/// Reads what a skeleton says of its tar; `None` if there is no such file.
pub(crate) fn summary(path: &Path) -> Result<Option<Summary>> {
    let file = match File::open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(Error::at("open", path))?,
    };
    read_header(&file).map(Some).map_err(|why| corrupt(&path.display().to_string(), why))
}

impl SkeletonReader {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::at("open", path))?;
        let what = path.display().to_string();
        read_header(&file).map_err(|why| corrupt(&what, why))?;
        let mut body = BufReader::with_capacity(128 << 10, file);
        let decoder = io::copy(&mut (&mut body).take(HEADER_LEN as u64), &mut io::sink())
            .and_then(|_| zstd::stream::read::Decoder::with_buffer(body))
            .map_err(Error::at("read", path))?;
        Ok(SkeletonReader { decoder, what })
    }

    /// Returns the next piece; `None` at the end.
    pub(crate) fn next_piece(&mut self) -> Result<Option<Piece>> {
        self.piece().map_err(|why| corrupt(&self.what, why))
    }

    fn piece(&mut self) -> io::Result<Option<Piece>> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        match self.array::<1>()?[0] {
            // Reading on to the end of the stream checks its checksum.
            END => match self.decoder.read(&mut [0])? {
                0 => Ok(None),
                _ => Err(bad("more behind the last record")),
            },
            RAW => {
                let len = u32::from_le_bytes(self.array()?) as usize;
                if len > RAW_MAX {
                    return Err(bad("raw bytes without end"));
                }
                let mut bytes = vec![0; len];
                self.decoder.read_exact(&mut bytes)?;
                Ok(Some(Piece::Raw(bytes)))
            }
            INLINE => {
                let (offset, len) = (self.number()?, self.number()?);
                self.segments()
                    .map(|segments| Some(Piece::Body { source: BodySource::Inline { offset, len }, segments }))
            }
            OBJECT => {
                let (digest, len) = (Digest::from_bytes(self.array()?), self.number()?);
                self.segments()
                    .map(|segments| Some(Piece::Body { source: BodySource::Object { digest, len }, segments }))
            }
            _ => Err(bad("an unknown record")),
        }
    }

    fn segments(&mut self) -> io::Result<Vec<Segment>> {
        let count = u32::from_le_bytes(self.array()?);
        if count > SEGMENTS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "segments without end"));
        }
        (0..count).map(|_| Ok(Segment { offset: self.number()?, len: self.number()? })).collect()
    }

    fn number(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.decoder.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn read_header(file: &File) -> io::Result<Summary> {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0)?;
    if header[..8] != *MAGIC || header[8..12] != VERSION.to_le_bytes() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a skeleton of this version"));
    }
    let number = |at: usize| header[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    Ok(Summary { size: number(16), members: number(24) })
}

fn corrupt(what: &str, why: io::Error) -> Error {
    Error::corrupt(what, format!("{why}; load an image that has this layer again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skeleton");
        assert_eq!(summary(&path).unwrap(), None);
        let pieces = [
            Piece::Raw(vec![7; 1000]),
            Piece::Body { source: BodySource::Inline { offset: 5, len: 10 }, segments: vec![] },
            Piece::Raw(vec![]),
            Piece::Body {
                source: BodySource::Object { digest: Digest::of(b"x"), len: 1 << 40 },
                segments: vec![Segment { offset: 1 << 39, len: 512 }],
            },
            Piece::Raw(vec![1; RAW_MAX]),
            Piece::Raw(vec![1; 5]),
        ];
        let mut writer = SkeletonWriter::new(crate::disk::create(&path, 0o600).unwrap()).unwrap();
        for piece in &pieces {
            match piece {
                Piece::Raw(bytes) => writer.raw(bytes).unwrap(),
                Piece::Body { source, segments } => writer.body(*source, segments).unwrap(),
            }
        }
        writer.member();
        let written = writer.finish().unwrap();
        assert_eq!(written, Summary { size: 1000 + 10 + 512 + RAW_MAX as u64 + 5, members: 1 });
        assert_eq!(summary(&path).unwrap(), Some(written));
        let mut reader = SkeletonReader::open(&path).unwrap();
        for piece in pieces.iter().filter(|piece| **piece != Piece::Raw(vec![])) {
            assert_eq!(reader.next_piece().unwrap().as_ref(), Some(piece));
        }
        assert_eq!(reader.next_piece().unwrap(), None);
    }

    #[test]
    fn damaged_skeletons_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skeleton");
        let mut writer = SkeletonWriter::new(crate::disk::create(&path, 0o600).unwrap()).unwrap();
        writer.raw(b"some bytes of a header").unwrap();
        writer.finish().unwrap();
        let whole = std::fs::read(&path).unwrap();
        let read_all = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let mut reader = SkeletonReader::open(&path)?;
            while reader.next_piece()?.is_some() {}
            Ok::<_, Error>(())
        };
        read_all(&whole).unwrap();
        for at in (0..12).chain(HEADER_LEN..whole.len()) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x41;
            read_all(&damaged).ok();
            assert!(read_all(&whole[..at]).is_err(), "cut at {at}");
        }
    }
}
