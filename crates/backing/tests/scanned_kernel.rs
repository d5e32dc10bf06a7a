//! Random stacks of real directories, compared with what the kernel's overlayfs makes of them.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod scanned_stack;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use backing::scanned::{Options, Whiteouts};
use layer::FileType;
use proptest::prelude::*;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use scanned_stack::{Put, Seen, Stack, real_tree, skip, tree};

type Tree = BTreeMap<String, Seen>;

/// Mounts the layers read-only, at no place: the mount is gone with the descriptor.
fn kernel_mount(layers: &[PathBuf]) -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&fs, key, value);
    for layer in layers {
        set("lowerdir+", layer.to_str().unwrap())?;
    }
    set("redirect_dir", "follow")?;
    set("metacopy", "on")?;
    rustix::mount::fsconfig_create(&fs)?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".to_string()), Just("b".to_string()), Just("c".to_string()), Just(".wh.a".to_string())]
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"))
}

fn redirect() -> impl Strategy<Value = String> {
    prop_oneof![4 => name(), 4 => path().prop_map(|path| format!("/{path}")), 1 => Just("a/b".into()), 1 => Just("/a//b".into())]
}

fn put() -> impl Strategy<Value = Put> {
    let overlay = |name: &'static str| format!("trusted.overlay.{name}");
    prop_oneof![
        8 => path().prop_map(Put::Dir),
        6 => (path(), "[a-z]{0,5}").prop_map(|(path, text)| Put::File(path, text.into())),
        4 => path().prop_map(|path| Put::Device(path, 0)),
        1 => path().prop_map(|path| Put::Device(path, rustix::fs::makedev(1, 3))),
        1 => path().prop_map(Put::Fifo),
        1 => (path(), path()).prop_map(|(path, to)| Put::Link(path, to)),
        2 => (path(), path()).prop_map(|(path, of)| Put::Hard(path, of)),
        2 => (path(), 1..9000_u64).prop_map(|(path, size)| Put::Hole(path, size)),
        2 => path().prop_map(move |path| Put::Xattr(path, overlay("opaque"), b"y".into())),
        4 => path().prop_map(move |path| Put::Xattr(path, overlay("opaque"), b"x".into())),
        4 => path().prop_map(move |path| Put::Xattr(path, overlay("whiteout"), b"".into())),
        4 => (path(), redirect()).prop_map(move |(path, to)| Put::Xattr(path, overlay("redirect"), to.into())),
        3 => path().prop_map(move |path| Put::Xattr(path, overlay("metacopy"), b"".into())),
        1 => path().prop_map(|path| Put::Xattr(path, "user.note".into(), b"1".into())),
        2 => (path(), 0..0o10000_u32).prop_map(|(path, mode)| Put::Mode(path, mode)),
        1 => (path(), 0..3_u32, 0..3_u32).prop_map(|(path, uid, gid)| Put::Owner(path, uid, gid)),
        1 => (path(), -3..3_i64, 0..1_000_000_000_i64).prop_map(|(path, sec, nsec)| Put::Time(path, sec, nsec)),
    ]
}

fn stacks() -> impl Strategy<Value = Vec<Vec<Put>>> {
    prop::collection::vec(prop::collection::vec(put(), 0..25), 2..5)
}

/// Builds a stack; what cannot be put (a name below a file, a name that is taken) is left out.
fn build(layers: &[Vec<Put>]) -> Stack {
    let stack = Stack::new(&vec![Vec::new(); layers.len()]).unwrap();
    for (root, puts) in stack.layers.iter().zip(layers) {
        for put in puts {
            // Marks only where the kernel or a tool would put them: an x on a directory, metacopy on a file without content.
            let there = std::fs::symlink_metadata(root.join(match put {
                Put::Xattr(path, ..) | Put::Mode(path, _) => path,
                _ => "",
            }));
            let fits = match (put, there) {
                (Put::Xattr(_, name, _), Ok(there)) => match name.as_str() {
                    "trusted.overlay.opaque" => there.is_dir(),
                    "trusted.overlay.metacopy" => {
                        there.is_file() && there.len() > 0 && std::os::linux::fs::MetadataExt::st_blocks(&there) == 0
                    }
                    "trusted.overlay.whiteout" => there.is_file() && there.len() == 0,
                    "trusted.overlay.redirect" => there.is_dir() || there.is_file(),
                    _ => true,
                },
                (Put::Mode(..), Ok(there)) => !there.is_symlink(),
                (_, there) => there.is_ok(),
            };
            if fits {
                // Left out, as said above.
                put.apply(root).ok();
            }
        }
    }
    stack
}

/// Takes whiteouts by attribute out of directories that are not marked to have some: the kernel lists them there, and
/// finds them missing.
fn without_stray_whiteouts(dir: &Path) {
    let get = |path: &Path, name: &str| {
        let mut value = [0; 2];
        rustix::fs::lgetxattr(path, name, &mut value[..]).ok().map(|len| value[..len].to_vec())
    };
    let marked = get(dir, "trusted.overlay.opaque").as_deref() == Some(b"x");
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if !marked && get(&entry, "trusted.overlay.whiteout").is_some() {
            rustix::fs::lremovexattr(&entry, "trusted.overlay.whiteout").unwrap();
        }
        if std::fs::symlink_metadata(&entry).unwrap().is_dir() {
            without_stray_whiteouts(&entry);
        }
    }
}

/// Takes out what is not promised to be the same.
fn comparable(mut tree: Tree) -> Tree {
    // Programs that look at a broken name see an error either way, at the name or at what it holds.
    let broken: Vec<_> =
        tree.iter().filter(|(_, seen)| **seen == Seen::Broken).map(|(path, _)| format!("{path}/")).collect();
    tree.retain(|path, _| !broken.iter().any(|above| path.starts_with(above)));
    for (path, seen) in &mut tree {
        if let Seen::Whole { stat, .. } = seen {
            if stat.kind == FileType::Dir {
                stat.nlink = 0;
            }
            if path.is_empty() {
                stat.ino = layer::Ino(1);
            }
        }
    }
    tree
}

/// Takes out the numbers of inodes that a redirect shows at several places: there each has its own here.
fn without_shared_numbers(mut ours: Tree, mut kernel: Tree) -> (Tree, Tree) {
    let mut seen = BTreeMap::<u64, Vec<String>>::new();
    for (path, what) in &kernel {
        if let Seen::Whole { stat, .. } = what
            && (stat.nlink == 1 || stat.kind == FileType::Dir)
        {
            seen.entry(stat.ino.0).or_default().push(path.clone());
        }
    }
    for path in seen.into_values().filter(|paths| paths.len() > 1).flatten() {
        for tree in [&mut ours, &mut kernel] {
            if let Some(Seen::Whole { stat, .. }) = tree.get_mut(&path) {
                stat.ino = layer::Ino(0);
            }
        }
    }
    (ours, kernel)
}

fn compare(layers: &[Vec<Put>]) -> Result<(), TestCaseError> {
    let stack = build(layers);
    stack.layers.iter().for_each(|root| without_stray_whiteouts(root));
    let mount = kernel_mount(&stack.layers).unwrap();
    let kernel = comparable(real_tree(&mount));
    let mut ours = comparable(tree(&stack.open(Options { whiteouts: Whiteouts::Overlay, ..Options::default() })));
    // A name that cannot be looked at is left out by the kernel where it looks at each while it lists.
    ours.retain(|path, seen| *seen != Seen::Broken || kernel.contains_key(path));
    let (ours, kernel) = without_shared_numbers(ours, kernel);
    prop_assert_eq!(ours, kernel);
    Ok(())
}

/// Deep stacks of few names, full of redirects that lead over each other.
fn renamed_stacks() -> impl Strategy<Value = Vec<Vec<Put>>> {
    let name = || prop_oneof![Just("a"), Just("b")];
    let path = move || prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"));
    let to = move || prop_oneof![2 => path().prop_map(|path| format!("/{path}")), 1 => name().prop_map(String::from)];
    let put = prop_oneof![
        4 => path().prop_map(Put::Dir),
        2 => path().prop_map(|path| Put::File(format!("{path}/f"), Vec::new())),
        4 => (path(), to()).prop_map(|(path, to)| Put::Xattr(path, "trusted.overlay.redirect".into(), to.into())),
        1 => path().prop_map(|path| Put::Xattr(path, "trusted.overlay.opaque".into(), b"y".into())),
        1 => path().prop_map(|path| Put::Device(path, 0)),
    ];
    prop::collection::vec(prop::collection::vec(put, 4..16), 3..6)
}

fn agree(test: &str, stacks: impl Strategy<Value = Vec<Vec<Put>>>) {
    let stack = Stack::of([Vec::new(), Vec::new()]);
    if let Err(refused) = kernel_mount(&stack.layers) {
        let why = format!("overlayfs cannot be mounted ({refused})");
        return skip(test, &why, "run it as root, Linux 6.8 or later");
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: if std::env::var_os("PLYFS_NIGHTLY").is_some() { 10_000 } else { 300 },
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..ProptestConfig::default()
    });
    runner.run(&stacks, |layers| compare(&layers)).unwrap();
}

#[test]
fn the_kernels_overlayfs_shows_the_same() {
    agree("the_kernels_overlayfs_shows_the_same", stacks());
}

#[test]
fn renamed_directories_go_on_where_the_kernel_finds_them() {
    agree("renamed_directories_go_on_where_the_kernel_finds_them", renamed_stacks());
}
