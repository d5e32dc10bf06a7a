//! A layer being collected: the members of its tar in order, by the rules of OCI layers, then its index.
//!
//! ```
//! use layer::tree::{Body, LayerTree, Member, MemberKind};
//! use layer::{DiffId, Digest, Time};
//!
//! let mut tree = LayerTree::new();
//! tree.add(Member {
//!     path: b"./etc/hosts",
//!     perm: 0o644,
//!     uid: 0,
//!     gid: 0,
//!     mtime: Time { sec: 1_700_000_000, nsec: 0 },
//!     xattrs: vec![],
//!     kind: MemberKind::File { body: Body::Inline { offset: 0, len: 10 }, sparse: false },
//! })?;
//! tree.add(Member { path: b"etc/.wh.motd", kind: MemberKind::File { body: Body::EMPTY, sparse: false }, ..Member::default() })?;
//! let index: Vec<u8> = tree.into_index(DiffId(Digest::of(b"the whole tar stream")))?;
//! # layer::index::Index::open(index).unwrap();
//! # Ok::<(), layer::tree::TreeError>(())
//! ```
//!
//! The oracle is an unpacker that applies members in order to a real file system, as docker, podman and containerd do:
//!
//! - **Paths**: leading `/`, `./` and trailing `/` mean nothing; `..`, NUL and names over 255 bytes are refused. Missing
//!   parents are *implied* directories. A member below a symbolic link of the same layer goes where the link leads, inside
//!   the root (as in a chroot); below any other non-directory of the same layer it is refused.
//! - **Duplicates**: the last wins. A directory over a directory replaces its attributes and xattrs and keeps its entries;
//!   anything else replaces the entry and all below it. A directory that replaces a non-directory of the same layer hides
//!   what lower layers have there (the replaced entry had removed it).
//! - **Whiteouts** and opaque markers act before everything else, wherever they stand, and on lower layers only: an entry
//!   of the same name stays, and if it is a directory it is opaque. They count by name, whatever kind of member they are. `.wh.` alone
//!   and a member below a whiteout's name are refused; other `.wh..wh.` names (AUFS bookkeeping) are ignored with all below them.
//! - **Hard links**: to a name that is there, the same inode; else the target is looked for again when all members are known
//!   (a link may precede its target), and if this layer does not hold it, it is a *foreign link* for the fold to resolve. The attributes that
//!   a hard link's own header states are not applied. A link to itself, to a directory, to what this layer's whiteouts hide, in a circle, or with an absolute target is refused.
//! - **Extended attributes** with a meaning to union filesystems (`*.overlay.*`, `*.fuseoverlayfs.*`, `*.containers.override_stat`, `*.plyfs.*`)
//!   and `security.selinux` (the host's policy) are dropped; a character device 0:0 is refused.

mod emit;
mod refusal;

use std::collections::{BTreeMap, HashMap};

use crate::digest::{DiffId, Digest};
use crate::index::{Attributes, TARGET_MAX, XATTR_NAME_MAX, XATTR_SIZE_MAX};
use crate::name::{Name, NameBuf, TreePath};
use crate::stat::{Dev, Time};
use crate::whiteout::{self, Spelling};

pub use refusal::{Refusal, TreeError};

use emit::Emission;

/// One member of a layer's tar.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// The path as the tar spells it, whiteout names included.
    pub path: &'a [u8],
    /// Permission bits; higher bits are ignored.
    pub perm: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The last change of content.
    pub mtime: Time,
    /// Extended attributes (name, value), in any order; of two with one name the last counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What it is.
    pub kind: MemberKind<'a>,
}

/// What a member of a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind<'a> {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Where its content is.
        body: Body,
        /// It travelled, or is stored, with holes.
        sparse: bool,
    },
    /// A symbolic link with its target, as it is.
    Symlink(&'a [u8]),
    /// A further name for that path, relative to the layer's root.
    Hardlink(&'a [u8]),
    /// A character device.
    Char(Dev),
    /// A block device.
    Block(Dev),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
}

/// Where the content of a regular file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the layer's `bodies`.
    Inline {
        /// From the start of `bodies`, in bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// An object of the store.
    Object {
        /// The SHA-256 of the content.
        digest: Digest,
        /// In bytes, holes included.
        len: u64,
        /// What it takes on the disk, in bytes.
        allocated: u64,
    },
}

impl Body {
    /// The content of an empty file.
    pub const EMPTY: Body = Body::Inline { offset: 0, len: 0 };
}

/// A directory 0755 of root and of 1970, without a path: a start for struct update syntax.
impl Default for Member<'_> {
    fn default() -> Self {
        let Attributes { perm, uid, gid, mtime } = Attributes::UNSTATED;
        Member { path: b"", perm: perm.into(), uid, gid, mtime, xattrs: Vec::new(), kind: MemberKind::Dir }
    }
}

/// The members of one layer, collected in order.
///
/// Memory grows with the members, bounded by what the tar itself holds. After an error the tree is of no more use.
#[derive(Debug)]
pub struct LayerTree {
    inodes: Vec<Inode>,
    dirs: Vec<Directory>,
    xattr_sets: Vec<Xattrs>,
    xattr_numbers: HashMap<Xattrs, usize>,
    dropped_xattrs: u64,
    /// The directory of the member before: tars list a directory's entries together.
    last_dir: Option<(TreePath, DirNo)>,
    /// Names looked up on behalf of symbolic links: bounds the time that a hostile layer can take.
    symlink_steps: u64,
}

type Xattrs = std::sync::Arc<[(Vec<u8>, Vec<u8>)]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct InodeNo(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DirNo(u32);

const ROOT: DirNo = DirNo(0);
const ROOT_INODE: InodeNo = InodeNo(0);
/// As many as the kernel follows in one path (`MAXSYMLINKS`).
const MAX_SYMLINKS: usize = 40;
const MAX_SYMLINK_STEPS: u64 = 1 << 26;

#[derive(Debug)]
struct Inode {
    attributes: Attributes,
    /// A place in `xattr_sets`.
    xattrs: Option<usize>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Dir(DirNo),
    File {
        body: Body,
        sparse: bool,
    },
    Symlink(Box<[u8]>),
    Char(Dev),
    Block(Dev),
    Fifo,
    Socket,
    /// A hard link whose target was not there yet: decided when all members are known.
    Pending(TreePath),
}

#[derive(Debug)]
struct Directory {
    inode: InodeNo,
    parent: DirNo,
    /// `None` for the root.
    name: Option<NameBuf>,
    entries: BTreeMap<NameBuf, Entry>,
    opaque: bool,
    stated: bool,
}

/// What a name of a directory has: an entry, a whiteout for lower layers, or both.
#[derive(Debug, Default)]
struct Entry {
    inode: Option<InodeNo>,
    hides: bool,
}

/// What a member's path means.
enum Place<'a> {
    Root,
    Entry(DirNo, Name<'a>),
    Whiteout(DirNo, Name<'a>),
    Opaque(DirNo),
    Ignored,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    Create,
    Stop,
}

/// Where a walk ended.
enum Walk {
    At(DirNo),
    /// This directory is not in the layer.
    Absent(TreePath),
}

impl Default for LayerTree {
    fn default() -> Self {
        LayerTree::new()
    }
}

impl LayerTree {
    /// Begins a layer without members.
    pub fn new() -> Self {
        let root = Inode { attributes: Attributes::UNSTATED, xattrs: None, kind: Kind::Dir(ROOT) };
        let mut tree = LayerTree {
            inodes: vec![root],
            dirs: Vec::new(),
            xattr_sets: Vec::new(),
            xattr_numbers: HashMap::new(),
            dropped_xattrs: 0,
            last_dir: None,
            symlink_steps: 0,
        };
        tree.dirs.push(Directory::new(ROOT_INODE, ROOT, None));
        tree
    }

    /// Takes the next member of the tar.
    ///
    /// # Errors
    /// The member and the rule that it breaks.
    pub fn add(&mut self, member: Member<'_>) -> Result<(), TreeError> {
        let path = member.path;
        self.add_member(member).map_err(|why| TreeError { member: shown(path), why })
    }

    /// Returns how many extended attributes were dropped because they mean something to union filesystems or the host.
    pub fn dropped_xattrs(&self) -> u64 {
        self.dropped_xattrs
    }

    /// Returns the bytes of the layer's index: the same tree always gives the same bytes.
    ///
    /// # Errors
    /// A hard link that cannot be one now that all members are known; a tree that the format cannot hold.
    pub fn into_index(self, layer: DiffId) -> Result<Vec<u8>, TreeError> {
        Emission::new(&self, layer).run()
    }

    fn add_member(&mut self, member: Member<'_>) -> Result<(), Refusal> {
        let path = TreePath::parse(member.path).map_err(Refusal::Path)?;
        let split = path.split_last();
        let place = match &split {
            None => Place::Root,
            Some((parent, name)) => self.place(parent, *name)?,
        };
        match place {
            Place::Root => self.state_root(member),
            Place::Entry(dir, name) => self.add_entry(dir, name, member),
            Place::Whiteout(dir, name) => {
                self.entry(dir, name).hides = true;
                Ok(())
            }
            Place::Opaque(dir) => {
                self.dir_mut(dir).opaque = true;
                Ok(())
            }
            Place::Ignored => Ok(()),
        }
    }

    /// Finds the directory of a member, making what is missing, and reads what its name stands for.
    fn place<'a>(&mut self, parent: &TreePath, name: Name<'a>) -> Result<Place<'a>, Refusal> {
        for above in parent.names() {
            match whiteout::spelling(above) {
                Ok(Spelling::Plain(_)) => {}
                Ok(Spelling::Bookkeeping) => return Ok(Place::Ignored),
                _ => return Err(Refusal::BelowWhiteout(shown(above.as_bytes()))),
            }
        }
        let spelling = whiteout::spelling(name).map_err(Refusal::BareWhiteout)?;
        if spelling == Spelling::Bookkeeping {
            return Ok(Place::Ignored);
        }
        let dir = self.enter(parent)?;
        Ok(match spelling {
            Spelling::Plain(name) => Place::Entry(dir, name),
            Spelling::Whiteout(hidden) => Place::Whiteout(dir, hidden),
            Spelling::Opaque => Place::Opaque(dir),
            Spelling::Bookkeeping => Place::Ignored,
        })
    }

    fn enter(&mut self, path: &TreePath) -> Result<DirNo, Refusal> {
        if let Some((last, dir)) = &self.last_dir
            && last == path
        {
            return Ok(*dir);
        }
        match self.walk(path, Absent::Create)? {
            Walk::At(dir) => {
                self.last_dir = Some((path.clone(), dir));
                Ok(dir)
            }
            Walk::Absent(path) => Err(Refusal::BelowNonDirectory(shown(path.as_bytes()))),
        }
    }

    /// Walks down from the root as in a chroot, following symbolic links of this layer.
    fn walk(&mut self, path: &TreePath, absent: Absent) -> Result<Walk, Refusal> {
        let mut names = path.names();
        // What is left of the targets of symbolic links, last component first.
        let mut expanded: Vec<Vec<u8>> = Vec::new();
        let mut symlinks = 0;
        let mut dir = ROOT;
        loop {
            let step: std::borrow::Cow<'_, [u8]> = match expanded.pop() {
                Some(step) => step.into(),
                None => match names.next() {
                    Some(name) => name.as_bytes().into(),
                    None => return Ok(Walk::At(dir)),
                },
            };
            if *step == *b".." {
                dir = self.dir(dir).parent;
                continue;
            }
            let name = Name::new(&step).map_err(Refusal::Path)?;
            match self.dir(dir).inode_of(name).map(|inode| &self.inode(inode).kind) {
                Some(Kind::Dir(child)) => dir = *child,
                Some(Kind::Symlink(target)) => {
                    symlinks += 1;
                    if target.starts_with(b"/") {
                        dir = ROOT;
                    }
                    let before = expanded.len();
                    expanded.extend(components(target).rev().map(<[u8]>::to_vec));
                    self.symlink_steps += (expanded.len() - before) as u64;
                    if symlinks > MAX_SYMLINKS || self.symlink_steps > MAX_SYMLINK_STEPS {
                        return Err(Refusal::TooManySymlinks);
                    }
                }
                Some(_) => return Err(Refusal::BelowNonDirectory(shown(self.path_in(dir, name).as_bytes()))),
                None if absent == Absent::Stop => {
                    let mut rest = self.path_in(dir, name);
                    for step in expanded.iter().rev() {
                        rest.push(Name::new(step).map_err(Refusal::Path)?);
                    }
                    names.for_each(|name| rest.push(name));
                    return Ok(Walk::Absent(rest));
                }
                // Names of members were looked at before; this is for those in the targets of symbolic links.
                None if name.as_bytes().starts_with(whiteout::PREFIX) => {
                    return Err(Refusal::BelowWhiteout(shown(&step)));
                }
                None => dir = self.imply(dir, name),
            }
        }
    }

    fn imply(&mut self, parent: DirNo, name: Name<'_>) -> DirNo {
        let dir = DirNo(self.dirs.len() as u32);
        let inode = self.push(Inode { attributes: Attributes::UNSTATED, xattrs: None, kind: Kind::Dir(dir) });
        self.dirs.push(Directory::new(inode, parent, Some(name.to_buf())));
        self.entry(parent, name).inode = Some(inode);
        dir
    }

    fn state_root(&mut self, member: Member<'_>) -> Result<(), Refusal> {
        if member.kind != MemberKind::Dir {
            return Err(Refusal::Root);
        }
        self.state(ROOT, member)
    }

    /// Gives the directory the attributes of a member.
    fn state(&mut self, dir: DirNo, member: Member<'_>) -> Result<(), Refusal> {
        let attributes = attributes(&member)?;
        let xattrs = self.xattr_set(member.xattrs)?;
        let directory = self.dir_mut(dir);
        directory.stated = true;
        let inode = directory.inode;
        let inode = &mut self.inodes[inode.0 as usize];
        inode.attributes = attributes;
        inode.xattrs = xattrs;
        Ok(())
    }

    fn add_entry(&mut self, dir: DirNo, name: Name<'_>, member: Member<'_>) -> Result<(), Refusal> {
        let kind = match member.kind {
            MemberKind::Dir => return self.add_dir(dir, name, member),
            MemberKind::Hardlink(target) => return self.add_link(dir, name, target),
            MemberKind::File { body, sparse } => Kind::File { body: check_body(body)?, sparse },
            MemberKind::Symlink(target) => Kind::Symlink(check_target(target)?.into()),
            MemberKind::Char(Dev { major: 0, minor: 0 }) => return Err(Refusal::DeviceZero),
            MemberKind::Char(dev) => Kind::Char(dev),
            MemberKind::Block(dev) => Kind::Block(dev),
            MemberKind::Fifo => Kind::Fifo,
            MemberKind::Socket => Kind::Socket,
        };
        let attributes = attributes(&member)?;
        let xattrs = self.xattr_set(member.xattrs)?;
        let inode = self.push(Inode { attributes, xattrs, kind });
        self.replace(dir, name, inode);
        Ok(())
    }

    fn add_dir(&mut self, parent: DirNo, name: Name<'_>, member: Member<'_>) -> Result<(), Refusal> {
        let existing = self.dir(parent).inode_of(name);
        let dir = match existing.map(|inode| &self.inode(inode).kind) {
            Some(Kind::Dir(dir)) => *dir,
            Some(_) => {
                self.last_dir = None;
                let dir = self.imply(parent, name);
                // The entry that was here had removed what lower layers have under this name.
                self.dir_mut(dir).opaque = true;
                dir
            }
            None => self.imply(parent, name),
        };
        self.state(dir, member)
    }

    fn add_link(&mut self, dir: DirNo, name: Name<'_>, target: &[u8]) -> Result<(), Refusal> {
        if target.starts_with(b"/") {
            return Err(Refusal::AbsoluteLink(shown(target)));
        }
        let nowhere = || Refusal::LinkToNowhere(shown(target));
        let path = TreePath::parse(target).map_err(|why| Refusal::LinkPath { target: shown(target), why })?;
        if path.names().any(|name| name.as_bytes().starts_with(whiteout::PREFIX)) {
            return Err(nowhere());
        }
        let (parent, last) = path.split_last().ok_or_else(nowhere)?;
        let (found, real) = match self.walk(&parent, Absent::Stop) {
            Ok(Walk::At(dir)) => (self.dir(dir).inode_of(last), self.path_in(dir, last)),
            Ok(Walk::Absent(parent)) => (None, parent.join(last)),
            Err(Refusal::BelowNonDirectory(_) | Refusal::Path(_)) => return Err(nowhere()),
            Err(other) => return Err(other),
        };
        if is_at_or_below(&real, &self.path_in(dir, name)) {
            return Err(Refusal::LinkToItself);
        }
        let inode = match found {
            Some(inode) if matches!(self.inode(inode).kind, Kind::Dir(_)) => {
                return Err(Refusal::LinkToDirectory(shown(target)));
            }
            Some(inode) => inode,
            None => self.push(Inode { attributes: Attributes::UNSTATED, xattrs: None, kind: Kind::Pending(real) }),
        };
        self.replace(dir, name, inode);
        Ok(())
    }

    fn replace(&mut self, dir: DirNo, name: Name<'_>, inode: InodeNo) {
        if self.entry(dir, name).inode.replace(inode).is_some() {
            self.last_dir = None;
        }
    }

    fn xattr_set(&mut self, given: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Option<usize>, Refusal> {
        let mut set: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (name, value) in given {
            let good_name = (1..=XATTR_NAME_MAX).contains(&name.len()) && !name.contains(&0);
            if !good_name || value.len() > XATTR_SIZE_MAX {
                return Err(Refusal::Xattr(shown(&name)));
            }
            match is_foreign_xattr(&name) {
                true => self.dropped_xattrs += 1,
                false => {
                    set.insert(name, value);
                }
            }
        }
        if set.is_empty() {
            return Ok(None);
        }
        let set: Xattrs = set.into_iter().collect();
        if let Some(&number) = self.xattr_numbers.get(&set) {
            return Ok(Some(number));
        }
        self.xattr_numbers.insert(set.clone(), self.xattr_sets.len());
        self.xattr_sets.push(set);
        Ok(Some(self.xattr_sets.len() - 1))
    }

    fn push(&mut self, inode: Inode) -> InodeNo {
        self.inodes.push(inode);
        InodeNo((self.inodes.len() - 1) as u32)
    }

    fn inode(&self, number: InodeNo) -> &Inode {
        &self.inodes[number.0 as usize]
    }

    fn dir(&self, number: DirNo) -> &Directory {
        &self.dirs[number.0 as usize]
    }

    fn dir_mut(&mut self, number: DirNo) -> &mut Directory {
        &mut self.dirs[number.0 as usize]
    }

    fn entry(&mut self, dir: DirNo, name: Name<'_>) -> &mut Entry {
        self.dir_mut(dir).entries.entry(name.to_buf()).or_default()
    }

    fn path_in(&self, dir: DirNo, name: Name<'_>) -> TreePath {
        let mut names = vec![name];
        let mut at = self.dir(dir);
        while let Some(name) = &at.name {
            names.push(name.as_name());
            at = self.dir(at.parent);
        }
        let mut path = TreePath::root();
        names.into_iter().rev().for_each(|name| path.push(name));
        path
    }
}

impl Directory {
    fn new(inode: InodeNo, parent: DirNo, name: Option<NameBuf>) -> Self {
        Directory { inode, parent, name, entries: BTreeMap::new(), opaque: false, stated: false }
    }

    fn inode_of(&self, name: Name<'_>) -> Option<InodeNo> {
        self.entries.get(name.as_bytes())?.inode
    }
}

fn attributes(member: &Member<'_>) -> Result<Attributes, Refusal> {
    if member.mtime.nsec >= 1_000_000_000 {
        return Err(Refusal::Time(member.mtime.nsec));
    }
    Ok(Attributes { perm: (member.perm & 0o7777) as u16, uid: member.uid, gid: member.gid, mtime: member.mtime })
}

fn check_body(body: Body) -> Result<Body, Refusal> {
    let end = match body {
        // Where an empty body lies means nothing; one spelling keeps equal trees equal.
        Body::Inline { len: 0, .. } => return Ok(Body::EMPTY),
        Body::Inline { offset, len } => offset.checked_add(len),
        Body::Object { len, .. } => Some(len),
    };
    if end.is_some_and(|end| end <= i64::MAX as u64) { Ok(body) } else { Err(Refusal::Body) }
}

fn check_target(target: &[u8]) -> Result<&[u8], Refusal> {
    let good = (1..=TARGET_MAX).contains(&target.len()) && !target.contains(&0);
    if good { Ok(target) } else { Err(Refusal::SymlinkTarget) }
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|component| !matches!(*component, b"" | b"."))
}

fn is_at_or_below(path: &TreePath, top: &TreePath) -> bool {
    path.as_bytes().strip_prefix(top.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Tells whether an attribute would mean something to a union filesystem or to the host, and so must not come from an image.
fn is_foreign_xattr(name: &[u8]) -> bool {
    let Some(dot) = name.iter().position(|&b| b == b'.') else { return false };
    let inside = &name[dot + 1..];
    let union = [&b"overlay."[..], b"fuseoverlayfs.", b"plyfs."].iter().any(|prefix| inside.starts_with(prefix));
    union || inside == b"containers.override_stat" || name == b"security.selinux"
}

/// Makes outside bytes fit for a message.
fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 400;
    let text: String =
        String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).chars().flat_map(char::escape_debug).collect();
    if bytes.len() > LONGEST { text + "..." } else { text }
}
