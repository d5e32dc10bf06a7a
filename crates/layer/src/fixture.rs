//! Layers for tests, a line per entry: `layer([dir("etc"), file("etc/hosts", b"x"), whiteout("etc/motd")])`.
//!
//! Not part of the crate's promise; public because other crates' tests build on it. It panics on what a layer refuses.

use crate::digest::{DiffId, Digest};
use crate::index::Index;
use crate::name::Name;
use crate::stat::{Dev, Slot, Time};
use crate::tree::{Body, LayerTree, Member, MemberKind, TreeError};

/// One member of a layer to be.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    /// As in [`Member`].
    pub path: Vec<u8>,
    /// As in [`Member`].
    pub perm: u32,
    /// As in [`Member`].
    pub uid: u32,
    /// As in [`Member`].
    pub gid: u32,
    /// As in [`Member`].
    pub mtime: Time,
    /// As in [`Member`].
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What it is.
    pub kind: ItemKind,
}

/// What an [`Item`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the kinds of tree::MemberKind, with their content")]
pub enum ItemKind {
    Dir,
    File { content: Vec<u8>, object: bool },
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Char(Dev),
    Block(Dev),
    Fifo,
    Socket,
}

/// A layer that was built.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its name: a hash of the items, not of a tar.
    pub diff_id: DiffId,
    /// Its index.
    pub index: Index<Vec<u8>>,
    /// The small bodies.
    pub bodies: Vec<u8>,
    /// The objects.
    pub objects: Vec<(Digest, Vec<u8>)>,
}

fn item(path: impl AsRef<[u8]>, perm: u32, kind: ItemKind) -> Item {
    let mtime = Time { sec: 1_700_000_000, nsec: 123_456_789 };
    Item { path: path.as_ref().to_vec(), perm, uid: 0, gid: 0, mtime, xattrs: Vec::new(), kind }
}

/// A directory, 0755.
pub fn dir(path: impl AsRef<[u8]>) -> Item {
    item(path, 0o755, ItemKind::Dir)
}

/// A regular file in `bodies`, 0644.
pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Item {
    item(path, 0o644, ItemKind::File { content: content.as_ref().to_vec(), object: false })
}

/// A regular file that is an object, 0644.
pub fn object(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Item {
    item(path, 0o644, ItemKind::File { content: content.as_ref().to_vec(), object: true })
}

/// A symbolic link.
pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    item(path, 0o777, ItemKind::Symlink(target.as_ref().to_vec()))
}

/// A hard link.
pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    item(path, 0o644, ItemKind::Hardlink(target.as_ref().to_vec()))
}

/// A character device.
pub fn char_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Item {
    item(path, 0o600, ItemKind::Char(Dev { major, minor }))
}

/// A block device.
pub fn block_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Item {
    item(path, 0o600, ItemKind::Block(Dev { major, minor }))
}

/// A named pipe.
pub fn fifo(path: impl AsRef<[u8]>) -> Item {
    item(path, 0o600, ItemKind::Fifo)
}

/// A socket.
pub fn socket(path: impl AsRef<[u8]>) -> Item {
    item(path, 0o600, ItemKind::Socket)
}

/// A whiteout of `path`.
pub fn whiteout(path: impl AsRef<[u8]>) -> Item {
    let path = path.as_ref();
    let name = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
    file([&path[..name], crate::whiteout::PREFIX, &path[name..]].concat(), b"")
}

/// An opaque marker in `dir`.
pub fn opaque(dir: impl AsRef<[u8]>) -> Item {
    file([dir.as_ref(), b"/.wh..wh..opq"].concat(), b"")
}

/// One line, so that a failed property shows its layers readably.
impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Item { path, perm, uid, gid, mtime: Time { sec, nsec }, xattrs, kind } = self;
        let shown = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let kind = match kind {
            ItemKind::File { content, object } => format!("File({}, object: {object})", shown(content)),
            ItemKind::Symlink(target) => format!("Symlink({})", shown(target)),
            ItemKind::Hardlink(target) => format!("Hardlink({})", shown(target)),
            other => format!("{other:?}"),
        };
        write!(f, "'{}' {kind} {perm:o} {uid}:{gid} {sec}.{nsec:09}", shown(path))?;
        xattrs.iter().try_for_each(|(name, value)| write!(f, " {}={}", shown(name), shown(value)))
    }
}

impl Item {
    /// Sets the permission bits.
    pub fn perm(mut self, perm: u32) -> Self {
        self.perm = perm;
        self
    }

    /// Sets owner and group.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Sets the time.
    pub fn mtime(mut self, sec: i64, nsec: u32) -> Self {
        self.mtime = Time { sec, nsec };
        self
    }

    /// Adds an extended attribute.
    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
}

/// Builds a layer.
///
/// # Panics
/// If the items break a rule of layers.
pub fn layer(items: impl IntoIterator<Item = Item>) -> Layer {
    try_layer(items).expect("the items are a good layer")
}

/// Builds a layer of items that may break a rule.
///
/// # Errors
/// The item and the rule.
pub fn try_layer(items: impl IntoIterator<Item = Item>) -> Result<Layer, TreeError> {
    let items: Vec<Item> = items.into_iter().collect();
    let diff_id = DiffId(Digest::of(format!("{items:?}").as_bytes()));
    let mut tree = LayerTree::new();
    let (mut bodies, mut objects) = (Vec::new(), Vec::new());
    for item in &items {
        let kind = match &item.kind {
            ItemKind::Dir => MemberKind::Dir,
            ItemKind::File { content, object: false } => {
                let offset = bodies.len() as u64;
                bodies.extend_from_slice(content);
                MemberKind::File { body: Body::Inline { offset, len: content.len() as u64 }, sparse: false }
            }
            ItemKind::File { content, object: true } => {
                let digest = Digest::of(content);
                objects.push((digest, content.clone()));
                let len = content.len() as u64;
                let body = Body::Object { digest, len, allocated: len.next_multiple_of(4096) };
                MemberKind::File { body, sparse: false }
            }
            ItemKind::Symlink(target) => MemberKind::Symlink(target),
            ItemKind::Hardlink(target) => MemberKind::Hardlink(target),
            ItemKind::Char(dev) => MemberKind::Char(*dev),
            ItemKind::Block(dev) => MemberKind::Block(*dev),
            ItemKind::Fifo => MemberKind::Fifo,
            ItemKind::Socket => MemberKind::Socket,
        };
        let Item { path, perm, uid, gid, mtime, xattrs, .. } = item;
        let (perm, uid, gid, mtime, xattrs) = (*perm, *uid, *gid, *mtime, xattrs.clone());
        tree.add(Member { path, perm, uid, gid, mtime, xattrs, kind })?;
    }
    let index = Index::open(tree.into_index(diff_id)?).expect("what was written is an index");
    Ok(Layer { diff_id, index, bodies, objects })
}

/// Reads all that an index offers, past its ends too; returns a sum so that nothing is optimised away. For tests with mutated bytes.
pub fn read_everything<B: AsRef<[u8]>>(index: &Index<B>) -> u64 {
    let mut sum = u64::from(index.len()) + index.layers().count() as u64;
    sum += index.objects().map(|object| object.len & 1).sum::<u64>();
    for row in index.rows() {
        let slot = row.slot();
        let stat = row.stat();
        sum = sum.wrapping_add(stat.size ^ stat.blocks ^ u64::from(row.nlink()) ^ u64::from(stat.mode()));
        sum = sum.wrapping_add(format!("{row:?}").len() as u64);
        sum = sum.wrapping_add(index.xattrs(slot).map(|(name, value)| (name.len() + value.len()) as u64).sum());
        assert_eq!(index.xattr(slot, b""), None);
        let path = index.path(slot);
        assert_eq!(index.find(&path), Some(slot), "a row is found under its path");
        for alias in index.aliases(slot) {
            assert_eq!(index.resolve(alias), slot);
        }
        for child in index.children(slot) {
            let child = index.row(Slot(child)).expect("children are rows");
            assert_eq!(child.parent(), slot);
            assert_eq!(index.lookup(slot, child.name().expect("only the root has no name")), Some(child.slot()));
        }
        assert_eq!(index.lookup(slot, Name::new(&[0xff; 255]).expect("a good name")), None);
    }
    for past in [index.len(), u32::MAX] {
        assert!(index.row(Slot(past)).is_none() && index.children(Slot(past)).is_empty());
        assert!(index.xattrs(Slot(past)).next().is_none() && index.aliases(Slot(past)).next().is_none());
        assert_eq!(index.resolve(Slot(past)), Slot(past));
    }
    sum
}

/// Makes the checksum of an index's bytes right again, after a test has changed them.
pub fn reseal(bytes: &mut [u8]) {
    if let Some((head, rest)) = bytes.split_at_mut_checked(16) {
        head[8..].copy_from_slice(&xxhash_rust::xxh3::xxh3_64(rest).to_le_bytes());
    }
}
