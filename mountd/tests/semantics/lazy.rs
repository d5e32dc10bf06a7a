//! Large files are copied up piece by piece, and nobody can tell.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use crate::area::{Area, each};
use crate::tree::*;

const LEN: usize = 16 << 20;

/// A large lower file, and what a plain file would hold.
fn large(area: &Area) -> Vec<u8> {
    file(&area.lower("f"), LEN);
    pattern(LEN)
}

fn assert_holds(area: &Area, expected: &[u8], when: &str) {
    let found = std::fs::read(area.m("f")).unwrap();
    assert_eq!(found.len(), expected.len(), "{when}");
    let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "first wrong byte {when}");
}

#[test]
fn first_byte_into_a_large_file_costs_what_was_written() {
    each(|area| {
        let mut expected = large(area);
        area.mount();
        area.costs_little("first byte", || {
            let start = Instant::now();
            open_rw(&area.m("f")).write_all_at(b"!", 5_000_000).unwrap();
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        });
        expected[5_000_000] = b'!';
        assert_holds(area, &expected, "while partial");
    });
}

#[test]
fn a_partial_copy_reads_as_a_plain_file_before_and_after_remounts() {
    each(|area| {
        let mut expected = large(area);
        area.mount();
        let file = open_rw(&area.m("f"));
        for (offset, len) in
            [(0usize, 1usize), (4095, 2), (8192, 4096), (1 << 20, 70_000), (LEN - 3, 3), (LEN - 4097, 10)]
        {
            let data = vec![b'*'; len];
            file.write_all_at(&data, offset as u64).unwrap();
            expected[offset..offset + len].copy_from_slice(&data);
            assert_eq!(at(&file, offset as u64, len), data);
        }
        drop(file);
        assert_holds(area, &expected, "while partial");
        area.crash();
        assert_holds(area, &expected, "after a crash");
        open_rw(&area.m("f")).write_all_at(b"once more", 9_000_000).unwrap();
        expected[9_000_000..9_000_009].copy_from_slice(b"once more");
        assert_holds(area, &expected, "written after a crash");
        area.unmount();
        assert!(std::fs::read(area.upper("f")).unwrap() == expected, "at rest it is a plain file");
        assert_eq!(xattr(&area.upper("f"), "trusted.overlay.metacopy"), None);
        area.mount();
        assert_holds(area, &expected, "after a remount");
    });
}

#[test]
fn a_partial_copy_grows_past_its_end() {
    each(|area| {
        let mut expected = large(area);
        area.mount();
        let file = open_rw(&area.m("f"));
        file.write_all_at(b"tail", LEN as u64 + 10_000).unwrap();
        expected.resize(LEN + 10_000, 0);
        expected.extend_from_slice(b"tail");
        assert_eq!(meta(area.m("f")).len(), expected.len() as u64);
        assert_holds(area, &expected, "while partial");
        drop(file);
        area.crash();
        assert_holds(area, &expected, "after a crash");
    });
}

#[test]
fn a_partial_copy_cut_and_extended_shows_zeros_not_the_old_bytes() {
    each(|area| {
        let mut expected = large(area);
        area.mount();
        let file = open_rw(&area.m("f"));
        file.write_all_at(b"x", 100).unwrap();
        expected[100] = b'x';
        for cut in [10_000_001u64, 9_000_000, 4096 * 3 + 1] {
            file.set_len(cut).unwrap();
            file.set_len(LEN as u64).unwrap();
            expected.truncate(cut as usize);
            expected.resize(LEN, 0);
            assert_holds(area, &expected, "cut and extended");
        }
        drop(file);
        area.crash();
        assert_holds(area, &expected, "after a crash");
        let file = open_rw(&area.m("f"));
        file.write_all_at(b"y", 12_345_678).unwrap();
        expected[12_345_678] = b'y';
        drop(file);
        assert_holds(area, &expected, "written again");
        area.remount();
        assert_holds(area, &expected, "after a remount");
    });
}

#[test]
fn truncate_of_a_large_lower_file_to_its_middle_keeps_the_beginning() {
    each(|area| {
        let mut expected = large(area);
        area.mount();
        area.costs_little("truncate", || rustix_truncate(&area.m("f"), 10_000_000));
        expected.truncate(10_000_000);
        assert_holds(area, &expected, "cut");
        area.remount();
        assert_holds(area, &expected, "after a remount");
    });
}

fn rustix_truncate(path: &std::path::Path, len: u64) {
    let done = std::process::Command::new("truncate").arg("-s").arg(len.to_string()).arg(path).status().unwrap();
    assert!(done.success());
}

#[test]
fn an_append_to_a_large_lower_file_lands_at_its_end() {
    each(|area| {
        let mut expected = large(area);
        area.mount();
        area.costs_little("append", || {
            let mut file = std::fs::OpenOptions::new().append(true).open(area.m("f")).unwrap();
            std::io::Write::write_all(&mut file, b"appended").unwrap();
        });
        expected.extend_from_slice(b"appended");
        assert_holds(area, &expected, "appended");
        area.remount();
        assert_holds(area, &expected, "after a remount");
    });
}

#[test]
fn a_mapping_of_a_partial_file_sees_it_whole() {
    each(|area| {
        let mut expected = large(area);
        area.mount();
        open_rw(&area.m("f")).write_all_at(b"written", 1_000_000).unwrap();
        expected[1_000_000..1_000_007].copy_from_slice(b"written");
        let map = backing::mmap::Map::of(open(&area.m("f"))).unwrap();
        assert!(map.as_ref() == expected.as_slice());
        drop(map);
        // A shared mapping that is written reaches the file.
        sh(
            r#"exec python3 -c 'import mmap,sys
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
m[2000000:2000006] = b"mapped"
m.flush()' "$1""#,
            &[&area.m("f")],
        );
        expected[2_000_000..2_000_006].copy_from_slice(b"mapped");
        assert_holds(area, &expected, "mapped");
        area.remount();
        assert_holds(area, &expected, "after a remount");
    });
}

#[test]
fn a_partial_file_can_be_renamed_linked_and_removed() {
    each(|area| {
        let mut expected = large(area);
        file(&area.lower("gone"), LEN);
        area.mount();
        let ino = meta(area.m("f")).ino();
        open_rw(&area.m("f")).write_all_at(b"!", 3).unwrap();
        expected[3] = b'!';
        assert_eq!(meta(area.m("f")).nlink(), 1, "what the work directory holds does not count");
        std::fs::rename(area.m("f"), area.m("moved")).unwrap();
        std::fs::hard_link(area.m("moved"), area.m("f")).unwrap();
        assert_eq!((meta(area.m("f")).nlink(), meta(area.m("moved")).nlink()), (2, 2));
        assert_holds(area, &expected, "linked");
        let open = open_rw(&area.m("gone"));
        open.write_all_at(b"!", 3).unwrap();
        std::fs::remove_file(area.m("gone")).unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        assert_eq!(at(&open, 0, 6)[3], b'!');
        drop(open);
        area.crash();
        assert_holds(area, &expected, "after a crash");
        assert!(std::fs::read(area.m("moved")).unwrap() == expected);
        assert!(!exists(&area.m("gone")));
        assert_eq!((meta(area.m("f")).nlink(), meta(area.m("f")).ino(), meta(area.m("moved")).ino()), (2, ino, ino));
    });
}

#[test]
fn fsync_of_a_partial_file_keeps_what_was_written_over_a_crash() {
    each(|area| {
        let mut expected = large(area);
        area.mount();
        let file = open_rw(&area.m("f"));
        file.write_all_at(b"durable", 7_000_000).unwrap();
        file.sync_all().unwrap();
        expected[7_000_000..7_000_007].copy_from_slice(b"durable");
        drop(file);
        area.crash();
        assert_holds(area, &expected, "after a crash");
    });
}

#[test]
fn readers_that_opened_before_see_writes_of_a_partial_file_through_the_daemon() {
    crate::area::once(crate::area::Way::Served, |area| {
        large(area);
        area.mount();
        let reader = open(&area.m("f"));
        assert_eq!(at(&reader, 0, 3), pattern(3));
        open_rw(&area.m("f")).write_all_at(b"new", 0).unwrap();
        assert_eq!(at(&reader, 0, 3), b"new");
    });
}

#[test]
fn fallocate_punches_a_hole_into_a_partial_file() {
    each(|area| {
        let mut expected = large(area);
        area.mount();
        let file = open_rw(&area.m("f"));
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&file, flags, 100_000, 5_000_000) {
            Ok(()) => expected[100_000..5_100_000].fill(0),
            // Not every filesystem can.
            Err(error) => assert_eq!(error, rustix::io::Errno::OPNOTSUPP),
        }
        drop(file);
        assert_holds(area, &expected, "punched");
        area.remount();
        assert_holds(area, &expected, "after a remount");
    });
}
