//! Whole files mapped for reading.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use memmap2::{Mmap, MmapOptions};
use rustix::io::{Errno, Result};

/// A file's content as bytes, read from the disk as it is touched.
///
/// Whoever maps a file promises that nobody changes or shortens it while the map lives: the files of the store are
/// published by rename, never written again, and read through a read-only clone of their mount. A file that is shortened all
/// the same ends the process by `SIGBUS` when the lost part is touched.
#[derive(Debug)]
pub struct Map(Option<Mmap>);

impl Map {
    /// Maps all of a regular file that is open for reading; the descriptor may be closed afterwards.
    ///
    /// # Errors
    /// `EINVAL` for what is no regular file, `EFBIG` for more than the address space holds, else as mmap(2).
    pub fn of(file: impl AsFd) -> Result<Self> {
        let found = crate::sys::stat_of(&file)?;
        if found.stat.kind != layer::FileType::File {
            return Err(Errno::INVAL);
        }
        let len = usize::try_from(found.stat.size).map_err(|_| Errno::FBIG)?;
        // mmap(2) refuses to map nothing.
        if len == 0 {
            return Ok(Map(None));
        }
        // SAFETY: the bytes behind the shared slice must not change while it lives. That is the promise of whoever calls,
        // told in the type's doc; the map itself is private and read-only, so nothing here can break it.
        let map = unsafe { MmapOptions::new().len(len).map(file.as_fd().as_raw_fd()) };
        map.map(|map| Map(Some(map))).map_err(|failed| Errno::from_io_error(&failed).unwrap_or(Errno::IO))
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_seen_whole_and_an_empty_one_as_nothing() {
        let top = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"some bytes", &[7; 10_000]] {
            let path = top.path().join("f");
            std::fs::write(&path, content).unwrap();
            let map = Map::of(std::fs::File::open(&path).unwrap()).unwrap();
            assert_eq!(map.as_ref(), content);
            std::fs::remove_file(&path).unwrap();
            assert_eq!(map.as_ref(), content);
        }
        assert_eq!(Map::of(std::fs::File::open(top.path()).unwrap()).unwrap_err(), Errno::INVAL);
    }
}
