//! A store's layers side by side, each as a directory: what containers/storage calls an additional layer store.
//!
//! `DIR/<base64 of the image's name>/<digest>/` (or `DIR/<digest>/`) holds `diff`, the layer's own tree with deletions as the kernel's
//! overlayfs spells them; `info`, what the borrower is to note of the layer; and `blob`, the layer as one file. A borrower begins to use
//! a layer by making a file `use` there, and ends by removing the directory; both are answered `ENOENT`, which tells it that this was
//! understood (containers/storage, drivers/overlay/overlay.go). Nothing else can be changed.
//!
//! Node numbers are made of a place (one for each path at which a layer was found, because a directory has one name) and a row of the
//! layer's index. What is found stays known until the daemon ends; the layers themselves are mapped, not read.

mod requests;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backing::bodies::StoreBodies;
use backing::mmap::Map;
use layer::index::{Index, IndexKind, Row, RowData};
use layer::{Dev, DiffId, Digest, FileType, Ino, Slot, Stat, Time};
use overlay::folded::Bodies;
use overlay::{Errno, LowerFile};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags};

use crate::options::{LowerDirs, StoreDirs};
use crate::{Failure, Program, daemon, options};

/// How many image names are remembered; whoever may look in is the superuser of the mount.
const NAMES_MAX: usize = 1 << 16;

/// Where a shelf's layers come from, and who keeps them.
pub trait Lender: Send + Sync + 'static {
    /// Finds the layer that some image names by `digest`; `None` where there is none.
    ///
    /// # Errors
    /// One line, for the log.
    fn find(&self, digest: &Digest) -> Result<Option<Offer>, Failure>;

    /// Opens the blob of an offer, of [`Offer::blob_len`] bytes; may take long.
    ///
    /// # Errors
    /// One line, for the log.
    fn blob(&self, offer: &Offer) -> Result<File, Failure>;

    /// Notes that somebody begins to use a layer: it must stay.
    ///
    /// # Errors
    /// One line, for the log.
    fn begin_use(&self, offer: &Offer) -> Result<(), Failure>;

    /// Notes that somebody ends to use a layer.
    ///
    /// # Errors
    /// One line, for the log.
    fn end_use(&self, offer: &Offer) -> Result<(), Failure>;
}

/// A layer on offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The layer.
    pub layer: DiffId,
    /// What an image names it by.
    pub digest: Digest,
    /// The content of `info`.
    pub info: Vec<u8>,
    /// The length of `blob`, in bytes.
    pub blob_len: u64,
}

/// Mounts the layers of a store on `target`, and serves them until the mount ends or a signal says so.
///
/// # Errors
/// One line; nothing is left mounted.
pub fn serve(target: &Path, dirs: StoreDirs, lender: impl Lender) -> Result<(), Failure> {
    let shelf = Shelf::new(lender, &dirs);
    let mut options = options::Options::of_layers(target, dirs)?;
    options.mount.fsname = Some("plyfs-layers".into());
    daemon::run_in_foreground(options, Program::Mountd, |options, daemon| daemon.serve(options, shelf, |_| ()))
}

struct Shelf<L> {
    lender: Arc<L>,
    layers: PathBuf,
    objects: PathBuf,
    /// The attribute by which a directory hides what is below.
    mark: &'static [u8],
    owner: (u32, u32),
    known: RwLock<Known>,
    open: Arc<OpenFiles>,
}

/// Files that are open, by handle; 0 is no handle.
#[derive(Default)]
struct OpenFiles {
    files: Mutex<HashMap<u64, Arc<File>>>,
    last: AtomicU64,
}

impl OpenFiles {
    fn keep(&self, file: File) -> u64 {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.files.lock().insert(handle, Arc::new(file));
        handle
    }
}

/// What was looked up.
#[derive(Default)]
struct Known {
    /// Directories for images' names.
    names: Vec<OsString>,
    places: Vec<Arc<Place>>,
}

/// A layer at one path.
struct Place {
    /// The node of the directory that it is in.
    parent: u64,
    offer: Offer,
    index: Index<Map>,
    bodies: StoreBodies,
}

/// What a node number means.
enum Node {
    Root,
    Name,
    Dir(u64, Arc<Place>),
    Info(Arc<Place>),
    Blob(Arc<Place>),
    Row(u64, Arc<Place>, Slot),
}

const ROOT: u64 = 1;
const FIRST_NAME: u64 = 2;
/// In the low half of a number: the layer's directory is 0, a row its number + 1.
const INFO: u64 = u32::MAX as u64;
const BLOB: u64 = INFO - 1;

fn number(place: usize, low: u64) -> u64 {
    (place as u64 + 1) << 32 | low
}

/// Name and value of an extended attribute.
type Xattr = (Vec<u8>, Vec<u8>);

impl<L: Lender> Shelf<L> {
    fn new(lender: L, dirs: &StoreDirs) -> Self {
        let root = rustix::process::geteuid().is_root();
        // An ordinary user's overlayfs is mounted with userxattr; root's in a user namespace too.
        let whole = std::fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().nth(2) == Some("4294967295"));
        Shelf {
            lender: Arc::new(lender),
            layers: dirs.layers.clone(),
            objects: dirs.objects.clone(),
            mark: if root && whole { b"trusted.overlay.opaque" } else { b"user.overlay.opaque" },
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            known: RwLock::default(),
            open: Arc::default(),
        }
    }

    fn node(&self, ino: u64) -> Result<Node, Errno> {
        let known = self.known.read();
        let Some(place) = (ino >> 32).checked_sub(1) else {
            return match ino {
                ROOT => Ok(Node::Root),
                _ => match ino.checked_sub(FIRST_NAME) {
                    Some(at) if at < known.names.len() as u64 => Ok(Node::Name),
                    _ => Err(Errno::ENOENT),
                },
            };
        };
        let at = usize::try_from(place).ok().and_then(|n| known.places.get(n)).cloned().ok_or(Errno::ENOENT)?;
        let first = number(place as usize, 0);
        match ino & u64::from(u32::MAX) {
            0 => Ok(Node::Dir(first, at)),
            INFO => Ok(Node::Info(at)),
            BLOB => Ok(Node::Blob(at)),
            low => Ok(Node::Row(first, at, Slot((low - 1) as u32))),
        }
    }

    /// Looks a name up in a directory of ours; the node's number.
    fn find(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        let text = name.to_str().ok_or(Errno::ENOENT)?;
        match self.node(parent)? {
            Node::Root => match text.parse() {
                Ok(digest) => self.place(parent, &digest),
                Err(_) if is_base64(text) => self.name(name),
                Err(_) => Err(Errno::ENOENT),
            },
            Node::Name => self.place(parent, &text.parse().map_err(|_| Errno::ENOENT)?),
            Node::Dir(first, _) => match text {
                "diff" => Ok(first + 1),
                "info" => Ok(first + INFO),
                "blob" => Ok(first + BLOB),
                _ => Err(Errno::ENOENT),
            },
            Node::Info(_) | Node::Blob(_) | Node::Row(..) => Err(Errno::ENOTDIR),
        }
    }

    fn name(&self, name: &OsStr) -> Result<u64, Errno> {
        let mut known = self.known.write();
        let at = match known.names.iter().position(|known| known == name) {
            Some(at) => at,
            None if known.names.len() == NAMES_MAX => return Err(Errno::ENOSPC),
            None => {
                known.names.push(name.to_owned());
                known.names.len() - 1
            }
        };
        Ok(FIRST_NAME + at as u64)
    }

    fn place(&self, parent: u64, digest: &Digest) -> Result<u64, Errno> {
        let offer = self.lender.find(digest).map_err(|failure| fault(&failure))?.ok_or(Errno::ENOENT)?;
        let same = |place: &Arc<Place>| place.parent == parent && place.offer == offer;
        if let Some(at) = self.known.read().places.iter().position(same) {
            return Ok(number(at, 0));
        }
        let opened = self.open_layer(parent, offer).map_err(|failure| fault(&failure))?;
        let mut known = self.known.write();
        known.places.push(Arc::new(opened));
        Ok(number(known.places.len() - 1, 0))
    }

    fn open_layer(&self, parent: u64, offer: Offer) -> Result<Place, Failure> {
        let path = self.layers.join(offer.layer.0.hex()).join("index");
        let on = |what: &dyn std::fmt::Display| Failure::new(format!("index {}: {what}", path.display()));
        let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let map = file.and_then(Map::of).map_err(|errno| on(&errno))?;
        let index = Index::open(map).map_err(|why| on(&why))?;
        if index.kind() != IndexKind::Layer {
            return Err(on(&"it is not one layer's"));
        }
        let bodies = StoreBodies::open(&self.layers, &self.objects, [offer.layer])?;
        Ok(Place { parent, offer, index, bodies })
    }

    fn stat(&self, ino: u64) -> Result<Stat, Errno> {
        Ok(match self.node(ino)? {
            // What is below may be opened by whoever could open it in a container.
            Node::Root => self.own(ino, FileType::Dir, 0o700, 0),
            Node::Name | Node::Dir(..) => self.own(ino, FileType::Dir, 0o755, 0),
            Node::Info(place) => self.own(ino, FileType::File, 0o444, place.offer.info.len() as u64),
            Node::Blob(place) => self.own(ino, FileType::File, 0o400, place.offer.blob_len),
            Node::Row(first, place, slot) => {
                let row = place.row(slot)?;
                Stat { ino: Ino(first + u64::from(row.slot().0) + 1), ..of_row(&row) }
            }
        })
    }

    fn own(&self, ino: u64, kind: FileType, perm: u16, size: u64) -> Stat {
        Stat {
            ino: Ino(ino),
            kind,
            perm,
            nlink: if kind == FileType::Dir { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: Dev::default(),
            size,
            blocks: size.div_ceil(512),
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
        }
    }

    /// The extended attributes of a node.
    fn xattrs(&self, ino: u64) -> Result<Vec<Xattr>, Errno> {
        let Node::Row(_, place, slot) = self.node(ino)? else { return Ok(Vec::new()) };
        let row = place.row(slot)?;
        if matches!(row.data(), RowData::Whiteout) {
            return Ok(Vec::new());
        }
        let of_layer = place.index.xattrs(row.slot()).filter(|(name, _)| !is_mark(name));
        let mut all: Vec<_> = of_layer.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        // The layer itself begins where nothing is below.
        if row.is_opaque() && row.slot() != Slot(0) {
            all.push((self.mark.to_vec(), b"y".to_vec()));
        }
        Ok(all)
    }

    /// Opens a file for reading; `None` where every read finds it by itself.
    fn open_file(&self, node: &Node) -> Result<Option<File>, Errno> {
        match node {
            Node::Info(_) => Ok(None),
            Node::Row(_, place, slot) => match place.row(*slot)?.data() {
                RowData::Inline { .. } => Ok(None),
                RowData::Object(object) => {
                    let file = place.bodies.object(&object.digest).map_err(|error| logged(&error))?;
                    let fd = file.fd().and_then(|fd| fd.try_clone_to_owned().ok()).ok_or(Errno::EIO)?;
                    Ok(Some(File::from(fd)))
                }
                RowData::Dir { .. } => Err(Errno::EISDIR),
                _ => Err(Errno::EINVAL),
            },
            _ => Err(Errno::EISDIR),
        }
    }

    /// Calls `give` with the bytes of a file that needs no descriptor.
    fn with_bytes<T>(&self, ino: u64, give: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
        match self.node(ino)? {
            Node::Info(place) => Ok(give(&place.offer.info)),
            Node::Row(_, place, slot) => {
                let row = place.row(slot)?;
                let RowData::Inline { offset } = row.data() else { return Err(Errno::EIO) };
                if row.size() == 0 {
                    return Ok(give(b""));
                }
                let bodies = place.bodies.bodies(row.layer()).map_err(|error| logged(&error))?;
                let end = offset.saturating_add(row.size());
                let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
                range.and_then(|(start, end)| bodies.get(start..end)).map(give).ok_or(Errno::EIO)
            }
            _ => Err(Errno::EIO),
        }
    }

    /// Says that a layer's use begins, if that is what making `name` in `parent` means.
    fn begins(&self, parent: u64, name: &OsStr) -> Option<Errno> {
        let Ok(Node::Dir(_, place)) = self.node(parent) else { return None };
        (name == "use").then(|| match self.lender.begin_use(&place.offer) {
            Ok(()) => Errno::ENOENT,
            Err(failure) => fault(&failure),
        })
    }

    /// Says that a layer's use ends, if that is what removing the directory `name` in `parent` means.
    fn ends(&self, parent: u64, name: &OsStr) -> Option<Errno> {
        let node = self.find(parent, name).and_then(|ino| self.node(ino));
        let Ok(Node::Dir(_, place)) = node else { return None };
        Some(match self.lender.end_use(&place.offer) {
            Ok(()) => Errno::ENOENT,
            Err(failure) => fault(&failure),
        })
    }
}

impl Place {
    fn row(&self, slot: Slot) -> Result<Row<'_>, Errno> {
        self.index.row(slot).map(|row| row.resolve()).ok_or(Errno::ENOENT)
    }
}

/// The attributes that a row has in its layer's directory: a whiteout is a character device 0:0.
fn of_row(row: &Row<'_>) -> Stat {
    match row.data() {
        RowData::Whiteout => {
            Stat { kind: FileType::Char, perm: 0, nlink: 1, rdev: Dev::default(), size: 0, ..row.stat() }
        }
        _ => row.stat(),
    }
}

/// A layer's own attributes of that kind would mean something else here.
fn is_mark(name: &[u8]) -> bool {
    [&b"trusted.overlay."[..], b"user.overlay.", b"user.fuseoverlayfs.", b"user.containers.override_stat"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    let digit = |c: u8| c.is_ascii_alphanumeric() || c == b'+';
    !digits.is_empty() && text.len().is_multiple_of(4) && text.len() - digits.len() < 3 && digits.bytes().all(digit)
}

fn fault(failure: &Failure) -> Errno {
    log::error!("{failure}");
    Errno::EIO
}

fn logged(error: &overlay::Error) -> Errno {
    log::error!("{error}");
    error.errno()
}

impl options::Options {
    /// The options of a mount that shows a store's layers side by side.
    ///
    /// # Errors
    /// The target cannot be written as a word.
    fn of_layers(target: &Path, dirs: StoreDirs) -> Result<Self, Failure> {
        let words: [&OsStr; 5] =
            ["-f".as_ref(), "-o".as_ref(), "lowerdir=/".as_ref(), "--".as_ref(), target.as_os_str()];
        match options::parse(&words)? {
            options::Call::Mount(options) => Ok(options::Options { lower: LowerDirs::Layers(dirs), ..*options }),
            _ => Err(Failure::new("no mount")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_told_from_other_names() {
        for name in ["bG9jYWxob3N0OjUwMDAvcmVkaXM6bGF0ZXN0", "YQ==", "YWI=", "YWJj"] {
            assert!(is_base64(name), "{name}");
        }
        for name in ["", "====", "a", "YQ=", "Y===", ".git", "a/b="] {
            assert!(!is_base64(name), "{name}");
        }
    }

    #[test]
    fn marks_of_the_layer_itself_are_not_shown() {
        assert!(is_mark(b"trusted.overlay.redirect"));
        assert!(!is_mark(b"user.comment"));
        assert!(!is_mark(b"security.capability"));
    }
}
