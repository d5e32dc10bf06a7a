//! Bringing a body into the upper: shared blocks where the filesystem can, holes kept, else copied inside the kernel.

use std::os::fd::BorrowedFd;

use overlay::upper::{Seek, Source};
use overlay::{LowerFile, Result};
use rustix::fs::FallocateFlags;
use rustix::io::Errno as Raw;

use super::{Durability, error};

const CHUNK: usize = 1 << 20;
/// A body up to this many bytes, without holes, takes its name unsynced: a file that a power cut left too short is told by
/// its length, because these filesystems write data before the size that covers it.
const UNSYNCED_MAX: u64 = 1 << 20;

/// Whether a body is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Synced {
    Yes,
    /// It is not, and the file must bear a mark.
    No,
}

/// Fills the empty file `to` with a body of `size` bytes.
pub(super) fn body(source: Source<'_>, to: BorrowedFd<'_>, size: u64, durability: Durability) -> Result<Synced> {
    match source {
        Source::Empty => {
            rustix::fs::ftruncate(to, 0).map_err(|raw| error(|| "truncate a copy".into(), raw))?;
            return Ok(Synced::Yes);
        }
        Source::Bytes(bytes) => write_all(to, bytes, 0)?,
        Source::File(file) => match file.fd() {
            Some(from) if rustix::fs::ioctl_ficlone(to, from).is_ok() => return Ok(Synced::Yes),
            Some(from) if size > UNSYNCED_MAX || has_holes(file, size)? => copy_fd(file, from, to, size)?,
            _ => copy_by_reading(file, to, 0, size)?,
        },
    }
    if durability == Durability::Volatile || size == 0 {
        return Ok(Synced::Yes);
    }
    let dense = !matches!(source, Source::File(file) if has_holes(file, size)?);
    if size <= UNSYNCED_MAX && dense {
        return Ok(Synced::No);
    }
    rustix::fs::fdatasync(to).map_err(|raw| error(|| "sync a copy".into(), raw))?;
    Ok(Synced::Yes)
}

fn has_holes(file: &dyn LowerFile, size: u64) -> Result<bool> {
    Ok(file.seek(0, Seek::Hole, size)? < size)
}

fn copy_fd(file: &dyn LowerFile, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<()> {
    // The size first, so that holes need no write and a full disk is met early where the filesystem can tell.
    rustix::fs::ftruncate(to, size).map_err(|raw| error(|| "size a copy".into(), raw))?;
    let mut at = 0;
    while at < size {
        let data = match file.seek(at, Seek::Data, size) {
            Ok(data) => data,
            Err(overlay::Error::Answer(overlay::Errno::ENXIO)) => break,
            Err(error) => return Err(error),
        };
        let end = file.seek(data, Seek::Hole, size)?.min(size);
        copy_run(file, from, to, data, end)?;
        at = end;
    }
    Ok(())
}

fn copy_run(file: &dyn LowerFile, from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<()> {
    // Room is asked for once per run of data; filesystems without fallocate find out while they write.
    if let Err(raw @ (Raw::NOSPC | Raw::DQUOT)) =
        rustix::fs::fallocate(to, FallocateFlags::KEEP_SIZE, start, end - start)
    {
        return Err(error(|| "make room for a copy".into(), raw));
    }
    let (mut from_at, mut to_at) = (start, start);
    while from_at < end {
        let len = usize::try_from(end - from_at).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), len) {
            Ok(0) => return copy_by_reading(file, to, from_at, end),
            Ok(_) | Err(Raw::INTR) => {}
            Err(raw @ (Raw::NOSPC | Raw::DQUOT | Raw::IO)) => return Err(error(|| "copy a body up".into(), raw)),
            Err(_) => return copy_by_reading(file, to, from_at, end),
        }
    }
    Ok(())
}

fn copy_by_reading(file: &dyn LowerFile, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<()> {
    let mut buf = vec![0; CHUNK.min(usize::try_from(end - start).unwrap_or(CHUNK).max(1))];
    let mut at = start;
    while at < end {
        match file.read_at(&mut buf, at)? {
            0 => break,
            count => {
                write_all(to, &buf[..count], at)?;
                at += count as u64;
            }
        }
    }
    Ok(())
}

fn write_all(to: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(to, &bytes[done..], offset + done as u64) {
            Ok(count) => done += count,
            Err(Raw::INTR) => {}
            Err(raw) => return Err(error(|| "write a copy".into(), raw)),
        }
    }
    Ok(())
}
