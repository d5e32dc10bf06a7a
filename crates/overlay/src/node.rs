//! Inodes of the union that are more than a row of the lower: changed, born in the upper, or open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use layer::{FileType, Ino, Name, NameBuf, Slot, Stat};
use parking_lot::{Mutex, RwLock};

use crate::lower::Lower;
use crate::names::Names;
use crate::partial::Partial;
use crate::upper::Upper;

/// The root directory's number in every union (the FUSE root nodeid).
pub const ROOT: Ino = Ino(1);
/// Set in the numbers of inodes that were born in the upper; the rest is the backing inode number.
pub const BORN: u64 = 1 << 63;
/// Set in the numbers handed out where the rightful one is still in use.
pub const SPARE: u64 = 1 << 62;

/// An inode that the union keeps in memory.
pub(crate) struct Node<L: Lower, U: Upper> {
    /// The number that the kernel knows it by.
    pub(crate) id: Ino,
    /// The number that programs see; equal to `id` but for spares.
    pub(crate) shown: Ino,
    pub(crate) kind: FileType,
    /// A directory: what it merges with. Anything else: the lower inode it was copied from.
    pub(crate) slot: Option<Slot>,
    /// The backing inode's number, for what is in the upper.
    pub(crate) backing: AtomicU64,
    /// Where it is. Memory only: held for one statement, never across a call to the disk.
    pub(crate) place: RwLock<Place<L, U>>,
    /// Held by whoever copies this inode up.
    pub(crate) copying: Mutex<()>,
    /// A directory's names in the upper, once read; also the directory's lock for changes.
    pub(crate) names: RwLock<Option<Names>>,
    /// A directory of the upper, held open.
    pub(crate) dir: Mutex<Option<U::Dir>>,
    /// A directory of the upper that is known to bear the mark of [`Upper::set_impure`].
    pub(crate) impure: AtomicBool,
    /// What new entries inherit from a directory, once read.
    pub(crate) inherit: Mutex<Option<Arc<Inherit>>>,
    pub(crate) lookups: AtomicU64,
    /// Who has the file now that was left to this node's open descriptors ([`Overlay::detach`](crate::Overlay::detach)).
    pub(crate) heir: OnceLock<Arc<Node<L, U>>>,
    /// Names that only the lower has, by which an inode of the upper was looked up, where the lower cannot tell them.
    pub(crate) met: Mutex<Vec<(Ino, NameBuf)>>,
    /// This process has read the inode's marks, or made it; one taken over from an earlier process has yet to be looked at.
    pub(crate) found: AtomicBool,
    /// The body may be a copy that was never synced: it must be before it is cut or punched.
    pub(crate) unsynced: AtomicBool,
    /// Name and marks may not be on disk yet, which fdatasync alone would leave so.
    pub(crate) unnamed: AtomicBool,
    pub(crate) open: RwLock<Open<L, U>>,
}

/// Where an inode is.
pub(crate) enum Place<L: Lower, U: Upper> {
    /// Only in the lower; `seen` holds the names it was looked up by, where the lower cannot tell them.
    Lower { seen: Vec<(Ino, NameBuf)> },
    /// In the upper.
    Upper(InUpper<L, U>),
    /// Without a name, as far as this mount knows.
    Gone(Box<Last<U::File>>),
}

/// What is left of an inode that has no name.
pub(crate) struct Last<F> {
    /// Its last attributes, `nlink` without the name that went.
    pub(crate) stat: Stat,
    /// The inode in the upper, if it is there: it was open, and its body below.
    pub(crate) file: Option<Arc<F>>,
    /// Extended attributes, if they are not the lower's any more.
    pub(crate) xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl<F> Last<F> {
    pub(crate) fn new(stat: Stat) -> Self {
        Last { stat, file: None, xattrs: None }
    }
}

/// An inode's place in the upper.
pub(crate) struct InUpper<L: Lower, U: Upper> {
    /// The names in the upper that are known so far; none for the root.
    pub(crate) names: Vec<(Arc<Node<L, U>>, NameBuf)>,
    /// It is (also) in the index of hard-linked origins.
    pub(crate) indexed: bool,
    /// The body is still in the lower, at this slot.
    pub(crate) body_below: Option<Slot>,
    /// Names of a hard-linked origin that are in the lower alone.
    pub(crate) lower_names: u32,
    /// Part of the body is in the upper; the lower counts up to here.
    pub(crate) partial: Option<u64>,
}

/// What new entries of a directory inherit.
pub(crate) struct Inherit {
    /// The directory's set-group-ID bit is set: its group is inherited.
    pub(crate) gid: Option<u32>,
    /// `system.posix_acl_default`.
    pub(crate) acl: Option<Vec<u8>>,
}

/// The open state of a regular file, shared by all its handles.
pub(crate) struct Open<L: Lower, U: Upper> {
    pub(crate) count: u32,
    pub(crate) body: OpenBody<L, U>,
}

/// Where the bytes of an open file are.
pub(crate) enum OpenBody<L: Lower, U: Upper> {
    /// Not opened yet.
    Closed,
    /// In the lower's map.
    Mapped(Slot),
    /// A file of the lower.
    Lower(Arc<L::File>),
    /// The upper's file.
    Upper(Arc<U::File>),
    /// On both sides.
    Partial(Arc<Partial<U::File, L::File>>),
}

impl<L: Lower, U: Upper> Clone for OpenBody<L, U> {
    fn clone(&self) -> Self {
        match self {
            OpenBody::Closed => OpenBody::Closed,
            OpenBody::Mapped(slot) => OpenBody::Mapped(*slot),
            OpenBody::Lower(file) => OpenBody::Lower(file.clone()),
            OpenBody::Upper(file) => OpenBody::Upper(file.clone()),
            OpenBody::Partial(partial) => OpenBody::Partial(partial.clone()),
        }
    }
}

impl<L: Lower, U: Upper> Node<L, U> {
    pub(crate) fn new(
        id: Ino,
        shown: Ino,
        kind: FileType,
        slot: Option<Slot>,
        place: Place<L, U>,
        backing: u64,
    ) -> Self {
        Node {
            id,
            shown,
            kind,
            slot,
            backing: AtomicU64::new(backing),
            place: RwLock::new(place),
            copying: Mutex::new(()),
            names: RwLock::new(None),
            dir: Mutex::new(None),
            heir: OnceLock::new(),
            met: Mutex::default(),
            impure: AtomicBool::new(false),
            inherit: Mutex::new(None),
            lookups: AtomicU64::new(0),
            found: AtomicBool::new(false),
            unsynced: AtomicBool::new(false),
            unnamed: AtomicBool::new(true),
            open: RwLock::new(Open { count: 0, body: OpenBody::Closed }),
        }
    }

    /// Tells whether the inode is in the upper (with its body or without).
    pub(crate) fn in_upper(&self) -> bool {
        matches!(&*self.place.read(), Place::Upper(_))
    }

    /// Tells whether this is one of the inode's names in the upper.
    pub(crate) fn is_named(&self, parent: &Node<L, U>, name: Name<'_>) -> bool {
        let is_it = |known: &(Arc<Node<L, U>>, NameBuf)| std::ptr::eq(&*known.0, parent) && known.1.as_name() == name;
        matches!(&*self.place.read(), Place::Upper(up) if up.names.iter().any(is_it))
    }
}

/// Returns the node that has the file: this one, or the one that it was left for.
pub(crate) fn heir_of<L: Lower, U: Upper>(node: &Arc<Node<L, U>>) -> Arc<Node<L, U>> {
    node.heir.get().unwrap_or(node).clone()
}

const SHARDS: usize = 64;

type Shard<L, U> = RwLock<HashMap<Ino, Arc<Node<L, U>>>>;

/// The nodes by number, in shards so that many readers do not meet.
pub(crate) struct Nodes<L: Lower, U: Upper> {
    shards: Vec<Shard<L, U>>,
    /// How often the kernel was told of each slot of the lower.
    told: Counts,
}

impl<L: Lower, U: Upper> Nodes<L, U> {
    pub(crate) fn new() -> Self {
        Nodes { shards: (0..SHARDS).map(|_| RwLock::default()).collect(), told: Counts::new() }
    }

    fn shard(&self, id: Ino) -> &Shard<L, U> {
        &self.shards[(id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % SHARDS]
    }

    pub(crate) fn get(&self, id: Ino) -> Option<Arc<Node<L, U>>> {
        self.shard(id).read().get(&id).cloned()
    }

    /// Returns the node of that number, made by `make` if there is none.
    pub(crate) fn get_or_insert(&self, id: Ino, make: impl FnOnce() -> Node<L, U>) -> Arc<Node<L, U>> {
        self.shard(id).write().entry(id).or_insert_with(|| Arc::new(make())).clone()
    }

    pub(crate) fn insert(&self, node: Arc<Node<L, U>>) {
        self.shard(node.id).write().insert(node.id, node);
    }

    /// Counts one entry that the kernel was told about; a slot of the lower is counted without a node.
    pub(crate) fn tell(&self, slot: Option<Slot>, node: Option<&Node<L, U>>) {
        match (slot, node) {
            (Some(slot), _) => self.told.add(slot),
            (None, Some(node)) => {
                node.lookups.fetch_add(1, Ordering::Relaxed);
            }
            (None, None) => {}
        }
    }

    /// Counts entries that the kernel was told about by an earlier process.
    pub(crate) fn told_before(&self, slot: Slot, count: u32) {
        self.told.cell(slot).store(count, Ordering::Relaxed);
    }

    /// Visits the slots that the kernel was told of, with how often, in ascending order.
    pub(crate) fn each_told(&self, visit: impl FnMut(Slot, u32)) {
        self.told.each(visit);
    }

    /// Takes back `count` entries; drops the node once nothing needs it.
    pub(crate) fn forget(&self, id: Ino, slot: Option<Slot>, count: u64) {
        let left = match slot {
            Some(slot) => self.told.sub(slot, count),
            None => match self.get(id) {
                Some(node) => {
                    let before = node
                        .lookups
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(count)))
                        .unwrap_or_default();
                    before.saturating_sub(count)
                }
                None => return,
            },
        };
        if left == 0 {
            self.drop_unused(id, slot);
        }
    }

    /// Drops the node if the kernel does not know it, nothing has it open, and no other node needs it; then those that it needed.
    pub(crate) fn drop_unused(&self, id: Ino, slot: Option<Slot>) {
        if id == ROOT {
            return;
        }
        let dropped = {
            let mut shard = self.shard(id).write();
            let unused = shard.get(&id).is_some_and(|node| {
                let told =
                    slot.map_or_else(|| node.lookups.load(Ordering::Relaxed), |slot| u64::from(self.told.get(slot)));
                told == 0 && node.open.read().count == 0 && Arc::strong_count(node) == 1
            });
            if unused { shard.remove(&id) } else { None }
        };
        let Some(node) = dropped else { return };
        let mut held: Vec<_> = match &*node.place.read() {
            Place::Upper(up) => up.names.iter().map(|(parent, _)| (parent.id, told_slot(parent))).collect(),
            _ => Vec::new(),
        };
        held.extend(node.heir.get().map(|heir| (heir.id, told_slot(heir))));
        drop(node);
        for (id, slot) in held {
            self.drop_unused(id, slot);
        }
    }

    /// Drops the node of that number if `unneeded` says so and nobody else holds it.
    pub(crate) fn remove_if(&self, id: Ino, unneeded: impl FnOnce(&Node<L, U>) -> bool) {
        let mut shard = self.shard(id).write();
        if shard.get(&id).is_some_and(|node| Arc::strong_count(node) == 1 && unneeded(node)) {
            shard.remove(&id);
        }
    }

    /// Returns how many nodes are in memory.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Visits every node.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&Arc<Node<L, U>>)) {
        for shard in &self.shards {
            shard.read().values().for_each(&mut visit);
        }
    }
}

/// The slot under which the kernel's knowledge of a node is counted: that of the lower inode whose number it bears.
pub(crate) fn told_slot<L: Lower, U: Upper>(node: &Node<L, U>) -> Option<Slot> {
    if node.id.0 & (BORN | SPARE) == 0 { node.slot } else { None }
}

const CELLS: usize = 4096;
const CHUNKS: usize = 64;
const GROUPS: usize = 64;

/// A counter for every slot, made chunk by chunk as slots are used. Past 2^24 slots several share a counter, which can only
/// keep a node in memory for longer.
struct Counts {
    groups: [OnceLock<Box<Group>>; GROUPS],
}

type Group = [OnceLock<Box<[AtomicU32]>>; CHUNKS];

impl Counts {
    fn new() -> Self {
        Counts { groups: [const { OnceLock::new() }; GROUPS] }
    }

    fn cell(&self, slot: Slot) -> &AtomicU32 {
        let chunk = slot.0 as usize / CELLS;
        let group = self.groups[chunk / CHUNKS % GROUPS].get_or_init(|| Box::new([const { OnceLock::new() }; CHUNKS]));
        let cells = group[chunk % CHUNKS].get_or_init(|| (0..CELLS).map(|_| AtomicU32::new(0)).collect());
        &cells[slot.0 as usize % CELLS]
    }

    fn add(&self, slot: Slot) {
        self.cell(slot).fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self, slot: Slot) -> u32 {
        self.cell(slot).load(Ordering::Relaxed)
    }

    fn each(&self, mut visit: impl FnMut(Slot, u32)) {
        for (group, chunks) in self.groups.iter().enumerate() {
            let Some(chunks) = chunks.get() else { continue };
            for (chunk, cells) in chunks.iter().enumerate() {
                for (cell, count) in cells.get().iter().flat_map(|cells| cells.iter().enumerate()) {
                    let count = count.load(Ordering::Relaxed);
                    if count > 0 {
                        visit(Slot(((group * CHUNKS + chunk) * CELLS + cell) as u32), count);
                    }
                }
            }
        }
    }

    fn sub(&self, slot: Slot, count: u64) -> u64 {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let before = self
            .cell(slot)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(count)))
            .unwrap_or_default();
        u64::from(before.saturating_sub(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_per_slot() {
        let counts = Counts::new();
        for slot in [0, 1, 4095, 4096, 300_000, 10_000_000] {
            counts.add(Slot(slot));
            counts.add(Slot(slot));
            let mut all = Vec::new();
            counts.each(|slot, count| all.push((slot, count)));
            assert_eq!(all, [(Slot(slot), 2)]);
            assert_eq!(counts.sub(Slot(slot), 1), 1);
            assert_eq!(counts.get(Slot(slot)), 1);
            assert_eq!(counts.sub(Slot(slot), 5), 0);
        }
    }
}
