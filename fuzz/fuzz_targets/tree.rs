//! Any members as layers: collected or refused; what is collected is an index, and what is folded is one too.

#![no_main]

use layer::fixture::read_everything;
use layer::index::Index;
use layer::tree::{Body, LayerTree, Member, MemberKind, TreeError};
use layer::{Dev, DiffId, Digest, Time};
use libfuzzer_sys::fuzz_target;

/// Kind, path, link target or device, attributes.
type Item = (u8, Vec<u8>, Vec<u8>, (u32, i64, u32));

/// Few names and many of them special, or nothing would ever meet.
fn path(bytes: &[u8]) -> Vec<u8> {
    const NAMES: [&[u8]; 16] = [
        b"a",
        b"b",
        b"c",
        b"d",
        b".wh.a",
        b".wh.b",
        b".wh..wh..opq",
        b".wh.",
        b".wh..wh.plnk",
        b"..",
        b".",
        b"",
        b"a",
        b"b",
        b"\xff",
        b"e",
    ];
    let name = |byte: &u8| NAMES[usize::from(byte % 16)];
    bytes.iter().take(12).map(name).collect::<Vec<_>>().join(&b'/')
}

fn collect(items: &[Item]) -> Result<Vec<u8>, TreeError> {
    let mut tree = LayerTree::new();
    for (kind, at, rest, (number, sec, nsec)) in items {
        let target = path(rest);
        let number64 = u64::from(*number);
        let object = Body::Object { digest: Digest::of(rest), len: rest.len() as u64, allocated: number64 };
        let kind = match kind % 12 {
            0 | 1 => MemberKind::Dir,
            2 | 3 => MemberKind::File { body: Body::Inline { offset: number64, len: number64 << 31 }, sparse: false },
            4 => MemberKind::File { body: object, sparse: *number == 7 },
            5 => MemberKind::Symlink(&target),
            6..=8 => MemberKind::Hardlink(&target),
            9 => MemberKind::Char(Dev { major: 0, minor: *number }),
            10 => MemberKind::Fifo,
            _ => MemberKind::Symlink(rest),
        };
        let xattrs =
            if number % 3 == 0 { vec![(rest.clone(), at.clone()), (b"user.a".into(), b"b".into())] } else { vec![] };
        let mtime = Time { sec: *sec, nsec: *nsec };
        let path = path(at);
        tree.add(Member { path: &path, perm: *number, uid: *number, gid: 0, mtime, xattrs, kind }).or_else(|_| {
            // A refused member ends a layer; here the next may still find something.
            Ok(())
        })?;
    }
    tree.into_index(DiffId(Digest::of(b"")))
}

fuzz_target!(|layers: Vec<Vec<Item>>| {
    let indexes: Vec<_> = layers.iter().filter_map(|items| collect(items).ok()).map(Index::open).collect();
    let indexes: Vec<_> = indexes.into_iter().map(|index| index.expect("what was collected is an index")).collect();
    indexes.iter().for_each(|index| {
        read_everything(index);
    });
    if let Ok(folded) = overlay::fold::fold(&indexes.iter().collect::<Vec<_>>()) {
        read_everything(&Index::open(folded).expect("what was folded is an index"));
    }
});
