//! The rules of folding, one stack each; the sequences are in `fold_model.rs`.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::ops::ControlFlow;

use layer::fixture::{
    Item, Layer, char_device, dir, file, hardlink, layer, object, opaque, read_everything, symlink, whiteout,
};
use layer::index::{Index, IndexKind, RowData};
use layer::{FileType, Ino, LayerNo, Name, NameBuf, Slot, TreePath};
use overlay::fold::{FoldError, LinkFault, fold};
use overlay::folded::{Bodies, Folded, MemoryBodies, fold_fixtures};
use overlay::{Body, Errno, Lower, LowerFile};

type Lowered = Folded<Vec<u8>, MemoryBodies>;

fn stack<const N: usize>(layers: [Vec<Item>; N]) -> Lowered {
    fold_fixtures(&layers.map(layer))
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn slot(lower: &Lowered, at: &str) -> Slot {
    path(at).names().fold(lower.root(), |dir, name| lower.lookup(dir, name).unwrap().expect("the path is there"))
}

fn content(lower: &Lowered, slot: Slot) -> Vec<u8> {
    match lower.body(slot).unwrap() {
        Body::Bytes(bytes) => bytes.to_vec(),
        Body::File(file) => {
            let mut bytes = vec![0; lower.stat(slot).unwrap().size as usize + 1];
            let read = file.read_at(&mut bytes, 0).unwrap();
            bytes.truncate(read);
            bytes
        }
    }
}

/// One line per name below the root, as a program sees it.
fn shown(lower: &Lowered) -> Vec<String> {
    let index = lower.index();
    read_everything(index);
    let line = |row: layer::index::Row<'_>| {
        let slot = index.resolve(row.slot());
        let what = match index.row(slot).unwrap().data() {
            RowData::Dir { .. } => "dir".to_owned(),
            RowData::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            RowData::Inline { .. } | RowData::Object(_) => {
                format!("'{}'", String::from_utf8_lossy(&content(lower, slot)))
            }
            other => format!("{other:?}"),
        };
        format!("{} {what}", index.path(row.slot()))
    };
    index.rows().skip(1).map(line).collect()
}

fn error<const N: usize>(layers: [Vec<Item>; N]) -> (String, LinkFault) {
    let layers = layers.map(layer);
    match fold(&layers.each_ref().map(|layer| &layer.index)) {
        Err(FoldError::Link { path, why, .. }) => (path.to_string(), why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_topmost_layer_that_has_a_name_decides() {
    let lower = stack([
        vec![dir("d"), file("d/a", "1"), file("b", "1"), file("c", "1")],
        vec![file("d/a", "2"), whiteout("b")],
        vec![file("b", "3"), file("d/e", "3")],
    ]);
    assert_eq!(shown(&lower), ["b '3'", "c '1'", "d dir", "d/a '2'", "d/e '3'"]);
    let index = lower.index();
    assert_eq!(index.kind(), IndexKind::Folded);
    assert_eq!(index.layers().count(), 3);
    assert_eq!(index.row(slot(&lower, "d/a")).unwrap().layer(), LayerNo(1));
}

#[test]
fn a_whiteout_hides_lower_but_not_sibling() {
    let lower = stack([vec![file("d/a", "1"), file("d/b", "1")], vec![whiteout("d/a"), whiteout("d/absent")]]);
    assert_eq!(shown(&lower), ["d dir", "d/b '1'"]);
    let lower = stack([vec![file("d/a", "1")], vec![file("a", "2"), whiteout("a")], vec![whiteout("d")]]);
    assert_eq!(shown(&lower), ["a '2'"]);
}

#[test]
fn an_opaque_directory_hides_all_lower_descendants_but_not_itself() {
    let base = vec![dir("d").perm(0o700).owner(5, 6), file("d/a", "1"), file("d/s/b", "1")];
    let lower = stack([base.clone(), vec![opaque("d"), file("d/c", "2")]]);
    assert_eq!(shown(&lower), ["d dir", "d/c '2'"]);
    let stat = lower.stat(slot(&lower, "d")).unwrap();
    assert_eq!((stat.perm, stat.uid, stat.gid), (0o700, 5, 6));
    let lower = stack([base, vec![dir("d").perm(0o711), opaque("d")], vec![file("d/s/e", "3")]]);
    assert_eq!(shown(&lower), ["d dir", "d/s dir", "d/s/e '3'"]);
    assert_eq!(lower.stat(slot(&lower, "d")).unwrap().perm, 0o711);
    assert_eq!(shown(&stack([vec![file("a", "1")], vec![opaque(""), file("b", "2")]])), ["b '2'"]);
}

#[test]
fn a_whiteout_and_a_directory_of_one_name_start_it_anew() {
    let lower = stack([vec![dir("d").perm(0o700), file("d/a", "1")], vec![whiteout("d"), file("d/b", "2")]]);
    assert_eq!(shown(&lower), ["d dir", "d/b '2'"]);
    // The old directory is gone, and its attributes with it.
    assert_eq!(lower.stat(slot(&lower, "d")).unwrap().perm, 0o755);
}

#[test]
fn any_non_directory_ends_the_merge_below_it() {
    let lower = stack([vec![file("a/b", "1")], vec![file("a", "2")], vec![file("a/c", "3")]]);
    assert_eq!(shown(&lower), ["a dir", "a/c '3'"]);
    let lower = stack([vec![file("a/b", "1")], vec![whiteout("a")], vec![dir("a")]]);
    assert_eq!(shown(&lower), ["a dir"]);
    let lower = stack([vec![dir("t"), symlink("a", "t")], vec![file("a/c", "2")]]);
    assert_eq!(shown(&lower), ["a dir", "t dir", "a/c '2'"]);
    let lower = stack([vec![file("a/b", "1")], vec![file("a", "1"), dir("a"), file("a/c", "2")]]);
    assert_eq!(shown(&lower), ["a dir", "a/c '2'"]);
}

#[test]
fn implied_directories_keep_the_attributes_of_the_topmost_that_is_stated() {
    let lower = stack([
        vec![dir("/").perm(0o555), dir("d").perm(0o700).xattr("user.a", "1").mtime(5, 6), file("d/x", "")],
        vec![file("d/e/f", "2")],
        vec![dir("d/e").perm(0o2775), file("n/new", "")],
        vec![file("d/e/g", "4")],
    ]);
    let stat = |at| lower.stat(slot(&lower, at)).unwrap();
    assert_eq!(lower.stat(lower.root()).unwrap().perm, 0o555);
    assert_eq!((stat("d").perm, stat("d").mtime.nsec), (0o700, 6));
    assert_eq!(lower.xattr(slot(&lower, "d"), b"user.a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(stat("d/e").perm, 0o2775);
    assert_eq!((stat("n").perm, stat("n").mtime.sec), (0o755, 0));
    // Restating a directory replaces all of its attributes.
    let lower = stack([vec![dir("d").xattr("user.a", "1")], vec![dir("d")]]);
    assert_eq!(lower.xattr(slot(&lower, "d"), b"user.a").unwrap(), None);
}

#[test]
fn hard_links_of_a_layer_are_one_inode() {
    let lower = stack([vec![file("d/a", "1"), hardlink("b", "d/a")], vec![file("c", "2")]]);
    assert_eq!(shown(&lower), ["b '1'", "c '2'", "d dir", "d/a '1'"]);
    let (a, b) = (slot(&lower, "d/a"), slot(&lower, "b"));
    assert_eq!((a, lower.stat(a).unwrap().nlink), (b, 2));
    let name = |text: &str| NameBuf::new(text).unwrap();
    let names = vec![(lower.root(), name("b")), (slot(&lower, "d"), name("a"))];
    assert_eq!(lower.names(a).unwrap(), Some(names));
}

#[test]
fn the_others_stay_when_a_higher_layer_replaces_one_name_of_a_group() {
    let base = vec![file("a", "1"), hardlink("b", "a"), hardlink("c", "a")];
    let lower = stack([base.clone(), vec![file("a", "2")]]);
    assert_eq!(shown(&lower), ["a '2'", "b '1'", "c '1'"]);
    assert_eq!(slot(&lower, "b"), slot(&lower, "c"));
    assert_eq!(lower.stat(slot(&lower, "b")).unwrap().nlink, 2);
    assert_eq!(lower.stat(slot(&lower, "a")).unwrap().nlink, 1);
    let lower = stack([base.clone(), vec![whiteout("a"), whiteout("c")]]);
    assert_eq!(lower.stat(slot(&lower, "b")).unwrap().nlink, 1);
    let lower = stack([base, vec![file("a", "2"), hardlink("b", "a")]]);
    assert_eq!(shown(&lower), ["a '2'", "b '2'", "c '1'"]);
    assert_eq!(slot(&lower, "a"), slot(&lower, "b"));
}

#[test]
fn a_link_to_a_lower_file_joins_its_group() {
    let lower = stack([vec![file("a", "1").perm(0o4755), hardlink("b", "a")], vec![hardlink("d/c", "a")]]);
    assert_eq!(shown(&lower), ["a '1'", "b '1'", "d dir", "d/c '1'"]);
    let c = lower.stat(slot(&lower, "d/c")).unwrap();
    assert_eq!((c.nlink, c.perm, slot(&lower, "d/c")), (3, 0o4755, slot(&lower, "a")));
    // Replaced meanwhile or later, the inode stays what it was when the link was made.
    let lower = stack([vec![file("a", "1")], vec![hardlink("b", "a")], vec![file("a", "3")], vec![hardlink("c", "b")]]);
    assert_eq!(shown(&lower), ["a '3'", "b '1'", "c '1'"]);
    assert_eq!(slot(&lower, "b"), slot(&lower, "c"));
    let lower = stack([vec![file("a", "1")], vec![hardlink("b", "a")], vec![whiteout("a")]]);
    assert_eq!(shown(&lower), ["b '1'"]);
    assert_eq!(lower.index().row(slot(&lower, "b")).unwrap().layer(), LayerNo(0));
}

#[test]
fn a_link_follows_lower_symlinks_on_the_way_but_not_the_last() {
    let base =
        vec![dir("usr/lib"), symlink("lib", "usr/lib"), symlink("up", "usr/lib/../../../lib"), file("usr/lib/x", "1")];
    let lower = stack([base.clone(), vec![hardlink("a", "lib/x"), hardlink("b", "up/x"), hardlink("c", "lib")]]);
    let x = slot(&lower, "usr/lib/x");
    assert_eq!((slot(&lower, "a"), slot(&lower, "b")), (x, x));
    assert_eq!(slot(&lower, "c"), slot(&lower, "lib"));
    assert_eq!(lower.stat(slot(&lower, "c")).unwrap().nlink, 2);
    let circle = error([vec![symlink("s", "t"), symlink("t", "s")], vec![hardlink("a", "s/x")]]);
    assert_eq!(circle, ("a".into(), LinkFault::TooFar));
}

#[test]
fn a_link_to_what_lower_layers_do_not_have_is_an_error_that_names_it() {
    assert_eq!(error([vec![hardlink("b", "a")]]), ("b".into(), LinkFault::Missing));
    assert_eq!(error([vec![file("a", "1")], vec![hardlink("d/b", "a/x")]]), ("d/b".into(), LinkFault::Missing));
    assert_eq!(error([vec![dir("a")], vec![hardlink("b", "a")]]), ("b".into(), LinkFault::Directory));
    let whited_out = [vec![file("a", "1")], vec![whiteout("a")], vec![hardlink("b", "a")]];
    assert_eq!(error(whited_out), ("b".into(), LinkFault::Missing));
    let opaque_above = [vec![file("d/a", "1")], vec![opaque("d")], vec![hardlink("b", "d/a")]];
    assert_eq!(error(opaque_above), ("b".into(), LinkFault::Missing));
    // A higher layer that hides the link does not heal the layer.
    let hidden = [vec![hardlink("b", "a")], vec![whiteout("b")]];
    assert_eq!(error(hidden), ("b".into(), LinkFault::Missing));
    let layers = [layer([hardlink("b", "gone")])];
    let message = fold(&[&layers[0].index]).unwrap_err().to_string();
    assert!(message.contains(&layers[0].diff_id.to_string()), "{message}");
    assert!(message.ends_with("hard link 'b' to 'gone': no such file in the layers below"), "{message}");
}

#[test]
fn a_folded_index_is_no_layer() {
    let layers: Vec<Layer> = vec![layer([file("a", "1")])];
    let folded = Index::open(fold(&[&layers[0].index]).unwrap()).unwrap();
    assert_eq!(fold(&[&layers[0].index, &folded]), Err(FoldError::NotALayer(1)));
    let one_layer = Index::open(layers[0].index.bytes().to_vec()).unwrap();
    assert_eq!(Folded::new(one_layer, MemoryBodies::default()).err().map(|error| error.errno()), Some(Errno::EINVAL));
}

#[test]
fn no_layers_are_an_empty_root() {
    let lower = fold_fixtures(&[]);
    assert_eq!(shown(&lower), [""; 0]);
    assert_eq!((lower.stat(Slot(0)).unwrap().perm, lower.stat(Slot(0)).unwrap().nlink), (0o755, 2));
}

#[test]
fn one_layer_twice_in_a_stack_is_legal() {
    let one = layer([file("a", "1"), hardlink("b", "a")]);
    let lower = fold_fixtures(&[one.clone(), layer([whiteout("a")]), one]);
    assert_eq!(shown(&lower), ["a '1'", "b '1'"]);
    assert_eq!(lower.index().layers().count(), 3);
}

#[test]
fn numbers_are_rows_and_cookies_go_on_where_they_stopped() {
    let lower = stack([vec![dir("d"), file("d/c", ""), hardlink("d/a", "d/c"), symlink("d/b", "t")]]);
    let d = slot(&lower, "d");
    assert_eq!((lower.ino(lower.root()), lower.ino(d)), (Ino(1), Ino(2)));
    let mut seen = Vec::new();
    let mut after = 0;
    loop {
        let mut last = None;
        let one_by_one = &mut |entry: overlay::LowerEntry<'_>| {
            last = Some((entry.name.to_string(), entry.slot, entry.kind, entry.cookie));
            ControlFlow::Break(())
        };
        lower.entries(d, after, one_by_one).unwrap();
        let Some(entry) = last else { break };
        after = entry.3;
        seen.push(entry);
    }
    let a = slot(&lower, "d/a");
    let expected = [("a", a, FileType::File), ("b", slot(&lower, "d/b"), FileType::Symlink), ("c", a, FileType::File)];
    let without_cookies: Vec<_> = seen.iter().map(|(name, slot, kind, _)| (name.as_str(), *slot, *kind)).collect();
    assert_eq!(without_cookies, expected);
    // An alias's row is nobody's number.
    assert_eq!(lower.slot(Ino(3)), Some(a));
    assert_eq!(lower.slot(Ino(5)), None);
    assert_eq!([0, 6, u64::MAX].map(|ino| lower.slot(Ino(ino))), [None; 3]);
    assert_eq!(lower.parent(a).unwrap(), d);
    assert_eq!(lower.path(a).unwrap(), path("d/a"));
    lower.entries(a, 0, &mut |_| panic!("a file has no entries")).unwrap();
    assert_eq!(lower.lookup(a, Name::new(b"x").unwrap()).unwrap(), None);
    lower.entries(d, u64::MAX, &mut |_| panic!("past the end")).unwrap();
}

#[test]
fn bodies_come_from_their_layer() {
    let big = vec![b'x'; 100_000];
    let lower = stack([
        vec![file("pad", "0123456789"), file("a", "first")],
        vec![object("o", &big), file("b", "second"), file("empty", ""), char_device("c", 1, 3), symlink("l", "t")],
    ]);
    assert_eq!(content(&lower, slot(&lower, "a")), b"first");
    assert_eq!(content(&lower, slot(&lower, "b")), b"second");
    assert_eq!(content(&lower, slot(&lower, "empty")), b"");
    assert_eq!(content(&lower, slot(&lower, "o")), big);
    assert_eq!(lower.link_target(slot(&lower, "l")).unwrap(), &b"t"[..]);
    let errno = |at| lower.body(slot(&lower, at)).err().map(|error| error.errno());
    assert_eq!((errno("c"), errno("l")), (Some(Errno::EINVAL), Some(Errno::EINVAL)));
    assert_eq!(lower.body(lower.root()).err().map(|error| error.errno()), Some(Errno::EISDIR));
    assert_eq!(lower.link_target(slot(&lower, "a")).err().map(|error| error.errno()), Some(Errno::EINVAL));
}

#[test]
fn missing_bodies_are_a_fault_and_not_a_panic() {
    struct Short;
    impl Bodies for Short {
        type File = overlay::folded::MemoryObject;
        fn bodies(&self, _: LayerNo) -> overlay::Result<&[u8]> {
            Ok(b"ab")
        }
        fn object(&self, _: &layer::Digest) -> overlay::Result<Self::File> {
            Err(overlay::Error::fault("open it", Errno::EIO, "gone"))
        }
    }
    let one = layer([file("a", "abc"), object("o", "x")]);
    let lower = Folded::new(Index::open(fold(&[&one.index]).unwrap()).unwrap(), Short).unwrap();
    for slot in [Slot(1), Slot(2)] {
        assert!(matches!(lower.body(slot), Err(overlay::Error::Fault(fault)) if fault.errno == Errno::EIO));
    }
    assert!(matches!(lower.stat(Slot(9)), Err(overlay::Error::Fault(_))));
}

#[test]
fn acls_are_told() {
    assert!(!stack([vec![file("a", "").xattr("user.a", "1")]]).has_acls());
    assert!(stack([vec![dir("a").xattr("system.posix_acl_default", "1")]]).has_acls());
    // Hidden ones do not count.
    assert!(!stack([vec![dir("a").xattr("system.posix_acl_access", "1")], vec![whiteout("a")]]).has_acls());
}

#[test]
fn depth_and_a_thousand_layers_are_no_trouble() {
    let deep = "d/".repeat(10_000);
    let mut layers = vec![layer([file(format!("{deep}f"), "1")])];
    layers.extend((0..1_000).map(|n| layer([file(format!("n/{n}"), "x"), whiteout(format!("n/{}", n - 1))])));
    layers.push(layer([file(format!("{deep}g"), "2"), hardlink("h", format!("{deep}f"))]));
    let lower = fold_fixtures(&layers);
    assert_eq!(lower.index().len(), 1 + 10_000 + 2 + 1 + 1 + 1);
    assert_eq!(lower.stat(slot(&lower, "h")).unwrap().nlink, 2);
}
