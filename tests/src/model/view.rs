//! What is seen in a mounted tree, and whether it is what the plain tree says.

use std::collections::{BTreeMap, HashMap, HashSet};

use layer::{Dev, FileType, Time};

use super::op::Path;
use super::tree::{Body, Id, Inode, Tree, When};

/// The attributes of one inode as a program sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in stat(2)")]
pub struct Seen {
    pub ino: u64,
    /// The number that the kernel knows it by, where the kernel is ours.
    pub node: Option<u64>,
    pub kind: FileType,
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
    pub rdev: Dev,
    pub atime: Time,
    pub mtime: Time,
}

/// One name with all that can be seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Attributes.
    pub seen: Seen,
    /// The content of a file, the target of a link.
    pub data: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Number and kind from the directory.
    pub entry: Option<(u64, FileType)>,
    /// The number is the inode's own.
    pub numbered: bool,
}

/// All names.
pub type View = BTreeMap<Path, Found>;

/// What a comparison holds to be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Link counts of directories (`Scanned` shows 1 for merged ones).
    pub dir_links: bool,
    /// Times of access (a disk changes them as it likes).
    pub atime: bool,
    /// Times of change.
    pub mtime: Mtime,
}

/// How times of change are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtime {
    /// All of them.
    All,
    /// Those at or after this one are excused: an operation was cut off then.
    Before(Time),
    /// None: the content changes in another step than the time.
    None,
}

impl Scope {
    /// Everything.
    pub const ALL: Scope = Scope { dir_links: true, atime: true, mtime: Mtime::All };
}

/// Says what differs between an inode and what was seen of it.
///
/// # Errors
/// In words.
pub fn agree(tree: &Tree, id: Id, seen: &Seen, scope: Scope) -> Result<(), String> {
    let inode = tree.inode(id);
    let differs = |what: &str, is: &dyn std::fmt::Debug, should: &dyn std::fmt::Debug| {
        Err(format!("{what} is {is:?}, should be {should:?}"))
    };
    if seen.kind != inode.kind() {
        return differs("kind", &seen.kind, &inode.kind());
    }
    if seen.perm != inode.perm {
        return Err(format!("mode is {:o}, should be {:o}", seen.perm, inode.perm));
    }
    if (seen.uid, seen.gid) != (inode.uid, inode.gid) {
        return differs("owner", &(seen.uid, seen.gid), &(inode.uid, inode.gid));
    }
    if (inode.kind() != FileType::Dir || scope.dir_links) && seen.nlink != tree.links(id) {
        return differs("nlink", &seen.nlink, &tree.links(id));
    }
    match &inode.body {
        Body::File(data) | Body::Symlink(data) if seen.size != data.len() as u64 => {
            return differs("size", &seen.size, &data.len());
        }
        Body::Device(_, dev) if seen.rdev != *dev => return differs("device", &seen.rdev, dev),
        _ => {}
    }
    let counts = match scope.mtime {
        Mtime::All => true,
        Mtime::Before(time) => seen.mtime < time,
        Mtime::None => false,
    };
    if counts {
        agree_time("mtime", seen.mtime, inode.mtime)?;
    }
    if scope.atime {
        agree_time("atime", seen.atime, inode.atime)?;
    }
    Ok(())
}

fn agree_time(what: &str, seen: Time, when: When) -> Result<(), String> {
    match when {
        When::At(time) if seen != time => Err(format!("{what} is {seen:?}, should be {time:?}")),
        When::Since(time) if seen < time => Err(format!("{what} is {seen:?}, should be {time:?} or later")),
        _ => Ok(()),
    }
}

/// Says what differs between a whole tree and what was seen of it.
///
/// # Errors
/// In words, with the path.
pub fn compare(tree: &Tree, view: &View, scope: Scope) -> Result<(), String> {
    let paths = tree.paths();
    for (path, id) in &paths {
        let found = view.get(path).ok_or_else(|| format!("{path:?}: missing"))?;
        let at = |why: String| format!("{path:?}: {why}");
        agree(tree, *id, &found.seen, scope).map_err(at)?;
        agree_content(tree.inode(*id), found).map_err(at)?;
        if let Some((ino, kind)) = found.entry {
            if ino != found.seen.ino {
                return Err(at(format!("d_ino is {ino:#x}, st_ino {:#x}", found.seen.ino)));
            }
            if kind != found.seen.kind {
                return Err(at(format!("d_type is {kind:?}, the kind {:?}", found.seen.kind)));
            }
        }
    }
    match view.keys().find(|path| !paths.iter().any(|(other, _)| other == *path)) {
        Some(path) => Err(format!("{path:?}: should not be there")),
        None => Ok(()),
    }
}

fn agree_content(inode: &Inode, found: &Found) -> Result<(), String> {
    let data: &[u8] = match &inode.body {
        Body::File(data) | Body::Symlink(data) => data,
        _ => b"",
    };
    if found.data != data {
        return Err(format!("holds '{}', should hold '{}'", found.data.escape_ascii(), data.escape_ascii()));
    }
    if found.xattrs != inode.xattrs {
        let shown = |xattrs: &BTreeMap<Vec<u8>, Vec<u8>>| {
            let all = xattrs.iter().map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
            all.collect::<Vec<_>>().join(" ")
        };
        return Err(format!("xattrs are [{}], should be [{}]", shown(&found.xattrs), shown(&inode.xattrs)));
    }
    Ok(())
}

/// Says how two views of one tree through different mounts differ; numbers, link counts and times of access are each mount's own.
///
/// # Errors
/// In words, with the path.
pub fn same(one: &View, other: &View) -> Result<(), String> {
    for (path, found) in one {
        let Some(twin) = other.get(path) else { return Err(format!("{path:?}: missing in the other")) };
        let blind = |found: &Found| {
            let size = if found.seen.kind == FileType::Dir { 0 } else { found.seen.size };
            let seen = Seen { ino: 0, node: None, nlink: 0, atime: Time::default(), size, ..found.seen };
            Found { seen, entry: None, numbered: true, ..found.clone() }
        };
        let (found, twin) = (blind(found), blind(twin));
        if found != twin {
            return Err(format!("{path:?}: {found:?} in one, {twin:?} in the other"));
        }
    }
    match other.keys().find(|path| !one.contains_key(*path)) {
        Some(path) => Err(format!("{path:?}: only in the other")),
        None => Ok(()),
    }
}

/// The numbers that inodes were seen with: they never change while the inode lives, and no two inodes share one.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    inos: HashMap<Id, u64>,
}

impl Identity {
    /// Checks all numbers of a view against those seen before.
    ///
    /// # Errors
    /// In words, with the path.
    pub fn check(&mut self, tree: &Tree, view: &View) -> Result<(), String> {
        let paths = tree.paths();
        let living: HashSet<Id> = paths.iter().map(|(_, id)| *id).chain(tree.opened().map(|(_, id, _)| id)).collect();
        self.inos.retain(|id, _| living.contains(id));
        let (mut owners, mut nodes) = (HashMap::new(), HashMap::new());
        for (path, id) in &paths {
            let Some(found) = view.get(path).filter(|found| found.numbered) else { continue };
            let ino = found.seen.ino;
            let known = *self.inos.entry(*id).or_insert(ino);
            if known != ino {
                return Err(format!("{path:?}: st_ino is {ino:#x}, was {known:#x}"));
            }
            if *owners.entry(ino).or_insert(*id) != *id {
                return Err(format!("{path:?}: st_ino {ino:#x} is another inode's too"));
            }
            if let Some(node) = found.seen.node
                && *nodes.entry(node).or_insert(*id) != *id
            {
                return Err(format!("{path:?}: nodeid {node:#x} is another inode's too"));
            }
        }
        // What is open without a name has its number still.
        for (_, id, _) in tree.opened() {
            if let Some(ino) = self.inos.get(&id)
                && let Some(owner) = owners.get(ino)
                && *owner != id
            {
                return Err(format!("st_ino {ino:#x} of an open file without a name is given to another"));
            }
        }
        Ok(())
    }

    /// Forgets the number of one inode.
    pub fn forget(&mut self, id: Id) {
        self.inos.remove(&id);
    }
}
