//! Layer blobs and archives as they travel: plain, gzip or zstd, told by their first bytes.
//!
//! Media types are no guide: registries serve plain data as `+gzip` and the other way round. All members of a gzip file and all
//! frames of a zstd file are read, skippable ones skipped; what is neither is refused, as is an end in the middle.

use std::io::{self, BufRead, Read};

use crate::error::{Error, Result};

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// How many first bytes tell.
pub(crate) const MAGIC_LEN: usize = 262;
/// The largest zstd window, as the `zstd` tool accepts without being asked: 2^27 bytes. It is memory that only a layer made with
/// such a window takes; ordinary levels have 8 MiB at most.
const WINDOW_LOG_MAX: u32 = 27;

impl Compression {
    /// Tells by the first bytes, at least [`MAGIC_LEN`] if there are so many.
    pub(crate) fn of(first: &[u8], what: &str) -> Result<Self> {
        let is = |magic: &[u8]| first.starts_with(magic);
        let refused = |name: &str| {
            Err(Error::unsupported(
                what,
                format!("{name} compression; layers are plain, gzip or zstd: compress it again"),
            ))
        };
        if first.get(257..262) == Some(b"ustar") {
            return Ok(Compression::Plain);
        }
        match first {
            _ if is(b"\x1f\x8b") => Ok(Compression::Gzip),
            _ if is(b"\x28\xb5\x2f\xfd") => Ok(Compression::Zstd),
            // A skippable zstd frame: 0x184D2A50 to 5F, little-endian.
            [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50 => Ok(Compression::Zstd),
            _ if is(b"\xfd7zXZ\0") => refused("xz"),
            _ if is(b"BZh") && first.get(4..10) == Some(b"1AY&SY") => refused("bzip2"),
            _ if is(b"\x04\x22\x4d\x18") => refused("lz4"),
            _ => Ok(Compression::Plain),
        }
    }

    /// Inflates `input`.
    pub(crate) fn reader<'a>(self, input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Compression::Plain => Box::new(input),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        })
    }
}

/// Bounds what a stream may inflate to: a few GiB for nothing, then what gzip could do at best (1032 to 1).
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) free: u64,
    pub(crate) ratio: u64,
}

impl Bound {
    pub(crate) const LAYER: Bound = Bound { free: 8 << 30, ratio: 1100 };
    pub(crate) const ARCHIVE: Bound = Bound { free: 64 << 30, ratio: 1100 };

    /// Checks what came out against what went in, both in bytes.
    pub(crate) fn check(&self, taken: u64, given: u64) -> std::result::Result<(), String> {
        match given > self.free.max(taken.saturating_mul(self.ratio)) {
            true => Err(format!("{taken} bytes inflate to more than {given}: a decompression bomb")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn inflate(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Compression::of(bytes, "x").unwrap().reader(bytes)?.read_to_end(&mut out).map(|_| out)
    }

    const SKIPPABLE: &[u8] = b"\x5a\x2a\x4d\x18\x03\0\0\0abc";

    #[test]
    fn all_members_and_frames_are_read() {
        for bytes in [
            b"hello world".to_vec(),
            gzip(b"hello world"),
            [gzip(b"hello "), gzip(b""), gzip(b"world")].concat(),
            zstd(b"hello world"),
            [SKIPPABLE, &zstd(b"hello "), SKIPPABLE, &zstd(b"world"), SKIPPABLE].concat(),
        ] {
            assert_eq!(inflate(&bytes).unwrap(), b"hello world");
        }
    }

    #[test]
    fn truncation_rubbish_and_damage_are_errors() {
        let data: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for whole in [gzip(&data), zstd(&data)] {
            for cut in [5, 20, whole.len() / 2, whole.len() - 1] {
                assert!(inflate(&whole[..cut]).is_err(), "cut at {cut}");
            }
            assert!(inflate(&[&whole[..], b"rubbish behind it"].concat()).is_err());
            let mut damaged = whole.clone();
            let last = damaged.len() - 3;
            damaged[last] ^= 1;
            damaged[whole.len() / 2] ^= 0x55;
            assert!(inflate(&damaged).is_err());
        }
        assert!(inflate(&[&zstd(b"a")[..], &SKIPPABLE[..9]].concat()).is_err());
    }

    #[test]
    fn other_compressions_are_refused_by_name() {
        for (bytes, name) in [(&b"\xfd7zXZ\0..."[..], "xz"), (b"BZh91AY&SY..", "bzip2"), (b"\x04\x22\x4d\x18..", "lz4")]
        {
            assert!(Compression::of(bytes, "x").unwrap_err().to_string().contains(name));
        }
        let mut tar = vec![0; 512];
        tar[..2].copy_from_slice(b"\x1f\x8b");
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(Compression::of(&tar, "x").unwrap(), Compression::Plain);
    }

    #[test]
    fn bombs_are_noticed() {
        let bound = Bound { free: 1000, ratio: 10 };
        assert!(bound.check(1, 1000).is_ok());
        assert!(bound.check(1, 1001).is_err());
        assert!(bound.check(200, 2000).is_ok());
        assert!(bound.check(200, 2001).is_err());
    }
}
