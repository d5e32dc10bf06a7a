//! Where each field of an index file lies. `docs/index-format.md` says the same in prose; the two change together.

use crate::stat::FileType;

/// The first eight bytes of every index.
pub const MAGIC: [u8; 8] = *b"PLYFSIDX";
/// The version that this code reads and writes; any other is refused (an index is a cache: it is made again).
pub const VERSION: u32 = 1;

pub(super) const CHECKSUM_AT: usize = 8;
/// The checksum covers everything from here to the end.
pub(super) const CHECKED_FROM: usize = 16;
pub(super) const VERSION_AT: usize = 16;
pub(super) const KIND_AT: usize = 20;
pub(super) const LENGTH_AT: usize = 24;
pub(super) const SECTIONS_AT: usize = 32;
pub(super) const SECTIONS: usize = 7;
pub(super) const HEADER_LEN: usize = SECTIONS_AT + SECTIONS * 16;

pub(super) const ROWS: usize = 0;
pub(super) const OBJECTS: usize = 1;
pub(super) const XATTR_SETS: usize = 2;
pub(super) const XATTRS: usize = 3;
pub(super) const LINKS: usize = 4;
pub(super) const LAYERS: usize = 5;
pub(super) const HEAP: usize = 6;

pub(super) const ROW_LEN: usize = 64;
pub(super) const OBJECT_LEN: usize = 48;
pub(super) const XATTR_SET_LEN: usize = 8;
pub(super) const XATTR_LEN: usize = 16;
pub(super) const LINK_LEN: usize = 8;
pub(super) const LAYER_LEN: usize = 32;

/// Bytes of one record of each section, in the order of the sections.
pub(super) const RECORD_LENS: [usize; SECTIONS] =
    [ROW_LEN, OBJECT_LEN, XATTR_SET_LEN, XATTR_LEN, LINK_LEN, LAYER_LEN, 1];

/// Fields of a row.
pub(super) mod row {
    pub(in crate::index) const NAME_OFF: usize = 0;
    pub(in crate::index) const NAME_LEN: usize = 4;
    pub(in crate::index) const KIND: usize = 5;
    pub(in crate::index) const FLAGS: usize = 6;
    pub(in crate::index) const PERM: usize = 8;
    pub(in crate::index) const UID: usize = 12;
    pub(in crate::index) const GID: usize = 16;
    pub(in crate::index) const NLINK: usize = 20;
    pub(in crate::index) const MTIME_SEC: usize = 24;
    pub(in crate::index) const MTIME_NSEC: usize = 32;
    pub(in crate::index) const PARENT: usize = 36;
    pub(in crate::index) const SIZE: usize = 40;
    pub(in crate::index) const DATA: usize = 48;
    pub(in crate::index) const LAYER: usize = 56;
    pub(in crate::index) const RESERVED: usize = 58;
    pub(in crate::index) const XATTRS: usize = 60;
}

/// The directory hides everything that lower layers have in it (layer indexes only).
pub(super) const FLAG_OPAQUE: u16 = 1;
/// The layer did not state this directory itself (layer indexes only).
pub(super) const FLAG_IMPLIED: u16 = 2;
/// The file was stored with holes.
pub(super) const FLAG_SPARSE: u16 = 4;

/// "No extended attributes" in a row.
pub(super) const NO_XATTRS: u32 = u32::MAX;

/// The longest target of a symbolic link (`PATH_MAX` without the NUL).
pub const TARGET_MAX: usize = 4095;
/// The longest name of an extended attribute (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// The longest value of an extended attribute (`XATTR_SIZE_MAX`).
pub const XATTR_SIZE_MAX: usize = 65536;

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RowKind {
    /// A directory.
    Dir = 1,
    /// A regular file whose content lies in its layer's `bodies`.
    Inline = 2,
    /// A regular file whose content is an object.
    Object = 3,
    /// A symbolic link.
    Symlink = 4,
    /// A character device.
    Char = 5,
    /// A block device.
    Block = 6,
    /// A named pipe.
    Fifo = 7,
    /// A Unix domain socket.
    Socket = 8,
    /// A further name of an inode whose row comes earlier.
    Alias = 9,
    /// Hides this name in lower layers (layer indexes only).
    Whiteout = 10,
    /// A hard link to a path that this layer does not hold (layer indexes only).
    ForeignLink = 11,
}

impl RowKind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => RowKind::Dir,
            2 => RowKind::Inline,
            3 => RowKind::Object,
            4 => RowKind::Symlink,
            5 => RowKind::Char,
            6 => RowKind::Block,
            7 => RowKind::Fifo,
            8 => RowKind::Socket,
            9 => RowKind::Alias,
            10 => RowKind::Whiteout,
            11 => RowKind::ForeignLink,
            _ => return None,
        })
    }

    /// Returns the kind of inode; `None` for rows that are none ([`RowKind::Alias`], [`RowKind::Whiteout`],
    /// [`RowKind::ForeignLink`]).
    pub fn file_type(self) -> Option<FileType> {
        Some(match self {
            RowKind::Dir => FileType::Dir,
            RowKind::Inline | RowKind::Object => FileType::File,
            RowKind::Symlink => FileType::Symlink,
            RowKind::Char => FileType::Char,
            RowKind::Block => FileType::Block,
            RowKind::Fifo => FileType::Fifo,
            RowKind::Socket => FileType::Socket,
            RowKind::Alias | RowKind::Whiteout | RowKind::ForeignLink => return None,
        })
    }
}

/// Whether an index tells one layer or a whole stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum IndexKind {
    /// One layer: what it states, hides and links.
    Layer = 1,
    /// Many layers folded into one tree.
    Folded = 2,
}

pub(super) fn align8(at: u64) -> Option<u64> {
    at.checked_next_multiple_of(8)
}

#[inline]
pub(super) fn u16_at<const N: usize>(record: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([record[at], record[at + 1]])
}

#[inline]
pub(super) fn u32_at<const N: usize>(record: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
}

#[inline]
pub(super) fn u64_at<const N: usize>(record: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(record, at)) | u64::from(u32_at(record, at + 4)) << 32
}
