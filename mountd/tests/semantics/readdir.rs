//! Listing directories while they change.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;

use crate::area::{Area, each};
use crate::tree::*;

fn many(area: &Area, count: usize) {
    dir(&area.lower("d"));
    for index in 0..count {
        std::fs::write(area.lower(&format!("d/f{index:05}")), b"x").unwrap();
    }
}

fn is_dot(entry: &Listed) -> bool {
    entry.name == "." || entry.name == ".."
}

#[test]
fn nothing_is_missing_or_doubled_while_files_are_copied_up() {
    each(|area| {
        many(area, 5000);
        area.mount();
        let open = open_dir(&area.m("d"));
        let mut seen = Vec::new();
        let mut next = 0;
        loop {
            let batch = some(&open, 4096, usize::MAX);
            // `some` reads to the end: take one buffer's worth by going back to the last cookie.
            let part: Vec<_> = batch.into_iter().take(100).collect();
            let Some(last) = part.last() else { break };
            rustix::fs::seek(&open, SeekFrom::Start(last.next)).unwrap();
            seen.extend(part.into_iter().filter(|entry| !is_dot(entry)).map(|entry| entry.name));
            for _ in 0..40 {
                open_rw(&area.m(&format!("d/f{next:05}"))).write_all_at(b"y", 0).unwrap();
                next = (next + 97) % 5000;
            }
        }
        let unique: BTreeSet<_> = seen.iter().collect();
        assert_eq!((seen.len(), unique.len()), (5000, 5000));
    });
}

#[test]
fn names_that_stay_are_listed_once_while_others_come_and_go() {
    each(|area| {
        many(area, 600);
        area.mount();
        for index in 0..600 {
            put(&area.m(&format!("d/u{index:05}")), "x");
        }
        let open = open_dir(&area.m("d"));
        let mut seen = Vec::new();
        let mut round = 0;
        loop {
            let part = some(&open, 16 << 10, 50);
            let Some(last) = part.last() else { break };
            rustix::fs::seek(&open, SeekFrom::Start(last.next)).unwrap();
            seen.extend(part.into_iter().filter(|entry| !is_dot(entry)).map(|entry| entry.name.into_string().unwrap()));
            if round < 30 {
                put(&area.m(&format!("d/new{round}")), "x");
            }
            for kind in ["f", "u"] {
                // Every seventh name goes away.
                std::fs::remove_file(area.m(&format!("d/{kind}{:05}", round * 7))).ok();
            }
            round += 1;
        }
        let stays = |name: &&String| !name.starts_with("new") && name[1..].parse::<usize>().unwrap() % 7 != 0;
        let kept: Vec<_> = seen.iter().filter(stays).collect();
        let unique: BTreeSet<_> = kept.iter().collect();
        let expected = 2 * (0..600).filter(|index| index % 7 != 0).count();
        assert_eq!((kept.len(), unique.len()), (expected, expected));
    });
}

#[test]
fn a_position_can_be_gone_back_to() {
    each(|area| {
        many(area, 300);
        area.mount();
        for index in 0..50 {
            put(&area.m(&format!("d/u{index}")), "x");
        }
        let open = open_dir(&area.m("d"));
        let all = rest(&open);
        for index in [0, 1, 2, 100, 301, 340, all.len() - 1] {
            rustix::fs::seek(&open, SeekFrom::Start(all[index].next)).unwrap();
            let again: Vec<_> = rest(&open).into_iter().map(|entry| entry.name).collect();
            let expected: Vec<_> = all[index + 1..].iter().map(|entry| entry.name.clone()).collect();
            assert_eq!(again, expected, "from {index}");
        }
    });
}

#[test]
fn a_rewound_directory_shows_what_is_new() {
    each(|area| {
        many(area, 10);
        area.mount();
        let open = open_dir(&area.m("d"));
        assert_eq!(rest(&open).len(), 12);
        put(&area.m("d/new"), "x");
        std::fs::remove_file(area.m("d/f00003")).unwrap();
        std::fs::rename(area.m("d/f00004"), area.m("d/renamed")).unwrap();
        rustix::fs::seek(&open, SeekFrom::Start(0)).unwrap();
        let names: BTreeSet<_> = rest(&open).into_iter().map(|entry| entry.name.into_string().unwrap()).collect();
        assert_eq!(names.len(), 12);
        assert!(
            names.contains("new")
                && names.contains("renamed")
                && !names.contains("f00003")
                && !names.contains("f00004")
        );
    });
}

#[test]
fn a_large_directory_can_be_removed_while_it_is_listed() {
    each(|area| {
        many(area, 3000);
        area.mount();
        for index in 0..500 {
            put(&area.m(&format!("d/u{index}")), "x");
        }
        // Removes what it reads, as it reads it, with a small buffer.
        let open = open_dir(&area.m("d"));
        loop {
            let part: Vec<_> = some(&open, 2048, 30);
            let Some(last) = part.last() else { break };
            rustix::fs::seek(&open, SeekFrom::Start(last.next)).unwrap();
            for entry in part.iter().filter(|entry| !is_dot(entry)) {
                std::fs::remove_file(area.m("d").join(&entry.name)).unwrap();
            }
        }
        drop(open);
        std::fs::remove_dir(area.m("d")).unwrap();
        area.remount();
        assert_eq!(names(&area.m("")), Vec::<String>::new());
    });
}

#[test]
fn every_directory_lists_itself_and_its_parent() {
    each(|area| {
        dir(&area.lower("d/sub"));
        area.mount();
        dir(&area.m("born"));
        for name in ["", "d", "d/sub", "born"] {
            let path = area.m(name);
            let entries = rest(&open_dir(&path));
            let own = std::os::unix::fs::MetadataExt::ino(&meta(&path));
            let dot = entries.iter().find(|entry| entry.name == ".").unwrap();
            assert_eq!((dot.ino, dot.kind), (own, rustix::fs::FileType::Directory), "{name}");
            assert!(entries.iter().any(|entry| entry.name == ".."), "{name}");
        }
    });
}

#[test]
fn a_listing_through_the_daemon_and_with_attributes_agree() {
    each(|area| {
        many(area, 500);
        area.mount();
        put(&area.m("d/u"), "x");
        chmod(&area.m("d/f00001"), 0o600);
        let plus = list(&area.m("d"));
        area.set_options("plyfs.disable=readdirplus");
        if area.way() == crate::area::Way::Served {
            area.set_options("plyfs.disable=passthrough:readdirplus");
        }
        area.remount();
        let plain = list(&area.m("d"));
        let key = |all: Vec<Listed>| all.into_iter().map(|e| (e.name, e.ino)).collect::<BTreeSet<_>>();
        assert_eq!(key(plus), key(plain));
    });
}
