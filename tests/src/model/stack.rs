//! Random stacks of layers, and the plain tree that programs see in them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use layer::fixture::{self, Item, ItemKind, Layer};
use layer::{FileType, Slot, Time};
use overlay::folded::{Folded, MemoryBodies, fold_fixtures};
use overlay::{Body as LowerBody, Lower, LowerFile};

use super::op::{Fill, Path, p};
use super::random::Random;
use super::tree::{Body, CAPABILITY, Id, Inode, ROOT, Tree, When};

/// A folded lower in memory.
pub type MemoryLower = Folded<Vec<u8>, MemoryBodies>;

/// The layers of a stack, base first, each a list of members in order.
pub type Stack = Vec<Vec<Item>>;

/// What a stack may hold, by what can stand for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Layers of images: hard links to lower layers, objects.
    Image,
    /// Plain directories.
    Dirs,
}

/// The names that everything is called by, so that they meet often.
pub fn random_name(random: &mut Random) -> Vec<u8> {
    match random.below(200) {
        0..5 => b"\xff\xfe".to_vec(),
        5 => vec![b'n'; 255],
        6..10 => b".wh.a".to_vec(),
        at => vec![b"abcde"[at % 5]],
    }
}

/// Returns a path one to three names deep.
pub fn random_path(random: &mut Random) -> Path {
    let depth = [1, 1, 2, 2, 2, 3][random.below(6)];
    (0..depth).fold(p(""), |path, _| path.join(&random_name(random)))
}

/// A valid value of `security.capability` (capabilities(7), version 2).
pub fn capability() -> Vec<u8> {
    let words: [u32; 5] = [0x0200_0001, 1 << 10, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Makes a stack of up to five layers.
pub fn random_stack(random: &mut Random, form: Form) -> Stack {
    let layers = [0, 1, 1, 2, 2, 3, 4, 6][random.below(8)];
    let mut stack = Stack::new();
    for _ in 0..layers {
        let tries = 3 + random.below(16);
        let mut layer = Vec::new();
        for _ in 0..tries {
            add_item(random, form, &mut layer);
        }
        stack.push(layer);
        if !folds(&stack, form) {
            stack.pop();
        }
    }
    stack
}

fn build(stack: &Stack) -> Option<Vec<Layer>> {
    stack.iter().map(|items| fixture::try_layer(items.iter().cloned()).ok()).collect()
}

/// Tells whether the stack follows the rules of layers; shrinking may have broken them.
pub fn folds(stack: &Stack, form: Form) -> bool {
    let Some(layers) = build(stack) else { return false };
    let indexes: Vec<_> = layers.iter().map(|layer| &layer.index).collect();
    overlay::fold::fold(&indexes).is_ok() && (form == Form::Image || links_are_seen(&layers))
}

/// Tells whether every name of a hard-linked file is seen; plain directories count those too that another layer hides.
fn links_are_seen(layers: &[Layer]) -> bool {
    let links = |layers: &[Layer]| {
        let lower = fold_fixtures(layers);
        let tree = tree_of(&lower, new_root());
        let files = tree.paths().into_iter().filter(|(_, id)| tree.inode(*id).kind() != FileType::Dir);
        files.map(|(path, id)| (path, tree.links(id))).collect::<BTreeMap<_, _>>()
    };
    let alone: Vec<_> = layers.iter().map(|layer| links(std::slice::from_ref(layer))).collect();
    let merged = links(layers);
    merged.iter().all(|(path, links)| alone.iter().rev().find_map(|layer| layer.get(path)) == Some(links))
}

/// The root of a tree whose upper is new in memory.
pub fn new_root() -> Inode {
    let time = When::At(super::memory::Disk::new().now());
    Inode {
        body: Body::Dir { parent: ROOT, entries: BTreeMap::new() },
        perm: 0o755,
        uid: 0,
        gid: 0,
        xattrs: BTreeMap::new(),
        atime: time,
        mtime: time,
        names: 1,
        opens: 0,
    }
}

/// Folds a stack in memory.
///
/// # Panics
/// If it breaks a rule of layers.
pub fn fold(stack: &Stack) -> MemoryLower {
    fold_fixtures(&build(stack).expect("the stack follows the rules"))
}

fn add_item(random: &mut Random, form: Form, layer: &mut Vec<Item>) {
    let path = random_path(random);
    // Members below something that is no directory have their own tests.
    let blocked = layer.iter().any(|item| {
        let at = p(&item.path);
        at == path || path.holds(&at) || (at.holds(&path) && item.kind != ItemKind::Dir)
    });
    let whiteouts = path.names().any(|name| name.starts_with(b".wh."));
    if blocked || whiteouts {
        return;
    }
    let name = &path.0;
    let too_long_to_hide = path.names().last().is_some_and(|name| name.len() > 251);
    let item = match random.below(20) {
        0..5 => fixture::dir(name),
        5..10 => fixture::file(name, content(random)),
        10 => {
            // Some are large enough to be copied piece by piece.
            let large = Fill(random.below(256) as u8, 5000 + random.below(10_000));
            fixture::object(name, if random.chance(60) { large.bytes() } else { content(random) })
        }
        11 => fixture::symlink(name, random_name(random)),
        12 => special(random, name),
        13 | 14 => match hardlink_target(random, form, layer) {
            Some(target) => return layer.push(fixture::hardlink(name, target)),
            None => return,
        },
        15 | 16 if !too_long_to_hide => return layer.push(fixture::whiteout(name)),
        17 => {
            layer.push(fixture::dir(name));
            return layer.push(fixture::opaque(name));
        }
        _ => fixture::file(name, content(random)),
    };
    layer.push(decorate(random, item));
}

fn special(random: &mut Random, name: &[u8]) -> Item {
    match random.below(4) {
        0 => fixture::fifo(name),
        1 => fixture::socket(name),
        2 => fixture::char_device(name, 1, 3),
        _ => fixture::block_device(name, 7, 200),
    }
}

fn content(random: &mut Random) -> Vec<u8> {
    let len = [0, 1, 5, 20, 60][random.below(5)];
    (0..len).map(|_| b'A' + random.below(26) as u8).collect()
}

fn hardlink_target(random: &mut Random, form: Form, layer: &[Item]) -> Option<Vec<u8>> {
    let files: Vec<_> = layer
        .iter()
        .filter(|item| !matches!(item.kind, ItemKind::Dir | ItemKind::Hardlink(_)))
        .filter(|item| !p(&item.path).names().any(|name| name.starts_with(b".wh.")))
        .collect();
    if form == Form::Image && random.chance(40) {
        // Perhaps something that a lower layer holds; a stack with a link to nothing is thrown away.
        return Some(random_path(random).0);
    }
    (!files.is_empty()).then(|| random.pick(&files).path.clone())
}

fn decorate(random: &mut Random, item: Item) -> Item {
    let is_dir = item.kind == ItemKind::Dir;
    let is_file = matches!(item.kind, ItemKind::File { .. });
    let perms: &[u32] = if is_dir { &[0o755, 0o700, 0o1777, 0o2775] } else { &[0o644, 0o600, 0o4755, 0o2755, 0o2644] };
    let mut item = match item.kind {
        ItemKind::Symlink(_) => item,
        _ => item.perm(*random.pick(perms)),
    };
    if random.chance(30) {
        item = item.owner(random.below(3) as u32 * 1000, random.below(3) as u32 * 1000);
    }
    if random.chance(30) {
        item = item.mtime([-5, 0, 1_500_000_000, 5_000_000_000][random.below(4)], random.below(1_000_000_000) as u32);
    }
    if random.chance(20) && (is_dir || is_file) {
        item = item.xattr("user.x", content(random));
    }
    if random.chance(10) {
        item = item.xattr("trusted.t", b"t");
    }
    if random.chance(10) && is_file {
        item = item.xattr(CAPABILITY, capability());
    }
    item
}

/// Spells a member as [`fixture`] makes it.
pub fn spell(item: &Item) -> String {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\\') => format!("{text:?}"),
        _ => format!("b\"{}\"", bytes.escape_ascii()),
    };
    let path = text(&item.path);
    let (mut spelled, perm) = match &item.kind {
        ItemKind::Dir => (format!("dir({path})"), 0o755),
        ItemKind::File { content, object: true } if content.len() > 100 => {
            (format!("object({path}, Fill({}, {}).bytes())", content[0], content.len()), 0o644)
        }
        ItemKind::File { content, object: false } => (format!("file({path}, {})", text(content)), 0o644),
        ItemKind::File { content, object: true } => (format!("object({path}, {})", text(content)), 0o644),
        ItemKind::Symlink(target) => (format!("symlink({path}, {})", text(target)), 0o777),
        ItemKind::Hardlink(target) => (format!("hardlink({path}, {})", text(target)), 0o644),
        ItemKind::Char(dev) => (format!("char_device({path}, {}, {})", dev.major, dev.minor), 0o600),
        ItemKind::Block(dev) => (format!("block_device({path}, {}, {})", dev.major, dev.minor), 0o600),
        ItemKind::Fifo => (format!("fifo({path})"), 0o600),
        ItemKind::Socket => (format!("socket({path})"), 0o600),
    };
    if item.perm != perm {
        spelled += &format!(".perm(0o{:o})", item.perm);
    }
    if (item.uid, item.gid) != (0, 0) {
        spelled += &format!(".owner({}, {})", item.uid, item.gid);
    }
    if item.mtime != (Time { sec: 1_700_000_000, nsec: 123_456_789 }) {
        spelled += &format!(".mtime({}, {})", item.mtime.sec, item.mtime.nsec);
    }
    for (name, value) in &item.xattrs {
        spelled += &format!(".xattr({}, b\"{}\")", text(name), value.escape_ascii());
    }
    spelled
}

/// Builds the tree that programs see in a lower, under a root directory with these attributes (it is the upper's).
///
/// # Panics
/// If the lower has a fault.
pub fn tree_of<L: Lower>(lower: &L, root: Inode) -> Tree {
    let mut tree = Tree::new(root);
    let mut known: BTreeMap<Slot, Id> = BTreeMap::new();
    let mut todo = vec![(lower.root(), ROOT)];
    while let Some((slot, id)) = todo.pop() {
        let mut names = Vec::new();
        lower
            .entries(slot, 0, &mut |entry| {
                names.push((entry.name.to_buf(), entry.slot));
                ControlFlow::Continue(())
            })
            .expect("the lower lists");
        for (name, child) in names {
            if let Some(linked) = known.get(&child) {
                tree.add_name(id, name.as_bytes(), *linked);
                continue;
            }
            let inode = inode_of(lower, child);
            let is_dir = inode.kind() == FileType::Dir;
            let added = tree.add(id, name.as_bytes(), inode);
            if is_dir {
                todo.push((child, added));
            } else {
                known.insert(child, added);
            }
        }
    }
    tree
}

fn inode_of<L: Lower>(lower: &L, slot: Slot) -> Inode {
    let stat = lower.stat(slot).expect("the lower stats");
    let mut xattrs = BTreeMap::new();
    lower
        .xattrs(slot, &mut |name, value| {
            xattrs.insert(name.to_vec(), value.to_vec());
        })
        .expect("the lower tells attributes");
    let body = match stat.kind {
        FileType::Dir => Body::Dir { parent: ROOT, entries: BTreeMap::new() },
        FileType::File => Body::File(content_of(lower, slot, stat.size)),
        FileType::Symlink => Body::Symlink(lower.link_target(slot).expect("the lower tells links").into_owned()),
        FileType::Char | FileType::Block => Body::Device(stat.kind, stat.rdev),
        FileType::Fifo | FileType::Socket => Body::Special(stat.kind),
    };
    let (atime, mtime) = (When::At(stat.atime), When::At(stat.mtime));
    Inode { body, perm: stat.perm, uid: stat.uid, gid: stat.gid, xattrs, atime, mtime, names: 0, opens: 0 }
}

fn content_of<L: Lower>(lower: &L, slot: Slot, size: u64) -> Vec<u8> {
    match lower.body(slot).expect("the lower opens") {
        LowerBody::Bytes(bytes) => bytes.to_vec(),
        LowerBody::File(file) => {
            let mut content = vec![0; size as usize];
            let mut at = 0;
            while at < content.len() {
                match file.read_at(&mut content[at..], at as u64).expect("the lower reads") {
                    0 => break,
                    count => at += count,
                }
            }
            content
        }
    }
}
