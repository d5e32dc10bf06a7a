//! Random stacks with whiteout files, compared with a plain tree to which the layers are applied one after the other.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod scanned_stack;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use backing::scanned::Options;
use layer::FileType;
use proptest::prelude::*;
use scanned_stack::{Put, Seen, Stack, tree};

/// A path's kind, and for a file its content.
type Tree = BTreeMap<String, (FileType, Vec<u8>)>;

fn join(above: &str, name: &str) -> String {
    if above.is_empty() { name.into() } else { format!("{above}/{name}") }
}

/// Takes away everything below a directory.
fn clear(tree: &mut Tree, dir: &str) {
    let below = join(dir, "");
    tree.retain(|path, _| dir.is_empty() || !path.starts_with(&below));
    if dir.is_empty() {
        tree.clear();
    }
}

/// Applies a layer as an unpacker does: first what it hides, then what it has.
fn apply(tree: &mut Tree, root: &Path, dir: &str) {
    let names: Vec<String> = std::fs::read_dir(root.join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in &names {
        if name == ".wh..wh..opq" {
            clear(tree, dir);
        } else if let Some(hidden) = name.strip_prefix(".wh.").filter(|hidden| !hidden.is_empty()) {
            clear(tree, &join(dir, hidden));
            tree.remove(&join(dir, hidden));
        }
    }
    for name in names.iter().filter(|name| !name.starts_with(".wh.")) {
        let path = join(dir, name);
        let there = std::fs::symlink_metadata(root.join(&path)).unwrap();
        let kind = FileType::from_mode(std::os::unix::fs::MetadataExt::mode(&there)).unwrap();
        if kind != FileType::Dir || tree.get(&path).is_none_or(|(old, _)| *old != FileType::Dir) {
            clear(tree, &path);
            tree.remove(&path);
        }
        match kind {
            // The only device here is the kernel's whiteout.
            FileType::Char => {}
            FileType::File => {
                tree.insert(path, (kind, std::fs::read(root.join(dir).join(name)).unwrap()));
            }
            FileType::Dir => {
                tree.insert(path.clone(), (kind, Vec::new()));
                apply(tree, root, &path);
            }
            _ => {
                tree.insert(path, (kind, Vec::new()));
            }
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[abc]",
        4 => "\\.wh\\.[abc]",
        1 => Just(".wh..wh..opq".to_string()),
        1 => Just(".wh..wh.plnk".to_string()),
        1 => Just(".wh.".to_string()),
    ]
}

fn put() -> impl Strategy<Value = Put> {
    let path = || prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"));
    prop_oneof![
        6 => path().prop_map(Put::Dir),
        6 => (path(), "[a-z]{0,3}").prop_map(|(path, text)| Put::File(path, text.into())),
        2 => path().prop_map(|path| Put::Device(path, 0)),
        1 => path().prop_map(Put::Fifo),
        1 => (path(), path()).prop_map(|(path, to)| Put::Link(path, to)),
    ]
}

fn compare(layers: &[Vec<Put>]) -> Result<(), TestCaseError> {
    let stack = Stack::new(&vec![Vec::new(); layers.len()]).unwrap();
    for (root, puts) in stack.layers.iter().zip(layers) {
        for put in puts {
            // A name that is taken, or below a file, is left out.
            put.apply(root).ok();
        }
    }
    let mut expected = Tree::new();
    stack.layers.iter().rev().for_each(|root| apply(&mut expected, root, ""));
    let mut found = Tree::new();
    for (path, seen) in tree(&stack.open(Options::default())) {
        let Seen::Whole { stat, content, .. } = seen else {
            return Err(TestCaseError::fail(format!("{path} is broken")));
        };
        let content = if stat.kind == FileType::File { content } else { Vec::new() };
        found.insert(path, (stat.kind, content));
    }
    found.remove("");
    prop_assert_eq!(found, expected);
    Ok(())
}

#[test]
fn layers_with_whiteout_files_are_as_if_applied_in_order() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: if std::env::var_os("PLYFS_NIGHTLY").is_some() { 10_000 } else { 500 },
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let layers = prop::collection::vec(prop::collection::vec(put(), 0..20), 1..5);
    runner.run(&layers, |layers| compare(&layers)).unwrap();
}

#[test]
fn reading_goes_on_behind_any_entry() {
    use overlay::Lower;
    let puts = (0..500).map(|n| scanned_stack::file(&format!("f{n}"), "")).collect();
    let stack = Stack::of([puts]);
    let lower = stack.open(Options::default());
    let list = |after| {
        let mut cookies = Vec::new();
        lower
            .entries(lower.root(), after, &mut |entry| {
                cookies.push(entry.cookie);
                ControlFlow::Continue(())
            })
            .unwrap();
        cookies
    };
    let all = list(0);
    assert_eq!(all.len(), 500);
    for (index, cookie) in all.iter().enumerate() {
        assert_eq!(list(*cookie), all[index + 1..]);
    }
    assert!(list(u64::MAX).is_empty() && list(1 << 32).is_empty());
}
