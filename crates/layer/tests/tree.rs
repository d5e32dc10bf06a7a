//! The rules of a tar layer, as its index tells them.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use layer::fixture::{
    Item, Layer, block_device, char_device, dir, fifo, file, hardlink, layer, object, opaque, socket, symlink,
    try_layer, whiteout,
};
use layer::index::{Attributes, IndexKind, Row, RowData, RowKind};
use layer::name::NameError;
use layer::tree::Refusal;
use layer::{Slot, Time, TreePath};

/// One line per row: path, kind, and what matters of the rest.
fn shown(layer: &Layer) -> Vec<String> {
    let index = &layer.index;
    let path = |slot| format!("/{}", index.path(slot));
    index.rows().map(|row| format!("{} {}", path(row.slot()), shown_data(layer, &row))).collect()
}

fn shown_data(layer: &Layer, row: &Row<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match row.data() {
        RowData::Dir { .. } => {
            let opaque = if row.is_opaque() { " opaque" } else { "" };
            let implied = if row.is_implied() { " implied" } else { "" };
            format!("dir{opaque}{implied}")
        }
        RowData::Inline { offset } => {
            let body = &layer.bodies[offset as usize..][..row.size() as usize];
            format!("file '{}'", text(body))
        }
        RowData::Object(object) => format!("object of {}", object.len),
        RowData::Symlink(target) => format!("-> {}", text(target)),
        RowData::Char(dev) => format!("char {}:{}", dev.major, dev.minor),
        RowData::Block(dev) => format!("block {}:{}", dev.major, dev.minor),
        RowData::Fifo => "fifo".into(),
        RowData::Socket => "socket".into(),
        RowData::Alias(inode) => format!("= /{}", layer.index.path(inode)),
        RowData::Whiteout => "whiteout".into(),
        RowData::ForeignLink(path) => format!("foreign {}", text(path)),
    }
}

#[track_caller]
fn rows(items: impl IntoIterator<Item = Item>, expected: &[&str]) {
    assert_eq!(shown(&layer(items)), expected);
}

#[track_caller]
fn refusal(items: impl IntoIterator<Item = Item>) -> Refusal {
    try_layer(items).map(|layer| shown(&layer)).expect_err("the layer is refused").why
}

fn row_at<'a>(layer: &'a Layer, path: &str) -> Row<'a> {
    let path = TreePath::parse(path.as_bytes()).unwrap();
    layer.index.row(layer.index.find(&path).expect("the path is there")).unwrap()
}

#[test]
fn every_kind_is_kept() {
    let items = [
        dir("./"),
        dir("d/"),
        file("/d/f", "x"),
        file("d/empty", ""),
        object("d/o", "yyy"),
        symlink("l", "../else//where/"),
        char_device("c", 1, 3),
        block_device("b", 8, 0),
        fifo("p"),
        socket("s"),
    ];
    rows(
        items,
        &[
            "/ dir",
            "/b block 8:0",
            "/c char 1:3",
            "/d dir",
            "/l -> ../else//where/",
            "/p fifo",
            "/s socket",
            "/d/empty file ''",
            "/d/f file 'x'",
            "/d/o object of 3",
        ],
    );
}

#[test]
fn attributes_are_kept_to_the_last_bit() {
    let max = file("f", "x").perm(0o107_777).owner(u32::MAX, u32::MAX - 1).mtime(-1, 999_999_999);
    let built = layer([max, dir("d").mtime(i64::MIN, 0), file("g", "").mtime(i64::MAX, 1)]);
    let row = row_at(&built, "f");
    let mtime = Time { sec: -1, nsec: 999_999_999 };
    assert_eq!(row.attributes(), Attributes { perm: 0o7777, uid: u32::MAX, gid: u32::MAX - 1, mtime });
    assert_eq!(row_at(&built, "d").mtime(), Time { sec: i64::MIN, nsec: 0 });
    assert_eq!(row_at(&built, "g").mtime(), Time { sec: i64::MAX, nsec: 1 });
}

#[test]
fn missing_parents_are_implied_until_they_are_stated() {
    rows([file("a/b/c", "x"), dir("a/b")], &["/ dir implied", "/a dir implied", "/a/b dir", "/a/b/c file 'x'"]);
    let built = layer([file("a/b", "x"), dir("e").perm(0o700)]);
    assert_eq!(row_at(&built, "a").attributes(), Attributes::UNSTATED);
    assert_eq!(row_at(&built, "e").perm(), 0o700);
}

#[test]
fn the_root_entry_sets_the_root_and_must_be_a_directory() {
    for spelling in ["", ".", "./", "/", "/.", "//"] {
        let built = layer([dir(spelling).perm(0o555).owner(7, 8).xattr("user.a", "b")]);
        let root = built.index.row(Slot(0)).unwrap();
        assert_eq!((root.perm(), root.uid(), root.gid(), root.is_implied()), (0o555, 7, 8, false));
        assert_eq!(built.index.xattr(Slot(0), b"user.a"), Some(&b"b"[..]));
        assert_eq!(refusal([file(spelling, "x")]), Refusal::Root);
        assert_eq!(refusal([symlink(spelling, "x")]), Refusal::Root);
        assert_eq!(refusal([hardlink(spelling, "x")]), Refusal::Root);
    }
}

#[test]
fn of_duplicates_the_last_wins() {
    rows([file("a", "1"), file("a", "2")], &["/ dir implied", "/a file '2'"]);
    rows([file("a", "1"), symlink("a", "t")], &["/ dir implied", "/a -> t"]);
    rows([dir("a"), file("a/b", "1"), file("a", "2")], &["/ dir implied", "/a file '2'"]);
    rows([dir("a"), file("a/b", "1"), file("a", "2"), dir("a")], &["/ dir implied", "/a dir opaque"]);
}

#[test]
fn a_directory_over_a_directory_keeps_its_entries_and_takes_the_new_attributes() {
    let built = layer([dir("a").perm(0o700).xattr("user.x", "1"), file("a/b", "1"), dir("a").perm(0o1777)]);
    assert_eq!(shown(&built), ["/ dir implied", "/a dir", "/a/b file '1'"]);
    assert_eq!(row_at(&built, "a").perm(), 0o1777);
    assert_eq!(built.index.xattrs(Slot(1)).count(), 0);
}

#[test]
fn a_directory_over_a_file_of_the_same_layer_hides_lower_layers() {
    rows([file("a", "1"), dir("a"), file("a/b", "2")], &["/ dir implied", "/a dir opaque", "/a/b file '2'"]);
    rows([symlink("a", "t"), dir("a")], &["/ dir implied", "/a dir opaque"]);
}

#[test]
fn a_whiteout_hides_lower_layers_only() {
    rows([whiteout("a")], &["/ dir implied", "/a whiteout"]);
    rows([whiteout("d/e/a")], &["/ dir implied", "/d dir implied", "/d/e dir implied", "/d/e/a whiteout"]);
    for items in [[file("a", "x"), whiteout("a")], [whiteout("a"), file("a", "x")]] {
        rows(items, &["/ dir implied", "/a file 'x'"]);
    }
}

#[test]
fn a_whiteout_and_a_directory_of_one_name_are_an_opaque_directory() {
    for items in [[dir("a"), whiteout("a")], [whiteout("a"), dir("a")]] {
        rows(items, &["/ dir implied", "/a dir opaque"]);
    }
    // Nothing of the lower directory is left whose attributes an implied one could take.
    for items in [[file("a/b", "x"), whiteout("a")], [whiteout("a"), file("a/b", "x")]] {
        rows(items, &["/ dir implied", "/a dir opaque", "/a/b file 'x'"]);
    }
}

#[test]
fn an_opaque_marker_counts_wherever_it_stands() {
    for items in [[opaque("a"), file("a/b", "x")], [file("a/b", "x"), opaque("a")]] {
        rows(items, &["/ dir implied", "/a dir opaque implied", "/a/b file 'x'"]);
    }
    rows([opaque("")], &["/ dir opaque implied"]);
    rows([dir("a"), opaque("a")], &["/ dir implied", "/a dir opaque"]);
}

#[test]
fn whiteouts_where_nothing_lower_is_seen_are_dropped() {
    rows([opaque("a"), whiteout("a/b")], &["/ dir implied", "/a dir opaque implied"]);
    rows([whiteout("a/b/c"), opaque("a")], &["/ dir implied", "/a dir opaque implied", "/a/b dir implied"]);
}

#[test]
fn whiteouts_count_by_name_whatever_they_are() {
    for item in [dir(".wh.a"), symlink(".wh.a", "x"), file(".wh.a", "not empty"), fifo(".wh.a")] {
        rows([item], &["/ dir implied", "/a whiteout"]);
    }
    for item in [dir("a/.wh..wh..opq"), symlink("a/.wh..wh..opq", "x")] {
        rows([item], &["/ dir implied", "/a dir opaque implied"]);
    }
}

#[test]
fn bad_whiteout_names_are_refused() {
    assert_eq!(refusal([file(".wh.", "")]), Refusal::BareWhiteout(NameError::Empty));
    assert_eq!(refusal([file("a/.wh.", "")]), Refusal::BareWhiteout(NameError::Empty));
    assert_eq!(refusal([file(".wh..", "")]), Refusal::BareWhiteout(NameError::Dots));
    assert_eq!(refusal([file(".wh...", "")]), Refusal::BareWhiteout(NameError::Dots));
    assert_eq!(refusal([file(".wh.a/b", "")]), Refusal::BelowWhiteout(".wh.a".into()));
    assert_eq!(refusal([file("a/.wh..wh..opq/b", "")]), Refusal::BelowWhiteout(".wh..wh..opq".into()));
    assert_eq!(refusal([file(".wh./b", "")]), Refusal::BelowWhiteout(".wh.".into()));
    assert_eq!(refusal([symlink("l", ".wh.x"), file("l/b", "")]), Refusal::BelowWhiteout(".wh.x".into()));
}

#[test]
fn aufs_bookkeeping_is_ignored_with_all_below_it() {
    rows([dir(".wh..wh.plnk"), file(".wh..wh.plnk/12.34", "x"), file(".wh..wh.aufs", "")], &["/ dir implied"]);
}

#[test]
fn hard_links_are_one_inode() {
    let built = layer([file("b", "x").perm(0o4755), hardlink("a", "./b"), hardlink("d/c", "a"), symlink("l", "b")]);
    assert_eq!(shown(&built), ["/ dir implied", "/a file 'x'", "/b = /a", "/d dir implied", "/l -> b", "/d/c = /a"]);
    let first = row_at(&built, "a");
    assert_eq!((first.nlink(), first.perm()), (3, 0o4755));
    assert_eq!(row_at(&built, "d/c").stat(), first.stat());
    assert_eq!(built.index.aliases(first.slot()).collect::<Vec<_>>(), [Slot(2), Slot(5)]);
}

#[test]
fn other_names_keep_the_inode_when_one_is_replaced() {
    rows([file("a", "1"), hardlink("b", "a"), file("a", "2")], &["/ dir implied", "/a file '2'", "/b file '1'"]);
    rows([file("a", "1"), hardlink("b", "a"), hardlink("a", "b")], &["/ dir implied", "/a file '1'", "/b = /a"]);
    rows([file("d/a", "1"), hardlink("b", "d/a"), file("d", "2")], &["/ dir implied", "/b file '1'", "/d file '2'"]);
}

#[test]
fn every_kind_but_a_directory_can_be_linked() {
    let items = [symlink("l", "d"), dir("d"), hardlink("m", "l"), fifo("p"), hardlink("q", "p")];
    rows(items, &["/ dir implied", "/d dir", "/l -> d", "/m = /l", "/p fifo", "/q = /p"]);
    assert_eq!(refusal([dir("d"), hardlink("e", "d")]), Refusal::LinkToDirectory("d".into()));
    assert_eq!(refusal([hardlink("e", "d"), dir("d")]), Refusal::LinkToDirectory("d".into()));
    assert_eq!(refusal([hardlink("e", "d"), file("d/x", "")]), Refusal::LinkToDirectory("d".into()));
}

#[test]
fn a_link_may_precede_its_target() {
    rows([hardlink("b", "a"), file("a", "x")], &["/ dir implied", "/a file 'x'", "/b = /a"]);
    let chain = [hardlink("c", "b"), hardlink("b", "a"), file("a", "x")];
    rows(chain, &["/ dir implied", "/a file 'x'", "/b = /a", "/c = /a"]);
}

#[test]
fn a_target_that_the_layer_does_not_hold_is_foreign() {
    rows([hardlink("b", "d/a")], &["/ dir implied", "/b foreign d/a"]);
    let built = [hardlink("b", "a"), hardlink("c", "b")];
    rows(built, &["/ dir implied", "/b foreign a", "/c foreign a"]);
    // b is linked to c's lower file, then c to b: both are that file, as on a disk.
    rows([hardlink("b", "c"), hardlink("c", "b")], &["/ dir implied", "/b foreign c", "/c foreign c"]);
}

#[test]
fn hard_links_to_where_nothing_can_be_are_refused() {
    let nowhere = |target: &str| Refusal::LinkToNowhere(target.into());
    assert_eq!(refusal([hardlink("a", "/etc/passwd")]), Refusal::AbsoluteLink("/etc/passwd".into()));
    let dots = Refusal::LinkPath { target: "../a".into(), why: NameError::Dots };
    assert_eq!(refusal([hardlink("b", "../a")]), dots);
    assert_eq!(refusal([hardlink("a", "a")]), Refusal::LinkToItself);
    assert_eq!(refusal([file("a", "x"), hardlink("a", "./a")]), Refusal::LinkToItself);
    assert_eq!(refusal([file("d/a", "x"), hardlink("d", "d/a")]), Refusal::LinkToItself);
    assert_eq!(refusal([hardlink("a", "./")]), nowhere("./"));
    assert_eq!(refusal([hardlink("a", "")]), nowhere(""));
    assert_eq!(refusal([hardlink("a", ".wh.b")]), nowhere(".wh.b"));
    assert_eq!(refusal([hardlink("a", ".wh..wh.plnk/1.2")]), nowhere(".wh..wh.plnk/1.2"));
    assert_eq!(refusal([file("f", ""), hardlink("a", "f/x")]), nowhere("f/x"));
    let circle = [hardlink("a", "b"), hardlink("b", "c"), hardlink("c", "a")];
    assert!(matches!(refusal(circle), Refusal::LinkCircle(_)));
}

#[test]
fn hard_links_to_what_the_layer_hides_are_refused() {
    for items in [[whiteout("a"), hardlink("b", "a")], [hardlink("b", "a"), whiteout("a")]] {
        assert_eq!(refusal(items), Refusal::LinkToHidden("a".into()));
    }
    assert_eq!(refusal([opaque("d"), hardlink("b", "d/a")]), Refusal::LinkToHidden("d/a".into()));
    assert_eq!(refusal([opaque("d"), hardlink("b", "d/e/a")]), Refusal::LinkToHidden("d/e/a".into()));
    assert_eq!(refusal([whiteout("d"), hardlink("b", "d/a")]), Refusal::LinkToHidden("d/a".into()));
}

#[test]
fn members_below_a_symlink_of_the_same_layer_go_where_it_leads() {
    let items = [dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/x", "1"), whiteout("lib/y"), opaque("lib/z")];
    rows(
        items,
        &[
            "/ dir implied",
            "/lib -> usr/lib",
            "/usr dir implied",
            "/usr/lib dir",
            "/usr/lib/x file '1'",
            "/usr/lib/y whiteout",
            "/usr/lib/z dir opaque implied",
        ],
    );
    // As in a chroot: `..` ends at the root, absolute targets begin there.
    let escape = [symlink("a/l", "../../../b"), file("a/l/x", "1"), symlink("m", "/a/l/c"), file("m/y", "2")];
    rows(
        escape,
        &[
            "/ dir implied",
            "/a dir implied",
            "/b dir implied",
            "/m -> /a/l/c",
            "/a/l -> ../../../b",
            "/b/c dir implied",
            "/b/x file '1'",
            "/b/c/y file '2'",
        ],
    );
    let linked = [symlink("l", "d"), file("d/x", "1"), hardlink("y", "l/x"), hardlink("z", "l/lower")];
    rows(linked, &["/ dir implied", "/d dir implied", "/l -> d", "/y file '1'", "/z foreign d/lower", "/d/x = /y"]);
}

#[test]
fn symlinks_that_lead_nowhere_are_refused_as_parents() {
    assert_eq!(refusal([symlink("l", "l"), file("l/x", "")]), Refusal::TooManySymlinks);
    assert_eq!(refusal([symlink("a", "b"), symlink("b", "a"), file("a/x", "")]), Refusal::TooManySymlinks);
    assert_eq!(refusal([symlink("a", "f"), file("f", ""), file("a/x", "")]), Refusal::BelowNonDirectory("f".into()));
}

#[test]
fn members_below_other_things_of_the_same_layer_are_refused() {
    for item in [file("a", ""), fifo("a"), char_device("a", 1, 1), hardlink("a", "lower")] {
        for below in [file("a/b", ""), dir("a/b/c"), whiteout("a/b"), opaque("a")] {
            assert_eq!(refusal([item.clone(), below]), Refusal::BelowNonDirectory("a".into()));
        }
    }
}

#[test]
fn paths_that_leave_the_root_or_no_disk_can_hold_are_refused() {
    for path in ["..", "../a", "a/../../b", "a/..", "/.."] {
        assert_eq!(refusal([file(path, "")]), Refusal::Path(NameError::Dots));
    }
    assert_eq!(refusal([file("a\0b", "")]), Refusal::Path(NameError::BadByte));
    assert_eq!(refusal([file([b'x'; 256], "")]), Refusal::Path(NameError::TooLong));
    let longest = [0xff; 255];
    assert_eq!(layer([file(longest, "")]).index.len(), 2);
    // A whiteout's name has 4 bytes more than what it hides.
    assert_eq!(refusal([whiteout([b'x'; 252])]), Refusal::Path(NameError::TooLong));
    assert_eq!(layer([whiteout([b'x'; 251])]).index.len(), 2);
}

#[test]
fn errors_name_the_member() {
    let error = try_layer([dir("a"), file("a/../x\n\u{ff}", "")]).unwrap_err();
    assert_eq!(error.to_string(), "member 'a/../x\\nÿ': the name is '.' or '..'");
    let error = try_layer([dir("d"), hardlink("d/l", "gone"), whiteout("gone")]).unwrap_err();
    assert_eq!(error.to_string(), "member 'd/l': a hard link to 'gone', which this layer hides or does not hold");
    assert!(try_layer([file([b"/".repeat(5000), b"..".to_vec()].concat(), "")]).unwrap_err().member.len() < 500);
}

#[test]
fn what_would_mean_something_to_a_union_is_dropped_or_refused() {
    let kept = ["security.capability", "user.a", "user.overlayish", "system.posix_acl_access", "user.containers"];
    let dropped = [
        "trusted.overlay.opaque",
        "user.overlay.whiteout",
        "trusted.overlay.overlay.opaque",
        "user.fuseoverlayfs.opaque",
        "security.fuseoverlayfs.redirect",
        "user.containers.override_stat",
        "user.plyfs.origin",
        "security.selinux",
    ];
    let item = kept.iter().chain(&dropped).fold(file("f", ""), |item, name| item.xattr(name, "y"));
    let built = layer([item]);
    let mut sorted = kept.map(str::as_bytes);
    sorted.sort_unstable();
    assert_eq!(built.index.xattrs(Slot(1)).map(|(name, _)| name).collect::<Vec<_>>(), sorted);
    assert_eq!(refusal([char_device("c", 0, 0)]), Refusal::DeviceZero);
    assert_eq!(layer([block_device("b", 0, 0)]).index.len(), 2);
}

#[test]
fn xattrs_are_bytes_and_the_last_of_a_name_counts() {
    let item = file("f", "").xattr("user.b", [0, 255, 0]).xattr(b"user.\xff", "").xattr("user.b", b"\0last");
    let built = layer([item, dir("d").xattr("user.big", vec![7; 65536])]);
    let expected = [(&b"user.b"[..], &b"\0last"[..]), (b"user.\xff", b"")];
    assert_eq!(built.index.xattrs(Slot(2)).collect::<Vec<_>>(), expected);
    assert_eq!(built.index.xattr(Slot(1), b"user.big").map(<[u8]>::len), Some(65536));
    assert_eq!(built.index.xattr(Slot(1), b"user.b"), None);
    assert!(matches!(refusal([file("f", "").xattr("", "x")]), Refusal::Xattr(_)));
    assert!(matches!(refusal([file("f", "").xattr([b'x'; 256], "x")]), Refusal::Xattr(_)));
    assert!(matches!(refusal([file("f", "").xattr("user.a", vec![7; 65537])]), Refusal::Xattr(_)));
}

#[test]
fn bad_times_and_targets_are_refused() {
    assert_eq!(refusal([file("f", "").mtime(0, 1_000_000_000)]), Refusal::Time(1_000_000_000));
    assert_eq!(refusal([symlink("l", "")]), Refusal::SymlinkTarget);
    assert_eq!(refusal([symlink("l", "a\0b")]), Refusal::SymlinkTarget);
    assert_eq!(refusal([symlink("l", vec![b'x'; 4096])]), Refusal::SymlinkTarget);
    assert_eq!(row_at(&layer([symlink("l", vec![b'x'; 4095])]), "l").size(), 4095);
}

#[test]
fn the_order_of_members_does_not_show() {
    let items = || {
        vec![
            dir("a").xattr("user.a", "1"),
            file("a/x", "").xattr("user.b", "2").xattr("user.a", "1"),
            dir("b").xattr("user.b", "2"),
            whiteout("c"),
            symlink("b/l", "t"),
            hardlink("b/h", "a/x"),
        ]
    };
    let mut reversed = items();
    reversed.reverse();
    let (forth, back) = (layer(items()), layer(reversed));
    assert_eq!(forth.index.kind(), IndexKind::Layer);
    let rows = |layer: &Layer| -> Vec<String> { layer.index.rows().map(|row| format!("{row:?}")).collect() };
    assert_eq!(rows(&forth), rows(&back));
    // All but checksum and diffID are the same bytes.
    let differing = forth.index.bytes().iter().zip(back.index.bytes()).filter(|(one, other)| one != other).count();
    assert!(differing <= 8 + 32, "{differing} bytes differ");
}

#[test]
fn ten_thousand_deep_and_a_hundred_thousand_wide_are_no_trouble() {
    let deep = "d/".repeat(10_000);
    let mut items = vec![file(format!("{deep}f"), "x"), hardlink("l", format!("{deep}f"))];
    items.extend((0..100_000).rev().map(|n| file(format!("wide/{n}"), "")));
    let built = layer(items);
    assert_eq!(built.index.len(), 1 + 10_000 + 1 + 1 + 1 + 100_000);
    let bottom = built.index.find(&TreePath::parse(format!("{deep}f").as_bytes()).unwrap()).unwrap();
    assert_eq!(built.index.path(bottom).as_bytes().len(), 20_001);
    assert_eq!(built.index.row(bottom).unwrap().kind(), RowKind::Alias);
}

#[test]
fn a_chain_of_ten_thousand_hard_links_is_one_inode() {
    let mut items: Vec<Item> = (0..10_000).map(|n| hardlink(format!("{n}"), format!("{}", n + 1))).collect();
    items.push(file("10000", "x"));
    let built = layer(items);
    assert_eq!(row_at(&built, "9999").stat().nlink, 10_001);
}
