//! What one thread of a storm knows: its part of the tree as it was acknowledged, what is promised to outlive a power cut, and
//! what may be there besides.

use std::collections::BTreeMap;
use std::sync::Arc;

/// An inode of the model.
pub(crate) type Id = usize;

/// The thread's view of the root: its own directory and the one it shares with the others.
pub(crate) const ROOT: Id = 0;

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir,
    File,
    Symlink(String),
    Fifo,
}

/// Names alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) dirs: BTreeMap<Id, BTreeMap<String, Id>>,
    pub(crate) kinds: BTreeMap<Id, Kind>,
}

/// A name in a directory.
pub(crate) type At = (Id, String);

/// A change of names: one step for whoever looks.
#[derive(Clone, Debug)]
pub(crate) enum Names {
    Add { at: At, id: Id, kind: Kind },
    Link { at: At, id: Id },
    Remove(At),
    Rename(At, At),
    Exchange(At, At),
}

/// A change of one file's content.
#[derive(Clone)]
pub(crate) enum Change {
    Write { offset: usize, bytes: Arc<Vec<u8>> },
    Truncate(usize),
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Change::Write { offset, bytes } => write!(f, "write {} at {offset}", bytes.len()),
            Change::Truncate(len) => write!(f, "truncate to {len}"),
        }
    }
}

/// What was promised with a write or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    None,
    File,
    Data,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Names(Names),
    Content { id: Id, change: Change, sync: Sync },
    Chmod { id: Id, mode: u32 },
    Sync { id: Id, sync: Sync },
    SyncDir(Id),
}

/// One file's content and mode: now, as promised, and what came in between.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) content: Arc<Vec<u8>>,
    pub(crate) mode: u32,
    /// At least this outlives a power cut.
    pub(crate) base: Arc<Vec<u8>>,
    pub(crate) base_at: u64,
    /// What a power cut left behind the end, in its block: ext4 may write data before the size that covers it, and shows it
    /// when the file is extended.
    pub(crate) stale: std::ops::Range<usize>,
    pub(crate) history: Vec<(u64, Change)>,
    pub(crate) base_mode: u32,
    pub(crate) modes: Vec<(u64, u32)>,
    /// The last operation that gave it a name.
    named_at: u64,
}

impl File {
    fn new(content: Vec<u8>, mode: u32, at: u64) -> Self {
        let content = Arc::new(content);
        File {
            base: content.clone(),
            content,
            mode,
            base_at: at,
            stale: 0..0,
            history: Vec::new(),
            base_mode: mode,
            modes: Vec::new(),
            named_at: 0,
        }
    }
}

/// A thread's model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) tree: Tree,
    pub(crate) files: BTreeMap<Id, File>,
    /// The names as they were when the storm began.
    pub(crate) first_tree: Tree,
    /// The changes of names since, by operation.
    pub(crate) log: Vec<(u64, Names)>,
    /// All changes of names up to this operation outlive a power cut.
    pub(crate) durable: u64,
    /// What promised it.
    pub(crate) durable_by: String,
    pub(crate) done: u64,
    pub(crate) pending: Option<Op>,
    dir_changed: BTreeMap<Id, u64>,
    next: Id,
}

/// What a sync of the whole filesystem promises, once it has returned.
pub(crate) struct Snapshot {
    done: u64,
    files: BTreeMap<Id, (Arc<Vec<u8>>, u32)>,
}

impl Tree {
    pub(crate) fn apply(&mut self, names: &Names) {
        match names {
            Names::Add { at, id, kind } => {
                self.put(at, *id);
                self.kinds.insert(*id, kind.clone());
                if *kind == Kind::Dir {
                    self.dirs.insert(*id, BTreeMap::new());
                }
            }
            Names::Link { at, id } => self.put(at, *id),
            Names::Remove(at) => drop(self.take(at)),
            Names::Rename(from, to) => {
                if let Some(id) = self.take(from) {
                    self.put(to, id);
                }
            }
            Names::Exchange(one, other) => {
                if let (Some(a), Some(b)) = (self.take(one), self.take(other)) {
                    self.put(one, b);
                    self.put(other, a);
                }
            }
        }
    }

    fn put(&mut self, at: &At, id: Id) {
        self.dirs.entry(at.0).or_default().insert(at.1.clone(), id);
    }

    fn take(&mut self, at: &At) -> Option<Id> {
        self.dirs.get_mut(&at.0)?.remove(&at.1)
    }

    pub(crate) fn get(&self, at: &At) -> Option<Id> {
        self.dirs.get(&at.0)?.get(&at.1).copied()
    }

    /// Lists every name below the root, with its place.
    pub(crate) fn listing(&self) -> Vec<Listed> {
        let mut listed = Vec::new();
        let mut todo = vec![(ROOT, String::new())];
        while let Some((dir, path)) = todo.pop() {
            for (name, id) in self.dirs.get(&dir).into_iter().flatten() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                let kind = self.kinds[id].clone();
                if kind == Kind::Dir {
                    todo.push((*id, path.clone()));
                }
                listed.push(Listed { at: (dir, name.clone()), id: *id, kind, path });
            }
        }
        listed
    }

    /// Tells whether `id` is `dir` or lies below it.
    pub(crate) fn holds(&self, dir: Id, id: Id) -> bool {
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            if dir == id {
                return true;
            }
            todo.extend(self.dirs.get(&dir).into_iter().flat_map(|names| names.values().copied()));
        }
        false
    }
}

/// A name, found.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) at: At,
    pub(crate) id: Id,
    pub(crate) kind: Kind,
    pub(crate) path: String,
}

impl Model {
    pub(crate) fn new() -> Self {
        let mut tree = Tree::default();
        tree.kinds.insert(ROOT, Kind::Dir);
        tree.dirs.insert(ROOT, BTreeMap::new());
        Model {
            first_tree: tree.clone(),
            tree,
            files: BTreeMap::new(),
            log: Vec::new(),
            durable: 0,
            durable_by: String::new(),
            done: 0,
            pending: None,
            dir_changed: BTreeMap::new(),
            next: ROOT + 1,
        }
    }

    /// Returns a number for a new inode.
    pub(crate) fn fresh(&mut self) -> Id {
        self.next += 1;
        self.next - 1
    }

    /// Adds what the lower has.
    pub(crate) fn add(&mut self, at: &At, kind: Kind, content: Vec<u8>, mode: u32) -> Id {
        let id = self.fresh();
        if kind == Kind::File {
            self.files.insert(id, File::new(content, mode, 0));
        }
        self.tree.apply(&Names::Add { at: at.clone(), id, kind });
        self.first_tree = self.tree.clone();
        id
    }

    pub(crate) fn add_link(&mut self, at: &At, id: Id) {
        self.tree.apply(&Names::Link { at: at.clone(), id });
        self.first_tree = self.tree.clone();
    }

    /// Notes an operation that is about to be asked for.
    pub(crate) fn begin(&mut self, op: &Op) {
        if let Op::Names(Names::Add { id, kind: Kind::File, .. }) = op {
            self.files.insert(*id, File::new(Vec::new(), super::storm::MODE, self.done + 1));
        }
        self.pending = Some(op.clone());
    }

    /// Notes that the operation was acknowledged.
    pub(crate) fn acknowledge(&mut self) {
        let Some(op) = self.pending.take() else { return };
        self.done += 1;
        let at = self.done;
        match op {
            Op::Names(names) => self.renamed(at, names),
            Op::Content { id, change, sync } => {
                let file = self.file(id);
                apply(Arc::make_mut(&mut file.content), &change);
                file.history.push((at, change));
                self.synced(at, id, sync);
            }
            Op::Chmod { id, mode } => {
                let file = self.file(id);
                file.mode = mode;
                file.modes.push((at, mode));
            }
            Op::Sync { id, sync } => self.synced(at, id, sync),
            Op::SyncDir(dir) => {
                let changed = self.dir_changed.get(&dir).copied().unwrap_or(0);
                self.promise(changed, || format!("fsync {at} of directory {dir}"));
            }
        }
    }

    fn file(&mut self, id: Id) -> &mut File {
        self.files.get_mut(&id).expect("the storm works on files that it knows")
    }

    fn renamed(&mut self, at: u64, names: Names) {
        let mut touched = Vec::new();
        match &names {
            Names::Add { at, id, .. } | Names::Link { at, id } => touched.push((at.0, Some(*id))),
            Names::Remove(at) => touched.push((at.0, None)),
            Names::Rename(from, to) => touched.extend([(from.0, self.tree.get(from)), (to.0, None)]),
            // XFS does not log the inodes that change places, so that a later fsync of one does not write the names.
            Names::Exchange(one, other) => touched.extend([(one.0, None), (other.0, None)]),
        }
        for (dir, id) in touched {
            self.dir_changed.insert(dir, at);
            if let Some(file) = id.and_then(|id| self.files.get_mut(&id)) {
                file.named_at = at;
            }
        }
        self.tree.apply(&names);
        self.log.push((at, names));
    }

    fn synced(&mut self, at: u64, id: Id, sync: Sync) {
        if sync == Sync::None {
            return;
        }
        let file = self.file(id);
        (file.base, file.base_at) = (file.content.clone(), at);
        file.history.clear();
        if sync == Sync::File {
            file.base_mode = file.mode;
            file.modes.clear();
            // Journals write the name of a file with the file.
            let named_at = file.named_at;
            self.promise(named_at, || format!("fsync {at} of file {id}"));
        }
    }

    fn promise(&mut self, durable: u64, why: impl FnOnce() -> String) {
        if durable > self.durable {
            (self.durable, self.durable_by) = (durable, why());
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let files = self.files.iter().map(|(id, file)| (*id, (file.content.clone(), file.mode))).collect();
        Snapshot { done: self.done, files }
    }

    /// Notes that all of the snapshot is on disk.
    pub(crate) fn all_synced(&mut self, snapshot: Snapshot) {
        self.promise(snapshot.done, || "syncfs".to_owned());
        for (id, (content, mode)) in snapshot.files {
            let file = self.file(id);
            if file.base_at <= snapshot.done {
                (file.base, file.base_at) = (content, snapshot.done);
                file.history.retain(|(at, _)| *at > snapshot.done);
                // A later fsync may have promised a later mode.
                file.modes.retain(|(at, _)| *at > snapshot.done);
                file.base_mode = mode;
            }
        }
    }

    /// Goes on from what was found after a crash.
    pub(crate) fn resume(&mut self, tree: Tree, found: BTreeMap<Id, (Vec<u8>, u32)>, cut: bool) {
        let done = self.done;
        let file = |(id, (content, mode)): (Id, (Vec<u8>, u32))| {
            let end = content.len();
            let stale = if cut { end..end.next_multiple_of(4096) } else { 0..0 };
            (id, File { stale, ..File::new(content, mode, done) })
        };
        self.files = found.into_iter().map(file).collect();
        self.first_tree = tree.clone();
        self.tree = tree;
        self.log.clear();
        self.dir_changed.clear();
        self.durable = done;
        self.pending = None;
    }
}

/// Changes a content as the operation does.
pub(crate) fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, bytes } => {
            let end = offset + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset..end].copy_from_slice(bytes);
        }
        Change::Truncate(len) => content.resize(*len, 0),
    }
}

/// Tells whether `found` is what `base` and some of the changes, each done wholly or in part, can leave. Says what is wrong
/// otherwise. Zeros in the range `stale` may be anything.
pub(crate) fn allowed(
    found: &[u8],
    base: &[u8],
    changes: &[&Change],
    stale: &std::ops::Range<usize>,
) -> Result<(), String> {
    let mut len = base.len();
    let (mut shortest, mut longest) = (len, len);
    for change in changes {
        match change {
            Change::Write { offset, bytes } => len = len.max(offset + bytes.len()),
            Change::Truncate(to) => len = *to,
        }
        (shortest, longest) = (shortest.min(len), longest.max(len));
    }
    if !(shortest..=longest).contains(&found.len()) {
        return Err(format!("{} bytes, not {shortest} to {longest}", found.len()));
    }
    let equal = |at: usize| base.get(at) == found.get(at);
    for at in (0..found.len()).filter(|at| !equal(*at)) {
        let written = changes.iter().any(|change| match change {
            Change::Write { offset, bytes } => {
                at.checked_sub(*offset).and_then(|at| bytes.get(at)).is_some_and(|byte| *byte == found[at])
            }
            Change::Truncate(_) => false,
        });
        // Zero where there was no byte at some time.
        let gap = found[at] == 0 && at >= shortest;
        let stale = stale.contains(&at) && base.get(at).is_none_or(|byte| *byte == 0);
        if !written && !gap && !stale {
            let old = base.get(at).map(|byte| format!("{byte:#04x}"));
            return Err(format!(
                "byte {at} of {} is {:#04x}, which nobody wrote (it was {old:?} of {}; {} changes since)",
                found.len(),
                found[at],
                base.len(),
                changes.len()
            ));
        }
    }
    Ok(())
}
