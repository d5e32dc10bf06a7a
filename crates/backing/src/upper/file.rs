//! An open file of the upper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use overlay::upper::Seek;
use overlay::{Errno, Result, UpperFile};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno as Raw;

use super::error;

/// A regular file of the upper, open for reading and writing.
#[derive(Debug)]
pub struct File(OwnedFd);

impl File {
    pub(super) fn new(fd: OwnedFd) -> Self {
        File(fd)
    }

    /// Reads all of it; for what is known to be small.
    pub(super) fn read_whole(&self) -> Result<Vec<u8>> {
        let mut buf = vec![0; 4096];
        let len = self.read_at(&mut buf, 0)?;
        buf.truncate(len);
        Ok(buf)
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn failed(what: &'static str) -> impl FnOnce(Raw) -> overlay::Error {
    move |raw| error(|| format!("{what} a file of the upper"), raw)
}

impl UpperFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        rustix::io::retry_on_intr(|| rustix::io::pread(&self.0, &mut *buf, offset)).map_err(failed("read"))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < data.len() {
            match rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.0, &data[done..], offset + done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                // What was written counts; the next write meets the error.
                Err(_) if done > 0 => break,
                Err(raw) => return Err(failed("write")(raw)),
            }
        }
        Ok(done)
    }

    fn truncate(&self, size: u64) -> Result<()> {
        rustix::fs::ftruncate(&self.0, size).map_err(failed("truncate"))
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.0, flags, offset, len)).map_err(failed("allocate in"))
    }

    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        let from = match what {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(&self.0, from).map_err(failed("seek in"))
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        let done = if data_only { rustix::fs::fdatasync(&self.0) } else { rustix::fs::fsync(&self.0) };
        done.map_err(failed("sync"))
    }

    fn copy_range(&self, offset: u64, to: &Self, to_offset: u64, len: u64) -> Result<u64> {
        let (mut from_at, mut to_at) = (offset, to_offset);
        let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
        let copied = rustix::fs::copy_file_range(&self.0, Some(&mut from_at), &to.0, Some(&mut to_at), len);
        copied.map(|count| count as u64).map_err(failed("copy"))
    }
}
