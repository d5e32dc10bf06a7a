//! GNU's maps of sparse members (GNU tar manual, Storing Sparse Files).

use super::header::{BLOCK, length};
use super::pax::decimal;

/// The longest map that is read.
const SEGMENTS_MAX: usize = 1 << 16;

/// A run of data between holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// From the start of the file, in bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) len: u64,
}

/// Checks that the segments ascend without overlap, end within the file, and are as long as the body together.
pub(super) fn check(map: &[Segment], size: u64, body: u64) -> Result<(), String> {
    if i64::try_from(size).is_err() {
        return Err(format!("a sparse member of {size} bytes"));
    }
    let (mut end, mut sum) = (0u64, 0u64);
    for segment in map {
        if segment.offset < end {
            return Err("its sparse map overlaps or is out of order".into());
        }
        end = segment
            .offset
            .checked_add(segment.len)
            .filter(|&end| end <= size)
            .ok_or("its sparse map leads past its end")?;
        sum += segment.len; // at most `end`
    }
    match sum == body {
        true => Ok(()),
        false => Err(format!("its sparse map holds {sum} bytes, its body {body}")),
    }
}

/// Old form: pairs of 12-byte numbers; an empty one ends the map.
pub(super) fn read_old_entries(entries: &[u8], map: &mut Vec<Segment>) -> Result<(), String> {
    for entry in entries.chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        push(map, length(&entry[..12], "sparse offset")?, length(&entry[12..], "sparse length")?)?;
    }
    Ok(())
}

/// Old form: a block of 21 pairs behind the header; returns whether another follows.
pub(super) fn read_old_block(block: &[u8; BLOCK], map: &mut Vec<Segment>) -> Result<bool, String> {
    let before = map.len();
    read_old_entries(&block[..504], map)?;
    let more = block[504] != 0;
    match more && map.len() == before {
        true => Err("an empty block in its sparse map".into()),
        false => Ok(more),
    }
}

/// 0.1: `offset,length,offset,length...`.
pub(super) fn read_comma_map(text: &[u8]) -> Result<Vec<Segment>, String> {
    let mut map = Vec::new();
    if text.is_empty() {
        return Ok(map);
    }
    let mut numbers = text.split(|&b| b == b',');
    while let Some(offset) = numbers.next() {
        let len = numbers.next().ok_or("a sparse map with an odd number of numbers")?;
        push(&mut map, decimal(offset)?, decimal(len)?)?;
    }
    Ok(map)
}

/// 1.0: the number of segments, then offsets and lengths, a decimal line each.
#[derive(Default)]
pub(super) struct MapText {
    line: Vec<u8>,
    segments: Option<u64>,
    offset: Option<u64>,
    map: Vec<Segment>,
}

impl MapText {
    /// Takes the next block; returns the map when it is whole.
    pub(super) fn feed(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Segment>>, String> {
        for &byte in block {
            if self.is_whole() {
                break;
            }
            match byte {
                b'\n' => self.take_line()?,
                _ if self.line.len() >= 20 => return Err("a malformed sparse map".into()),
                _ => self.line.push(byte),
            }
        }
        Ok(self.is_whole().then(|| std::mem::take(&mut self.map)))
    }

    fn is_whole(&self) -> bool {
        self.segments == Some(self.map.len() as u64)
    }

    fn take_line(&mut self) -> Result<(), String> {
        let number = decimal(&self.line)?;
        self.line.clear();
        match (self.segments, self.offset.take()) {
            (None, _) => self.segments = Some(number),
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => push(&mut self.map, offset, number)?,
        }
        Ok(())
    }
}

fn push(map: &mut Vec<Segment>, offset: u64, len: u64) -> Result<(), String> {
    if map.len() >= SEGMENTS_MAX {
        return Err(format!("a sparse map of more than {SEGMENTS_MAX} segments"));
    }
    map.push(Segment { offset, len });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_must_ascend_and_fit() {
        let map = |pairs: &[(u64, u64)]| pairs.iter().map(|&(offset, len)| Segment { offset, len }).collect::<Vec<_>>();
        assert!(check(&map(&[(0, 5), (10, 5), (20, 0)]), 20, 10).is_ok());
        assert!(check(&[], 1 << 40, 0).is_ok());
        for (pairs, size, body) in [
            (&[(0, 5), (4, 5)][..], 20, 10),
            (&[(10, 5), (0, 5)], 20, 10),
            (&[(10, 11)], 20, 11),
            (&[(u64::MAX, 2)], 20, 2),
            (&[(0, 5)], 20, 6),
            (&[(21, 0)], 20, 0),
            (&[], u64::MAX, 0),
        ] {
            assert!(check(&map(pairs), size, body).is_err(), "{pairs:?}");
        }
    }
}
