//! A lower that is an image of the store: a folded index, and the bodies that it points to.
//!
//! All metadata is answered from the index's bytes, which are usually a map: no system call, no allocation on lookup and
//! stat. Where bodies lie is the caller's affair ([`Bodies`]); this crate does no I/O.

use std::borrow::Cow;
use std::ops::ControlFlow;

use layer::index::{Index, IndexKind, Row, RowData};
use layer::{Digest, Ino, LayerNo, Name, NameBuf, Slot, Stat, TreePath};

use crate::error::{Errno, Error, Result};
use crate::lower::{Body, Lower, LowerEntry, LowerFile};

/// Where the bodies of an image's files are, opened when they are first needed.
pub trait Bodies: Send + Sync + 'static {
    /// An open object.
    type File: LowerFile;

    /// Returns the small bodies of `layer`, a number in the index's own [`Index::layers`], one after the other.
    ///
    /// # Errors
    /// A fault if they cannot be read.
    fn bodies(&self, layer: LayerNo) -> Result<&[u8]>;

    /// Opens an object for reading.
    ///
    /// # Errors
    /// A fault if it cannot be opened.
    fn object(&self, digest: &Digest) -> Result<Self::File>;
}

/// The [`Lower`] of a folded index. A slot is a row, `ino` the row + 1, a cookie the row of the name.
pub struct Folded<B, S> {
    index: Index<B>,
    bodies: S,
    has_acls: bool,
    /// The first eight bytes of the chainID.
    key: u64,
}

/// The attributes that hold POSIX ACLs (acl(5), xattr(7)).
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

impl<B: AsRef<[u8]>, S> Folded<B, S> {
    /// Makes a lower of a folded index and its bodies.
    ///
    /// # Errors
    /// A fault if the index is a single layer's.
    pub fn new(index: Index<B>, bodies: S) -> Result<Self> {
        if index.kind() != IndexKind::Folded {
            return Err(Error::fault("use an index as a lower", Errno::EINVAL, "it is one layer's, not folded"));
        }
        let has_acls = index.distinct_xattrs().any(|(name, _)| ACLS.contains(&name));
        let chain = layer::ChainId::of(&index.layers().collect::<Vec<_>>());
        let first = chain.and_then(|chain| chain.0.as_bytes().first_chunk::<8>().copied());
        Ok(Folded { has_acls, key: first.map_or(0, u64::from_le_bytes), index, bodies })
    }

    /// Returns the index.
    pub fn index(&self) -> &Index<B> {
        &self.index
    }

    /// Returns the bodies.
    pub fn bodies(&self) -> &S {
        &self.bodies
    }

    fn row(&self, slot: Slot) -> Result<Row<'_>> {
        // The core hands back what it got from here; a number from elsewhere is a defect, told as a fault.
        self.index.row(slot).map(|row| row.resolve()).ok_or_else(|| damaged(slot, "no such row"))
    }
}

impl<B, S> Lower for Folded<B, S>
where
    B: AsRef<[u8]> + Send + Sync + 'static,
    S: Bodies,
{
    type File = S::File;

    fn key(&self) -> u64 {
        self.key
    }

    fn root(&self) -> Slot {
        Slot(0)
    }

    fn ino(&self, slot: Slot) -> Ino {
        Ino(u64::from(slot.0) + 1)
    }

    fn slot(&self, ino: Ino) -> Option<Slot> {
        let slot = Slot(u32::try_from(ino.0.checked_sub(1)?).ok()?);
        (slot.0 < self.index.len() && self.index.resolve(slot) == slot).then_some(slot)
    }

    fn lookup(&self, dir: Slot, name: Name<'_>) -> Result<Option<Slot>> {
        Ok(self.index.lookup(dir, name).map(|slot| self.index.resolve(slot)))
    }

    fn stat(&self, slot: Slot) -> Result<Stat> {
        Ok(self.row(slot)?.stat())
    }

    fn parent(&self, slot: Slot) -> Result<Slot> {
        Ok(self.row(slot)?.parent())
    }

    fn path(&self, slot: Slot) -> Result<TreePath> {
        Ok(self.index.path(self.row(slot)?.slot()))
    }

    fn names(&self, slot: Slot) -> Result<Option<Vec<(Slot, NameBuf)>>> {
        let inode = self.row(slot)?;
        let aliases = self.index.aliases(inode.slot()).filter_map(|alias| self.index.row(alias));
        let rows = std::iter::once(inode).chain(aliases);
        Ok(Some(rows.filter_map(|row| Some((row.parent(), row.name()?.to_buf()))).collect()))
    }

    fn entries(&self, dir: Slot, after: u64, visit: &mut dyn FnMut(LowerEntry<'_>) -> ControlFlow<()>) -> Result<()> {
        let children = self.index.children(dir);
        let first = after.saturating_add(1).max(u64::from(children.start)).min(u64::from(children.end)) as u32;
        for slot in first..children.end {
            let row = self.index.row(Slot(slot)).ok_or_else(|| damaged(Slot(slot), "no such row"))?;
            let inode = row.resolve();
            let (Some(name), Some(kind)) = (row.name(), inode.file_type()) else {
                return Err(damaged(Slot(slot), "no name or no kind"));
            };
            if visit(LowerEntry { name, slot: inode.slot(), kind, cookie: u64::from(slot) }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn link_target(&self, slot: Slot) -> Result<Cow<'_, [u8]>> {
        match self.row(slot)?.data() {
            RowData::Symlink(target) => Ok(target.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn xattr(&self, slot: Slot, name: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        Ok(self.index.xattr(slot, name).map(Cow::Borrowed))
    }

    fn xattrs(&self, slot: Slot, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        self.index.xattrs(slot).for_each(|(name, value)| visit(name, value));
        Ok(())
    }

    fn has_acls(&self) -> bool {
        self.has_acls
    }

    fn body(&self, slot: Slot) -> Result<Body<'_, Self::File>> {
        let row = self.row(slot)?;
        match row.data() {
            // An empty file needs no bodies: its layer may have none.
            RowData::Inline { .. } if row.size() == 0 => Ok(Body::Bytes(b"")),
            RowData::Inline { offset } => inline(self.bodies.bodies(row.layer())?, offset, &row),
            RowData::Object(object) => Ok(Body::File(self.bodies.object(&object.digest)?)),
            RowData::Dir { .. } => Err(Errno::EISDIR.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }
}

fn inline<'a, F>(bodies: &'a [u8], offset: u64, row: &Row<'_>) -> Result<Body<'a, F>> {
    let range = usize::try_from(offset).ok().zip(usize::try_from(offset.saturating_add(row.size())).ok());
    let bytes = range.and_then(|(start, end)| bodies.get(start..end));
    bytes.map(Body::Bytes).ok_or_else(|| damaged(row.slot(), "its body lies outside the layer's bodies"))
}

fn damaged(slot: Slot, what: &'static str) -> Error {
    Error::fault(format!("read row {} of a folded index", slot.0), Errno::EIO, what)
}

/// Bodies in memory, for tests.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct MemoryBodies {
    bodies: Vec<Vec<u8>>,
    objects: std::collections::HashMap<Digest, std::sync::Arc<[u8]>>,
}

/// An object in memory, for tests.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct MemoryObject(std::sync::Arc<[u8]>);

/// Folds layers of [`layer::fixture`] into a lower in memory, for tests.
///
/// # Panics
/// If they do not fold.
#[doc(hidden)]
pub fn fold_fixtures(layers: &[layer::fixture::Layer]) -> Folded<Vec<u8>, MemoryBodies> {
    let indexes: Vec<_> = layers.iter().map(|layer| &layer.index).collect();
    let bytes = crate::fold::fold(&indexes).expect("the layers fold");
    let objects = layers.iter().flat_map(|layer| &layer.objects);
    let bodies = MemoryBodies {
        bodies: layers.iter().map(|layer| layer.bodies.clone()).collect(),
        objects: objects.map(|(digest, content)| (*digest, content.as_slice().into())).collect(),
    };
    Folded::new(Index::open(bytes).expect("what was written is an index"), bodies).expect("it is folded")
}

impl Bodies for MemoryBodies {
    type File = MemoryObject;

    fn bodies(&self, layer: LayerNo) -> Result<&[u8]> {
        let bodies = self.bodies.get(usize::from(layer.0)).map(Vec::as_slice);
        bodies.ok_or_else(|| Error::fault(format!("open the bodies of layer {}", layer.0), Errno::EIO, "no such layer"))
    }

    fn object(&self, digest: &Digest) -> Result<MemoryObject> {
        let object = self.objects.get(digest).cloned().map(MemoryObject);
        object.ok_or_else(|| Error::fault(format!("open object {digest}"), Errno::EIO, "no such object"))
    }
}

impl LowerFile for MemoryObject {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|start| self.0.get(start..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}
