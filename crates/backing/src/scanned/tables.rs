//! Tables that only grow: one thread at a time adds, all read without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use layer::{Ino, Slot};

const CHUNK: u32 = 256;
const GROUPS: usize = 25;

/// A vector that grows without moving: group g has 2^g chunks of 256 elements.
#[derive(Debug)]
pub(super) struct Growing<T> {
    groups: [OnceLock<Box<[Chunk<T>]>>; GROUPS],
}

type Chunk<T> = OnceLock<Box<[OnceLock<T>]>>;

impl<T> Default for Growing<T> {
    fn default() -> Self {
        Growing { groups: [const { OnceLock::new() }; GROUPS] }
    }
}

impl<T> Growing<T> {
    fn place(index: u32) -> (usize, usize, usize) {
        let chunk = index / CHUNK + 1;
        let group = chunk.ilog2();
        (group as usize, (chunk - (1 << group)) as usize, (index % CHUNK) as usize)
    }

    pub(super) fn get(&self, index: u32) -> Option<&T> {
        let (group, chunk, cell) = Self::place(index);
        self.groups[group].get()?[chunk].get()?[cell].get()
    }

    /// Sets an element that has none yet.
    pub(super) fn set(&self, index: u32, value: T) {
        let (group, chunk, cell) = Self::place(index);
        let chunks = self.groups[group].get_or_init(|| empty(1 << group));
        let cells = chunks[chunk].get_or_init(|| empty(CHUNK as usize));
        let set = cells[cell].set(value);
        debug_assert!(set.is_ok(), "slot {index} is given out once");
    }
}

fn empty<T>(len: usize) -> Box<[OnceLock<T>]> {
    (0..len).map(|_| OnceLock::new()).collect()
}

const TABLES: usize = 24;

/// Slots by their number: open addressing in a table that is at most three quarters full. A full one is followed by one of twice the
/// size; readers of the old one go on undisturbed.
#[derive(Debug)]
pub(super) struct Numbers {
    tables: [OnceLock<Box<[AtomicU32]>>; TABLES],
    current: AtomicUsize,
}

/// An unused cell.
const FREE: u32 = u32::MAX;
const SMALLEST: usize = 512;

impl Default for Numbers {
    fn default() -> Self {
        Numbers { tables: [const { OnceLock::new() }; TABLES], current: AtomicUsize::new(0) }
    }
}

impl Numbers {
    pub(super) fn find(&self, number: Ino, number_of: impl Fn(Slot) -> Option<Ino>) -> Option<Slot> {
        let table = self.tables[self.current.load(Ordering::Acquire)].get()?;
        for cell in probe(table, number) {
            match cell.load(Ordering::Acquire) {
                FREE => return None,
                slot if number_of(Slot(slot)) == Some(number) => return Some(Slot(slot)),
                _ => {}
            }
        }
        None
    }

    /// Adds a number that is not there yet; one thread at a time. `len` numbers at most are there already.
    pub(super) fn insert(&self, number: Ino, slot: Slot, len: u32, number_of: impl Fn(Slot) -> Option<Ino>) {
        let mut current = self.current.load(Ordering::Relaxed);
        let mut table = self.tables[current].get_or_init(|| unused(SMALLEST));
        if len as usize >= table.len() / 4 * 3 && current + 1 < TABLES {
            let larger = unused(table.len() * 2);
            for old in table.iter().map(|cell| cell.load(Ordering::Relaxed)).filter(|&old| old != FREE) {
                if let Some(number) = number_of(Slot(old)) {
                    put(&larger, number, old);
                }
            }
            current += 1;
            table = self.tables[current].get_or_init(|| larger);
            put(table, number, slot.0);
            self.current.store(current, Ordering::Release);
        } else {
            put(table, number, slot.0);
        }
    }
}

fn unused(len: usize) -> Box<[AtomicU32]> {
    (0..len).map(|_| AtomicU32::new(FREE)).collect()
}

fn put(table: &[AtomicU32], number: Ino, slot: u32) {
    if let Some(cell) = probe(table, number).find(|cell| cell.load(Ordering::Relaxed) == FREE) {
        cell.store(slot, Ordering::Release);
    }
}

/// Goes through the cells where `number` may be, the likeliest first; the table's size is a power of two.
fn probe(table: &[AtomicU32], number: Ino) -> impl Iterator<Item = &AtomicU32> {
    let mask = table.len() - 1;
    let start = (number.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
    (0..table.len()).map(move |step| &table[(start + step) & mask])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_stay_where_they_are_while_the_vector_grows() {
        let growing = Growing::default();
        growing.set(0, 0);
        let first: *const u32 = growing.get(0).unwrap();
        for index in 1..10_000 {
            growing.set(index, index);
        }
        assert!((0..10_000).all(|index| growing.get(index) == Some(&index)));
        assert!(std::ptr::eq(first, growing.get(0).unwrap()));
        assert_eq!(growing.get(10_000), None);
        assert_eq!(growing.get(u32::MAX), None);
    }

    #[test]
    fn numbers_that_meet_in_one_cell_are_told_apart() {
        let numbers = Numbers::default();
        // The upper half of the product decides: these differ in the lower only.
        let known: Vec<_> = (0..2000).map(|n| Ino(n * 0x1_0000)).collect();
        let number_of = |slot: Slot| known.get(slot.0 as usize).copied();
        for (slot, number) in (0..).zip(&known) {
            assert_eq!(numbers.find(*number, number_of), None);
            numbers.insert(*number, Slot(slot), slot, number_of);
        }
        for (slot, number) in (0..).zip(&known) {
            assert_eq!(numbers.find(*number, number_of), Some(Slot(slot)));
        }
    }
}
