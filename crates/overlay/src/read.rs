//! Reading the union: attributes, links, extended attributes, directories.

use std::ops::ControlFlow;
use std::sync::Arc;

use layer::{FileType, Ino, Name, Slot, Stat};

use crate::error::{Errno, Error, Result};
use crate::lower::Lower;
use crate::node::{Node, OpenBody, Place, ROOT, told_slot};
use crate::union::{At, Attr, Overlay};
use crate::upper::{StatFs, Target, Upper, UpperFile};

/// One entry of a directory of the union.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// The name, `.` and `..` included.
    pub name: &'a [u8],
    /// What programs see as `d_ino`.
    pub ino: Ino,
    /// The kind.
    pub kind: FileType,
    /// Go on behind it by giving this as `after`; below 2^62, the same for as long as the entry lives.
    pub cookie: u64,
    /// All attributes, if they were asked for; `None` for `.` and `..`.
    pub attr: Option<Attr>,
}

/// What a listing tells of each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Name, number and kind.
    Names,
    /// Attributes too; each entry taken counts as a lookup.
    Attrs,
}

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// Cookies of names that only the upper has; those of the lower are its own plus [`DOT_DOT`].
const UPPER: u64 = 1 << 33;
const MAX_LOWER: u64 = u32::MAX as u64;

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Returns attributes as programs see them: shown ids, the number `id`.
    pub(crate) fn shown(&self, stat: Stat, ino: Ino) -> Stat {
        let ids = &self.options.ids;
        Stat { ino, uid: ids.uid.shown(stat.uid), gid: ids.gid.shown(stat.gid), ..stat }
    }

    /// Returns the attributes of an inode.
    ///
    /// # Errors
    /// `ESTALE` for a number that was forgotten; faults.
    pub fn getattr(&self, id: Ino) -> Result<Attr> {
        match self.at(id)? {
            At::Lower(slot) => Ok(Attr { id, stat: self.shown(self.lower.stat(slot)?, id) }),
            At::Node(node) => {
                let _path = self.path.read();
                self.attr(&node)
            }
        }
    }

    /// Returns the attributes of a node; the caller holds the path lock.
    pub(crate) fn attr(&self, node: &Arc<Node<L, U>>) -> Result<Attr> {
        enum From {
            Lower,
            Upper,
            Gone(Box<Stat>),
        }
        let from = match &*node.place.read() {
            Place::Lower { .. } => From::Lower,
            Place::Upper(_) => From::Upper,
            Place::Gone(last) => From::Gone(Box::new(last.stat)),
        };
        match from {
            From::Lower => {
                let slot = node.slot.ok_or(Error::Answer(Errno::ESTALE))?;
                Ok(Attr { id: node.id, stat: self.shown(self.lower.stat(slot)?, node.shown) })
            }
            From::Upper => {
                let stat = self.with_inode(node, |upper, target| upper.stat(target))?;
                self.attr_from(node, stat)
            }
            From::Gone(stat) if let Some(heir) = node.heir.get() => {
                // The file's attributes, and the size of what can be read here.
                let live = self.attr(heir)?.stat;
                Ok(Attr { id: node.id, stat: Stat { size: stat.size, blocks: stat.blocks, ..live } })
            }
            From::Gone(mut stat) => {
                if let Some(file) = self.open_inode(node) {
                    let live = self.writable()?.stat(Target::File(&*file))?;
                    *stat = Stat { nlink: stat.nlink, ..live };
                }
                Ok(Attr { id: node.id, stat: self.shown(*stat, node.shown) })
            }
        }
    }

    /// Makes attributes of what the upper told: the union's number, link count, and blocks of a body that is below.
    pub(crate) fn attr_from(&self, node: &Arc<Node<L, U>>, mut stat: Stat) -> Result<Attr> {
        if node.kind == FileType::Dir {
            if let Some(slot) = node.slot {
                stat.nlink = self.dir_links(node, slot)?;
            }
        } else if let Place::Upper(up) = &*node.place.read() {
            if up.indexed {
                stat.nlink = (stat.nlink + up.lower_names).saturating_sub(1);
            }
            if let Some(slot) = up.body_below {
                stat.blocks = stat.blocks.max(self.lower.stat(slot)?.blocks);
            }
            if up.partial.is_some() {
                // One link is the upper's own note of it.
                stat.nlink = stat.nlink.saturating_sub(1);
            }
        }
        Ok(Attr { id: node.id, stat: self.shown(stat, node.shown) })
    }

    /// Counts the links of a merged directory: two, and one for each directory in it, whichever side it is from.
    fn dir_links(&self, node: &Arc<Node<L, U>>, slot: Slot) -> Result<u32> {
        let lower = self.lower.stat(slot)?.nlink;
        if lower < 2 {
            // A lower that does not count says 1, as the kernel's overlayfs does.
            return Ok(1);
        }
        self.with_names(node, |names| {
            let mut links = i64::from(lower);
            for (name, entry) in names.iter() {
                let below = match self.lower.lookup(slot, name)? {
                    Some(slot) => self.lower.stat(slot)?.kind == FileType::Dir,
                    None => false,
                };
                links += i64::from(entry.kind == Some(FileType::Dir)) - i64::from(below);
            }
            Ok(u32::try_from(links.max(2)).unwrap_or(u32::MAX))
        })
    }

    /// Returns the upper's open file of a node, if its body is open there.
    pub(crate) fn upper_file(&self, node: &Node<L, U>) -> Option<Arc<U::File>> {
        match &node.open.read().body {
            OpenBody::Upper(file) => Some(file.clone()),
            OpenBody::Partial(partial) => Some(partial.upper.clone()),
            _ => None,
        }
    }

    /// Calls `f` with an inode of the upper: by its open file if there is one, which needs no name to be looked up, else as
    /// [`Overlay::with_target`] does.
    fn with_inode<T>(&self, node: &Arc<Node<L, U>>, f: impl FnOnce(&U, Target<'_, U>) -> Result<T>) -> Result<T> {
        match self.upper_file(node) {
            Some(file) => f(self.writable()?, Target::File(&*file)),
            None => self.with_target(node, f),
        }
    }

    /// Returns the upper's inode of a node by a file that is open, also where the body is below and the names are gone.
    pub(crate) fn open_inode(&self, node: &Node<L, U>) -> Option<Arc<U::File>> {
        self.upper_file(node).or_else(|| match &*node.place.read() {
            Place::Gone(last) => last.file.clone(),
            _ => None,
        })
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` for anything else (readlink(2)).
    pub fn readlink(&self, id: Ino) -> Result<Vec<u8>> {
        let node = match self.at(id)? {
            At::Lower(slot) => return self.lower_target(slot),
            At::Node(node) => node,
        };
        if node.kind != FileType::Symlink {
            return Err(Errno::EINVAL.into());
        }
        if !node.in_upper() {
            return self.lower_target(node.slot.ok_or(Error::Answer(Errno::ENOENT))?);
        }
        let _path = self.path.read();
        self.with_target(&node, |upper, target| upper.link_target(target))
    }

    fn lower_target(&self, slot: Slot) -> Result<Vec<u8>> {
        match self.lower.stat(slot)?.kind {
            FileType::Symlink => Ok(self.lower.link_target(slot)?.into_owned()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    /// Returns one extended attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is none (getxattr(2)).
    pub fn xattr(&self, id: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let mut value = self.xattr_on_disk(id, name)?;
        if crate::acl::is_acl(name) && self.options.ids.is_mapped() {
            self.options.ids.acl_to_shown(&mut value);
        } else if name == crate::ids::CAPABILITIES && self.options.ids.is_mapped() {
            value = self.options.ids.capabilities_to_shown(value);
        }
        Ok(value)
    }

    fn xattr_on_disk(&self, id: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let slot = match self.at(id)? {
            At::Lower(slot) => slot,
            At::Node(node) if node.in_upper() => {
                let _path = self.path.read();
                return self.with_inode(&node, |upper, target| upper.xattr(target, name));
            }
            At::Node(node) if self.is_gone(&node) => match node.heir.get() {
                Some(heir) => return self.xattr_on_disk(heir.id, name),
                None => return self.last_xattr(&node, name),
            },
            At::Node(node) => node.slot.ok_or(Error::Answer(Errno::ENODATA))?,
        };
        match self.lower.xattr(slot, name)? {
            Some(value) => Ok(value.into_owned()),
            None => Err(Errno::ENODATA.into()),
        }
    }

    /// Returns the names of all extended attributes.
    ///
    /// # Errors
    /// Faults.
    pub fn xattr_names(&self, id: Ino) -> Result<Vec<Vec<u8>>> {
        let slot = match self.at(id)? {
            At::Lower(slot) => slot,
            At::Node(node) if node.in_upper() => {
                let _path = self.path.read();
                return self.with_target(&node, |upper, target| upper.xattr_names(target));
            }
            At::Node(node) if self.is_gone(&node) => match node.heir.get() {
                Some(heir) => return self.xattr_names(heir.id),
                None => return self.last_xattr_names(&node),
            },
            At::Node(node) => match node.slot {
                Some(slot) => slot,
                None => return Ok(Vec::new()),
            },
        };
        let mut names = Vec::new();
        self.lower.xattrs(slot, &mut |name, _| names.push(name.to_vec()))?;
        Ok(names)
    }

    /// Visits the entries of a directory behind the cookie `after` (0: from the start), until told to stop.
    ///
    /// Stateless: names made or removed meanwhile may or may not be seen; every other name is seen exactly once.
    /// # Errors
    /// `ENOTDIR`; faults.
    pub fn read_dir(
        &self,
        id: Ino,
        after: u64,
        detail: Detail,
        mut visit: impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let (node, slot) = match self.at(id)? {
            At::Lower(slot) => (None, Some(slot)),
            At::Node(node) => {
                let slot = node.slot;
                match node.kind {
                    FileType::Dir if node.in_upper() => (Some(node), slot),
                    FileType::Dir if matches!(&*node.place.read(), Place::Gone(_)) => return Ok(()),
                    FileType::Dir => (None, slot),
                    _ => return Err(Errno::ENOTDIR.into()),
                }
            }
        };
        let _path = node.as_ref().map(|_| self.path.read());
        if after < DOT_DOT && self.visit_dots(id, node.as_ref(), slot, after, &mut visit)?.is_break() {
            return Ok(());
        }
        if after < UPPER
            && let Some(slot) = slot
            && self.visit_lower(id, node.as_ref(), slot, after.saturating_sub(DOT_DOT), detail, &mut visit)?.is_break()
        {
            return Ok(());
        }
        match node {
            Some(node) => self.visit_upper(&node, after.saturating_sub(UPPER), detail, &mut visit),
            None => Ok(()),
        }
    }

    fn visit_dots(
        &self,
        id: Ino,
        node: Option<&Arc<Node<L, U>>>,
        slot: Option<Slot>,
        after: u64,
        visit: &mut impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let dot = |name, ino, cookie| DirEntry { name, ino, kind: FileType::Dir, cookie, attr: None };
        if after < DOT && visit(dot(b".", node.map_or(id, |node| node.shown), DOT)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let parent = match (node, slot) {
            _ if id == ROOT => ROOT,
            (Some(node), _) => match &*node.place.read() {
                Place::Upper(up) => up.names.first().map_or(ROOT, |(parent, _)| parent.shown),
                _ => ROOT,
            },
            (None, Some(slot)) => self.id_of(self.lower.parent(slot)?),
            (None, None) => ROOT,
        };
        Ok(visit(dot(b"..", parent, DOT_DOT)))
    }

    /// Visits the names that the lower has, at their lower position even when the upper has a copy: a name never moves.
    fn visit_lower(
        &self,
        id: Ino,
        node: Option<&Arc<Node<L, U>>>,
        slot: Slot,
        after: u64,
        detail: Detail,
        visit: &mut impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        if after >= MAX_LOWER {
            return Ok(ControlFlow::Continue(()));
        }
        let mut flow = ControlFlow::Continue(());
        let mut failed = None;
        self.lower.entries(slot, after, &mut |below| {
            let mut step = || -> Result<ControlFlow<()>> {
                let entry = match node {
                    Some(node) => self.with_names(node, |names| Ok(names.get(below.name)))?,
                    None => None,
                };
                let cookie = below.cookie + DOT_DOT;
                match (entry, node) {
                    (Some(entry), Some(node)) => match entry.kind {
                        None => Ok(ControlFlow::Continue(())),
                        Some(_) => self.visit_changed(node, below.name, entry.id, cookie, detail, visit),
                    },
                    _ => {
                        let attr = match detail {
                            Detail::Names => None,
                            Detail::Attrs => Some(self.lower_attr(id, below.slot, below.name)?),
                        };
                        let ino = attr.map_or_else(|| self.id_of(below.slot), |attr| attr.stat.ino);
                        let flow = visit(DirEntry { name: below.name.as_bytes(), ino, kind: below.kind, cookie, attr });
                        if let (Some(attr), ControlFlow::Continue(())) = (attr, flow) {
                            self.tell(attr.id);
                        }
                        Ok(flow)
                    }
                }
            };
            match step() {
                Ok(told) => flow = told,
                Err(error) => {
                    failed = Some(error);
                    flow = ControlFlow::Break(());
                }
            }
            flow
        })?;
        match failed {
            Some(error) => Err(error),
            None => Ok(flow),
        }
    }

    /// Visits the names that only the upper has.
    fn visit_upper(
        &self,
        node: &Arc<Node<L, U>>,
        after: u64,
        detail: Detail,
        visit: &mut impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        // A listing is a batch at a time, so that no lock is held while entries are looked at one by one.
        const BATCH: usize = 256;
        let mut after = after;
        loop {
            let batch = self.with_names(node, |names| {
                let next = names.after(after).take(BATCH);
                Ok(next.map(|(name, entry)| (name.to_buf(), entry)).collect::<Vec<_>>())
            })?;
            for (name, entry) in &batch {
                after = entry.seq;
                if entry.kind.is_none() {
                    continue;
                }
                if let Some(slot) = node.slot
                    && self.lower.lookup(slot, name.as_name())?.is_some()
                {
                    continue;
                }
                if self.visit_changed(node, name.as_name(), entry.id, UPPER + entry.seq, detail, visit)?.is_break() {
                    return Ok(());
                }
            }
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // one entry's facts, used in two places
    fn visit_changed(
        &self,
        parent: &Arc<Node<L, U>>,
        name: Name<'_>,
        id: Option<Ino>,
        cookie: u64,
        detail: Detail,
        visit: &mut impl FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let known = id.and_then(|id| self.nodes.get(id));
        if let (Detail::Names, Some(known)) = (detail, &known) {
            let (ino, kind) = (known.shown, known.kind);
            return Ok(visit(DirEntry { name: name.as_bytes(), ino, kind, cookie, attr: None }));
        }
        let (node, stat) = match self.upper_node(parent, name) {
            Ok(found) => found,
            // Removed since the batch was taken.
            Err(Error::Answer(Errno::ENOENT)) => return Ok(ControlFlow::Continue(())),
            Err(error) => return Err(error),
        };
        let attr = match detail {
            Detail::Names => None,
            Detail::Attrs => {
                self.learn(parent, name, node.id);
                Some(self.attr_from(&node, stat)?)
            }
        };
        let flow = visit(DirEntry { name: name.as_bytes(), ino: node.shown, kind: node.kind, cookie, attr });
        if attr.is_some() && flow.is_continue() {
            self.nodes.tell(told_slot(&node), Some(&node));
        } else {
            self.release_node(node);
        }
        Ok(flow)
    }

    /// Returns space and inodes of the upper's filesystem; `None` for a read-only union.
    ///
    /// # Errors
    /// Faults.
    pub fn statfs(&self) -> Result<Option<StatFs>> {
        self.upper.as_ref().map(Upper::statfs).transpose()
    }

    /// Tells whether an open body is in the upper; for front ends that keep state of their own.
    pub fn body_in_upper(&self, id: Ino) -> bool {
        self.nodes.get(id).is_some_and(|node| match &*node.place.read() {
            Place::Upper(up) => up.body_below.is_none(),
            _ => false,
        })
    }

    /// Tells whether a node has no name any more.
    pub(crate) fn is_gone(&self, node: &Node<L, U>) -> bool {
        matches!(&*node.place.read(), Place::Gone(_))
    }

    pub(crate) fn sync_file(&self, node: &Arc<Node<L, U>>, data_only: bool) -> Result<()> {
        let unnamed = node.unnamed.swap(false, std::sync::atomic::Ordering::Relaxed);
        let data_only = data_only && !unnamed;
        let synced = match self.upper_file(node) {
            Some(file) => file.sync(data_only),
            None if node.kind == FileType::File && node.in_upper() => {
                let _path = self.path.read();
                self.with_target(node, |upper, target| upper.open(target))?.sync(data_only)
            }
            None => Ok(()),
        };
        if synced.is_err() && unnamed {
            node.unnamed.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        synced
    }
}
