//! The index format: what is written is read back, and no bytes make a reader panic or leave the file.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use layer::fixture::{
    Item, Layer, block_device, char_device, dir, fifo, file, hardlink, layer, object, opaque, read_everything, reseal,
    symlink, whiteout,
};
use layer::index::{
    Attributes, Index, IndexError, IndexKind, IndexWriter, NewData, NewRow, ObjectRow, RowKind, WriteError, XattrSet,
};
use layer::{Dev, DiffId, Digest, FileType, Ino, LayerNo, Name, Slot, Stat, Time};
use proptest::prelude::*;
use proptest::sample::Index as Pick;

/// An index with a row of every kind.
fn sample() -> Layer {
    layer([
        dir("./").perm(0o1755),
        dir("d").owner(1, 2).xattr("user.a", "1").xattr("user.b", "22"),
        file("d/f", "hello").perm(0o4755).xattr("security.capability", [1, 0, 0, 2]),
        hardlink("d/g", "d/f"),
        hardlink("a", "d/f"),
        object("d/o", vec![b'x'; 5000]),
        object("d/o2", vec![b'x'; 5000]),
        object("d/q", "q"),
        symlink("l", "d/f"),
        hardlink("m", "l"),
        char_device("c", 1, 3),
        block_device("b", 7, 0),
        fifo("p"),
        whiteout("w"),
        opaque("e"),
        file("e/sub/deep", ""),
        hardlink("x", "lower/file"),
        hardlink("y", "other"),
    ])
}

fn sample_bytes() -> Vec<u8> {
    sample().index.bytes().to_vec()
}

fn slot(index: &Index<Vec<u8>>, path: &str) -> Slot {
    index.find(&layer::TreePath::parse(path.as_bytes()).unwrap()).expect("the path is there")
}

#[test]
fn what_is_written_is_read_back() {
    let built = sample();
    let index = &built.index;
    assert_eq!(index.kind(), IndexKind::Layer);
    assert_eq!(index.layers().collect::<Vec<_>>(), [built.diff_id]);
    let f = index.row(slot(index, "d/f")).unwrap();
    assert_eq!(f.kind(), RowKind::Alias);
    assert_eq!(f.file_type(), Some(FileType::File));
    let a = slot(index, "a");
    let mtime = Time { sec: 1_700_000_000, nsec: 123_456_789 };
    let expected = Stat {
        ino: Ino(u64::from(a.0) + 1),
        kind: FileType::File,
        perm: 0o4755,
        nlink: 3,
        uid: 0,
        gid: 0,
        rdev: Dev::default(),
        size: 5,
        blocks: 8,
        atime: mtime,
        mtime,
        ctime: mtime,
    };
    assert_eq!(f.stat(), expected);
    assert_eq!(index.xattr(f.slot(), b"security.capability"), Some(&[1, 0, 0, 2][..]));
    assert_eq!(index.row(slot(index, "c")).unwrap().stat().rdev, Dev { major: 1, minor: 3 });
    let big = Digest::of(&[b'x'; 5000]);
    let mut objects = vec![
        ObjectRow { digest: big, len: 5000, allocated: 8192 },
        ObjectRow { digest: Digest::of(b"q"), len: 1, allocated: 4096 },
    ];
    objects.sort_by_key(|object| object.digest);
    assert_eq!(index.objects().collect::<Vec<_>>(), objects);
    let o = index.row(slot(index, "d/o")).unwrap().stat();
    assert_eq!((o.size, o.blocks, o.nlink), (5000, 16, 1));
    let root = index.row(Slot(0)).unwrap().stat();
    assert_eq!((root.ino, root.nlink, root.perm), (Ino(1), 4, 0o1755));
    assert_eq!(index.row(slot(index, "w")).unwrap().file_type(), None);
    read_everything(index);
}

#[test]
fn a_layer_without_members_is_an_implied_root() {
    let built = layer([]);
    assert_eq!(built.index.len(), 1);
    assert!(built.index.row(Slot(0)).unwrap().is_implied());
    read_everything(&built.index);
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = sample_bytes();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let expected = match at {
                0..8 => Some("magic"),
                16..20 => Some("version"),
                24..32 => Some("bytes and has"),
                _ => Some("checksum"),
            };
            let error = Index::open(flipped).expect_err("a flipped bit").to_string();
            assert!(expected.is_some_and(|part| error.contains(part)), "byte {at} bit {bit}: {error}");
        }
    }
}

#[test]
fn every_truncation_and_every_appendix_is_found() {
    let bytes = sample_bytes();
    for len in 0..bytes.len() {
        assert!(Index::open(&bytes[..len]).is_err(), "the first {len} bytes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(Index::open(&longer), Err(IndexError::Length { .. })));
    let len = longer.len() as u64;
    longer[24..32].copy_from_slice(&len.to_le_bytes());
    reseal(&mut longer);
    assert_eq!(malformed(longer), "bytes behind the last section");
}

fn malformed(bytes: Vec<u8>) -> &'static str {
    match Index::open(bytes) {
        Err(IndexError::Malformed { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

/// Where the rows begin.
const ROWS: usize = 144;

#[test]
fn well_sealed_nonsense_is_refused_rule_by_rule() {
    let index = sample().index;
    let row = |path: &str| ROWS + slot(&index, path).0 as usize * 64;
    let u32_bytes = |value: u32| value.to_le_bytes().to_vec();
    let cases: Vec<(usize, Vec<u8>, &str)> = vec![
        (20, u32_bytes(3), "unknown kind"),
        (20, u32_bytes(2), "unknown flags"),
        (32, vec![152], "does not begin where the one before it ends"),
        (40, u32_bytes(u32::MAX), "reaches past the end of the file"),
        (45, vec![1], "has more than 2^32 - 1 records"),
        (row("") + 4, vec![1], "the root is not a directory without a name"),
        (row("") + 5, vec![2], "the root is not a directory without a name"),
        (row("") + 36, u32_bytes(1), "the root is not a directory without a name"),
        (row("") + 48, u32_bytes(2), "children out of order"),
        (row("") + 52, u32_bytes(1_000), "children past the end"),
        (row("") + 52, u32_bytes(u32::MAX), "children past the end"),
        (row("") + 20, u32_bytes(9), "a wrong link count"),
        (row("a"), u32_bytes(1 << 20), "a child with a bad name"),
        (row("a") + 4, vec![0], "a child with a bad name"),
        (row("a") + 4, vec![255], "a child with a bad name"),
        (row("b"), index.bytes()[row("a")..][..4].to_vec(), "children not sorted by name"),
        (row("a") + 5, vec![12], "unknown kind"),
        (row("a") + 5, vec![0], "unknown kind"),
        (row("a") + 6, vec![8], "unknown flags"),
        (row("a") + 6, vec![1], "unknown flags"),
        (row("a") + 8, u32_bytes(0o10_000), "unknown permission bits"),
        (row("a") + 20, u32_bytes(0), "no link"),
        (row("a") + 20, u32_bytes(4), "link counts do not add up"),
        (row("a") + 32, u32_bytes(1_000_000_000), "nanoseconds of more than a second"),
        (row("a") + 36, u32_bytes(1), "a child with another parent"),
        (row("a") + 40, vec![0xff; 8], "no such body"),
        (row("a") + 55, vec![0x80], "no such body"),
        (row("a") + 56, vec![1], "no such layer"),
        (row("a") + 58, vec![1], "reserved bytes in use"),
        (row("a") + 60, u32_bytes(17), "no such xattr set"),
        (row("d/o") + 40, vec![1], "not the object's size"),
        (row("d/o") + 48, u32_bytes(2), "no such object"),
        (row("l") + 40, vec![1], "a wrong length of target"),
        (row("l") + 48, u32_bytes(u32::MAX), "a bad target"),
        (row("c") + 48, vec![0; 8], "a whiteout in the kernel's spelling"),
        (row("d/f") + 48, u32_bytes(0), "an alias of what cannot have one"),
        (row("d/f") + 48, u32_bytes(slot(&index, "w").0), "an alias of what cannot have one"),
        (row("d/f") + 48, u32_bytes(slot(&index, "d/g").0), "an alias of what cannot have one"),
        (row("d/f") + 48, u32_bytes(slot(&index, "b").0), "not an alias of that inode"),
        (row("x") + 52, u32_bytes(0), "a foreign link to nowhere"),
        (row("x") + 52, u32_bytes(u32::MAX), "foreign links share bytes"),
        (row("x") + 52, u32_bytes(6), "a foreign link to a path that is not plain"),
    ];
    for (at, patch, expected) in cases {
        let mut bytes = index.bytes().to_vec();
        bytes[at..at + patch.len()].copy_from_slice(&patch);
        reseal(&mut bytes);
        assert_eq!(malformed(bytes), expected, "{patch:?} at {at}");
    }
}

#[test]
fn the_writer_refuses_two_lengths_of_one_object() {
    let mut writer = IndexWriter::new(IndexKind::Folded, vec![DiffId(Digest::of(b""))]);
    let new = |data| NewRow { attributes: Attributes::UNSTATED, layer: LayerNo(0), xattrs: XattrSet::NONE, data };
    let root = writer.push_root(&new(NewData::Dir { opaque: false, implied: false })).unwrap();
    let digest = Digest::of(b"x");
    let mut push = |name: &[u8], len| {
        let object = ObjectRow { digest, len, allocated: 0 };
        writer.push(root, Name::new(name).unwrap(), &new(NewData::Object { object, sparse: false }))
    };
    assert_eq!(push(b"a", 1), Ok(Slot(1)));
    assert_eq!(push(b"b", 2), Err(WriteError::ObjectLength(digest)));
}

#[test]
fn a_file_changed_behind_our_back_makes_no_reader_panic() {
    // What `open` has checked changes afterwards, as a mapped file may.
    struct Changing(std::cell::RefCell<Vec<u8>>, &'static std::cell::Cell<bool>);
    impl AsRef<[u8]> for Changing {
        fn as_ref(&self) -> &[u8] {
            // Leaked: a test's way to hand out a slice that was changed meanwhile.
            let bytes = self.0.borrow().clone();
            let bytes: &'static mut [u8] = bytes.leak();
            if self.1.get() {
                bytes[ROWS..].fill(0xff);
            }
            bytes
        }
    }
    let changed: &'static std::cell::Cell<bool> = Box::leak(Box::new(std::cell::Cell::new(false)));
    let index = Index::open(Changing(sample_bytes().into(), changed)).unwrap();
    changed.set(true);
    for slot in (0..3).map(Slot) {
        let row = index.row(slot).unwrap();
        assert!(!format!("{row:?} {:?}", row.stat()).is_empty());
        assert_eq!(index.lookup(slot, Name::new(b"a").unwrap()), None);
        assert!(index.path(slot).is_root());
        assert!(index.xattrs(slot).next().is_none());
    }
}

#[test]
fn a_note_spares_the_check_and_nothing_else() {
    let bytes = sample_bytes();
    let note = sample().index.note();
    read_everything(&Index::open_noted(&bytes, &note).unwrap());
    for at in 8..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        assert!(Index::open_noted(&flipped, &note).is_err(), "byte {at}");
    }
    let mut malformed = bytes.clone();
    malformed[ROWS + 5] = 2;
    reseal(&mut malformed);
    for other in [&note[..], &note[..11], &[], &[note.as_slice(), &[0]].concat()] {
        let error = Index::open_noted(&malformed, other).expect_err("another one's note");
        assert!(matches!(error, IndexError::Malformed { .. }), "{error}");
    }
    // What a forger gets: nonsense, and no panic.
    let forged = [&note[..4], &malformed[8..16]].concat();
    let index = Index::open_noted(&malformed, &forged).expect("it is believed");
    assert!(index.rows().all(|row| !format!("{row:?} {:?}", row.stat()).is_empty()));
    let mut other_rules = note;
    other_rules[0] ^= 0xff;
    other_rules[4..].copy_from_slice(&forged[4..]);
    assert!(Index::open_noted(&malformed, &other_rules).is_err(), "a check by other rules");
}

/// Changes of whole fields, which a random flip seldom makes: numbers near a bound, copied from elsewhere, or extreme.
fn patches() -> impl Strategy<Value = Vec<(Pick, u32)>> {
    let value = prop_oneof![0u32..40, Just(u32::MAX), Just(u32::MAX - 1), Just(1 << 31), any::<u32>()];
    prop::collection::vec((any::<Pick>(), value), 1..4)
}

fn check_whatever(bytes: &[u8]) {
    let opened = Index::open(bytes);
    if let Ok(index) = &opened {
        read_everything(index);
    }
    let old_note = sample().index.note();
    assert_eq!(Index::open_noted(bytes, &old_note).err(), opened.err(), "the note of other bytes counts for nothing");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_an_index_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        check_whatever(&bytes);
        let mut sealed = [b"PLYFSIDX".as_slice(), &[0; 8], &1u32.to_le_bytes(), &1u32.to_le_bytes()].concat();
        sealed.extend((bytes.len() as u64 + 32).to_le_bytes());
        sealed.extend(&bytes);
        reseal(&mut sealed);
        check_whatever(&sealed);
    }

    #[test]
    fn any_changed_fields_are_an_index_or_an_error(patches in patches()) {
        let mut bytes = sample_bytes();
        for (at, value) in patches {
            let at = 16 + at.index((bytes.len() - 16) / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        reseal(&mut bytes);
        check_whatever(&bytes);
    }

    #[test]
    fn any_changed_bytes_are_an_index_or_an_error(
        patches in prop::collection::vec((any::<Pick>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.1, any::<Pick>()),
    ) {
        let mut bytes = sample_bytes();
        for (at, value) in patches {
            let at = 16 + at.index(bytes.len() - 16);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
            let len = bytes.len() as u64;
            if let Some(field) = bytes.get_mut(24..32) {
                field.copy_from_slice(&len.to_le_bytes());
            }
        }
        reseal(&mut bytes);
        check_whatever(&bytes);
    }
}

#[test]
fn foreign_links_that_share_bytes_are_refused() {
    let target = "t/".repeat(500) + "x";
    let items: Vec<Item> = (0..2_000).map(|n| hardlink(format!("l{n}"), format!("{target}{n}"))).collect();
    let built = layer(items);
    assert_eq!(built.index.len(), 2_001);
    // Every link made to point at the whole heap: more work than the file is long.
    let mut bytes = built.index.bytes().to_vec();
    for at in (ROWS + 64..ROWS + 64 * 2_001).step_by(64) {
        bytes[at + 48..at + 52].copy_from_slice(&0u32.to_le_bytes());
        bytes[at + 52..at + 56].copy_from_slice(&1_000_000u32.to_le_bytes());
    }
    reseal(&mut bytes);
    assert!(Index::open(bytes).is_err());
}
