//! The rules of plain directories as a lower, one stack each. What the kernel's overlayfs knows too is compared with it in
//! `scanned_kernel.rs`, sequences of `.wh.` files with a model in `scanned_model.rs`.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod scanned_stack;

use std::os::unix::fs::symlink;
use std::sync::Barrier;

use backing::scanned::{OpenError, Options, Scanned, Whiteouts};
use layer::{Dev, FileType, Ino, Name, Time};
use overlay::{Body, Errno, Lower, LowerFile};
use scanned_stack::{Put, Seen, Stack, children, dir, file, read, slot, tree, whiteout, xattr};

const ALL: Options = Options { whiteouts: Whiteouts::All, override_stat: false };
const OVERLAY: Options = Options { whiteouts: Whiteouts::Overlay, override_stat: false };
const RECORDS: Options = Options { whiteouts: Whiteouts::All, override_stat: true };

fn content(lower: &Scanned, path: &str) -> String {
    String::from_utf8(read(lower, slot(lower, path)).unwrap()).unwrap()
}

/// The whole tree is the paths given.
fn shows(stack: &Stack, options: Options, paths: &[&str]) {
    assert_eq!(stack.paths(options), paths);
}

#[test]
fn the_topmost_layer_decides_and_directories_merge() {
    let stack = Stack::of([
        vec![file("a/f", "top"), file("a/only-top", "")],
        vec![file("a/f", "middle"), Put::Mode("a".into(), 0o700), Put::Link("b".into(), "f".into())],
        vec![file("a/f", "bottom"), file("a/deep/g", "g"), file("b", "hidden")],
    ]);
    shows(&stack, ALL, &["a", "a/deep", "a/deep/g", "a/f", "a/only-top", "b"]);
    let lower = stack.open(ALL);
    assert_eq!(content(&lower, "a/f"), "top");
    assert_eq!(lower.link_target(slot(&lower, "b")).unwrap(), &b"f"[..]);
    // A merged directory's attributes are those of its topmost part; merged ones count no subdirectories, as in the kernel.
    let merged = lower.stat(slot(&lower, "a")).unwrap();
    assert_eq!((merged.perm, merged.nlink), (0o755, 1));
    assert_eq!(lower.stat(slot(&lower, "a/deep")).unwrap().nlink, 2);
    assert_eq!(lower.stat(lower.root()).unwrap().nlink, 1);
}

#[test]
fn every_spelling_of_a_whiteout_hides_what_is_below() {
    for hidden in [
        vec![whiteout("d/x")],
        vec![file("d/.wh.x", "")],
        vec![file("d/x", ""), xattr("d/x", "user.overlay.whiteout", ""), xattr("d", "user.overlay.opaque", "x")],
    ] {
        let stack = Stack::of([hidden, vec![file("d/x", "1"), file("d/y", "1")], vec![file("d/x/z", "2")]]);
        shows(&stack, ALL, &["d", "d/y"]);
    }
}

#[test]
fn every_spelling_of_opaque_hides_what_is_below_but_not_the_directory_itself() {
    for opaque in [
        file("d/.wh..wh..opq", ""),
        xattr("d", "user.overlay.opaque", "y"),
        xattr("d", "user.fuseoverlayfs.opaque", "y"),
    ] {
        let stack = Stack::of([vec![dir("d/sub"), opaque], vec![file("d/x", ""), file("d/sub/x", ""), file("e", "")]]);
        shows(&stack, ALL, &["d", "d/sub", "e"]);
    }
}

#[test]
fn whiteout_files_leave_their_own_layer_alone() {
    let stack = Stack::of([
        vec![file("f", "new"), file(".wh.f", ""), file("d/new", ""), file(".wh.d", "")],
        vec![file("f", "old"), file("d/old", "")],
    ]);
    shows(&stack, ALL, &["d", "d/new", "f"]);
    assert_eq!(content(&stack.open(ALL), "f"), "new");
    // Without the markers' meaning they are names like any other.
    shows(&stack, OVERLAY, &[".wh.d", ".wh.f", "d", "d/new", "d/old", "f"]);
}

#[test]
fn no_marker_is_ever_shown() {
    let stack = Stack::of([vec![
        file(".wh.", ""),
        file(".wh..", ""),
        file(".wh...", ""),
        file(".wh..wh.plnk/x", ""),
        file(".wh..wh.aufs", "content"),
        Put::Link(".wh..wh..opq".into(), "/".into()),
        dir("d/.wh..wh..opq"),
        file("d/.wh.gone/child", ""),
        file("d/.whatever", ""),
        file("d/.wh", ""),
    ]]);
    shows(&stack, ALL, &["d", "d/.wh", "d/.whatever"]);
    let lower = stack.open(ALL);
    assert_eq!(lower.lookup(slot(&lower, "d"), Name::new(b".wh.gone").unwrap()).unwrap(), None);
}

#[test]
fn an_opaque_root_by_marker_hides_and_by_attribute_does_not() {
    let below = vec![file("x", "")];
    shows(&Stack::of([vec![file(".wh..wh..opq", ""), file("y", "")], below.clone()]), ALL, &["y"]);
    // As in the kernel: the attribute was given to a directory, and now it is a layer.
    shows(&Stack::of([vec![xattr("", "user.overlay.opaque", "y"), file("y", "")], below]), ALL, &["x", "y"]);
}

#[test]
fn anything_but_a_directory_ends_the_merge() {
    for other in
        [Put::Fifo("a".into()), file("a", ""), Put::Link("a".into(), "/".into()), whiteout("a"), file(".wh.a", "")]
    {
        let stack = Stack::of([vec![file("a/c", "")], vec![other], vec![file("a/b", ""), dir("a/c/b")]]);
        shows(&stack, ALL, &["a", "a/c"]);
    }
}

#[test]
fn a_redirect_leads_to_the_renamed_directory() {
    for (redirect, old) in [("/usr/old", "usr/old"), ("old", "old")] {
        let stack = Stack::of([
            vec![file("new/top", ""), xattr("new", "user.overlay.redirect", redirect), whiteout(old)],
            vec![file(&format!("{old}/middle"), "")],
            vec![file(&format!("{old}/sub/f"), "f"), file("new/not-this", "")],
        ]);
        let lower = stack.open(ALL);
        let names: Vec<_> =
            children(&lower, slot(&lower, "new")).unwrap().into_iter().map(|(n, _)| n.to_string()).collect();
        assert_eq!(names, ["middle", "sub", "top"], "{redirect}");
        assert_eq!(content(&lower, "new/sub/f"), "f");
        assert_eq!(lower.path(slot(&lower, "new/sub/f")).unwrap().as_bytes(), b"new/sub/f");
    }
}

#[test]
fn a_redirect_with_whiteout_files_on_its_way_stops_there() {
    let top = || vec![dir("new"), xattr("new", "user.overlay.redirect", "/a/b")];
    let bottom = || vec![file("a/b/f", "")];
    for stop in [file("a/.wh.b", ""), file(".wh.a", ""), file("a/.wh..wh..opq", "")] {
        let stack = Stack::of([top(), vec![stop], bottom()]);
        let lower = stack.open(ALL);
        assert!(children(&lower, slot(&lower, "new")).unwrap().is_empty());
        let lower = stack.open(OVERLAY);
        assert_eq!(children(&lower, slot(&lower, "new")).unwrap().len(), 1);
    }
    // A whiteout beside an entry of its own layer hides only what is further down.
    let stack = Stack::of([top(), vec![file("a/b/mine", ""), file("a/.wh.b", "")], bottom()]);
    let lower = stack.open(ALL);
    assert_eq!(children(&lower, slot(&lower, "new")).unwrap().len(), 1);
}

#[test]
fn a_hostile_redirect_is_a_fault_and_leads_nowhere() {
    for redirect in ["..", "../..", "/..", "/../../etc", "a/b", "/a//b", "", "/", ".", "/a/.", "/a/../b"] {
        let stack = Stack::of([
            vec![file("d/f", ""), xattr("d", "user.overlay.redirect", redirect), file("other", "")],
            vec![file("a/b/f", "")],
        ]);
        let lower = stack.open(ALL);
        let error = children(&lower, slot(&lower, "d")).unwrap_err();
        assert_eq!(error.errno(), Errno::EIO, "{redirect}");
        assert!(error.to_string().contains("/0/d: it names no place"), "{error}");
        assert!(lower.stat(slot(&lower, "d")).is_ok() && content(&lower, "other").is_empty());
    }
    // One that leads through a link finds nothing: links are not followed.
    let stack = Stack::of([vec![dir("d"), xattr("d", "user.overlay.redirect", "/link/etc")], vec![]]);
    symlink("/", stack.layers[1].join("link")).unwrap();
    let lower = stack.open(ALL);
    assert!(children(&lower, slot(&lower, "d")).unwrap().is_empty());
}

#[test]
fn redirects_that_lead_to_each_other_end() {
    let to = |name: &str, to: &str| [dir(name), xattr(name, "user.overlay.redirect", to)];
    let layers = || [to("a", "/b"), to("b", "/a"), to("b/c", "/a")].concat();
    let stack = Stack::of([layers(), layers(), layers(), layers()]);
    // Each redirect goes one layer down at least, so the tree is finite.
    assert!(tree(&stack.open(ALL)).len() < 100);
}

#[test]
fn a_redirected_directory_and_the_original_are_two() {
    let stack =
        Stack::of([vec![dir("new"), xattr("new", "user.overlay.redirect", "/old")], vec![file("old/sub/f", "f")]]);
    let lower = stack.open(ALL);
    let (one, two) = (slot(&lower, "new/sub"), slot(&lower, "old/sub"));
    assert!(one != two && lower.ino(one) != lower.ino(two));
    assert_eq!(content(&lower, "new/sub/f"), "f");
    assert_eq!(content(&lower, "old/sub/f"), "f");
    // The numbers do not depend on which was seen first.
    let again = stack.open(ALL);
    let (two_again, one_again) = (slot(&again, "old/sub"), slot(&again, "new/sub"));
    let pair = |lower: &Scanned, a, b| [lower.ino(a).0.min(lower.ino(b).0), lower.ino(a).0.max(lower.ino(b).0)];
    assert_eq!(pair(&lower, one, two)[0], pair(&again, one_again, two_again)[0]);
}

#[test]
fn a_metadata_only_copy_takes_its_content_from_below() {
    let copy = |path: &str, to: &str| {
        let mark = xattr(path, "user.overlay.metacopy", "");
        vec![
            Put::Hole(path.into(), 5000),
            mark,
            xattr(path, "user.overlay.redirect", to),
            Put::Mode(path.into(), 0o600),
        ]
    };
    let body = "b".repeat(5000);
    let stack = Stack::of([copy("moved", "/d/f"), copy("d/f", "g"), vec![file("d/g", &body)]]);
    let lower = stack.open(ALL);
    for path in ["moved", "d/f"] {
        assert_eq!(content(&lower, path), body);
        let stat = lower.stat(slot(&lower, path)).unwrap();
        assert_eq!((stat.perm, stat.size), (0o600, 5000));
        assert_eq!(stat.blocks, lower.stat(slot(&lower, "d/g")).unwrap().blocks);
        let mut names = Vec::new();
        lower.xattrs(slot(&lower, path), &mut |name, _| names.push(name.to_vec())).unwrap();
        assert!(names.iter().all(|name| !name.starts_with(b"user.")), "{names:?}");
    }
    // Without the file below there is no content, which is not the same as zeros.
    let stack = Stack::of([copy("moved", "/d/f"), vec![dir("d")]]);
    let lower = stack.open(ALL);
    assert_eq!(lower.body(slot(&lower, "moved")).err().unwrap().errno(), Errno::EIO);
}

#[test]
fn private_attributes_are_never_shown() {
    let stack = Stack::of([vec![
        file("f", "x"),
        xattr("f", "user.overlay.origin", "secret"),
        xattr("f", "user.containers.override_stat", "0:0:0644:file"),
        xattr("f", "user.shown", "1"),
        xattr("", "user.root", "r"),
        xattr("", "user.overlay.opaque", "y"),
        file("bare", "x"),
    ]]);
    let lower = stack.open(ALL);
    let list = |path: &str| {
        let mut all = Vec::new();
        lower.xattrs(slot(&lower, path), &mut |name, value| all.push((name.to_vec(), value.to_vec()))).unwrap();
        all.retain(|(name, _)| name.starts_with(b"user."));
        all
    };
    assert_eq!(list("f"), [(b"user.shown".to_vec(), b"1".to_vec())]);
    assert_eq!(list(""), [(b"user.root".to_vec(), b"r".to_vec())]);
    assert_eq!(list("bare"), []);
    let get =
        |path: &str, name: &str| lower.xattr(slot(&lower, path), name.as_bytes()).unwrap().map(|v| v.into_owned());
    assert_eq!(get("f", "user.shown"), Some(b"1".to_vec()));
    assert_eq!(get("", "user.root"), Some(b"r".to_vec()));
    for (path, name) in [
        ("f", "user.overlay.origin"),
        ("f", "user.containers.override_stat"),
        ("f", "user.none"),
        ("bare", "user.shown"),
    ] {
        assert_eq!(get(path, name), None, "{path} {name}");
    }
    assert_eq!(get("f", &format!("user.{}", "x".repeat(300))), None);
}

#[test]
fn records_of_owners_and_kinds_are_shown_where_wanted() {
    let record = |path: &str, value: &str| xattr(path, "user.containers.override_stat", value);
    let stack = Stack::of([vec![
        file("null", ""),
        record("null", "1:2:0666:char-1-3"),
        file("link", "the/target"),
        record("link", "0:0:0777:symlink"),
        dir("d"),
        record("d", "42:43:1777:dir"),
        record("", "7:7:0711"),
        file("gone", ""),
        record("gone", "0:0:0000:char-0-0"),
        file("bad", "x"),
        record("bad", "0:0:door"),
        // fuse-overlayfs 1.10's.
        file("older", "x"),
        xattr("older", "user.fuseoverlayfs.override_stat", "33:42:104711"),
    ]]);
    let lower = stack.open(RECORDS);
    let stat = |path: &str| lower.stat(slot(&lower, path)).unwrap();
    let null = stat("null");
    assert_eq!((null.kind, null.rdev, null.perm), (FileType::Char, Dev { major: 1, minor: 3 }, 0o666));
    assert_eq!((null.uid, null.gid, null.size), (1, 2, 0));
    assert_eq!(stat("link").kind, FileType::Symlink);
    assert_eq!(lower.link_target(slot(&lower, "link")).unwrap(), &b"the/target"[..]);
    assert_eq!((stat("d").kind, stat("d").uid, stat("d").perm), (FileType::Dir, 42, 0o1777));
    assert_eq!((stat("").uid, stat("").perm), (7, 0o711));
    assert_eq!(stat("bad").kind, FileType::File);
    assert_eq!((stat("older").uid, stat("older").gid, stat("older").perm), (33, 42, 0o4711));
    shows(&stack, RECORDS, &["bad", "d", "link", "null", "older"]);
    shows(&stack, ALL, &["bad", "d", "gone", "link", "null", "older"]);
    let plain = stack.open(ALL);
    assert_eq!(plain.stat(slot(&plain, "null")).unwrap().kind, FileType::File);
}

#[test]
fn numbers_are_those_of_the_inodes_and_hard_links_share_one() {
    let stack = Stack::of([vec![file("a", "1"), Put::Hard("d/b".into(), "a".into()), dir("d")], vec![file("c", "2")]]);
    let lower = stack.open(ALL);
    let ino = |path: &str| lower.ino(slot(&lower, path));
    let disk = |path: &str| {
        use std::os::unix::fs::MetadataExt;
        Ino(std::fs::symlink_metadata(stack.layers[usize::from(path == "c")].join(path)).unwrap().ino())
    };
    for path in ["a", "d", "d/b", "c"] {
        assert_eq!(ino(path), disk(path), "{path}");
    }
    assert_eq!((lower.ino(lower.root()), lower.slot(Ino(1)), lower.slot(Ino(0))), (Ino(1), Some(lower.root()), None));
    assert_eq!(slot(&lower, "a"), slot(&lower, "d/b"));
    assert_eq!(lower.stat(slot(&lower, "a")).unwrap().nlink, 2);
    assert_eq!(lower.names(slot(&lower, "a")).unwrap(), None);
    assert_eq!(lower.names(slot(&lower, "c")).unwrap(), Some(vec![(lower.root(), layer::NameBuf::new("c").unwrap())]));
    assert_eq!(lower.key(), stack.open(OVERLAY).key());
    let turned: Vec<_> = stack.layers.iter().rev().cloned().collect();
    assert_ne!(lower.key(), Scanned::open(&turned, ALL).unwrap().key());
}

#[test]
fn misses_are_answered_from_memory() {
    let stack = Stack::of([vec![file("d/f", "")]]);
    let lower = stack.open(ALL);
    let d = slot(&lower, "d");
    let late = Name::new(b"late").unwrap();
    assert_eq!(lower.lookup(d, late).unwrap(), None);
    std::fs::write(stack.layers[0].join("d/late"), b"").unwrap();
    assert_eq!(lower.lookup(d, late).unwrap(), None);
    // What is no directory has no names.
    assert_eq!(lower.lookup(slot(&lower, "d/f"), late).unwrap(), None);
    assert!(children(&lower, slot(&lower, "d/f")).unwrap().is_empty());
}

#[test]
fn what_was_read_ahead_is_in_memory() {
    let stack = Stack::of([vec![file("d/sub/f", ""), file("f", "")], vec![file("d/g", "")]]);
    let lower = stack.open(ALL);
    lower.read_ahead(lower.root());
    lower.read_ahead(slot(&lower, "f"));
    let d = slot(&lower, "d");
    std::fs::remove_dir_all(stack.layers[0].join("d")).unwrap();
    assert_eq!(children(&lower, d).unwrap().len(), 2);
    // What cannot be read ahead is no matter until it is asked for.
    lower.read_ahead(d);
    assert!(children(&lower, slot(&lower, "d/sub")).is_err());
}

/// The names of a file's own attributes, as `user.*`.
fn own_attributes(lower: &Scanned, path: &str) -> Vec<String> {
    let mut names = Vec::new();
    lower.xattrs(slot(lower, path), &mut |name, _| names.push(String::from_utf8(name.to_vec()).unwrap())).unwrap();
    names.retain(|name| name.starts_with("user."));
    names
}

/// Has a layer's file bear an attribute that it had not when the layer was read.
fn add_attribute(stack: &Stack, layer: usize, path: &str) {
    rustix::fs::lsetxattr(stack.layers[layer].join(path), "user.late", b"", rustix::fs::XattrFlags::CREATE).unwrap();
}

#[test]
fn who_asks_for_the_attributes_of_one_file_is_told_those_of_its_neighbours_from_memory() {
    let stack = Stack::of([
        vec![file("d/a", ""), file("d/c", ""), xattr("d/c", "user.shown", "c")],
        vec![file("d/b", ""), file("d/d", ""), xattr("d/d", "user.overlay.origin", "d"), file("other/a", "")],
    ]);
    let lower = stack.open(ALL);
    assert!(own_attributes(&lower, "d/a").is_empty());
    for (layer, path) in [(1, "d/b"), (0, "d/c"), (1, "d/d"), (1, "other/a")] {
        add_attribute(&stack, layer, path);
    }
    assert!(own_attributes(&lower, "d/b").is_empty() && own_attributes(&lower, "d/d").is_empty());
    let mut shown = own_attributes(&lower, "d/c");
    shown.sort();
    assert_eq!(shown, ["user.late", "user.shown"]);
    assert_eq!(own_attributes(&lower, "other/a"), ["user.late"]);
}

#[test]
fn attributes_are_read_ahead_for_those_who_ask_for_any() {
    let stack = Stack::of([vec![file("asked/f", ""), file("before/f", ""), file("d/sub/f", "")]]);
    let lower = stack.open(ALL);
    lower.read_ahead(lower.root());
    add_attribute(&stack, 0, "before/f");
    assert_eq!(own_attributes(&lower, "before/f"), ["user.late"]);
    lower.read_ahead(slot(&lower, "d"));
    add_attribute(&stack, 0, "d/sub/f");
    assert!(own_attributes(&lower, "d/sub/f").is_empty());
}

#[test]
fn files_of_every_kind_are_told_and_only_regular_ones_have_a_body() {
    let stack = Stack::of([vec![
        file("f", "x"),
        file("empty", ""),
        dir("d"),
        Put::Fifo("p".into()),
        Put::Link("l".into(), "f".into()),
    ]]);
    std::os::unix::net::UnixListener::bind(stack.layers[0].join("s")).unwrap();
    let lower = stack.open(ALL);
    for (path, kind, error) in [
        ("d", FileType::Dir, Errno::EISDIR),
        ("p", FileType::Fifo, Errno::EINVAL),
        ("l", FileType::Symlink, Errno::EINVAL),
        ("s", FileType::Socket, Errno::EINVAL),
    ] {
        assert_eq!(lower.stat(slot(&lower, path)).unwrap().kind, kind);
        assert_eq!(lower.body(slot(&lower, path)).err().unwrap().errno(), error, "{path}");
    }
    assert!(matches!(lower.body(slot(&lower, "empty")).unwrap(), Body::Bytes(b"")));
    let Body::File(body) = lower.body(slot(&lower, "f")).unwrap() else { panic!("a file on the disk") };
    assert!(body.fd().is_some());
    assert_eq!(lower.link_target(slot(&lower, "f")).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn the_layers_cannot_be_written_through_an_open_body() {
    let stack = Stack::of([vec![file("f", "whole")]]);
    let lower = stack.open(ALL);
    let Body::File(body) = lower.body(slot(&lower, "f")).unwrap() else { panic!("a file on the disk") };
    let again = std::fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&body.fd().unwrap())));
    match lower.kept_by() {
        backing::readonly::KeptBy::Kernel => {
            assert_eq!(again.unwrap_err().raw_os_error(), Some(Errno::EROFS.0));
        }
        backing::readonly::KeptBy::Us(_) => assert!(!rustix::process::geteuid().is_root()),
    }
}

#[test]
fn odd_names_and_old_times_come_through() {
    let long = "x".repeat(255);
    let stack = Stack::of([vec![file(&long, ""), Put::Time(long.clone(), -5, 999_999_999)]]);
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\n\x01");
    std::fs::write(stack.layers[0].join(odd), b"odd").unwrap();
    let lower = stack.open(ALL);
    assert_eq!(lower.stat(slot(&lower, &long)).unwrap().mtime, Time { sec: -5, nsec: 999_999_999 });
    let odd = lower.lookup(lower.root(), Name::new(b"\xff\n\x01").unwrap()).unwrap().unwrap();
    assert_eq!(read(&lower, odd).unwrap(), b"odd");
    assert_eq!(lower.path(odd).unwrap().as_bytes(), b"\xff\n\x01");
}

#[test]
fn a_tree_deeper_than_a_path_may_be_long_is_read_to_its_end() {
    let stack = Stack::of([vec![], vec![]]);
    let name = "n".repeat(250);
    for layer in &stack.layers {
        let mut at: std::os::fd::OwnedFd = std::fs::File::open(layer).unwrap().into();
        for _ in 0..40 {
            rustix::fs::mkdirat(&at, &name, rustix::fs::Mode::from(0o755)).unwrap();
            at = backing::sys::open_beneath(&at, name.as_bytes(), rustix::fs::OFlags::RDONLY).unwrap();
        }
    }
    let lower = stack.open(ALL);
    let (mut at, mut depth) = (lower.root(), 0);
    while let Some(next) = lower.lookup(at, Name::new(name.as_bytes()).unwrap()).unwrap() {
        (at, depth) = (next, depth + 1);
    }
    assert_eq!(depth, 40);
    assert_eq!(lower.path(at).unwrap().as_bytes().len(), 40 * 251 - 1);
    assert_eq!(lower.xattr(at, b"user.none").unwrap(), None);
}

#[test]
fn a_layer_that_cannot_be_used_is_named() {
    let stack = Stack::of([vec![file("f", "")]]);
    let open = |path: &str| {
        Scanned::open(&[stack.layers[0].clone(), stack.top.path().join(path)], ALL).unwrap_err().to_string()
    };
    assert!(open("none").ends_with("/none': No such file or directory (os error 2)"), "{}", open("none"));
    assert!(open("0/f").ends_with("/0/f': Not a directory (os error 20)"), "{}", open("0/f"));
    assert!(matches!(Scanned::open(&[], ALL), Err(OpenError::Count(0))));
}

#[test]
fn a_layer_given_by_a_link_is_followed_and_one_given_twice_counts_once() {
    let stack = Stack::of([vec![file("f", "")]]);
    let link = stack.top.path().join("link");
    symlink(&stack.layers[0], &link).unwrap();
    let lower = Scanned::open(&[link, stack.layers[0].clone()], ALL).unwrap();
    assert_eq!(content(&lower, "f"), "");
    assert_eq!(lower.stat(lower.root()).unwrap().nlink, 2);
}

#[test]
fn what_cannot_be_read_later_is_a_fault() {
    let stack = Stack::of([vec![dir("a"), file("f", "x"), Put::Link("l".into(), "f".into())], vec![file("a/g", "")]]);
    let lower = stack.open(ALL);
    let (a, f, l) = (slot(&lower, "a"), slot(&lower, "f"), slot(&lower, "l"));
    std::fs::remove_dir_all(stack.layers[1].join("a")).unwrap();
    let error = lower.lookup(a, Name::new(b"g").unwrap()).unwrap_err();
    assert_eq!(error.errno(), Errno::EIO);
    assert!(error.to_string().starts_with("read directory ") && error.to_string().contains("/1/a: "), "{error}");
    // Never a part: what the other layer has is not shown either.
    assert!(children(&lower, a).is_err());
    // A pipe in a file's place does not hang, a link in its place is not followed.
    std::fs::remove_file(stack.layers[0].join("f")).unwrap();
    for again in [Put::Fifo("f".into()), Put::Link("f".into(), "/etc/passwd".into())] {
        again.apply(&stack.layers[0]).unwrap();
        assert_eq!(lower.body(f).err().unwrap().errno(), Errno::EIO);
        std::fs::remove_file(stack.layers[0].join("f")).unwrap();
    }
    std::fs::remove_file(stack.layers[0].join("l")).unwrap();
    assert_eq!(lower.link_target(l).unwrap_err().errno(), Errno::EIO);
    // Once the disk is well again, so is the directory.
    dir("a").apply(&stack.layers[1]).unwrap();
    assert!(children(&lower, a).unwrap().is_empty());
}

#[test]
fn many_threads_see_one_tree() {
    let puts: Vec<_> = (0..200).map(|n| file(&format!("d{}/e{}/f{n}", n % 7, n % 3), "x")).collect();
    let hard = (0..50).map(|n| Put::Hard(format!("h{}/l{n}", n % 5), format!("d{}/e{}/f{n}", n % 7, n % 3)));
    let stack = Stack::of([
        hard.fold(puts.clone(), |mut all, put| {
            all.push(put);
            all
        }),
        puts,
    ]);
    let expected = tree(&stack.open(ALL));
    for _ in 0..10 {
        let lower = stack.open(ALL);
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    assert_eq!(tree(&lower), expected);
                });
            }
        });
    }
    assert!(expected.values().all(|seen| *seen != Seen::Broken));
}

#[test]
fn slots_from_elsewhere_are_faults() {
    let lower = Stack::of([vec![]]).open(ALL);
    assert_eq!(lower.stat(layer::Slot(77)).unwrap_err().errno(), Errno::EIO);
    assert_eq!(lower.lookup(layer::Slot(u32::MAX), Name::new(b"x").unwrap()).unwrap_err().errno(), Errno::EIO);
}
