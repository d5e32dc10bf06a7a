//! Folds a stack of layers into one tree, once, so that nothing later needs to know how many layers there were.
//!
//! The oracle is an unpacker that applies the layers in order to a real file system:
//!
//! - The topmost layer that has a name decides. A whiteout hides it, a non-directory replaces all below it, a directory
//!   merges with the directories straight below it, down to the first that is opaque, or to anything else.
//! - A directory has the attributes and xattrs of the topmost layer that states it; a layer that only has something in it
//!   leaves them as they are. A directory that no layer states is 0755, root's, of 1970.
//! - Hard links: a group is an inode of one layer. A name that a higher layer states anew leaves its group, and the others
//!   stay. A foreign link joins the group that its target has in what lies *below its layer*; intermediate symbolic links
//!   are followed there as in a chroot, the last never. Link counts are of the names that are left.
//!
//! All is breadth first over lists of directories that merge, without recursion: time and memory grow with the entries.

use std::collections::{HashMap, VecDeque};

use layer::index::{Attributes, Index, IndexKind, IndexWriter, NewData, NewRow, Row, RowData, WriteError, XattrSet};
use layer::{DiffId, LayerNo, Name, Slot, TreePath};

/// Why layers cannot be folded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// More than 65,535.
    #[error("{0} layers are too many")]
    TooManyLayers(usize),
    /// A folded index where a layer's is wanted.
    #[error("layer {0} is a folded index, not a layer's")]
    NotALayer(usize),
    /// A hard link to something that is not in the layers below.
    #[error("layer {diff_id}: hard link '{path}' to '{target}': {why}")]
    Link {
        /// The layer that holds the link.
        diff_id: DiffId,
        /// The link's name in that layer.
        path: TreePath,
        /// Its target.
        target: String,
        /// What is wrong.
        why: LinkFault,
    },
    /// The result does not fit into an index.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What is wrong with a hard link's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// Absent, or hidden by a whiteout, in the layers below.
    #[error("no such file in the layers below")]
    Missing,
    /// Directories have one name.
    #[error("it is a directory in the layers below")]
    Directory,
    /// Too many symbolic links, or too long a search in all.
    #[error("too many symbolic links")]
    TooFar,
}

/// Folds `layers`, base first, into the bytes of a folded index: the same layers always give the same bytes.
///
/// # Errors
/// [`FoldError`], which names the layer and the entry.
pub fn fold<B: AsRef<[u8]>>(layers: &[&Index<B>]) -> Result<Vec<u8>, FoldError> {
    if layers.len() > usize::from(u16::MAX) {
        return Err(FoldError::TooManyLayers(layers.len()));
    }
    if let Some(n) = layers.iter().position(|index| index.kind() != IndexKind::Layer) {
        return Err(FoldError::NotALayer(n));
    }
    let stack = Stack { layers };
    let links = Links::resolve(&stack)?;
    let diff_ids = layers.iter().flat_map(|index| index.layers()).collect();
    let writer = IndexWriter::new(IndexKind::Folded, diff_ids);
    Ok(Fold { stack, links, writer, groups: HashMap::new(), dirs: VecDeque::new() }.run()?)
}

/// A row of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin {
    layer: LayerNo,
    slot: Slot,
}

/// The directories that are one in the merged tree, topmost first.
type Parts = Vec<Origin>;

struct Stack<'a, B> {
    layers: &'a [&'a Index<B>],
}

impl<'a, B: AsRef<[u8]>> Stack<'a, B> {
    fn index(&self, origin: Origin) -> &'a Index<B> {
        self.layers[usize::from(origin.layer.0)]
    }

    fn row(&self, origin: Origin) -> Row<'a> {
        self.index(origin).row(origin.slot).expect("an origin is a row that its layer gave out")
    }

    /// Returns the roots of the layers below `limit`, topmost first.
    fn roots(&self, limit: usize) -> Parts {
        (0..limit as u16).rev().map(|layer| Origin { layer: LayerNo(layer), slot: Slot(0) }).collect()
    }

    /// Returns which of the rows of one name, topmost first, are directories that merge.
    fn parts(&self, candidates: &[Origin]) -> Parts {
        let mut parts = Parts::new();
        for &origin in candidates {
            let row = self.row(origin);
            if !matches!(row.data(), RowData::Dir { .. }) {
                break;
            }
            parts.push(origin);
            if row.is_opaque() {
                break;
            }
        }
        parts
    }

    /// Returns the directory that states the attributes of the directory that `candidates` are, if one does.
    ///
    /// An opaque directory hides what is in those below it, not what they are: the search goes on past it.
    fn stated(&self, candidates: &[Origin]) -> Option<Origin> {
        let is_dir = |origin: &Origin| matches!(self.row(*origin).data(), RowData::Dir { .. });
        candidates.iter().copied().take_while(is_dir).find(|&origin| !self.row(origin).is_implied())
    }
}

/// Where the foreign links of all layers lead.
#[derive(Default)]
struct Links {
    ends: HashMap<Origin, Origin>,
    /// Names looked up: bounds the time that hostile layers can take.
    steps: u64,
}

/// As many as the kernel follows in one path (`MAXSYMLINKS`).
const MAX_SYMLINKS: usize = 40;
const MAX_STEPS: u64 = 1 << 28;

impl Links {
    /// Resolves every foreign link, base layer first, so that a link to a link finds that one's end.
    ///
    /// Those that a higher layer hides as well: an unpacker meets them.
    fn resolve<B: AsRef<[u8]>>(stack: &Stack<'_, B>) -> Result<Self, FoldError> {
        let mut links = Links::default();
        for (layer, index) in stack.layers.iter().enumerate() {
            for row in index.rows() {
                let RowData::ForeignLink(target) = row.data() else { continue };
                let origin = Origin { layer: LayerNo(layer as u16), slot: row.slot() };
                let end = links.find_below(stack, layer, target).map_err(|why| FoldError::Link {
                    diff_id: index.layers().next().expect("a layer index tells its layer"),
                    path: index.path(row.slot()),
                    target: String::from_utf8_lossy(target).escape_debug().take(400).collect(),
                    why,
                })?;
                links.ends.insert(origin, end);
            }
        }
        Ok(links)
    }

    /// Returns the row of the inode that a non-directory row leads to.
    fn inode(&self, origin: Origin, row: &Row<'_>) -> Origin {
        match row.data() {
            RowData::Alias(slot) => Origin { slot, ..origin },
            RowData::ForeignLink(_) => *self.ends.get(&origin).expect("every foreign link was resolved"),
            _ => origin,
        }
    }

    /// Finds the inode that `target` leads to in the tree of the layers below `limit`.
    fn find_below<B: AsRef<[u8]>>(
        &mut self,
        stack: &Stack<'_, B>,
        limit: usize,
        target: &[u8],
    ) -> Result<Origin, LinkFault> {
        let roots = stack.roots(limit);
        // The directories from the root down to where the walk is, for `..` in the targets of symbolic links.
        let mut trail = vec![stack.parts(&roots)];
        let mut rest: Vec<&[u8]> = target.split(|&b| b == b'/').rev().collect();
        let mut symlinks = 0;
        while let Some(step) = rest.pop() {
            if step == b".." {
                trail.truncate(trail.len().saturating_sub(1).max(1));
                continue;
            }
            let name = Name::new(step).map_err(|_| LinkFault::Missing)?;
            let candidates = self.candidates(stack, &trail, name)?;
            let top = *candidates.first().ok_or(LinkFault::Missing)?;
            let row = stack.row(top);
            match row.data() {
                RowData::Whiteout => return Err(LinkFault::Missing),
                RowData::Dir { .. } if rest.is_empty() => return Err(LinkFault::Directory),
                RowData::Dir { .. } => trail.push(stack.parts(&candidates)),
                _ if rest.is_empty() => return Ok(self.inode(top, &row)),
                _ => match stack.row(self.inode(top, &row)).data() {
                    RowData::Symlink(link) => {
                        symlinks += 1;
                        if symlinks > MAX_SYMLINKS {
                            return Err(LinkFault::TooFar);
                        }
                        if link.starts_with(b"/") {
                            trail.truncate(1);
                        }
                        rest.extend(link.split(|&b| b == b'/').rev().filter(|step| !matches!(*step, b"" | b".")));
                    }
                    _ => return Err(LinkFault::Missing),
                },
            }
        }
        // Only a path that ends in `..` comes here, and the last name of a target is none.
        Err(LinkFault::Directory)
    }

    /// Returns the rows of `name` in the directory at the trail's end, topmost first.
    fn candidates<B: AsRef<[u8]>>(
        &mut self,
        stack: &Stack<'_, B>,
        trail: &[Parts],
        name: Name<'_>,
    ) -> Result<Vec<Origin>, LinkFault> {
        let parts = trail.last().map_or(&[][..], Vec::as_slice);
        self.steps += parts.len() as u64 + 1;
        if self.steps > MAX_STEPS {
            return Err(LinkFault::TooFar);
        }
        let rows = parts.iter().filter_map(|&part| {
            stack.index(part).lookup(part.slot, name).map(|slot| Origin { layer: part.layer, slot })
        });
        Ok(rows.collect())
    }
}

struct Fold<'a, B> {
    stack: Stack<'a, B>,
    links: Links,
    writer: IndexWriter,
    /// The first row of each inode that may have several names.
    groups: HashMap<Origin, Slot>,
    /// Directories whose entries are still to be merged.
    dirs: VecDeque<(Slot, Parts)>,
}

impl<'a, B: AsRef<[u8]>> Fold<'a, B> {
    fn run(mut self) -> Result<Vec<u8>, WriteError> {
        let roots = self.stack.roots(self.stack.layers.len());
        let row = self.dir_row(&roots)?;
        let root = self.writer.push_root(&row)?;
        self.dirs.push_back((root, self.stack.parts(&roots)));
        // Reused from directory to directory.
        let mut entries = Vec::new();
        let mut candidates = Vec::new();
        while let Some((slot, parts)) = self.dirs.pop_front() {
            self.gather(&parts, &mut entries);
            for rows in entries.chunk_by(|(left, _), (right, _)| left == right) {
                candidates.clear();
                candidates.extend(rows.iter().map(|(_, origin)| *origin));
                self.entry(slot, rows[0].0, &candidates)?;
            }
        }
        self.writer.finish()
    }

    /// Collects the entries of directories that merge, ascending by name, topmost first within one name.
    fn gather(&self, parts: &[Origin], entries: &mut Vec<(Name<'a>, Origin)>) {
        entries.clear();
        for part in parts {
            let index = self.stack.index(*part);
            let rows = index.children(part.slot).filter_map(|slot| index.row(Slot(slot)));
            entries.extend(rows.filter_map(|row| Some((row.name()?, Origin { layer: part.layer, slot: row.slot() }))));
        }
        // Each part is sorted: a stable sort merges the runs, and leaves equal names in the order of the parts.
        entries.sort_by_key(|(name, _)| *name);
    }

    fn entry(&mut self, dir: Slot, name: Name<'_>, candidates: &[Origin]) -> Result<(), WriteError> {
        let top = candidates[0];
        let row = self.stack.row(top);
        match row.data() {
            RowData::Whiteout => Ok(()),
            RowData::Dir { .. } => {
                let row = self.dir_row(candidates)?;
                let slot = self.writer.push(dir, name, &row)?;
                self.dirs.push_back((slot, self.stack.parts(candidates)));
                Ok(())
            }
            _ => self.leaf(dir, name, self.links.inode(top, &row)),
        }
    }

    fn dir_row(&mut self, candidates: &[Origin]) -> Result<NewRow<'static>, WriteError> {
        let data = NewData::Dir { opaque: false, implied: false };
        let Some(stated) = self.stack.stated(candidates) else {
            let layer = candidates.first().map_or(LayerNo(0), |top| top.layer);
            return Ok(NewRow { attributes: Attributes::UNSTATED, layer, xattrs: XattrSet::NONE, data });
        };
        self.new_row(stated, data)
    }

    fn leaf(&mut self, dir: Slot, name: Name<'_>, inode: Origin) -> Result<(), WriteError> {
        let row = self.stack.row(inode);
        if let Some(&first) = self.groups.get(&inode) {
            let alias = NewRow {
                attributes: Attributes::UNSTATED,
                layer: LayerNo(0),
                xattrs: XattrSet::NONE,
                data: NewData::Alias(first),
            };
            self.writer.push(dir, name, &alias)?;
            return Ok(());
        }
        let sparse = row.is_sparse();
        let data = match row.data() {
            RowData::Inline { offset } => NewData::Inline { offset, len: row.size(), sparse },
            RowData::Object(object) => NewData::Object { object, sparse },
            RowData::Symlink(target) => NewData::Symlink(target),
            RowData::Char(dev) => NewData::Char(dev),
            RowData::Block(dev) => NewData::Block(dev),
            RowData::Fifo => NewData::Fifo,
            RowData::Socket => NewData::Socket,
            RowData::Dir { .. } | RowData::Alias(_) | RowData::Whiteout | RowData::ForeignLink(_) => {
                unreachable!("an inode's own row, and not a directory's")
            }
        };
        let new = self.new_row(inode, data)?;
        let slot = self.writer.push(dir, name, &new)?;
        if row.nlink() > 1 || !self.links.ends.is_empty() {
            self.groups.insert(inode, slot);
        }
        Ok(())
    }

    fn new_row<'d>(&mut self, origin: Origin, data: NewData<'d>) -> Result<NewRow<'d>, WriteError> {
        let attributes = self.stack.row(origin).attributes();
        let xattrs = self.writer.xattr_set(self.stack.index(origin).xattrs(origin.slot))?;
        Ok(NewRow { attributes, layer: origin.layer, xattrs, data })
    }
}
