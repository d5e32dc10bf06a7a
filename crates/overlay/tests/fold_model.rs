//! Folding against a plain tree that knows nothing of layers: random stacks, each applied in order, compared name by name.
//!
//! The tree is what a disk would be. A layer's whiteouts act on it first (they hide lower layers only, wherever they stand),
//! then its members in order. Members whose meaning depends on more than that (below a symbolic link of the same layer, links
//! that precede their target) have their own tests; the generator leaves them out.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::collections::{BTreeMap, BTreeSet};

use layer::fixture::{Item, ItemKind, Layer, dir, file, hardlink, object, opaque, symlink, try_layer, whiteout};
use layer::index::{Index, RowData};
use layer::{Dev, Slot, Time};
use overlay::fold::{FoldError, fold};
use overlay::folded::fold_fixtures;
use overlay::{Body, Lower, LowerFile};
use proptest::prelude::*;

/// What a name leads to, with all that a program can see.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    what: What,
    perm: u16,
    owner: (u32, u32),
    mtime: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    nlink: u32,
    /// The first of all names of the inode.
    first_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Char(Dev),
    Block(Dev),
    Fifo,
    Socket,
}

// ---- the plain tree

#[derive(Clone)]
struct Plain {
    inodes: Vec<Inode>,
}

#[derive(Clone)]
struct Inode {
    what: What,
    perm: u16,
    owner: (u32, u32),
    mtime: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    entries: BTreeMap<String, usize>,
}

impl Inode {
    fn unstated() -> Self {
        let mtime = Time::default();
        Inode { what: What::Dir, perm: 0o755, owner: (0, 0), mtime, xattrs: vec![], entries: BTreeMap::new() }
    }
}

impl Plain {
    fn new() -> Self {
        Plain { inodes: vec![Inode::unstated()] }
    }

    /// Applies a layer; `Err` if a hard link's target is not there.
    fn apply(&mut self, items: &[Item]) -> Result<(), String> {
        for item in items {
            let path = text(&item.path);
            let (parent, name) = split(&path);
            if name == ".wh..wh..opq" {
                if let Some(at) = self.find(parent) {
                    self.inodes[at].entries.clear();
                }
            } else if let Some(hidden) = name.strip_prefix(".wh.")
                && let Some(at) = self.find(parent)
            {
                self.inodes[at].entries.remove(hidden);
            }
        }
        items.iter().try_for_each(|item| self.put(item))
    }

    fn put(&mut self, item: &Item) -> Result<(), String> {
        let path = text(&item.path);
        if path.is_empty() {
            self.state(0, item);
            return Ok(());
        }
        let (parent, name) = split(&path);
        let parent = self.make_dirs(parent);
        if name.starts_with(".wh.") {
            return Ok(());
        }
        let existing = self.inodes[parent].entries.get(name).copied();
        let what = match &item.kind {
            ItemKind::Dir => {
                let at = match existing.filter(|&at| self.inodes[at].what == What::Dir) {
                    Some(at) => at,
                    None => self.add(parent, name, Inode::unstated()),
                };
                self.state(at, item);
                return Ok(());
            }
            ItemKind::Hardlink(target) => {
                let at = self.find(&text(target)).filter(|&at| self.inodes[at].what != What::Dir);
                let at = at.ok_or_else(|| shown(item, target))?;
                self.inodes[parent].entries.insert(name.into(), at);
                return Ok(());
            }
            ItemKind::File { content, .. } => What::File(content.clone()),
            ItemKind::Symlink(target) => What::Symlink(target.clone()),
            ItemKind::Char(dev) => What::Char(*dev),
            ItemKind::Block(dev) => What::Block(*dev),
            ItemKind::Fifo => What::Fifo,
            ItemKind::Socket => What::Socket,
        };
        let at = self.add(parent, name, Inode { what, ..Inode::unstated() });
        self.state(at, item);
        Ok(())
    }

    fn state(&mut self, at: usize, item: &Item) {
        let inode = &mut self.inodes[at];
        inode.perm = item.perm as u16;
        inode.owner = (item.uid, item.gid);
        inode.mtime = item.mtime;
        inode.xattrs = item.xattrs.clone();
        inode.xattrs.sort();
    }

    fn add(&mut self, parent: usize, name: &str, inode: Inode) -> usize {
        self.inodes.push(inode);
        let at = self.inodes.len() - 1;
        self.inodes[parent].entries.insert(name.into(), at);
        at
    }

    fn make_dirs(&mut self, path: &str) -> usize {
        let mut at = 0;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let existing = self.inodes[at].entries.get(name).copied();
            at = match existing.filter(|&child| self.inodes[child].what == What::Dir) {
                Some(child) => child,
                None => self.add(at, name, Inode::unstated()),
            };
        }
        at
    }

    fn find(&self, path: &str) -> Option<usize> {
        let mut names = path.split('/').filter(|name| !name.is_empty());
        names.try_fold(0, |at, name| self.inodes[at].entries.get(name).copied())
    }

    fn seen(&self) -> BTreeMap<String, Seen> {
        let mut names: Vec<(String, usize)> = vec![(String::new(), 0)];
        let mut next = 0;
        while let Some((path, at)) = names.get(next).cloned() {
            names.extend(self.inodes[at].entries.iter().map(|(name, child)| (join(&path, name), *child)));
            next += 1;
        }
        let mut of_inode: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
        names.iter().for_each(|(path, at)| {
            of_inode.entry(*at).or_default().insert(path);
        });
        let seen = |(path, at): &(String, usize)| {
            let inode = &self.inodes[*at];
            let is_dir = |child: &&usize| self.inodes[**child].what == What::Dir;
            let nlink = match inode.what {
                What::Dir => 2 + inode.entries.values().filter(is_dir).count(),
                _ => of_inode[at].len(),
            };
            let seen = Seen {
                what: inode.what.clone(),
                perm: inode.perm,
                owner: inode.owner,
                mtime: inode.mtime,
                xattrs: inode.xattrs.clone(),
                nlink: nlink as u32,
                first_name: of_inode[at].first().unwrap().to_string(),
            };
            (path.clone(), seen)
        };
        names.iter().map(seen).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

// ---- the folded tree, through the interface that the daemon uses

fn seen_folded(layers: &[Layer]) -> BTreeMap<String, Seen> {
    let lower = fold_fixtures(layers);
    layer::fixture::read_everything(lower.index());
    let mut names: Vec<(String, Slot)> = vec![(String::new(), lower.root())];
    let mut next = 0;
    while let Some((path, dir)) = names.get(next).cloned() {
        let visit = &mut |entry: overlay::LowerEntry<'_>| {
            names.push((join(&path, &entry.name.to_string()), entry.slot));
            assert_eq!(lower.lookup(dir, entry.name).unwrap(), Some(entry.slot));
            assert_eq!(lower.stat(entry.slot).unwrap().kind, entry.kind);
            std::ops::ControlFlow::Continue(())
        };
        lower.entries(dir, 0, visit).unwrap();
        next += 1;
    }
    let mut of_slot: BTreeMap<Slot, BTreeSet<&str>> = BTreeMap::new();
    names.iter().for_each(|(path, slot)| {
        of_slot.entry(*slot).or_default().insert(path);
    });
    let seen = |(path, slot): &(String, Slot)| {
        let stat = lower.stat(*slot).unwrap();
        let mut xattrs = Vec::new();
        lower.xattrs(*slot, &mut |name, value| xattrs.push((name.to_vec(), value.to_vec()))).unwrap();
        let row = lower.index().row(*slot).unwrap();
        let what = match row.data() {
            RowData::Dir { .. } => What::Dir,
            RowData::Symlink(target) => What::Symlink(target.to_vec()),
            RowData::Char(dev) => What::Char(dev),
            RowData::Block(dev) => What::Block(dev),
            RowData::Fifo => What::Fifo,
            RowData::Socket => What::Socket,
            _ => What::File(match lower.body(*slot).unwrap() {
                Body::Bytes(bytes) => bytes.to_vec(),
                Body::File(file) => {
                    let mut bytes = vec![0; stat.size as usize];
                    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
                    bytes
                }
            }),
        };
        let seen = Seen {
            what,
            perm: stat.perm,
            owner: (stat.uid, stat.gid),
            mtime: stat.mtime,
            xattrs,
            nlink: stat.nlink,
            first_name: of_slot[slot].first().unwrap().to_string(),
        };
        (path.clone(), seen)
    };
    names.iter().map(seen).collect()
}

// ---- random stacks

fn path() -> impl Strategy<Value = String> {
    // Few names, so that layers meet; one to three deep.
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn item() -> impl Strategy<Value = Item> {
    let plain = prop_oneof![
        4 => (path(), any::<bool>()).prop_map(|(path, big)| match big {
            true => object(path, b"large"),
            false => file(path, b""),
        }),
        4 => path().prop_map(dir),
        1 => Just(dir("")),
        3 => (path(), path()).prop_map(|(path, target)| hardlink(path, target)),
        1 => path().prop_map(|path| symlink(path, "nowhere")),
        1 => (path(), 1u32..4).prop_map(|(path, minor)| layer::fixture::char_device(path, 0, minor)),
        1 => path().prop_map(|path| layer::fixture::block_device(path, 0, 0)),
        1 => prop_oneof![path().prop_map(layer::fixture::fifo), path().prop_map(layer::fixture::socket)],
        3 => path().prop_map(whiteout),
        1 => path().prop_map(opaque),
        1 => Just(opaque("")),
    ];
    let attributes = (0u32..0o10_000, 0u32..5, 0u32..5, -3i64..100, 0u32..1_000_000_000, 0u8..6);
    (plain, attributes).prop_map(|(item, (perm, uid, gid, sec, nsec, xattrs))| {
        let item = item.perm(perm).owner(uid, gid).mtime(sec, nsec);
        match xattrs {
            0 => item.xattr("user.z", "1").xattr("user.a", perm.to_string()),
            1 => item.xattr("user.z", "1"),
            _ => item,
        }
    })
}

/// Takes what makes a good layer whose meaning the plain tree knows; each file gets a content of its own.
fn good(items: Vec<Item>, content: &mut u32) -> Vec<Item> {
    let mut good: Vec<Item> = Vec::new();
    for mut item in items {
        if let ItemKind::File { content: bytes, .. } = &mut item.kind
            && !item.path.windows(4).any(|part| part == b".wh.")
        {
            *content += 1;
            bytes.extend_from_slice(content.to_string().as_bytes());
        }
        good.push(item);
        if try_layer(good.clone()).is_err() || !is_plain(&good) {
            good.pop();
        }
    }
    good
}

fn is_plain(items: &[Item]) -> bool {
    let below = |path: &[u8], top: &[u8]| path.strip_prefix(top).is_some_and(|rest| rest.starts_with(b"/"));
    // A hard link may be one to a symbolic link.
    let is_link = |item: &&Item| matches!(item.kind, ItemKind::Symlink(_) | ItemKind::Hardlink(_));
    let mut symlinks = items.iter().filter(is_link);
    let through_symlink = symlinks.any(|link| {
        let targets = items.iter().filter_map(|item| match &item.kind {
            ItemKind::Hardlink(target) => Some(target),
            _ => None,
        });
        items.iter().map(|item| &item.path).chain(targets).any(|path| below(path, &link.path))
    });
    let early_link = items.iter().enumerate().any(|(n, item)| match &item.kind {
        ItemKind::Hardlink(target) => {
            // Stated later: the target itself or something on the way to it; or the link, which nobody misses then.
            let touches =
                |path: &[u8]| [target, &item.path].into_iter().any(|earlier| path == earlier || below(earlier, path));
            items[n + 1..].iter().any(|later| touches(&later.path))
        }
        _ => false,
    });
    !through_symlink && !early_link
}

/// Most stacks have only links that lead somewhere; else hardly one would fold.
fn stacks() -> impl Strategy<Value = Vec<Vec<Item>>> {
    let layers = prop::collection::vec(prop::collection::vec(item(), 0..14), 0..6);
    (layers, prop::bool::weighted(0.1)).prop_map(|(layers, broken)| {
        let mut content = 0;
        let mut plain = Plain::new();
        let take = |mut items: Vec<Item>| {
            aim(&mut items, &plain);
            let mut items = good(items, &mut content);
            while !broken && let Err(missing) = plain.clone().apply(&items) {
                items
                    .retain(|item| !matches!(&item.kind, ItemKind::Hardlink(target) if shown(item, target) == missing));
                items = good(items, &mut content);
            }
            // A broken layer stays half applied; what comes on top of it does not matter.
            plain.apply(&items).ok();
            items
        };
        layers.into_iter().map(take).collect()
    })
}

/// Gives most hard links a target that is there, in the layer before the link or below.
fn aim(items: &mut [Item], below: &Plain) {
    let is_file = |seen: &Seen| seen.what != What::Dir;
    let lower = below.seen().into_iter().filter(|(_, seen)| is_file(seen)).map(|(path, _)| path.into_bytes());
    let mut targets: Vec<Vec<u8>> = lower.collect();
    for item in items {
        match &mut item.kind {
            ItemKind::Hardlink(target) if !targets.is_empty() && item.perm % 5 != 0 => {
                *target = targets[item.perm as usize % targets.len()].clone();
                targets.push(item.path.clone());
            }
            ItemKind::Dir => {}
            _ => targets.push(item.path.clone()),
        }
    }
}

fn shown(link: &Item, target: &[u8]) -> String {
    format!("{} -> {}", text(&link.path), text(target))
}

fn check(stack: &[Vec<Item>]) -> Result<Outcome, TestCaseError> {
    let mut plain = Plain::new();
    let applied = stack.iter().try_for_each(|items| plain.apply(items));
    let layers: Vec<Layer> = stack.iter().map(|items| try_layer(items.clone()).unwrap()).collect();
    let indexes: Vec<_> = layers.iter().map(|layer| &layer.index).collect();
    match (applied, fold(&indexes)) {
        (Ok(()), Ok(bytes)) => {
            let (plain, folded) = (plain.seen(), seen_folded(&layers));
            let paths: BTreeSet<&String> = plain.keys().chain(folded.keys()).collect();
            for path in paths {
                prop_assert_eq!(plain.get(path), folded.get(path), "'{}' of the plain tree and the folded one", path);
            }
            prop_assert_eq!(&fold(&indexes).unwrap(), &bytes, "the same layers give the same bytes");
            Ok(Outcome::Folded(Box::new(Index::open(bytes).unwrap())))
        }
        // Of several the two may meet another first.
        (Err(_), Err(FoldError::Link { .. })) => Ok(Outcome::Refused),
        (plain, folded) => Err(TestCaseError::fail(format!("plain: {plain:?}, folded: {:?}", folded.map(|_| ())))),
    }
}

enum Outcome {
    Folded(Box<Index<Vec<u8>>>),
    Refused,
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1_500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_folded_stack_is_the_tree_that_its_layers_make(stack in stacks()) {
        check(&stack)?;
    }
}

#[test]
fn the_generator_makes_what_it_should_test() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let (mut folded, mut refused, mut across, mut groups) = (0, 0, 0, 0);
    for _ in 0..400 {
        let stack = stacks().new_tree(&mut runner).unwrap().current();
        match check(&stack).unwrap() {
            Outcome::Folded(index) => {
                folded += 1;
                let layers: Vec<Layer> = stack.iter().map(|items| try_layer(items.clone()).unwrap()).collect();
                let foreign = |row: layer::index::Row<'_>| matches!(row.data(), RowData::ForeignLink(_));
                across += usize::from(layers.iter().any(|layer| layer.index.rows().any(foreign)));
                groups += usize::from(index.rows().any(|row| matches!(row.data(), RowData::Alias(_))));
            }
            Outcome::Refused => refused += 1,
        }
    }
    assert!(folded > 300 && refused > 2 && across > 50 && groups > 50, "{folded} {refused} {across} {groups}");
}
