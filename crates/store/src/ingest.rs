//! A layer while it is being unpacked: its bodies, objects, skeleton and entries, all in `ingest/` until it is published.
//!
//! Content up to [`INLINE_MAX`] goes one after the other into the layer's `bodies`; longer content becomes objects, named by their
//! hash. An object that the store has is not written again. All metadata goes into the index: nothing here needs privileges.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use layer::tree::{Body, LayerTree, Member, MemberKind};
use layer::{DiffId, Digest};
use sha2::{Digest as _, Sha256};

use crate::disk;
use crate::error::{Error, Result};
use crate::layout::{BODIES, INDEX, Layout, SKELETON};
use crate::skeleton::{BodySource, SkeletonWriter, Summary};
use crate::store::Store;
use crate::tape::{Entry, EntryKind, Segment, Tape};

/// The longest content, in bytes, that is kept in a layer's `bodies`.
///
/// Measured on 1.2 GiB of layers of real images: 16 KiB makes 6,072 objects and costs twice the system time of 64 KiB (1,753
/// objects) for 4 MiB more disk; 128 KiB (880 objects) loads no faster than the runs differ, and takes another 6 % of the bytes
/// from passthrough. Files up to 64 KiB are cached by the kernel after one read.
pub(crate) const INLINE_MAX: u64 = 64 << 10;
/// The longest content that is gathered in memory first: what the store has already is then never written.
const MEMORY_MAX: u64 = 1 << 20;
/// The longest file with holes, in bytes: its zeros have to be hashed too.
const SPARSE_MAX: u64 = 64 << 30;
/// What may stand behind the end of a tar, in bytes.
const REST_MAX: u64 = 64 << 20;
/// Up to so many objects are synced one by one; more with the whole filesystem at once.
const SYNC_EACH_MAX: usize = 16;
const PAGE: u64 = 4096;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// An unfinished layer; it is deleted when dropped before it is published.
pub(crate) struct Ingest<'a> {
    layout: &'a Layout,
    staging: Staging,
    bodies: BufWriter<File>,
    bodies_len: u64,
    skeleton: SkeletonWriter,
    tree: LayerTree,
    staged: BTreeSet<Digest>,
    /// Numbers unfinished objects.
    next_object: u64,
}

/// A directory in `ingest/`.
struct Staging {
    dir: PathBuf,
}

impl Staging {
    fn layer(&self) -> PathBuf {
        self.dir.join("layer")
    }

    fn object(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = disk::remove_tree(&self.dir) {
            log::warn!("{error}; it is deleted at the next start");
        }
    }
}

impl<'a> Ingest<'a> {
    /// Begins a layer. The caller holds the store's lock.
    pub(crate) fn new(layout: &'a Layout) -> Result<Self> {
        let staging = Staging { dir: disk::unfinished(layout) };
        disk::make_dir(&staging.dir)?;
        disk::make_dir(&staging.layer())?;
        let bodies = disk::create(&staging.layer().join(BODIES), 0o400)?;
        let path = staging.layer().join(SKELETON);
        let skeleton = SkeletonWriter::new(disk::create(&path, 0o400)?).map_err(Error::at("write", &path))?;
        Ok(Ingest {
            layout,
            staging,
            bodies: BufWriter::with_capacity(256 << 10, bodies),
            bodies_len: 0,
            skeleton,
            tree: LayerTree::new(),
            staged: BTreeSet::new(),
            next_object: 0,
        })
    }

    /// Takes a whole tar stream.
    pub(crate) fn untar(&mut self, stream: impl BufRead) -> Result<()> {
        let mut tape = Tape::new(stream);
        while let Some(entry) = tape.next_entry()? {
            self.skeleton.raw(&tape.take_raw()).map_err(writing)?;
            self.skeleton.member();
            self.entry(&mut tape, entry)?;
        }
        self.skeleton.raw(&tape.take_raw()).map_err(writing)?;
        let end = tape.offset();
        let mut rest = 0;
        tape.rest(&mut |bytes| {
            rest += bytes.len() as u64;
            if rest > REST_MAX {
                return Err(Error::invalid(
                    format!("tar, byte {end}"),
                    format!("more than {REST_MAX} bytes behind its end"),
                ));
            }
            self.skeleton.raw(bytes).map_err(writing)
        })
    }

    /// Makes the layer visible, whole and durably.
    pub(crate) fn publish(mut self, store: &Store, layer: DiffId) -> Result<Summary> {
        self.bodies.flush().map_err(writing)?;
        let summary = self.skeleton.finish().map_err(writing)?;
        if self.tree.dropped_xattrs() > 0 {
            log::info!(
                "layer {layer}: {} extended attributes mean something to the host only; dropped",
                self.tree.dropped_xattrs()
            );
        }
        let index = self.tree.into_index(layer).map_err(|error| Error::invalid("tar", error))?;
        let path = self.staging.layer().join(INDEX);
        let mut file = disk::create(&path, 0o400)?;
        file.write_all(&index).map_err(Error::at("write", &path))?;
        drop(file);
        publish(self.layout, &self.staging, &self.staged)?;
        place(store, &self.staging, layer)?;
        Ok(summary)
    }

    fn entry<R: BufRead>(&mut self, tape: &mut Tape<R>, mut entry: Entry) -> Result<()> {
        let name = |error: Error| error.within(format!("member '{}'", crate::error::shown(&entry.path)));
        let kind = match entry.kind {
            EntryKind::File => {
                let body = self.content(tape, &entry).map_err(name)?;
                MemberKind::File { body, sparse: entry.segments.is_some() }
            }
            EntryKind::Dir => MemberKind::Dir,
            EntryKind::Hardlink => MemberKind::Hardlink(&entry.link),
            EntryKind::Symlink => MemberKind::Symlink(&entry.link),
            EntryKind::Char(dev) => MemberKind::Char(dev),
            EntryKind::Block(dev) => MemberKind::Block(dev),
            EntryKind::Fifo => MemberKind::Fifo,
        };
        let member = Member {
            path: &entry.path,
            perm: entry.perm,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: std::mem::take(&mut entry.xattrs),
            kind,
        };
        self.tree.add(member).map_err(|error| Error::invalid("tar", error))
    }

    /// Stores a file's content, and names it in the skeleton.
    fn content<R: BufRead>(&mut self, tape: &mut Tape<R>, entry: &Entry) -> Result<Body> {
        let segments = entry.segments.as_deref();
        let (source, body) = match segments {
            _ if entry.size == 0 => (BodySource::Inline { offset: self.bodies_len, len: 0 }, Body::EMPTY),
            None if entry.size <= INLINE_MAX => {
                let offset = self.bodies_len;
                tape.body(&mut |bytes| self.append(bytes))?;
                (BodySource::Inline { offset, len: entry.size }, Body::Inline { offset, len: entry.size })
            }
            None if entry.size <= MEMORY_MAX => {
                let mut content = Vec::with_capacity(entry.size as usize);
                tape.body(&mut |bytes| {
                    content.extend_from_slice(bytes);
                    Ok(())
                })?;
                self.object_in_memory(&content)?
            }
            None => self.object(tape, entry.size, &[Segment { offset: 0, len: entry.size }])?,
            Some(segments) if entry.size <= INLINE_MAX => {
                let content = expand(tape, entry.size, segments)?;
                let offset = self.bodies_len;
                self.append(&content)?;
                (BodySource::Inline { offset, len: entry.size }, Body::Inline { offset, len: entry.size })
            }
            Some(_) if entry.size > SPARSE_MAX => {
                let why = format!("a file with holes of {} bytes; at most {SPARSE_MAX} are taken", entry.size);
                return Err(Error::invalid("its content", why));
            }
            Some(segments) => self.object(tape, entry.size, segments)?,
        };
        if entry.packed > 0 {
            self.skeleton.body(source, segments.unwrap_or_default()).map_err(writing)?;
        }
        Ok(body)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.bodies_len += bytes.len() as u64;
        self.bodies.write_all(bytes).map_err(|cause| Error::io("write the layer's bodies", cause))
    }

    fn object_in_memory(&mut self, content: &[u8]) -> Result<(BodySource, Body)> {
        let digest = Digest::of(content);
        let len = content.len() as u64;
        if !self.is_there(&digest, len) {
            let path = self.staging.object(&digest);
            let mut file = disk::create(&path, 0o400)?;
            file.write_all(content).map_err(Error::at("write", &path))?;
            self.staged.insert(digest);
        }
        Ok(object(digest, len, len))
    }

    /// Stores content that does not fit into memory, with the holes between its segments.
    fn object<R: BufRead>(
        &mut self,
        tape: &mut Tape<R>,
        size: u64,
        segments: &[Segment],
    ) -> Result<(BodySource, Body)> {
        self.next_object += 1;
        let path = self.staging.dir.join(format!("unnamed-{}", self.next_object));
        let file = disk::create(&path, 0o400)?;
        let mut hash = Sha256::new();
        let mut cursor = Cursor::new(segments);
        tape.body(&mut |bytes| {
            cursor.place(bytes, |hole, offset, part| {
                hash_zeros(&mut hash, hole);
                hash.update(part);
                file.write_all_at(part, offset).map_err(Error::at("write", &path))
            })
        })?;
        // A hole at the end. What has none was as long as it says only once it was read.
        if cursor.end < size {
            file.set_len(size).map_err(Error::at("write", &path))?;
            hash_zeros(&mut hash, size - cursor.end);
        }
        let digest = Digest::from_bytes(hash.finalize().into());
        if self.is_there(&digest, size) {
            fs::remove_file(&path).map_err(Error::at("delete", &path))?;
        } else {
            fs::rename(&path, self.staging.object(&digest)).map_err(Error::at("rename", &path))?;
            self.staged.insert(digest);
        }
        Ok(object(digest, size, allocated(segments)))
    }

    /// Tells whether this layer or the store has the object already.
    fn is_there(&self, digest: &Digest, len: u64) -> bool {
        self.staged.contains(digest) || has_object(self.layout, digest, len)
    }
}

/// Tells whether the store has the object, at its full length.
fn has_object(layout: &Layout, digest: &Digest, len: u64) -> bool {
    fs::symlink_metadata(layout.object(digest)).is_ok_and(|metadata| metadata.is_file() && metadata.len() == len)
}

fn object(digest: Digest, len: u64, data: u64) -> (BodySource, Body) {
    let allocated = data.next_multiple_of(PAGE);
    (BodySource::Object { digest, len }, Body::Object { digest, len, allocated })
}

/// What the segments take in whole pages. Told by the map, not by the disk: the same layer gives the same index everywhere.
fn allocated(segments: &[Segment]) -> u64 {
    let mut end = 0;
    let mut sum = 0;
    for segment in segments {
        let first = (segment.offset / PAGE * PAGE).max(end);
        end = (segment.offset + segment.len).next_multiple_of(PAGE).max(end);
        sum += end - first.min(end);
    }
    sum
}

/// Puts the holes back into a small file.
fn expand<R: BufRead>(tape: &mut Tape<R>, size: u64, segments: &[Segment]) -> Result<Vec<u8>> {
    let mut content = vec![0; size as usize];
    let mut cursor = Cursor::new(segments);
    tape.body(&mut |bytes| {
        cursor.place(bytes, |_, offset, part| {
            let at = offset as usize;
            content[at..at + part.len()].copy_from_slice(part);
            Ok(())
        })
    })?;
    Ok(content)
}

fn hash_zeros(hash: &mut Sha256, mut len: u64) {
    while len > 0 {
        let part = len.min(ZEROS.len() as u64);
        hash.update(&ZEROS[..part as usize]);
        len -= part;
    }
}

/// Where in a file the bytes of a packed body belong.
struct Cursor<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that were placed already.
    placed: u64,
    /// Where the bytes that were placed end.
    end: u64,
}

impl<'a> Cursor<'a> {
    fn new(segments: &'a [Segment]) -> Self {
        Cursor { segments, placed: 0, end: 0 }
    }

    /// Passes the hole before each part, its offset, and the part. The map was checked: it is as long as the body.
    fn place(&mut self, mut bytes: &[u8], mut put: impl FnMut(u64, u64, &[u8]) -> Result<()>) -> Result<()> {
        while let (Some(segment), false) = (self.segments.first(), bytes.is_empty()) {
            let left = segment.len - self.placed;
            let (part, rest) = bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            let offset = segment.offset + self.placed;
            put(offset - self.end, offset, part)?;
            self.placed += part.len() as u64;
            self.end = offset + part.len() as u64;
            if self.placed == segment.len {
                (self.segments, self.placed) = (&self.segments[1..], 0);
            }
            bytes = rest;
        }
        Ok(())
    }
}

/// Makes the objects visible: data first, then names, then (by [`place`]) the layer's own: after a crash at any point whatever is
/// visible is whole.
fn publish(layout: &Layout, staging: &Staging, staged: &BTreeSet<Digest>) -> Result<()> {
    let one_by_one = staged.len() <= SYNC_EACH_MAX;
    if one_by_one {
        let own = [BODIES, SKELETON, INDEX].map(|name| staging.layer().join(name));
        own.iter().try_for_each(|path| disk::sync_dir(path))?;
        staged.iter().try_for_each(|digest| disk::sync_dir(&staging.object(digest)))?;
        disk::sync_dir(&staging.layer())?;
    } else {
        sync_filesystem(&staging.dir)?;
    }
    let mut shelves = BTreeSet::new();
    for digest in staged {
        let path = layout.object(digest);
        let staged = staging.object(digest);
        let len = fs::metadata(&staged).map_err(Error::at("look at", &staged))?.len();
        // Another layer may have brought it meanwhile.
        if has_object(layout, digest, len) {
            continue;
        }
        if let Some(shelf) = path.parent().filter(|shelf| !shelves.contains(*shelf)) {
            disk::make_dir(shelf)?;
            shelves.insert(shelf.to_owned());
        }
        fs::rename(&staged, &path).map_err(Error::at("make", &path))?;
    }
    if keeps_order(&layout.objects()) {
        return Ok(());
    }
    match one_by_one {
        true => {
            shelves.iter().try_for_each(|shelf| disk::sync_dir(shelf)).and_then(|()| disk::sync_dir(&layout.objects()))
        }
        false => sync_filesystem(&layout.objects()),
    }
}

/// Tells whether the filesystem never shows a later rename without an earlier one after a crash: ext2/3/4 and XFS have one
/// journal, in order. Btrfs, for one, may keep what was synced alone and lose what came before.
// The field's type differs between architectures.
#[allow(clippy::unnecessary_cast)]
fn keeps_order(path: &Path) -> bool {
    const EXT: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    rustix::fs::statfs(path).is_ok_and(|stat| [EXT, XFS].contains(&(stat.f_type as i64)))
}

/// Makes the layer visible.
fn place(store: &Store, staging: &Staging, layer: DiffId) -> Result<()> {
    let path = store.layout().layer(&layer);
    if fs::rename(staging.layer(), &path).is_err() {
        // Another process has unpacked it meanwhile, or it was there and damaged.
        if store.is_whole(&layer) {
            return Ok(());
        }
        fs::rename(&path, staging.dir.join("damaged")).ok(); // if it was not there, the next step tells why
        fs::rename(staging.layer(), &path).map_err(Error::at("make", &path))?;
    }
    disk::sync_dir(&store.layout().layers())
}

fn sync_filesystem(path: &Path) -> Result<()> {
    let dir = File::open(path).map_err(Error::at("open", path))?;
    rustix::fs::syncfs(&dir).map_err(Error::at("sync the filesystem of", path))
}

fn writing(cause: io::Error) -> Error {
    Error::io("write the layer's skeleton", cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_no_pages() {
        let map = |pairs: &[(u64, u64)]| pairs.iter().map(|&(offset, len)| Segment { offset, len }).collect::<Vec<_>>();
        for (pairs, pages) in [
            (&[(0, 1)][..], 1),
            (&[(4095, 2)], 2),
            (&[(0, 10), (20, 10)], 1),
            (&[(0, 10), (20, 5000), (100_000, 1)], 3),
            (&[], 0),
        ] {
            assert_eq!(allocated(&map(pairs)), pages * PAGE, "{pairs:?}");
        }
    }
}
