//! What one merged directory holds, once read.

use std::cmp::Ordering;
use std::sync::OnceLock;

use layer::{Name, Slot, TreePath};
use parking_lot::Mutex;

use super::marks::Marks;

/// A directory of the merged tree.
#[derive(Debug)]
pub(super) struct Dir {
    /// The layers that have a directory of its name beside it, topmost first, down to where something ends the merge; what
    /// the directories themselves say (opaque, redirect) is not counted yet.
    pub(super) candidates: Box<[u16]>,
    /// What the topmost of them says, if that was read already.
    pub(super) marks: Option<Box<Marks>>,
    /// Held by whoever reads the directory.
    pub(super) reading: Mutex<()>,
    pub(super) listing: OnceLock<Listing>,
}

/// The entries of a directory, sorted by name.
#[derive(Debug)]
pub(super) struct Listing {
    /// The layers whose directories were merged, topmost first.
    pub(super) layers: Box<[u16]>,
    /// Where the directory is in a layer, if not where its parent is, under its own name; few have any.
    elsewhere: Option<Box<[(u16, TreePath)]>>,
    names: Box<[u8]>,
    entries: Box<[Entry]>,
}

/// One of the directories that a merged directory is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) layer: u16,
    /// Where it is in the layer, if not where its parent is, under its own name.
    pub(super) path: Option<TreePath>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where the name ends in `names`; it starts where the one before ends.
    end: u32,
    slot: Slot,
}

impl Dir {
    pub(super) fn new(candidates: Vec<u16>, marks: Option<Box<Marks>>) -> Self {
        Dir { candidates: candidates.into(), marks, reading: Mutex::default(), listing: OnceLock::new() }
    }
}

impl Listing {
    /// Collects entries; they must come sorted by name. `None` when the names have more than 4 GiB.
    pub(super) fn new<'a>(sources: Vec<Source>, all: impl ExactSizeIterator<Item = (Name<'a>, Slot)>) -> Option<Self> {
        let mut names = Vec::new();
        let mut entries = Vec::with_capacity(all.len());
        for (name, slot) in all {
            names.extend_from_slice(name.as_bytes());
            entries.push(Entry { end: u32::try_from(names.len()).ok()?, slot });
        }
        let layers = sources.iter().map(|source| source.layer).collect();
        let elsewhere: Vec<_> = sources.into_iter().filter_map(|source| Some((source.layer, source.path?))).collect();
        let elsewhere = (!elsewhere.is_empty()).then(|| elsewhere.into());
        Some(Listing { layers, elsewhere, names: names.into(), entries: entries.into() })
    }

    /// Returns the entry at `position`.
    pub(super) fn get(&self, position: u32) -> Option<(Name<'_>, Slot)> {
        let entry = self.entries.get(position as usize)?;
        // Names were checked when they came in.
        Some((Name::new(self.bytes(position as usize)).ok()?, entry.slot))
    }

    pub(super) fn lookup(&self, name: Name<'_>) -> Option<Slot> {
        let (mut low, mut high) = (0, self.entries.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.bytes(middle).cmp(name.as_bytes()) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(self.entries[middle].slot),
            }
        }
        None
    }

    /// Returns where the directory is in `layer`, if not where its parent is, under its own name.
    pub(super) fn elsewhere(&self, layer: u16) -> Option<&TreePath> {
        self.elsewhere.as_deref()?.iter().find(|(of, _)| *of == layer).map(|(_, path)| path)
    }

    fn bytes(&self, position: usize) -> &[u8] {
        let start = if position == 0 { 0 } else { self.entries[position - 1].end };
        &self.names[start as usize..self.entries[position].end as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_others_are_not() {
        let names = ["a", "ab", "b", "ba"].map(|name| Name::new(name.as_bytes()).unwrap());
        let listing =
            Listing::new(Vec::new(), names.iter().copied().zip((5..).map(Slot)).collect::<Vec<_>>().into_iter());
        let listing = listing.unwrap();
        for (position, name) in names.into_iter().enumerate() {
            let slot = Slot(5 + position as u32);
            assert_eq!(listing.lookup(name), Some(slot));
            assert_eq!(listing.get(position as u32), Some((name, slot)));
        }
        for missing in ["A", "aa", "abc", "bb", "c"] {
            assert_eq!(listing.lookup(Name::new(missing.as_bytes()).unwrap()), None);
        }
        assert_eq!(listing.get(4), None);
    }
}
