//! The names that the upper has in one directory: read once, then kept in memory, misses included.

use std::collections::{BTreeMap, HashMap};

use layer::{FileType, Ino, Name, NameBuf};

use crate::upper::Listed;

/// The upper's names of one directory, each with a sequence number that readdir cookies are made of.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_name: HashMap<NameBuf, Entry>,
    by_seq: BTreeMap<u64, NameBuf>,
    next: u64,
}

/// What the upper has under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Position in the directory; never given twice.
    pub(crate) seq: u64,
    /// The kind; `None` for a whiteout.
    pub(crate) kind: Option<FileType>,
    /// The node's number, once known.
    pub(crate) id: Option<Ino>,
}

impl Names {
    /// Takes the names as the upper listed them.
    pub(crate) fn from_list(list: Vec<Listed>) -> Self {
        let mut names = Names::default();
        for listed in list {
            names.set(listed.name.as_name(), listed.kind, None);
        }
        names
    }

    /// Makes names of which the last one that was given a position had `last`.
    pub(crate) fn with_last(last: u64) -> Self {
        Names { next: last, ..Names::default() }
    }

    /// Returns the position that was given last.
    pub(crate) fn last_given(&self) -> u64 {
        self.next
    }

    /// Puts an entry where it was.
    pub(crate) fn put_back(&mut self, name: NameBuf, seq: u64, kind: Option<FileType>, id: Option<Ino>) {
        self.by_seq.insert(seq, name.clone());
        self.by_name.insert(name, Entry { seq, kind, id });
    }

    pub(crate) fn get(&self, name: Name<'_>) -> Option<Entry> {
        self.by_name.get(name.as_bytes()).copied()
    }

    /// Puts an entry (a whiteout with `kind` `None`) under `name`; a name that was there keeps its position.
    pub(crate) fn set(&mut self, name: Name<'_>, kind: Option<FileType>, id: Option<Ino>) {
        if let Some(entry) = self.by_name.get_mut(name.as_bytes()) {
            // A name that comes back is a new entry for readdir: an old cookie must not skip it.
            if entry.kind.is_some() || kind.is_none() {
                (entry.kind, entry.id) = (kind, id);
                return;
            }
            self.by_seq.remove(&entry.seq);
        }
        self.next += 1;
        self.by_seq.insert(self.next, name.to_buf());
        self.by_name.insert(name.to_buf(), Entry { seq: self.next, kind, id });
    }

    /// Notes the number of the node under `name`.
    pub(crate) fn learn(&mut self, name: Name<'_>, id: Ino) {
        if let Some(entry) = self.by_name.get_mut(name.as_bytes()) {
            entry.id = Some(id);
        }
    }

    pub(crate) fn remove(&mut self, name: Name<'_>) {
        if let Some(entry) = self.by_name.remove(name.as_bytes()) {
            self.by_seq.remove(&entry.seq);
        }
    }

    /// Goes through the entries behind position `after`, in order.
    pub(crate) fn after(&self, after: u64) -> impl Iterator<Item = (Name<'_>, Entry)> {
        self.by_seq.range(after + 1..).filter_map(|(_, name)| {
            let entry = self.by_name.get(name)?;
            Some((name.as_name(), *entry))
        })
    }

    /// Goes through all entries in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Name<'_>, Entry)> {
        self.by_name.iter().map(|(name, entry)| (name.as_name(), *entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &'static str) -> Name<'static> {
        Name::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn cookies_survive_changes_of_other_names() {
        let mut names = Names::default();
        for n in ["a", "b", "c"] {
            names.set(name(n), Some(FileType::File), None);
        }
        let at_b = names.get(name("b")).unwrap().seq;
        names.remove(name("a"));
        names.set(name("d"), Some(FileType::Dir), None);
        let rest: Vec<_> = names.after(at_b).map(|(n, _)| n.to_string()).collect();
        assert_eq!(rest, ["c", "d"]);
    }

    #[test]
    fn a_changed_entry_keeps_its_position_and_a_new_one_over_a_whiteout_comes_last() {
        let mut names = Names::default();
        names.set(name("w"), None, None);
        names.set(name("a"), Some(FileType::File), None);
        let seq = names.get(name("a")).unwrap().seq;
        names.set(name("a"), Some(FileType::Dir), None);
        assert_eq!(names.get(name("a")).unwrap().seq, seq);
        names.set(name("w"), Some(FileType::File), None);
        assert!(names.get(name("w")).unwrap().seq > seq);
        assert_eq!(names.after(0).count(), 2);
    }
}
