//! Random changes of one file of the lower beside a plain buffer, by every call that changes or reads content.
//!
//! What fsx does for files that it makes itself; it cuts a file of the lower first.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use crate::area::{Area, each};
use crate::tree::*;

/// A linear congruential generator (Knuth's constants): the same run every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}

struct Exerciser<'a> {
    area: &'a Area,
    file: File,
    expected: Vec<u8>,
    random: Random,
    most: usize,
}

impl Exerciser<'_> {
    /// A part of the file, within its length.
    fn part(&mut self) -> (usize, usize) {
        let start = self.random.below(self.expected.len());
        (start, self.random.below((self.expected.len() - start).min(100_000)))
    }

    fn fill(&mut self, len: usize) -> Vec<u8> {
        let byte = self.random.below(256) as u8;
        vec![byte; len]
    }

    fn grow_to(&mut self, len: usize) {
        if self.expected.len() < len {
            self.expected.resize(len, 0);
        }
    }

    fn step(&mut self) -> &'static str {
        match self.random.below(10) {
            0 | 1 => {
                let (start, len) = (self.random.below(self.most), self.random.below(70_000));
                let bytes = self.fill(len);
                self.file.write_all_at(&bytes, start as u64).unwrap();
                // Nothing written is no growth.
                if len > 0 {
                    self.grow_to(start + len);
                    self.expected[start..start + len].copy_from_slice(&bytes);
                }
                "write"
            }
            2 | 3 => {
                let (start, len) = self.part();
                assert!(at(&self.file, start as u64, len) == self.expected[start..start + len]);
                "read"
            }
            4 => {
                let len = self.random.below(self.most);
                self.file.set_len(len as u64).unwrap();
                self.expected.resize(len, 0);
                "truncate"
            }
            5 => {
                let (start, len) = self.part();
                if len > 0 {
                    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&self.file, how, start as u64, len as u64).unwrap();
                    self.expected[start..start + len].fill(0);
                }
                "punch"
            }
            6 => {
                let ((from, len), to) = (self.part(), self.random.below(self.most));
                // Ranges that overlap are refused.
                if len > 0 && (from + len <= to || to + len <= from) {
                    let bytes = self.expected[from..from + len].to_vec();
                    self.copy(from, to, len);
                    self.grow_to(to + len);
                    self.expected[to..to + len].copy_from_slice(&bytes);
                }
                "copy"
            }
            7 => {
                let (start, len) = self.part();
                let bytes = self.fill(len);
                if len > 0 {
                    map_and_write(&self.area.m("f"), start, &bytes);
                    self.expected[start..start + len].copy_from_slice(&bytes);
                }
                "map"
            }
            8 => {
                self.file = open_rw(&self.area.m("f"));
                "open"
            }
            _ => {
                self.file.sync_data().unwrap();
                "sync"
            }
        }
    }

    fn copy(&self, from: usize, to: usize, len: usize) {
        let (mut from, mut to, mut left) = (from as u64, to as u64, len);
        while left > 0 {
            let copied =
                rustix::fs::copy_file_range(&self.file, Some(&mut from), &self.file, Some(&mut to), left).unwrap();
            assert!(copied > 0, "the source ends late enough");
            left -= copied;
        }
    }

    fn check(&self, after: &str) {
        let seen = std::fs::read(self.area.m("f")).unwrap();
        assert_eq!(seen.len(), self.expected.len(), "{after}");
        let differs = seen.iter().zip(&self.expected).position(|(seen, expected)| seen != expected);
        assert_eq!(differs, None, "{after}");
    }
}

/// Writes through a shared mapping.
fn map_and_write(path: &Path, start: usize, bytes: &[u8]) {
    let script = r#"exec python3 -c 'import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as map:
    start, byte, count = [int(word) for word in sys.argv[2:]]
    map[start:start + count] = bytes([byte]) * count' "$1" "$2" "$3" "$4""#;
    let words = [start, usize::from(bytes[0]), bytes.len()].map(|word| word.to_string());
    sh(script, &[path, Path::new(&words[0]), Path::new(&words[1]), Path::new(&words[2])]);
}

fn exercise(area: &Area, len: usize, seed: u64, steps: usize) {
    file(&area.lower("f"), len);
    area.mount();
    let mut exerciser = Exerciser {
        area,
        file: open_rw(&area.m("f")),
        expected: pattern(len),
        random: Random(seed),
        most: len + len / 4 + 1000,
    };
    for step in 0..steps {
        let what = exerciser.step();
        if step % 16 == 15 {
            exerciser.check(&format!("seed {seed}, step {step}, {what}"));
        }
    }
    exerciser.check(&format!("seed {seed}, at the end"));
    let (expected, file) = (std::mem::take(&mut exerciser.expected), exerciser.file);
    drop(file);
    area.remount();
    assert!(std::fs::read(area.m("f")).unwrap() == expected, "seed {seed}, after a remount");
}

fn steps() -> usize {
    if std::env::var_os("PLYFS_NIGHTLY").is_some() { 3000 } else { 150 }
}

#[test]
fn random_changes_of_a_small_lower_file_are_those_of_a_plain_file() {
    for seed in 0..3 {
        each(|area| exercise(area, 10_000, seed, steps()));
    }
}

#[test]
fn random_changes_of_a_medium_lower_file_are_those_of_a_plain_file() {
    for seed in 0..3 {
        each(|area| exercise(area, 300_000, seed, steps()));
    }
}

#[test]
fn random_changes_of_a_large_lower_file_are_those_of_a_plain_file() {
    for seed in 0..3 {
        each(|area| exercise(area, 5 << 20, seed, steps()));
    }
}
