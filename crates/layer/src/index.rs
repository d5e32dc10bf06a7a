//! The index: one file that holds all metadata of a layer, or of a folded stack of layers, ready to be mapped.
//!
//! Rows of fixed width in breadth-first order, the children of a directory contiguous and sorted by name, so that a
//! lookup is a binary search and a directory listing a slice. Written whole by [`IndexWriter`], read by [`Index`]; the
//! bytes are described in `docs/index-format.md`.
//!
//! [`Index::open`] checks every offset, name and number. After it no reader fails, allocates (but for [`Index::path`]), or
//! leaves the bytes; should a mapped file be changed by someone meanwhile, readers answer nonsense but do not panic.

mod check;
mod format;
mod write;

use std::ops::Range;

use crate::digest::{DiffId, Digest};
use crate::name::{Name, TreePath};
use crate::stat::{Dev, FileType, Ino, LayerNo, Slot, Stat, Time};

pub use check::IndexError;
pub use format::{IndexKind, MAGIC, RowKind, TARGET_MAX, VERSION, XATTR_NAME_MAX, XATTR_SIZE_MAX};
pub use write::{Attributes, IndexWriter, NewData, NewRow, WriteError, XattrSet};

use format::{
    FLAG_IMPLIED, FLAG_OPAQUE, FLAG_SPARSE, HEAP, LAYER_LEN, LAYERS, LINK_LEN, LINKS, NO_XATTRS, OBJECT_LEN, OBJECTS,
    ROW_LEN, ROWS, SECTIONS, XATTR_LEN, XATTR_SET_LEN, XATTR_SETS, XATTRS, row, u16_at, u32_at, u64_at,
};

/// An opened index over `B`, the bytes of its file: a map, or a vector.
#[derive(Clone)]
pub struct Index<B> {
    bytes: B,
    kind: IndexKind,
    sections: [Range<usize>; SECTIONS],
}

/// One row of an index: a name, and the inode behind it.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    tables: Tables<'a>,
    slot: Slot,
    raw: &'a [u8; ROW_LEN],
}

/// What a row holds besides its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowData<'a> {
    /// A directory and the rows of its entries.
    Dir {
        /// The rows of its entries.
        children: Range<u32>,
    },
    /// A regular file's content: [`Row::size`] bytes from `offset` in the `bodies` of [`Row::layer`].
    Inline {
        /// From the start of `bodies`, in bytes.
        offset: u64,
    },
    /// A regular file's content, by its hash.
    Object(ObjectRow),
    /// The target of a symbolic link: 1..=4095 bytes without NUL.
    Symlink(&'a [u8]),
    /// A character device.
    Char(Dev),
    /// A block device.
    Block(Dev),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
    /// A further name of the inode at that row.
    Alias(Slot),
    /// This name is hidden in lower layers.
    Whiteout,
    /// A hard link to that path, which only lower layers hold. Names joined by `/`, no leading slash; every name is valid.
    ForeignLink(&'a [u8]),
}

/// An object that files of this index use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectRow {
    /// The hash of its content, and its name in the store.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// What it takes on the disk, in bytes.
    pub allocated: u64,
}

impl<B: AsRef<[u8]>> Index<B> {
    /// Checks `bytes` whole and opens them as an index.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn open(bytes: B) -> Result<Self, IndexError> {
        Self::open_noted(bytes, &[])
    }

    /// As [`Index::open`], but rows, names and numbers are taken for checked if `note` is the [`note`](Index::note) of the same
    /// bytes; their checksum is computed in any case. Any other `note` counts for nothing.
    ///
    /// Whoever calls answers for the note's origin: with a forged one, malformed bytes are opened, and readers may answer
    /// nonsense.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn open_noted(bytes: B, note: &[u8]) -> Result<Self, IndexError> {
        let (kind, sections) = check::check(bytes.as_ref(), note)?;
        Ok(Index { bytes, kind, sections })
    }

    /// Returns what can be kept beside the bytes to open them [faster](Index::open_noted) from now on.
    pub fn note(&self) -> [u8; 12] {
        check::note(self.bytes())
    }

    /// Returns whether this is one layer or a folded stack.
    pub fn kind(&self) -> IndexKind {
        self.kind
    }

    /// Returns the bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Returns the number of rows; at least 1, the root.
    #[expect(clippy::len_without_is_empty, reason = "an index always holds its root")]
    pub fn len(&self) -> u32 {
        self.tables().rows.len() as u32
    }

    /// Returns the row `slot`; `None` past the end.
    pub fn row(&self, slot: Slot) -> Option<Row<'_>> {
        self.tables().row(slot)
    }

    /// Returns the rows, the root first.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        let tables = self.tables();
        tables.rows.iter().enumerate().map(move |(n, raw)| Row { tables, slot: Slot(n as u32), raw })
    }

    /// Finds the row of `name` in the directory `dir` by binary search; not resolved ([`Index::resolve`]). A `dir` that is no
    /// directory has no names.
    pub fn lookup(&self, dir: Slot, name: Name<'_>) -> Option<Slot> {
        self.tables().lookup(dir, name)
    }

    /// Returns the rows of `dir`'s entries, ascending by name; empty for what is no directory.
    pub fn children(&self, dir: Slot) -> Range<u32> {
        self.tables().children(dir)
    }

    /// Returns the row of the inode that `slot` names: itself unless it is an alias.
    pub fn resolve(&self, slot: Slot) -> Slot {
        self.tables().resolve(slot)
    }

    /// Returns the further names of the inode at `inode`, ascending, without its own row.
    pub fn aliases(&self, inode: Slot) -> impl Iterator<Item = Slot> + '_ {
        let links = self.tables().links;
        let first = links.partition_point(|link| u32_at(link, 0) < inode.0);
        let of_inode = links.get(first..).unwrap_or_default().iter().take_while(move |link| u32_at(link, 0) == inode.0);
        of_inode.map(|link| Slot(u32_at(link, 4)))
    }

    /// Returns the path of the name at `slot`.
    pub fn path(&self, slot: Slot) -> TreePath {
        let mut names = Vec::new();
        let mut at = self.row(slot);
        while let Some(row) = at {
            let Some(name) = row.name() else { break };
            names.push(name);
            // Parents come first; what does not is a file changed behind our back, and must not become a loop.
            at = (row.parent() < row.slot).then(|| self.row(row.parent())).flatten();
        }
        let mut path = TreePath::root();
        names.into_iter().rev().for_each(|name| path.push(name));
        path
    }

    /// Walks `path` down from the root, following no links; the last name's row, not resolved.
    pub fn find(&self, path: &TreePath) -> Option<Slot> {
        path.names().try_fold(Slot(0), |dir, name| self.lookup(dir, name))
    }

    /// Returns the layers that this index tells, base first; a layer index holds its own only.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = DiffId> + '_ {
        self.tables().layers.iter().map(|bytes| DiffId(Digest::from_bytes(*bytes)))
    }

    /// Returns the objects that files of this index use, each once, ascending by digest.
    pub fn objects(&self) -> impl ExactSizeIterator<Item = ObjectRow> + '_ {
        self.tables().objects.iter().map(object_row)
    }

    /// Returns the extended attributes of the inode behind `slot` as (name, value), ascending by name.
    pub fn xattrs(&self, slot: Slot) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        let tables = self.tables();
        tables.xattr_records(slot).iter().map(move |record| tables.xattr(record))
    }

    /// Returns one extended attribute of the inode behind `slot`.
    pub fn xattr(&self, slot: Slot, name: &[u8]) -> Option<&[u8]> {
        let tables = self.tables();
        let records = tables.xattr_records(slot);
        let at = records.binary_search_by(|record| tables.xattr(record).0.cmp(name)).ok()?;
        Some(tables.xattr(&records[at]).1)
    }

    /// Returns every extended attribute that some row of this index has, once for each distinct set it is in.
    pub fn distinct_xattrs(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        let tables = self.tables();
        tables.xattrs.iter().map(move |record| tables.xattr(record))
    }

    fn tables(&self) -> Tables<'_> {
        Tables::new(self.bytes.as_ref(), &self.sections)
    }
}

/// Shows the size only: an index may hold a million rows.
impl<B: AsRef<[u8]>> std::fmt::Debug for Index<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({:?}, {} rows)", self.kind, self.len())
    }
}

impl<'a> Row<'a> {
    /// Returns the row's number.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Returns the name; `None` for the root.
    pub fn name(&self) -> Option<Name<'a>> {
        Name::new(self.tables.name(self.raw)).ok()
    }

    /// Returns what the row is.
    pub fn kind(&self) -> RowKind {
        // `open` refuses other bytes; a whiteout is the harmless reading of one that changed since.
        RowKind::from_byte(self.raw[row::KIND]).unwrap_or(RowKind::Whiteout)
    }

    /// Returns the kind of the inode behind the row; `None` for a whiteout and a foreign link.
    pub fn file_type(&self) -> Option<FileType> {
        match self.kind() {
            RowKind::Alias => self.resolve().kind().file_type(),
            kind => kind.file_type(),
        }
    }

    /// Tells whether the directory hides what lower layers have in it (layer indexes only).
    pub fn is_opaque(&self) -> bool {
        self.flags() & FLAG_OPAQUE != 0
    }

    /// Tells whether the layer did not state this directory itself: its attributes come from below (layer indexes only).
    pub fn is_implied(&self) -> bool {
        self.flags() & FLAG_IMPLIED != 0
    }

    /// Tells whether the file was stored with holes.
    pub fn is_sparse(&self) -> bool {
        self.flags() & FLAG_SPARSE != 0
    }

    /// Returns the permission bits (`mode & 07777`).
    pub fn perm(&self) -> u16 {
        (u32_at(self.raw, row::PERM) & 0o7777) as u16
    }

    /// Returns the owner.
    pub fn uid(&self) -> u32 {
        u32_at(self.raw, row::UID)
    }

    /// Returns the group.
    pub fn gid(&self) -> u32 {
        u32_at(self.raw, row::GID)
    }

    /// Returns the number of names of the inode within this index; 2 and the subdirectories for a directory.
    pub fn nlink(&self) -> u32 {
        u32_at(self.raw, row::NLINK)
    }

    /// Returns the last change of content.
    pub fn mtime(&self) -> Time {
        Time { sec: u64_at(self.raw, row::MTIME_SEC) as i64, nsec: u32_at(self.raw, row::MTIME_NSEC) }
    }

    /// Returns permissions, owner, group and time in one.
    pub fn attributes(&self) -> Attributes {
        Attributes { perm: self.perm(), uid: self.uid(), gid: self.gid(), mtime: self.mtime() }
    }

    /// Returns the directory that holds this name; the root holds itself.
    pub fn parent(&self) -> Slot {
        Slot(u32_at(self.raw, row::PARENT))
    }

    /// Returns the length of the content or of the link's target, in bytes.
    pub fn size(&self) -> u64 {
        u64_at(self.raw, row::SIZE)
    }

    /// Returns the layer that holds the inode; in a layer index always 0.
    pub fn layer(&self) -> LayerNo {
        LayerNo(u16_at(self.raw, row::LAYER))
    }

    /// Returns what the row holds.
    pub fn data(&self) -> RowData<'a> {
        match self.kind() {
            RowKind::Dir => RowData::Dir { children: self.tables.children(self.slot) },
            RowKind::Inline => RowData::Inline { offset: u64_at(self.raw, row::DATA) },
            RowKind::Object => RowData::Object(self.tables.object(self.data_low())),
            RowKind::Symlink => RowData::Symlink(self.tables.heap(self.data_low(), self.data_high())),
            RowKind::Char => RowData::Char(self.dev()),
            RowKind::Block => RowData::Block(self.dev()),
            RowKind::Fifo => RowData::Fifo,
            RowKind::Socket => RowData::Socket,
            RowKind::Alias => RowData::Alias(Slot(self.data_low())),
            RowKind::Whiteout => RowData::Whiteout,
            RowKind::ForeignLink => RowData::ForeignLink(self.tables.heap(self.data_low(), self.data_high())),
        }
    }

    /// Returns the inode's own row: itself unless this is an alias.
    pub fn resolve(&self) -> Row<'a> {
        self.tables.row(self.tables.resolve(self.slot)).unwrap_or(*self)
    }

    /// Returns the attributes of the inode behind this row. `ino` is its row number + 1; there is one time only, `mtime`.
    ///
    /// Whiteouts and foreign links have none: they look like an empty file without any permission.
    pub fn stat(&self) -> Stat {
        let inode = self.resolve();
        let mtime = inode.mtime();
        let (size, rdev, allocated) = match inode.data() {
            RowData::Dir { .. } => (4096, Dev::default(), 4096),
            RowData::Object(object) => (inode.size(), Dev::default(), object.allocated),
            RowData::Char(dev) | RowData::Block(dev) => (0, dev, 0),
            RowData::Inline { .. } => (inode.size(), Dev::default(), inode.size().next_multiple_of(4096)),
            _ => (inode.size(), Dev::default(), 0),
        };
        Stat {
            ino: Ino(u64::from(inode.slot.0) + 1),
            kind: inode.kind().file_type().unwrap_or(FileType::File),
            perm: inode.perm(),
            nlink: inode.nlink(),
            uid: inode.uid(),
            gid: inode.gid(),
            rdev,
            size,
            blocks: allocated.div_ceil(512),
            atime: mtime,
            mtime,
            ctime: mtime,
        }
    }

    fn flags(&self) -> u16 {
        u16_at(self.raw, row::FLAGS)
    }

    fn data_low(&self) -> u32 {
        u32_at(self.raw, row::DATA)
    }

    fn data_high(&self) -> u32 {
        u32_at(self.raw, row::DATA + 4)
    }

    fn dev(&self) -> Dev {
        Dev { major: self.data_low(), minor: self.data_high() }
    }
}

impl std::fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Row")
            .field("slot", &self.slot.0)
            .field("name", &self.name())
            .field("flags", &self.flags())
            .field("attributes", &self.attributes())
            .field("nlink", &self.nlink())
            .field("parent", &self.parent().0)
            .field("size", &self.size())
            .field("layer", &self.layer().0)
            .field("data", &self.data())
            .finish()
    }
}

/// The sections of an index as slices of records. Every access is bounded; what is out of bounds is empty.
#[derive(Clone, Copy)]
struct Tables<'a> {
    rows: &'a [[u8; ROW_LEN]],
    objects: &'a [[u8; OBJECT_LEN]],
    xattr_sets: &'a [[u8; XATTR_SET_LEN]],
    xattrs: &'a [[u8; XATTR_LEN]],
    links: &'a [[u8; LINK_LEN]],
    layers: &'a [[u8; LAYER_LEN]],
    heap: &'a [u8],
}

impl<'a> Tables<'a> {
    fn new(bytes: &'a [u8], sections: &[Range<usize>; SECTIONS]) -> Self {
        let section = |n: usize| bytes.get(sections[n].clone()).unwrap_or_default();
        Tables {
            rows: section(ROWS).as_chunks().0,
            objects: section(OBJECTS).as_chunks().0,
            xattr_sets: section(XATTR_SETS).as_chunks().0,
            xattrs: section(XATTRS).as_chunks().0,
            links: section(LINKS).as_chunks().0,
            layers: section(LAYERS).as_chunks().0,
            heap: section(HEAP),
        }
    }

    fn row(self, slot: Slot) -> Option<Row<'a>> {
        Some(Row { tables: self, slot, raw: self.rows.get(slot.0 as usize)? })
    }

    fn heap(self, offset: u32, len: u32) -> &'a [u8] {
        let start = offset as usize;
        start.checked_add(len as usize).and_then(|end| self.heap.get(start..end)).unwrap_or_default()
    }

    fn name(self, raw: &[u8; ROW_LEN]) -> &'a [u8] {
        self.heap(u32_at(raw, row::NAME_OFF), u32::from(raw[row::NAME_LEN]))
    }

    fn children(self, dir: Slot) -> Range<u32> {
        match self.rows.get(dir.0 as usize) {
            Some(raw) if raw[row::KIND] == RowKind::Dir as u8 => {
                let first = u32_at(raw, row::DATA);
                first..first.saturating_add(u32_at(raw, row::DATA + 4))
            }
            _ => 0..0,
        }
    }

    fn lookup(self, dir: Slot, name: Name<'_>) -> Option<Slot> {
        let range = self.children(dir);
        let rows = self.rows.get(range.start as usize..range.end as usize)?;
        let at = rows.binary_search_by(|raw| self.name(raw).cmp(name.as_bytes())).ok()?;
        Some(Slot(range.start + at as u32))
    }

    fn resolve(self, slot: Slot) -> Slot {
        match self.rows.get(slot.0 as usize) {
            Some(raw) if raw[row::KIND] == RowKind::Alias as u8 => Slot(u32_at(raw, row::DATA)),
            _ => slot,
        }
    }

    fn object(self, number: u32) -> ObjectRow {
        let none = ObjectRow { digest: Digest::from_bytes([0; 32]), len: 0, allocated: 0 };
        self.objects.get(number as usize).map_or(none, object_row)
    }

    fn xattr_records(self, slot: Slot) -> &'a [[u8; XATTR_LEN]] {
        let set = self.rows.get(self.resolve(slot).0 as usize).map_or(NO_XATTRS, |raw| u32_at(raw, row::XATTRS));
        self.xattr_sets.get(set as usize).map_or(&[], |set| self.records_of_set(set))
    }

    fn records_of_set(self, set: &[u8; XATTR_SET_LEN]) -> &'a [[u8; XATTR_LEN]] {
        let first = u32_at(set, 0) as usize;
        first.checked_add(u32_at(set, 4) as usize).and_then(|end| self.xattrs.get(first..end)).unwrap_or_default()
    }

    fn xattr(self, record: &[u8; XATTR_LEN]) -> (&'a [u8], &'a [u8]) {
        (self.heap(u32_at(record, 0), u32_at(record, 4)), self.heap(u32_at(record, 8), u32_at(record, 12)))
    }
}

fn object_row(record: &[u8; OBJECT_LEN]) -> ObjectRow {
    let mut digest = [0; 32];
    digest.copy_from_slice(&record[..32]);
    ObjectRow { digest: Digest::from_bytes(digest), len: u64_at(record, 32), allocated: u64_at(record, 40) }
}
