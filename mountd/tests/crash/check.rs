//! What is there after a crash, held against what each thread knows.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::model::{Change, Id, Kind, Model, Names, Op, Tree, allowed};

/// One name that is there.
#[derive(Debug)]
pub(crate) struct Found {
    kind: Kind,
    ino: u64,
    nlink: u64,
    mode: u32,
    at: PathBuf,
}

/// Which way the storm ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The daemon was killed, or nothing happened: what was acknowledged is there.
    Killed,
    /// The power was cut: what was synced is there.
    Cut,
}

/// How link counts and inode numbers are held against the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    Checked,
    /// Kernel overlayfs without an index has its own.
    Ignored,
}

/// Counts for the report.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) files: usize,
    /// Files that were changed without a sync since.
    pub(crate) unsynced: usize,
    /// Those of them that have less than was acknowledged.
    pub(crate) fell_back: usize,
    /// Changes of names that were acknowledged and are lost, none of them promised.
    pub(crate) names_lost: usize,
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Seen) {
        self.files += other.files;
        self.unsynced += other.unsynced;
        self.fell_back += other.fell_back;
        self.names_lost += other.names_lost;
    }
}

/// Walks a tree without following links.
///
/// # Errors
/// Whatever cannot be looked at, with its path.
pub(crate) fn walk(root: &Path) -> Result<BTreeMap<String, Found>, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let fail = |error: std::io::Error| format!("{}: {error}", dir.display());
        for entry in std::fs::read_dir(&dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let at = entry.path();
            let fail = |error: std::io::Error| format!("{}: {error}", at.display());
            let stat = std::fs::symlink_metadata(&at).map_err(fail)?;
            let kind = match stat.file_type() {
                kind if kind.is_dir() => Kind::Dir,
                kind if kind.is_file() => Kind::File,
                kind if kind.is_symlink() => {
                    Kind::Symlink(std::fs::read_link(&at).map_err(fail)?.to_string_lossy().into_owned())
                }
                kind if kind.is_fifo() => Kind::Fifo,
                kind => return Err(format!("{}: {kind:?} shows", at.display())),
            };
            if kind == Kind::Dir {
                todo.push(at.clone());
            }
            let path = at.strip_prefix(root).expect("it was found below the root").to_string_lossy().into_owned();
            let found_here = Found { kind, ino: stat.ino(), nlink: stat.nlink(), mode: stat.mode() & 0o7777, at };
            if found.insert(path.clone(), found_here).is_some() {
                return Err(format!("{path}: listed twice"));
            }
        }
    }
    Ok(found)
}

/// Takes from what was found all that belongs to the thread `name`: the two directories at the top, its own below, and its
/// names in the shared one.
pub(crate) fn belonging<'a>(found: &'a BTreeMap<String, Found>, name: &str) -> BTreeMap<&'a str, &'a Found> {
    let own = format!("{name}/");
    let shared = format!("shared/{name}");
    let is_its = |path: &str| path == name || path == "shared" || path.starts_with(&own) || path.starts_with(&shared);
    found.iter().filter(|(path, _)| is_its(path)).map(|(path, found)| (path.as_str(), found)).collect()
}

type Contents = BTreeMap<Id, (Vec<u8>, u32)>;

/// Finds the state of the model that is there.
///
/// # Errors
/// What is wrong with the state that comes nearest.
pub(crate) fn find_state(
    model: &Model,
    found: &BTreeMap<&str, &Found>,
    end: End,
    identity: Identity,
) -> Result<(Tree, Contents, Seen), String> {
    let mut nearest = (usize::MAX, String::new());
    for (tree, lost) in candidates(model, end) {
        match compare(model, &tree, found, end, identity) {
            Ok((contents, seen)) => return Ok((tree, contents, Seen { names_lost: lost, ..seen })),
            Err((distance, why)) if distance <= nearest.0 => nearest = (distance, why),
            Err(_) => {}
        }
    }
    Err(nearest.1)
}

/// The trees that may be there, the most recent first, with the number of changes that each lacks.
fn candidates(model: &Model, end: End) -> Vec<(Tree, usize)> {
    let mut trees = Vec::new();
    if end == End::Killed {
        trees.push((model.tree.clone(), 0));
    } else {
        let mut tree = model.first_tree.clone();
        let durable = model.log.iter().take_while(|(at, _)| *at <= model.durable).count();
        model.log[..durable].iter().for_each(|(_, names)| tree.apply(names));
        trees.push((tree.clone(), model.log.len() - durable));
        for (done, (_, names)) in model.log.iter().enumerate().skip(durable) {
            tree.apply(names);
            trees.push((tree.clone(), model.log.len() - done - 1));
        }
    }
    if let Some(Op::Names(names)) = &model.pending {
        let mut tree = model.tree.clone();
        tree.apply(names);
        trees.push((tree, 0));
    }
    trees.reverse();
    trees
}

fn compare(
    model: &Model,
    tree: &Tree,
    found: &BTreeMap<&str, &Found>,
    end: End,
    identity: Identity,
) -> Result<(Contents, Seen), (usize, String)> {
    let listing = tree.listing();
    let expected: BTreeMap<_, _> = listing.iter().map(|entry| (entry.path.as_str(), entry)).collect();
    let missing: Vec<_> = expected.keys().filter(|path| !found.contains_key(*path)).collect();
    let extra: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    let other = |path: &&&str| found.get(**path).is_some_and(|found| found.kind != expected[**path].kind);
    let other: Vec<_> = expected.keys().filter(other).collect();
    let distance = missing.len() + extra.len() + other.len();
    if distance > 0 {
        let why = format!("missing {missing:?}, too much {extra:?}, of another kind {other:?}");
        return Err((distance, why));
    }
    let mut names: BTreeMap<Id, Vec<&str>> = BTreeMap::new();
    for entry in &listing {
        names.entry(entry.id).or_default().push(&entry.path);
    }
    if identity == Identity::Checked {
        check_identity(&names, tree, found).map_err(|why| (0, why))?;
    }
    let (mut contents, mut seen) = (Contents::new(), Seen::default());
    for (id, paths) in names.iter().filter(|(id, _)| tree.kinds[id] == Kind::File) {
        // Not all names of a file may show the same where identity does not count.
        let looked_at = if identity == Identity::Checked { &paths[..1] } else { &paths[..] };
        for path in looked_at {
            let content = check_file(model, *id, found[path], end, &mut seen)
                .map_err(|why| (0, format!("{path} (names {paths:?}): {why}")))?;
            contents.insert(*id, content);
        }
    }
    Ok((contents, seen))
}

fn check_identity(names: &BTreeMap<Id, Vec<&str>>, tree: &Tree, found: &BTreeMap<&str, &Found>) -> Result<(), String> {
    let mut inos = BTreeSet::new();
    for (id, paths) in names {
        let first = found[paths[0]];
        if !inos.insert(first.ino) {
            return Err(format!("{}: inode {} is another's too", paths[0], first.ino));
        }
        if tree.kinds[id] == Kind::Dir {
            continue;
        }
        for path in paths {
            let (ino, nlink) = (found[path].ino, found[path].nlink);
            if ino != first.ino || nlink != paths.len() as u64 {
                return Err(format!("{path}: inode {ino}, {nlink} links; expected one inode with the names {paths:?}"));
            }
        }
    }
    Ok(())
}

fn check_file(model: &Model, id: Id, found: &Found, end: End, seen: &mut Seen) -> Result<(Vec<u8>, u32), String> {
    let content = std::fs::read(&found.at).map_err(|error| format!("cannot be read: {error}"))?;
    let file = &model.files[&id];
    let mut changes: Vec<&Change> = Vec::new();
    let mut modes = vec![];
    let base = match end {
        End::Killed => {
            modes.push(file.mode);
            &file.content
        }
        End::Cut => {
            changes.extend(file.history.iter().map(|(_, change)| change));
            modes.push(file.base_mode);
            modes.extend(file.modes.iter().map(|(_, mode)| *mode));
            &file.base
        }
    };
    match &model.pending {
        Some(Op::Content { id: pending, change, .. }) if *pending == id => changes.push(change),
        Some(Op::Chmod { id: pending, mode }) if *pending == id => modes.push(*mode),
        _ => {}
    }
    allowed(&content, base, &changes, &file.stale).map_err(|why| {
        let since: Vec<_> = file.history.iter().map(|(at, change)| format!("{at}: {change:?}")).collect();
        format!("{why}; since operation {} {since:?}", file.base_at)
    })?;
    if !modes.contains(&found.mode) {
        let modes: Vec<_> = modes.iter().map(|mode| format!("{mode:o}")).collect();
        return Err(format!("mode {:o}, not one of {modes:?}", found.mode));
    }
    seen.files += 1;
    seen.unsynced += usize::from(!changes.is_empty());
    seen.fell_back += usize::from(!changes.is_empty() && content != **file.content);
    Ok((content, found.mode))
}

/// Looks at the upper itself: whiteouts, and what the union shows; nothing else.
pub(crate) fn check_upper(upper: &Path, shown: &BTreeMap<String, Found>) -> Result<(), String> {
    let mut todo = vec![upper.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))? {
            let at = entry.map_err(|error| error.to_string())?.path();
            let stat = std::fs::symlink_metadata(&at).map_err(|error| error.to_string())?;
            let path = at.strip_prefix(upper).expect("it was found below").to_string_lossy().into_owned();
            let whiteout = stat.file_type().is_char_device() && stat.rdev() == 0;
            if whiteout == shown.contains_key(&path) {
                return Err(format!("{path} in the upper: whiteout {whiteout}, shown {}", !whiteout));
            }
            if stat.is_dir() {
                todo.push(at);
            }
        }
    }
    Ok(())
}

/// The folders in which nothing may stay.
pub(crate) fn check_work(work: &Path) -> Result<(), String> {
    for folder in ["tmp", "partial", "index"] {
        let dir = work.join("plyfs").join(folder);
        let entries = match std::fs::read_dir(&dir) {
            // Made when something is put there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder != "tmp" => continue,
            entries => entries.map_err(|error| format!("{}: {error}", dir.display()))?,
        };
        let names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        if !names.is_empty() {
            return Err(format!("{} holds {names:?}", dir.display()));
        }
    }
    Ok(())
}

/// Tells what was under way, and what was promised, for a failure's story.
pub(crate) fn story(model: &Model) -> String {
    let shown =
        |names: &[(u64, Names)]| names.iter().map(|(at, names)| format!("  {at}: {names:?}\n")).collect::<String>();
    let durable = model.log.partition_point(|(at, _)| *at <= model.durable);
    let pending = match &model.pending {
        Some(Op::Content { id, change: Change::Write { offset, bytes }, sync }) => {
            format!("write {} bytes at {offset} to inode {id}, {sync:?}", bytes.len())
        }
        Some(op) => format!("{op:?}"),
        None => "nothing".to_owned(),
    };
    format!(
        "{} operations; until {} durable by {}:\n{}last names:\n{}pending: {pending}",
        model.done,
        model.durable,
        model.durable_by,
        shown(&model.log[durable.saturating_sub(6)..durable]),
        shown(&model.log[model.log.len().saturating_sub(6)..]),
    )
}
