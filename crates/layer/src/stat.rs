//! What is known of an inode: numbers with a meaning each, kinds, times, attributes.

/// An inode number as programs and the kernel see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// A row of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// The position of a layer in its stack; 0 is the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerNo(pub u16);

/// A device number in its two halves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dev {
    /// The driver.
    pub major: u32,
    /// The device of that driver.
    pub minor: u32,
}

/// A point in time: seconds since the epoch (negative before 1970) plus nanoseconds (always forward, below 10^9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds since 1970-01-01 UTC.
    pub sec: i64,
    /// Nanoseconds after `sec`, 0..10^9.
    pub nsec: u32,
}

/// What kind of thing an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
}

/// The attributes of an inode, as `lstat` tells them (inode(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The number that programs see in `st_ino`.
    pub ino: Ino,
    /// The kind.
    pub kind: FileType,
    /// Permission bits with set-user-ID, set-group-ID and sticky: `mode & 07777`.
    pub perm: u16,
    /// How many names lead here.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The device that a device node stands for; zero else.
    pub rdev: Dev,
    /// Bytes of a file or of a link's target.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
}

impl FileType {
    /// Returns the `S_IFMT` bits (inode(7)).
    pub fn mode_bits(self) -> u32 {
        match self {
            FileType::Fifo => 0o010_000,
            FileType::Char => 0o020_000,
            FileType::Dir => 0o040_000,
            FileType::Block => 0o060_000,
            FileType::File => 0o100_000,
            FileType::Symlink => 0o120_000,
            FileType::Socket => 0o140_000,
        }
    }

    /// Reads the kind from a `st_mode`; `None` for bits that mean nothing.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o010_000 => FileType::Fifo,
            0o020_000 => FileType::Char,
            0o040_000 => FileType::Dir,
            0o060_000 => FileType::Block,
            0o100_000 => FileType::File,
            0o120_000 => FileType::Symlink,
            0o140_000 => FileType::Socket,
            _ => return None,
        })
    }
}

impl Stat {
    /// Returns kind and permissions as one `st_mode`.
    pub fn mode(&self) -> u32 {
        self.kind.mode_bits() | u32::from(self.perm)
    }
}
