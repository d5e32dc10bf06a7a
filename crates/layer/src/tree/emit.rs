//! A finished layer becomes rows: hard links are settled, then everything is written breadth first.

use std::collections::{HashMap, VecDeque};

use super::{Body, DirNo, Entry, InodeNo, Kind, LayerTree, ROOT, ROOT_INODE, Refusal, TreeError, shown};
use crate::digest::DiffId;
use crate::index::{IndexKind, IndexWriter, NewData, NewRow, ObjectRow, WriteError, XattrSet};
use crate::name::{Name, TreePath};
use crate::stat::{LayerNo, Slot};

/// Turns a finished tree into rows, breadth first.
pub(super) struct Emission<'t> {
    tree: &'t LayerTree,
    writer: IndexWriter,
    /// The first row of each inode.
    slots: Vec<Option<Slot>>,
    xattr_sets: Vec<Option<XattrSet>>,
    /// Pending links that were met; `None` while one is being followed.
    links: HashMap<InodeNo, Option<Link>>,
    /// Directories whose children are still to come.
    dirs: VecDeque<OpenDir>,
}

/// What a hard link turned out to be.
#[derive(Clone, Copy)]
enum Link {
    /// That inode of this layer.
    Inode(InodeNo),
    /// The path of that pending inode, in lower layers.
    Foreign(InodeNo),
}

struct OpenDir {
    dir: DirNo,
    slot: Slot,
    /// Nothing of lower layers is seen here: whiteouts are of no use.
    covered: bool,
}

impl<'t> Emission<'t> {
    pub(super) fn new(tree: &'t LayerTree, layer: DiffId) -> Self {
        Emission {
            tree,
            writer: IndexWriter::new(IndexKind::Layer, vec![layer]),
            slots: vec![None; tree.inodes.len()],
            xattr_sets: vec![None; tree.xattr_sets.len()],
            links: HashMap::new(),
            dirs: VecDeque::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<Vec<u8>, TreeError> {
        let whole = |why| TreeError { member: String::new(), why: Refusal::Write(why) };
        let root = self.tree.dir(ROOT);
        let data = NewData::Dir { opaque: root.opaque, implied: !root.stated };
        let row = self.row(ROOT_INODE, data).map_err(whole)?;
        let slot = self.writer.push_root(&row).map_err(whole)?;
        self.dirs.push_back(OpenDir { dir: ROOT, slot, covered: root.opaque });
        while let Some(open) = self.dirs.pop_front() {
            for (name, entry) in &self.tree.dir(open.dir).entries {
                let name = name.as_name();
                self.entry(&open, name, entry).map_err(|why| {
                    let path = self.tree.path_in(open.dir, name);
                    TreeError { member: shown(path.as_bytes()), why }
                })?;
            }
        }
        self.writer.finish().map_err(whole)
    }

    fn entry(&mut self, open: &OpenDir, name: Name<'_>, entry: &Entry) -> Result<(), Refusal> {
        let Some(inode) = entry.inode else {
            if !open.covered {
                self.push(open.slot, name, ROOT_INODE, NewData::Whiteout)?;
            }
            return Ok(());
        };
        if let Kind::Dir(dir) = self.tree.inode(inode).kind {
            let directory = self.tree.dir(dir);
            let opaque = directory.opaque || entry.hides;
            // Behind a whiteout there is no lower directory whose attributes it could take.
            let implied = !directory.stated && !entry.hides;
            let slot = self.push(open.slot, name, inode, NewData::Dir { opaque, implied })?;
            self.dirs.push_back(OpenDir { dir, slot, covered: open.covered || opaque });
            return Ok(());
        }
        match self.link(inode)? {
            Link::Inode(inode) => self.leaf(open.slot, name, inode),
            Link::Foreign(pending) => self.foreign(open.slot, name, pending),
        }
    }

    fn leaf(&mut self, parent: Slot, name: Name<'_>, number: InodeNo) -> Result<(), Refusal> {
        let tree = self.tree;
        if let Some(first) = self.slots[number.0 as usize] {
            self.push(parent, name, number, NewData::Alias(first))?;
            return Ok(());
        }
        let data = match &tree.inode(number).kind {
            Kind::File { body: Body::Inline { offset, len }, sparse } => {
                NewData::Inline { offset: *offset, len: *len, sparse: *sparse }
            }
            Kind::File { body: Body::Object { digest, len, allocated }, sparse } => NewData::Object {
                object: ObjectRow { digest: *digest, len: *len, allocated: *allocated },
                sparse: *sparse,
            },
            Kind::Symlink(target) => NewData::Symlink(target),
            Kind::Char(dev) => NewData::Char(*dev),
            Kind::Block(dev) => NewData::Block(*dev),
            Kind::Fifo => NewData::Fifo,
            Kind::Socket => NewData::Socket,
            // `entry` has sent these elsewhere.
            Kind::Dir(_) | Kind::Pending(_) => return Ok(()),
        };
        let slot = self.push(parent, name, number, data)?;
        self.slots[number.0 as usize] = Some(slot);
        Ok(())
    }

    fn foreign(&mut self, parent: Slot, name: Name<'_>, pending: InodeNo) -> Result<(), Refusal> {
        if let Kind::Pending(path) = &self.tree.inode(pending).kind {
            self.push(parent, name, ROOT_INODE, NewData::ForeignLink(path.as_bytes()))?;
        }
        Ok(())
    }

    fn push(&mut self, parent: Slot, name: Name<'_>, inode: InodeNo, data: NewData<'_>) -> Result<Slot, Refusal> {
        let row = self.row(inode, data).map_err(Refusal::Write)?;
        self.writer.push(parent, name, &row).map_err(Refusal::Write)
    }

    /// Makes a row; sets of xattrs are numbered in the order of their first rows, whatever order the members came in.
    fn row<'d>(&mut self, number: InodeNo, data: NewData<'d>) -> Result<NewRow<'d>, WriteError> {
        let inode = self.tree.inode(number);
        let is_inode = !matches!(data, NewData::Alias(_) | NewData::Whiteout | NewData::ForeignLink(_));
        let xattrs = match inode.xattrs {
            Some(set) if is_inode => self.write_xattrs(set)?,
            _ => XattrSet::NONE,
        };
        Ok(NewRow { attributes: inode.attributes, layer: LayerNo(0), xattrs, data })
    }

    fn write_xattrs(&mut self, set: usize) -> Result<XattrSet, WriteError> {
        if let Some(written) = self.xattr_sets[set] {
            return Ok(written);
        }
        let pairs = self.tree.xattr_sets[set].iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        let written = self.writer.xattr_set(pairs)?;
        self.xattr_sets[set] = Some(written);
        Ok(written)
    }

    /// Follows hard links to members that came later, each once.
    fn link(&mut self, first: InodeNo) -> Result<Link, Refusal> {
        let mut chain = Vec::new();
        let mut at = first;
        let end = loop {
            let Kind::Pending(path) = &self.tree.inode(at).kind else { break Link::Inode(at) };
            match self.links.get(&at) {
                Some(Some(known)) => break *known,
                Some(None) => return Err(Refusal::LinkCircle(shown(path.as_bytes()))),
                None => {}
            }
            match self.target(path)? {
                Some(target) if target != at => {
                    self.links.insert(at, None);
                    chain.push(at);
                    at = target;
                }
                // Its target is itself where that name was linked to it later: as on a disk, both are the lower's file.
                _ => {
                    chain.push(at);
                    break Link::Foreign(at);
                }
            }
        };
        self.links.extend(chain.into_iter().map(|link| (link, Some(end))));
        Ok(end)
    }

    /// Finds a path in the finished layer; `None` if only lower layers can have it.
    fn target(&self, path: &TreePath) -> Result<Option<InodeNo>, Refusal> {
        let mut dir = self.tree.dir(ROOT);
        let mut names = path.names().peekable();
        let mut hidden = false;
        while let Some(name) = names.next() {
            hidden |= dir.opaque;
            let entry = dir.entries.get(name.as_bytes());
            hidden |= entry.is_some_and(|entry| entry.hides);
            let Some(inode) = entry.and_then(|entry| entry.inode) else {
                return if hidden { Err(Refusal::LinkToHidden(shown(path.as_bytes()))) } else { Ok(None) };
            };
            match (&self.tree.inode(inode).kind, names.peek()) {
                (Kind::Dir(child), Some(_)) => dir = self.tree.dir(*child),
                (Kind::Dir(_), None) => return Err(Refusal::LinkToDirectory(shown(path.as_bytes()))),
                (_, None) => return Ok(Some(inode)),
                (_, Some(_)) => return Err(Refusal::LinkToNowhere(shown(path.as_bytes()))),
            }
        }
        Ok(None)
    }
}
