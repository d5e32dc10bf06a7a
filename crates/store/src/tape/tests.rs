use proptest::prelude::*;

use super::*;

/// A member's header in GNU's or ustar's form, with a right checksum.
fn header(name: &[u8], flag: u8, size: u64, magic: &[u8; 8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0001750");
    block[116..123].copy_from_slice(b"0001751");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000012");
    block[156] = flag;
    block[257..265].copy_from_slice(magic);
    seal(block)
}

fn seal(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

const USTAR: &[u8; 8] = b"ustar\x0000";
const GNU: &[u8; 8] = b"ustar  \0";

fn member(name: &str, flag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(name.as_bytes(), flag, body.len() as u64, GNU).to_vec();
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len() + padding(body.len() as u64) as usize, 0);
    bytes
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (1..).find(|len| len - len.to_string().len() == rest).unwrap();
    [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

const END: [u8; 1024] = [0; 1024];

/// Reads all: the members with their bodies; checks that every byte came out once.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut tape = Tape::new(bytes);
    let (mut all, mut whole) = (Vec::new(), Vec::new());
    while let Some(entry) = tape.next_entry()? {
        whole.extend(tape.take_raw());
        let mut body = Vec::new();
        tape.body(&mut |chunk| {
            body.extend_from_slice(chunk);
            Ok(())
        })?;
        whole.extend_from_slice(&body);
        all.push((entry, body));
    }
    whole.extend(tape.take_raw());
    tape.rest(&mut |chunk| {
        whole.extend_from_slice(chunk);
        Ok(())
    })?;
    assert_eq!(whole, bytes);
    assert_eq!(tape.offset(), bytes.len() as u64);
    Ok(all)
}

fn refused(bytes: &[u8]) -> String {
    read(bytes).map(|all| all.len()).unwrap_err().to_string()
}

#[test]
fn members_come_with_attributes_and_bodies() {
    let mut ustar = header(b"name", b'0', 3, USTAR);
    ustar[345..350].copy_from_slice(b"a/b/c");
    let bytes = [&seal(ustar)[..], b"abc", &[0; 509], &member("dir/", 0, b""), &END, b"rubbish"].concat();
    let all = read(&bytes).unwrap();
    let (file, body) = &all[0];
    assert_eq!((&file.path[..], &body[..], file.size), (&b"a/b/c/name"[..], &b"abc"[..], 3));
    assert_eq!((file.perm, file.uid, file.gid, file.mtime), (0o644, 0o1750, 0o1751, Time { sec: 10, nsec: 0 }));
    assert_eq!(all[1].0.kind, EntryKind::Dir);
}

#[test]
fn missing_end_blocks_are_tolerated_truncation_is_not() {
    let whole = member("a", b'0', b"abc");
    assert_eq!(read(&whole).unwrap().len(), 1);
    assert_eq!(read(&[&whole[..], &END[..512]].concat()).unwrap().len(), 1);
    assert_eq!(read(b"").unwrap().len(), 0);
    for len in [1, 511, 513, 514, 1023] {
        assert!(refused(&whole[..len]).contains(if len < 512 { "no tar" } else { "ends in the middle" }), "{len}");
    }
    assert!(refused(&[&whole[..], &whole[..100]].concat()).contains("ends in the middle of a header"));
    assert!(refused(&[&whole[..], &END[..512], &whole[..]].concat()).contains("lone zero block"));
}

#[test]
fn what_is_no_tar_is_told() {
    assert!(refused(&[b'x'; 5000]).contains("no tar archive"));
    assert!(refused(b"hello").contains("no tar archive"));
    let mut wrong = member("a", b'0', b"");
    wrong[0] ^= 1;
    assert!(refused(&wrong).contains("no tar archive"));
    assert!(refused(&[&member("a", b'0', b"")[..], &wrong].concat()).contains("checksum"));
}

#[test]
fn pax_overrides_the_header_in_both_directions() {
    for (stated, real) in [(0, 600), (9000, 3)] {
        let body = vec![b'x'; real];
        let mut file = header(b"short", b'0', stated, USTAR).to_vec();
        file.extend_from_slice(&body);
        file.resize(file.len() + padding(real as u64) as usize, 0);
        let records = [record("size", real.to_string().as_bytes()), record("path", b"long\xff\nname")].concat();
        let bytes = [&member("pax", b'x', &records)[..], &file, &member("next", b'0', b"n"), &END].concat();
        let all = read(&bytes).unwrap();
        assert_eq!((&all[0].0.path[..], all[0].1.len(), all.len()), (&b"long\xff\nname"[..], real, 2));
    }
}

#[test]
fn a_pax_size_is_the_files_not_the_long_names_between() {
    let records = record("size", b"5");
    let long = [b'n'; 300];
    let mut file = header(b"short", b'0', 0, GNU).to_vec();
    file.extend_from_slice(b"hello");
    file.resize(1024, 0);
    let bytes =
        [&member("pax", b'x', &records)[..], &member("././@LongLink", b'L', &[&long[..], b"\0"].concat()), &file, &END]
            .concat();
    let all = read(&bytes).unwrap();
    assert_eq!((&all[0].0.path[..], &all[0].1[..], all.len()), (&long[..], &b"hello"[..], 1));
}

#[test]
fn contradictory_and_dangling_extensions_are_refused() {
    let file = member("f", b'0', b"");
    let pax = |records: Vec<u8>| member("pax", b'x', &records);
    for (extensions, says) in [
        (vec![pax(record("path", b"a")), member("l", b'L', b"b\0")], "given twice, as 'a' and 'b'"),
        (vec![member("l", b'L', b"a\0"), member("l", b'L', b"a\0")], "two extended headers"),
        (vec![pax(record("path", b"a")), pax(record("path", b"a"))], "two extended headers"),
        (vec![member("l", b'L', b"a\0b\0")], "NUL byte within"),
        (vec![member("g", b'g', &record("size", b"1"))], "global PAX header sets 'size'"),
        (vec![member("x", b'x', b"rubbish")], "malformed PAX record"),
        (vec![pax(record("path", &[b'p'; 5000]))], "a path of 5000 bytes"),
        (vec![pax(record("uid", b"4294967295"))], "owner 4294967295"),
        (vec![pax(record("gid", b"-1"))], "group -1"),
        (vec![pax(record("GNU.sparse.major", b"2"))], "sparse"),
        (vec![header(b"x", b'x', 1 << 30, GNU).to_vec()], "extended header of 1073741824 bytes"),
    ] {
        let error = refused(&[extensions.concat(), file.clone(), END.to_vec()].concat());
        assert!(error.contains(says), "{error}");
    }
    assert!(refused(&[pax(record("path", b"a")), END.to_vec()].concat()).contains("no member behind"));
    let comment = member("g", b'g', &record("comment", b"x"));
    assert_eq!(read(&[comment, file, END.to_vec()].concat()).unwrap().len(), 1);
}

#[test]
fn unknown_kinds_bad_numbers_and_nameless_members_are_refused() {
    for flag in [b'M', b'V', b'D', b'X', b'8', 0xff] {
        assert!(refused(&member("a", flag, b"")).contains("no layer may hold"), "{flag}");
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut block = header(b"a", b'3', 0, USTAR);
        block[at..at + bytes.len()].copy_from_slice(bytes);
        [&member("first", b'0', b"")[..], &seal(block)].concat()
    };
    assert!(refused(&with(100, b"9")).contains("mode"));
    assert!(refused(&with(108, b"\xff\xff\xff\xff\xff\xff\xff\xff")).contains("owner -1"));
    assert!(refused(&with(329, b"\x80\xff\xff\xff\xff\xff\xff\xff")).contains("device"));
    assert!(refused(&[&member("f", b'0', b"")[..], &seal(header(b"", b'0', 0, GNU))].concat()).contains("no name"));
    let mut negative = header(b"a", b'0', 0, USTAR);
    negative[124..136].fill(0xff);
    assert!(refused(&[&member("f", b'0', b"")[..], &seal(negative)].concat()).contains("negative"));
    let mut huge = header(b"a", b'0', 0, USTAR);
    huge[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    assert!(refused(&[&member("f", b'0', b"")[..], &seal(huge)].concat()).contains("ends in the middle"));
}

fn segments(entry: &Entry) -> Vec<(u64, u64)> {
    entry.segments.iter().flatten().map(|segment| (segment.offset, segment.len)).collect()
}

#[test]
fn sparse_members_come_in_four_forms() {
    // Old GNU, with one block of map behind the header.
    let mut block = header(b"old", b'S', 1536, GNU);
    for (at, (offset, len)) in [(1000u64, 512u64), (2000, 0), (4000, 512), (5000, 0)].iter().enumerate() {
        let at = 386 + at * 24;
        block[at..at + 24].copy_from_slice(format!("{offset:011o}\0{len:011o}\0").as_bytes());
    }
    block[482] = 1;
    block[483..495].copy_from_slice(format!("{:011o}\0", 100_000).as_bytes());
    let mut more = [0; BLOCK];
    more[..24].copy_from_slice(format!("{:011o}\0{:011o}\0", 90_000, 512).as_bytes());
    let old = [&seal(block)[..], &more, &[b'd'; 1536], &END].concat();
    let all = read(&old).unwrap();
    assert_eq!((segments(&all[0].0), all[0].0.size), (vec![(1000, 512), (4000, 512), (90_000, 512)], 100_000));
    assert_eq!((all[0].0.packed, all[0].1.len()), (1536, 1536));

    let body = [b'd'; 1024];
    let pax0 = [
        record("GNU.sparse.size", b"5000"),
        record("GNU.sparse.numblocks", b"2"),
        record("GNU.sparse.offset", b"0"),
        record("GNU.sparse.numbytes", b"512"),
        record("GNU.sparse.offset", b"4000"),
        record("GNU.sparse.numbytes", b"512"),
    ];
    let pax01 = [
        record("GNU.sparse.size", b"5000"),
        record("GNU.sparse.numblocks", b"2"),
        record("GNU.sparse.name", b"real"),
        record("GNU.sparse.map", b"0,512,4000,512"),
        record("path", b"GNUSparseFile.1/real"),
    ];
    let pax1 = [
        record("GNU.sparse.major", b"1"),
        record("GNU.sparse.minor", b"0"),
        record("GNU.sparse.name", b"real"),
        record("GNU.sparse.realsize", b"5000"),
        record("path", b"GNUSparseFile.1/real"),
    ];
    let mut map = b"2\n0\n512\n4000\n512\n".to_vec();
    map.resize(512, 0);
    for (records, body, name) in [
        (pax0.concat(), body.to_vec(), "real"),
        (pax01.concat(), body.to_vec(), "GNUSparseFile.1/real"),
        (pax1.concat(), [&map[..], &body].concat(), "GNUSparseFile.1/real"),
    ] {
        let all = read(&[member("pax", b'x', &records), member(name, b'0', &body), END.to_vec()].concat()).unwrap();
        let (entry, packed) = &all[0];
        assert_eq!((&entry.path[..], entry.size, &packed[..]), (&b"real"[..], 5000, &[b'd'; 1024][..]));
        assert_eq!(segments(entry), [(0, 512), (4000, 512)]);
    }
}

#[test]
fn false_sparse_maps_are_refused() {
    let pax = |size: &str, map: &str| {
        let records = [record("GNU.sparse.size", size.as_bytes()), record("GNU.sparse.map", map.as_bytes())].concat();
        refused(&[member("pax", b'x', &records), member("f", b'0', &[b'd'; 10]), END.to_vec()].concat())
    };
    assert!(pax("100", "0,10,5,0").contains("overlaps"));
    assert!(pax("100", "0,9").contains("holds 9 bytes"));
    assert!(pax("5", "0,10").contains("past its end"));
    assert!(pax("100", "0").contains("odd"));
    assert!(pax("100", "9223372036854775807,10").contains("past its end"));
    assert!(pax("100", &"0,0,".repeat(70_000)).contains("more than"));
    let v1 = [record("GNU.sparse.major", b"1"), record("GNU.sparse.minor", b"0"), record("GNU.sparse.realsize", b"9")]
        .concat();
    for body in [&b"99999999999999\n"[..], b"1\nx\n", b"111111111111111111111111111111"] {
        let mut body = body.to_vec();
        body.resize(512, b'1');
        let bytes = [member("pax", b'x', &v1), member("f", b'0', &body), END.to_vec()].concat();
        assert!(refused(&bytes).contains("member 'f'"));
    }
    let on_dir = [member("pax", b'x', &record("GNU.sparse.size", b"1")), member("d", b'5', b""), END.to_vec()].concat();
    assert!(refused(&on_dir).contains("only a file"));
}

fn sample() -> Vec<u8> {
    let records = [record("path", b"long"), record("mtime", b"1.5"), record("SCHILY.xattr.user.a", b"\0\xff")].concat();
    let sparse =
        [record("GNU.sparse.major", b"1"), record("GNU.sparse.minor", b"0"), record("GNU.sparse.realsize", b"4096")]
            .concat();
    let mut map = b"1\n0\n512\n".to_vec();
    map.resize(1024, 0);
    [
        member("pax", b'x', &records),
        member("f", b'0', b"hello"),
        member("l", b'L', &[b'n'; 200]),
        member("f", b'0', b""),
        member("pax", b'x', &sparse),
        member("s", b'0', &map),
        member("d/", b'5', b""),
        member("c", b'3', b""),
        END.to_vec(),
    ]
    .concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn mutated_bytes_give_members_or_an_error(
        changes in proptest::collection::vec((0usize..8192, any::<u8>(), any::<bool>()), 1..6),
        cut in 0usize..10_000,
    ) {
        let mut bytes = sample();
        prop_assert!(read(&bytes).is_ok());
        for (at, value, reseal) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
            // A right checksum lets the change through to the fields.
            let start = at / BLOCK * BLOCK;
            if reseal {
                let block: [u8; BLOCK] = bytes[start..start + BLOCK].try_into().unwrap();
                bytes[start..start + BLOCK].copy_from_slice(&seal(block));
            }
        }
        bytes.truncate(cut.max(1));
        read(&bytes).ok();
    }

    #[test]
    fn any_bytes_give_an_error_or_members(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        read(&bytes).ok();
    }
}
