//! Writes an index: rows are pushed in breadth-first order, heaps and tables are gathered on the way.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use super::format::{
    CHECKED_FROM, CHECKSUM_AT, FLAG_IMPLIED, FLAG_OPAQUE, FLAG_SPARSE, HEADER_LEN, IndexKind, KIND_AT, LENGTH_AT,
    MAGIC, NO_XATTRS, OBJECT_LEN, RECORD_LENS, ROW_LEN, RowKind, SECTIONS, SECTIONS_AT, VERSION, VERSION_AT, align8,
    row, u32_at,
};
use super::{ObjectRow, u64_at};
use crate::digest::{DiffId, Digest};
use crate::name::Name;
use crate::stat::{Dev, LayerNo, Slot, Time};

/// Permissions, owner, group and time of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits: `mode & 07777`.
    pub perm: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The last change of content.
    pub mtime: Time,
}

impl Attributes {
    /// What a directory has that no layer states: 0755, root's, of 1970-01-01.
    pub const UNSTATED: Attributes = Attributes { perm: 0o755, uid: 0, gid: 0, mtime: Time { sec: 0, nsec: 0 } };
}

/// A set of extended attributes in an [`IndexWriter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct XattrSet(u32);

impl XattrSet {
    /// No extended attributes.
    pub const NONE: XattrSet = XattrSet(NO_XATTRS);
}

/// A row to be written.
#[derive(Clone, Copy, Debug)]
pub struct NewRow<'a> {
    /// Permissions, owner, group and time; of no meaning for aliases, whiteouts and foreign links.
    pub attributes: Attributes,
    /// The layer that holds the inode; 0 in a layer index.
    pub layer: LayerNo,
    /// Its extended attributes.
    pub xattrs: XattrSet,
    /// The rest.
    pub data: NewData<'a>,
}

/// What a row to be written holds.
#[derive(Clone, Copy, Debug)]
pub enum NewData<'a> {
    /// A directory; its children are pushed later.
    Dir {
        /// It hides what lower layers have in it.
        opaque: bool,
        /// The layer did not state it.
        implied: bool,
    },
    /// A regular file in its layer's `bodies`.
    Inline {
        /// From the start of `bodies`.
        offset: u64,
        /// In bytes.
        len: u64,
        /// It was stored with holes.
        sparse: bool,
    },
    /// A regular file that is an object.
    Object {
        /// The object.
        object: ObjectRow,
        /// It was stored with holes.
        sparse: bool,
    },
    /// A symbolic link's target.
    Symlink(&'a [u8]),
    /// A character device.
    Char(Dev),
    /// A block device.
    Block(Dev),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
    /// A further name of the inode at that row, which was pushed before.
    Alias(Slot),
    /// Hides this name in lower layers.
    Whiteout,
    /// A hard link to a path that only lower layers hold.
    ForeignLink(&'a [u8]),
}

/// Why a tree cannot be written as an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// More than 2^32 - 2 rows, or names, link targets and xattrs of more than 4 GiB.
    #[error("too large for an index: {0}")]
    TooLarge(&'static str),
    /// Two files with one digest and two lengths.
    #[error("object {0} is stated with two lengths")]
    ObjectLength(Digest),
}

/// Collects rows and writes them as the bytes of an index: the same rows always give the same bytes.
///
/// The caller pushes the children of each directory together, ascending by name, directories in the order in which they
/// were pushed themselves. Bytes from a caller that does not are refused by [`super::Index::open`].
#[derive(Debug)]
pub struct IndexWriter {
    kind: IndexKind,
    layers: Vec<DiffId>,
    rows: Vec<[u8; ROW_LEN]>,
    objects: Vec<ObjectRow>,
    object_numbers: HashMap<Digest, u32>,
    xattr_sets: Vec<(u32, u32)>,
    xattr_numbers: HashMap<Vec<[u8; 16]>, XattrSet>,
    xattrs: Vec<[u8; 16]>,
    links: Vec<(u32, u32)>,
    heap: Vec<u8>,
    heap_offsets: HashMap<Box<[u8]>, u32>,
}

impl IndexWriter {
    /// Begins an index of `layers` (base first; of a layer index, the layer itself).
    pub fn new(kind: IndexKind, layers: Vec<DiffId>) -> Self {
        IndexWriter {
            kind,
            layers,
            rows: Vec::new(),
            objects: Vec::new(),
            object_numbers: HashMap::new(),
            xattr_sets: Vec::new(),
            xattr_numbers: HashMap::new(),
            xattrs: Vec::new(),
            links: Vec::new(),
            heap: Vec::new(),
            heap_offsets: HashMap::new(),
        }
    }

    /// Writes the root, the first row of all.
    ///
    /// # Errors
    /// None for the first row.
    pub fn push_root(&mut self, new: &NewRow<'_>) -> Result<Slot, WriteError> {
        self.push_row(Slot(0), b"", new)
    }

    /// Writes the entry `name` of the directory `parent`.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn push(&mut self, parent: Slot, name: Name<'_>, new: &NewRow<'_>) -> Result<Slot, WriteError> {
        let slot = self.push_row(parent, name.as_bytes(), new)?;
        if let Some(holder) = self.rows.get_mut(parent.0 as usize) {
            let count = u32_at(holder, row::DATA + 4);
            put_u32(holder, row::DATA + 4, count + 1);
            if let NewData::Dir { .. } = new.data {
                let nlink = u32_at(holder, row::NLINK);
                put_u32(holder, row::NLINK, nlink + 1);
            }
        }
        Ok(slot)
    }

    /// Interns a set of extended attributes, (name, value), ascending by name.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`].
    pub fn xattr_set<'x>(
        &mut self,
        xattrs: impl IntoIterator<Item = (&'x [u8], &'x [u8])>,
    ) -> Result<XattrSet, WriteError> {
        let mut set = Vec::new();
        for (name, value) in xattrs {
            let mut record = [0; 16];
            put_u32(&mut record, 0, self.intern(name)?);
            put_u32(&mut record, 4, len32(name.len())?);
            put_u32(&mut record, 8, self.intern(value)?);
            put_u32(&mut record, 12, len32(value.len())?);
            set.push(record);
        }
        if set.is_empty() {
            return Ok(XattrSet::NONE);
        }
        if let Some(known) = self.xattr_numbers.get(&set) {
            return Ok(*known);
        }
        let number = XattrSet(len32(self.xattr_sets.len())?);
        self.xattr_sets.push((len32(self.xattrs.len())?, len32(set.len())?));
        self.xattrs.extend_from_slice(&set);
        self.xattr_numbers.insert(set, number);
        Ok(number)
    }

    /// Returns the bytes of the index.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`].
    pub fn finish(mut self) -> Result<Vec<u8>, WriteError> {
        self.number_children();
        let objects = self.sort_objects();
        self.links.sort_unstable();
        let counts: [usize; SECTIONS] = [
            self.rows.len(),
            objects.len(),
            self.xattr_sets.len(),
            self.xattrs.len(),
            self.links.len(),
            self.layers.len(),
            self.heap.len(),
        ];
        let (mut bytes, starts) = header(self.kind, counts)?;
        let begin = |bytes: &mut Vec<u8>, section: usize| bytes.resize(starts[section], 0);
        begin(&mut bytes, super::ROWS);
        bytes.extend_from_slice(self.rows.as_flattened());
        begin(&mut bytes, super::OBJECTS);
        bytes.extend_from_slice(objects.as_flattened());
        begin(&mut bytes, super::XATTR_SETS);
        put_pairs(&mut bytes, &self.xattr_sets);
        begin(&mut bytes, super::XATTRS);
        bytes.extend_from_slice(self.xattrs.as_flattened());
        begin(&mut bytes, super::LINKS);
        put_pairs(&mut bytes, &self.links);
        begin(&mut bytes, super::LAYERS);
        self.layers.iter().for_each(|layer| bytes.extend_from_slice(layer.0.as_bytes()));
        begin(&mut bytes, super::HEAP);
        bytes.extend_from_slice(&self.heap);
        let checksum = xxh3_64(&bytes[CHECKED_FROM..]);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&checksum.to_le_bytes());
        Ok(bytes)
    }

    fn push_row(&mut self, parent: Slot, name: &[u8], new: &NewRow<'_>) -> Result<Slot, WriteError> {
        let slot = self.rows.len();
        if slot >= u32::MAX as usize {
            return Err(WriteError::TooLarge("rows"));
        }
        let mut raw = [0; ROW_LEN];
        put_u32(&mut raw, row::NAME_OFF, self.intern(name)?);
        raw[row::NAME_LEN] = name.len() as u8;
        put_u32(&mut raw, row::PARENT, parent.0);
        put_u32(&mut raw, row::XATTRS, NO_XATTRS);
        self.put_data(&mut raw, slot as u32, new)?;
        self.rows.push(raw);
        Ok(Slot(slot as u32))
    }

    fn put_data(&mut self, raw: &mut [u8; ROW_LEN], slot: u32, new: &NewRow<'_>) -> Result<(), WriteError> {
        let kind = match new.data {
            NewData::Dir { opaque, implied } => {
                let flags = if opaque { FLAG_OPAQUE } else { 0 } | if implied { FLAG_IMPLIED } else { 0 };
                put_u16(raw, row::FLAGS, flags);
                RowKind::Dir
            }
            NewData::Inline { offset, len, sparse } => {
                put_u64(raw, row::DATA, offset);
                put_u64(raw, row::SIZE, len);
                put_u16(raw, row::FLAGS, if sparse { FLAG_SPARSE } else { 0 });
                RowKind::Inline
            }
            NewData::Object { object, sparse } => {
                put_u32(raw, row::DATA, self.object_number(object)?);
                put_u64(raw, row::SIZE, object.len);
                put_u16(raw, row::FLAGS, if sparse { FLAG_SPARSE } else { 0 });
                RowKind::Object
            }
            NewData::Symlink(target) => {
                let at = self.intern(target)?;
                put_pair(raw, row::DATA, at, len32(target.len())?);
                put_u64(raw, row::SIZE, target.len() as u64);
                RowKind::Symlink
            }
            NewData::Char(dev) => {
                put_pair(raw, row::DATA, dev.major, dev.minor);
                RowKind::Char
            }
            NewData::Block(dev) => {
                put_pair(raw, row::DATA, dev.major, dev.minor);
                RowKind::Block
            }
            NewData::Fifo => RowKind::Fifo,
            NewData::Socket => RowKind::Socket,
            NewData::Alias(inode) => {
                put_u32(raw, row::DATA, inode.0);
                self.links.push((inode.0, slot));
                if let Some(first) = self.rows.get_mut(inode.0 as usize) {
                    let nlink = u32_at(first, row::NLINK);
                    put_u32(first, row::NLINK, nlink + 1);
                }
                RowKind::Alias
            }
            NewData::Whiteout => RowKind::Whiteout,
            NewData::ForeignLink(path) => {
                // Not interned: the reader bounds the time of its check by their sum, which must fit into the heap.
                let at = self.append(path)?;
                put_pair(raw, row::DATA, at, len32(path.len())?);
                RowKind::ForeignLink
            }
        };
        raw[row::KIND] = kind as u8;
        if kind.file_type().is_some() {
            put_u32(raw, row::NLINK, if kind == RowKind::Dir { 2 } else { 1 });
            put_u32(raw, row::PERM, u32::from(new.attributes.perm));
            put_u32(raw, row::UID, new.attributes.uid);
            put_u32(raw, row::GID, new.attributes.gid);
            put_u64(raw, row::MTIME_SEC, new.attributes.mtime.sec as u64);
            put_u32(raw, row::MTIME_NSEC, new.attributes.mtime.nsec);
            put_u16(raw, row::LAYER, new.layer.0);
            put_u32(raw, row::XATTRS, new.xattrs.0);
        }
        Ok(())
    }

    fn object_number(&mut self, object: ObjectRow) -> Result<u32, WriteError> {
        if let Some(&number) = self.object_numbers.get(&object.digest) {
            let known = &mut self.objects[number as usize];
            if known.len != object.len {
                return Err(WriteError::ObjectLength(object.digest));
            }
            // Layers unpacked at different times may have seen it differently; the order of pushing must not matter.
            known.allocated = known.allocated.max(object.allocated);
            return Ok(number);
        }
        let number = len32(self.objects.len())?;
        self.object_numbers.insert(object.digest, number);
        self.objects.push(object);
        Ok(number)
    }

    fn intern(&mut self, bytes: &[u8]) -> Result<u32, WriteError> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if let Some(&at) = self.heap_offsets.get(bytes) {
            return Ok(at);
        }
        let at = self.append(bytes)?;
        self.heap_offsets.insert(bytes.into(), at);
        Ok(at)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<u32, WriteError> {
        let at = len32(self.heap.len())?;
        self.heap.extend_from_slice(bytes);
        Ok(at)
    }

    /// Writes where each directory's children begin, now that it is known how many each has.
    fn number_children(&mut self) {
        let mut next = 1;
        for raw in self.rows.iter_mut().filter(|raw| raw[row::KIND] == RowKind::Dir as u8) {
            put_u32(raw, row::DATA, next);
            next += u32_at(raw, row::DATA + 4);
        }
    }

    /// Sorts the objects by digest and tells the rows their new numbers.
    fn sort_objects(&mut self) -> Vec<[u8; OBJECT_LEN]> {
        let mut order: Vec<u32> = (0..self.objects.len() as u32).collect();
        order.sort_unstable_by_key(|&number| self.objects[number as usize].digest);
        let mut numbers = vec![0; order.len()];
        for (sorted, &number) in order.iter().enumerate() {
            numbers[number as usize] = sorted as u32;
        }
        for raw in self.rows.iter_mut().filter(|raw| raw[row::KIND] == RowKind::Object as u8) {
            let number = u32_at(raw, row::DATA);
            put_u32(raw, row::DATA, numbers[number as usize]);
        }
        order.iter().map(|&number| object_record(&self.objects[number as usize])).collect()
    }
}

/// Returns the header, without its checksum, and where the sections begin.
fn header(kind: IndexKind, counts: [usize; SECTIONS]) -> Result<(Vec<u8>, [usize; SECTIONS]), WriteError> {
    let too_large = WriteError::TooLarge("a section");
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&MAGIC);
    put_u32(&mut header, VERSION_AT, VERSION);
    put_u32(&mut header, KIND_AT, kind as u32);
    let mut starts = [0; SECTIONS];
    let mut end = HEADER_LEN as u64;
    for (n, count) in counts.into_iter().enumerate() {
        let count = u64::from(u32::try_from(count).map_err(|_| too_large)?);
        let start = align8(end).ok_or(too_large)?;
        put_u64(&mut header, SECTIONS_AT + n * 16, start);
        put_u64(&mut header, SECTIONS_AT + n * 16 + 8, count);
        starts[n] = usize::try_from(start).map_err(|_| too_large)?;
        end = start + count * RECORD_LENS[n] as u64;
    }
    put_u64(&mut header, LENGTH_AT, end);
    let mut bytes = Vec::with_capacity(u64_at(&header, LENGTH_AT) as usize);
    bytes.extend_from_slice(&header);
    Ok((bytes, starts))
}

fn object_record(object: &ObjectRow) -> [u8; OBJECT_LEN] {
    let mut record = [0; OBJECT_LEN];
    record[..32].copy_from_slice(object.digest.as_bytes());
    put_u64(&mut record, 32, object.len);
    put_u64(&mut record, 40, object.allocated);
    record
}

fn len32(len: usize) -> Result<u32, WriteError> {
    u32::try_from(len).map_err(|_| WriteError::TooLarge("names, link targets and extended attributes"))
}

fn put_pairs(bytes: &mut Vec<u8>, pairs: &[(u32, u32)]) {
    for (first, second) in pairs {
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&second.to_le_bytes());
    }
}

fn put_pair<const N: usize>(record: &mut [u8; N], at: usize, first: u32, second: u32) {
    put_u32(record, at, first);
    put_u32(record, at + 4, second);
}

fn put_u16<const N: usize>(record: &mut [u8; N], at: usize, value: u16) {
    record[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32<const N: usize>(record: &mut [u8; N], at: usize, value: u32) {
    record[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64<const N: usize>(record: &mut [u8; N], at: usize, value: u64) {
    record[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
