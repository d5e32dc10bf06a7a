//! The content of a file as programs see it: in the upper, in the lower, or in both.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// The unit in which partial copies are completed (overlay/src/partial.rs).
const BLOCK: u64 = 4096;

/// A file's content, being read from its start.
pub(crate) struct Content {
    /// Its length, in bytes.
    pub(crate) size: u64,
    at: u64,
    upper: Option<File>,
    lower: Option<Below>,
    /// The lower counts up to here.
    limit: u64,
    /// Where the upper was last looked at: whether it has data there, and up to where that holds.
    run: (bool, u64),
}

/// A content that lies in a file of the store.
pub(crate) struct Below {
    pub(crate) file: File,
    /// Where in the file, in bytes.
    pub(crate) start: u64,
}

impl Content {
    pub(crate) fn upper(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let size = file.metadata()?.len();
        Ok(Content { size, at: 0, upper: Some(file), lower: None, limit: 0, run: (true, size) })
    }

    pub(crate) fn lower(below: Below, size: u64) -> Self {
        Content { size, at: 0, upper: None, lower: Some(below), limit: size, run: (false, size) }
    }

    /// A copy that has blocks of its own; holes are the lower's, up to `limit`.
    pub(crate) fn partial(file: OwnedFd, below: Below, limit: u64) -> io::Result<Self> {
        let file = File::from(file);
        let size = file.metadata()?.len();
        let limit = limit.min(size);
        Ok(Content { size, at: 0, upper: Some(file), lower: Some(below), limit, run: (false, 0) })
    }

    /// Finds out on which side the next bytes are.
    fn look(&mut self) -> io::Result<()> {
        let (Some(upper), true) = (&self.upper, self.at >= self.run.1) else { return Ok(()) };
        let block = self.at / BLOCK * BLOCK;
        self.run = match seek(upper, SeekFrom::Data(block)) {
            Err(Errno::NXIO) => (false, self.size),
            Err(errno) => return Err(errno.into()),
            // A block with some data is there whole.
            Ok(data) if data / BLOCK * BLOCK <= self.at => {
                (true, seek(upper, SeekFrom::Hole(data.max(self.at)))?.next_multiple_of(BLOCK))
            }
            Ok(data) => (false, data / BLOCK * BLOCK),
        };
        Ok(())
    }
}

impl Read for Content {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.size || buf.is_empty() {
            return Ok(0);
        }
        self.look()?;
        let (here, mut end) = self.run;
        if !here && self.at < self.limit {
            end = end.min(self.limit);
        }
        let len = buf.len().min(usize::try_from(end.min(self.size) - self.at).unwrap_or(usize::MAX));
        let buf = &mut buf[..len];
        let read = match (&self.upper, &self.lower) {
            (Some(upper), _) if here => upper.read_at(buf, self.at)?,
            (_, Some(lower)) if self.at < self.limit => lower.file.read_at(buf, lower.start + self.at)?,
            _ => {
                buf.fill(0);
                len
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}
