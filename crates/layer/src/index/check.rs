//! The one check of an index, made when it is first opened: everything that the readers take for granted.
//!
//! One pass over each section. Time is bounded by the length of the file: a name is looked at twice, link targets have a
//! longest length, and foreign paths may not share bytes of the heap.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::Tables;
use super::format::{
    CHECKED_FROM, CHECKSUM_AT, FLAG_IMPLIED, FLAG_OPAQUE, FLAG_SPARSE, HEADER_LEN, IndexKind, KIND_AT, LENGTH_AT,
    MAGIC, NO_XATTRS, RECORD_LENS, ROW_LEN, RowKind, SECTIONS, SECTIONS_AT, TARGET_MAX, VERSION, VERSION_AT,
    XATTR_NAME_MAX, XATTR_SIZE_MAX, align8, row, u16_at, u32_at, u64_at,
};
use crate::name::{Name, TreePath};

/// Why bytes are not an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The magic is not there: another kind of file, or none.
    #[error("not an index: the magic is missing")]
    Magic,
    /// Written by another version of this program.
    #[error("the index has version {0}, not {VERSION}")]
    Version(u32),
    /// The file is shorter or longer than it says.
    #[error("the index should have {stated} bytes and has {found}")]
    Length {
        /// What the header says.
        stated: u64,
        /// What is there.
        found: u64,
    },
    /// A bit has changed since it was written.
    #[error("the index is damaged: its checksum does not match")]
    Checksum,
    /// The checksum matches, but what is written there is not an index.
    #[error("the index is malformed: {section} {number}: {what}")]
    Malformed {
        /// The part of the file.
        section: &'static str,
        /// The record in that part.
        number: u64,
        /// The rule that it breaks.
        what: &'static str,
    },
}

type Sections = [Range<usize>; SECTIONS];

/// Counts the changes of the rules below: a note of a check by other rules is none.
const RULES: u32 = 1;

/// What to write down about bytes that have passed [`check`]: by which rules, and which bytes.
pub(super) fn note(bytes: &[u8]) -> [u8; 12] {
    let mut note = [0; 12];
    note[..4].copy_from_slice(&RULES.to_le_bytes());
    note[4..].copy_from_slice(&bytes[CHECKSUM_AT..CHECKSUM_AT + 8]);
    note
}

/// Checks `bytes` and tells where the sections lie. With a [`note`] that tells of just these bytes, the header and the checksum are all
/// that is looked at.
pub(super) fn check(bytes: &[u8], noted: &[u8]) -> Result<(IndexKind, Sections), IndexError> {
    let (kind, sections) = check_header(bytes)?;
    if noted == note(bytes) {
        return Ok((kind, sections));
    }
    let checker = Checker { kind, tables: Tables::new(bytes, &sections) };
    checker.layers()?;
    checker.objects()?;
    checker.xattrs()?;
    checker.rows()?;
    checker.links()?;
    Ok((kind, sections))
}

fn check_header(bytes: &[u8]) -> Result<(IndexKind, Sections), IndexError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(IndexError::Magic);
    }
    let found = bytes.len() as u64;
    let header: &[u8; HEADER_LEN] =
        bytes.first_chunk().ok_or(IndexError::Length { stated: HEADER_LEN as u64, found })?;
    let version = u32_at(header, VERSION_AT);
    if version != VERSION {
        return Err(IndexError::Version(version));
    }
    let stated = u64_at(header, LENGTH_AT);
    if stated != found {
        return Err(IndexError::Length { stated, found });
    }
    if u64_at(header, CHECKSUM_AT) != xxh3_64(&bytes[CHECKED_FROM..]) {
        return Err(IndexError::Checksum);
    }
    let kind = match u32_at(header, KIND_AT) {
        1 => IndexKind::Layer,
        2 => IndexKind::Folded,
        _ => return Err(malformed("header", 0, "unknown kind")),
    };
    Ok((kind, sections(header, found)?))
}

/// Reads the table of sections, which leaves no freedom: each begins where the one before it ends, rounded up to 8.
fn sections(header: &[u8; HEADER_LEN], file_len: u64) -> Result<Sections, IndexError> {
    let mut end = HEADER_LEN as u64;
    let mut sections: Sections = Default::default();
    for (n, (section, record_len)) in sections.iter_mut().zip(RECORD_LENS).enumerate() {
        let bad = |what| malformed("section", n as u64, what);
        let at = SECTIONS_AT + n * 16;
        let (start, count) = (u64_at(header, at), u64_at(header, at + 8));
        if align8(end) != Some(start) {
            return Err(bad("does not begin where the one before it ends"));
        }
        if count > u64::from(u32::MAX) {
            return Err(bad("has more than 2^32 - 1 records"));
        }
        end = start + count * record_len as u64;
        if end > file_len {
            return Err(bad("reaches past the end of the file"));
        }
        *section = start as usize..end as usize;
    }
    if end != file_len {
        return Err(malformed("section", SECTIONS as u64, "bytes behind the last section"));
    }
    Ok(sections)
}

fn malformed(section: &'static str, number: u64, what: &'static str) -> IndexError {
    IndexError::Malformed { section, number, what }
}

struct Checker<'a> {
    kind: IndexKind,
    tables: Tables<'a>,
}

/// What adds up only over all rows.
#[derive(Default)]
struct Sums {
    aliases: u64,
    further_names: u64,
    foreign_len: u64,
}

type Rule = Result<(), &'static str>;

/// `a < b`, told by the first eight bytes where these differ.
fn comes_before(a: &[u8], b: &[u8]) -> bool {
    match (a.first_chunk::<8>(), b.first_chunk::<8>()) {
        (Some(first), Some(second)) if first != second => u64::from_be_bytes(*first) < u64::from_be_bytes(*second),
        _ => a < b,
    }
}

fn rule(holds: bool, otherwise: &'static str) -> Rule {
    if holds { Ok(()) } else { Err(otherwise) }
}

impl Checker<'_> {
    fn layers(&self) -> Result<(), IndexError> {
        let count = self.tables.layers.len() as u64;
        let bad = |what| Err(malformed("layers", count, what));
        match self.kind {
            IndexKind::Layer if count != 1 => bad("a layer index tells one layer"),
            IndexKind::Folded if count > u64::from(u16::MAX) => bad("more than 65,535 layers"),
            _ => Ok(()),
        }
    }

    fn objects(&self) -> Result<(), IndexError> {
        let sorted = self.tables.objects.windows(2).position(|pair| pair[0][..32] >= pair[1][..32]);
        sorted.map_or(Ok(()), |at| Err(malformed("object", at as u64 + 1, "out of order")))
    }

    fn xattrs(&self) -> Result<(), IndexError> {
        let mut next = 0;
        for (n, set) in self.tables.xattr_sets.iter().enumerate() {
            let count = u32_at(set, 4);
            if u32_at(set, 0) != next || count == 0 {
                return Err(malformed("xattr set", n as u64, "empty, or not behind the one before it"));
            }
            let records = self.tables.records_of_set(set);
            if records.len() != count as usize {
                return Err(malformed("xattr set", n as u64, "reaches past the end"));
            }
            next += count;
            self.xattr_set(records).map_err(|what| malformed("xattr set", n as u64, what))?;
        }
        match next as usize == self.tables.xattrs.len() {
            true => Ok(()),
            false => Err(malformed("xattr", u64::from(next), "in no set")),
        }
    }

    fn xattr_set(&self, records: &[[u8; super::XATTR_LEN]]) -> Rule {
        let mut before: &[u8] = b"";
        for record in records {
            let (name_len, value_len) = (u32_at(record, 4) as usize, u32_at(record, 12) as usize);
            rule((1..=XATTR_NAME_MAX).contains(&name_len), "a name of no or too many bytes")?;
            rule(value_len <= XATTR_SIZE_MAX, "a value of too many bytes")?;
            let (name, value) = self.tables.xattr(record);
            rule(name.len() == name_len && value.len() == value_len, "outside the heap")?;
            rule(before < name, "names out of order")?;
            rule(!name.contains(&0), "a NUL byte in a name")?;
            before = name;
        }
        Ok(())
    }

    fn rows(&self) -> Result<(), IndexError> {
        let rows = self.tables.rows;
        let mut sums = Sums::default();
        // Directories come in the order of their rows and so do their children: each row is reached once, after its parent.
        let mut next = 1;
        let Some(root) = rows.first() else { return Err(malformed("row", 0, "no root")) };
        let unnamed_dir = root[row::KIND] == RowKind::Dir as u8 && root[row::NAME_LEN] == 0;
        if !unnamed_dir || u32_at(root, row::PARENT) != 0 {
            return Err(malformed("row", 0, "the root is not a directory without a name"));
        }
        for (slot, raw) in rows.iter().enumerate() {
            if slot >= next {
                return Err(malformed("row", slot as u64, "in no directory"));
            }
            self.row(slot as u32, raw, &mut next, &mut sums).map_err(|what| malformed("row", slot as u64, what))?;
        }
        self.sums(&sums).map_err(|what| malformed("row", 0, what))
    }

    fn sums(&self, sums: &Sums) -> Rule {
        let links = self.tables.links.len() as u64;
        rule(sums.aliases == links, "not as many links as alias rows")?;
        rule(sums.further_names == links, "link counts do not add up")?;
        rule(sums.foreign_len <= self.tables.heap.len() as u64, "foreign links share bytes")
    }

    fn row(&self, slot: u32, raw: &[u8; ROW_LEN], next: &mut usize, sums: &mut Sums) -> Rule {
        let kind = RowKind::from_byte(raw[row::KIND]).ok_or("unknown kind")?;
        self.common(raw, kind)?;
        let (low, high) = (u32_at(raw, row::DATA), u32_at(raw, row::DATA + 4));
        let size = u64_at(raw, row::SIZE);
        if !matches!(kind, RowKind::Dir | RowKind::Alias | RowKind::Whiteout | RowKind::ForeignLink) {
            let nlink = u32_at(raw, row::NLINK);
            rule(nlink >= 1, "no link")?;
            sums.further_names += u64::from(nlink - 1);
        }
        match kind {
            RowKind::Dir => {
                rule(low as usize == *next, "children out of order")?;
                *next = next.checked_add(high as usize).ok_or("too many children")?;
                let subdirectories = self.children(slot, low as usize..*next)?;
                rule(u64::from(u32_at(raw, row::NLINK)) == 2 + subdirectories, "a wrong link count")
            }
            RowKind::Inline => {
                rule(u64_at(raw, row::DATA).checked_add(size).is_some_and(|end| end <= i64::MAX as u64), "no such body")
            }
            RowKind::Object => {
                let object = self.tables.objects.get(low as usize).ok_or("no such object")?;
                rule(high == 0 && u64_at(object, 32) == size && size <= i64::MAX as u64, "not the object's size")
            }
            RowKind::Symlink => {
                rule((1..=TARGET_MAX as u64).contains(&size) && size == u64::from(high), "a wrong length of target")?;
                let target = self.tables.heap(low, high);
                rule(target.len() == high as usize && !target.contains(&0), "a bad target")
            }
            RowKind::Char => rule((low, high) != (0, 0), "a whiteout in the kernel's spelling"),
            RowKind::Block | RowKind::Fifo | RowKind::Socket => Ok(()),
            RowKind::Alias => {
                sums.aliases += 1;
                let inode = self.tables.rows.get(low as usize).ok_or("an alias of nothing")?;
                let linkable = RowKind::from_byte(inode[row::KIND]).and_then(RowKind::file_type);
                let linkable = linkable.is_some_and(|file_type| file_type != crate::FileType::Dir);
                rule(low < slot && linkable, "an alias of what cannot have one")
            }
            RowKind::Whiteout => rule(self.kind == IndexKind::Layer, "a whiteout in a folded index"),
            RowKind::ForeignLink => {
                rule(self.kind == IndexKind::Layer, "a foreign link in a folded index")?;
                sums.foreign_len += u64::from(high);
                rule(sums.foreign_len <= self.tables.heap.len() as u64, "foreign links share bytes")?;
                let path = self.tables.heap(low, high);
                rule(path.len() == high as usize && !path.is_empty(), "a foreign link to nowhere")?;
                let parsed = TreePath::parse(path).map_err(|_| "a foreign link to a bad path")?;
                rule(parsed.as_bytes() == path, "a foreign link to a path that is not plain")
            }
        }
    }

    /// What every row has.
    fn common(&self, raw: &[u8; ROW_LEN], kind: RowKind) -> Rule {
        let may = match (kind, self.kind) {
            (RowKind::Dir, IndexKind::Layer) => FLAG_OPAQUE | FLAG_IMPLIED,
            (RowKind::Inline | RowKind::Object, _) => FLAG_SPARSE,
            _ => 0,
        };
        rule(u16_at(raw, row::FLAGS) & !may == 0, "unknown flags")?;
        rule(u16_at(raw, row::RESERVED) == 0, "reserved bytes in use")?;
        rule(u32_at(raw, row::PERM) <= 0o7777, "unknown permission bits")?;
        rule(u32_at(raw, row::MTIME_NSEC) < 1_000_000_000, "nanoseconds of more than a second")?;
        let layer = usize::from(u16_at(raw, row::LAYER));
        // A stack of no layers folds into a root that no layer holds.
        rule(layer < self.tables.layers.len().max(1), "no such layer")?;
        let set = u32_at(raw, row::XATTRS);
        rule(set == NO_XATTRS || (set as usize) < self.tables.xattr_sets.len(), "no such xattr set")
    }

    /// Checks parent and name of the rows `range`, the children of `dir`; returns how many are directories.
    fn children(&self, dir: u32, range: Range<usize>) -> Result<u64, &'static str> {
        let mut subdirectories = 0;
        let mut before: &[u8] = b"";
        for raw in self.tables.rows.get(range).ok_or("children past the end")? {
            rule(u32_at(raw, row::PARENT) == dir, "a child with another parent")?;
            let name = Name::new(self.tables.name(raw)).map_err(|_| "a child with a bad name")?.as_bytes();
            rule(comes_before(before, name), "children not sorted by name")?;
            before = name;
            subdirectories += u64::from(raw[row::KIND] == RowKind::Dir as u8);
        }
        Ok(subdirectories)
    }

    /// The list of links and the alias rows say the same: the numbers agree (`sums`), and each link has its alias row.
    fn links(&self) -> Result<(), IndexError> {
        let mut before = None;
        let mut names = 1;
        for (n, link) in self.tables.links.iter().enumerate() {
            let bad = |what| malformed("link", n as u64, what);
            let (inode, alias) = (u32_at(link, 0), u32_at(link, 4));
            if before >= Some((inode, alias)) {
                return Err(bad("out of order"));
            }
            let is_alias = self
                .tables
                .rows
                .get(alias as usize)
                .is_some_and(|raw| raw[row::KIND] == RowKind::Alias as u8 && u32_at(raw, row::DATA) == inode);
            if !is_alias {
                return Err(bad("not an alias of that inode"));
            }
            names = if before.is_some_and(|(same, _)| same == inode) { names + 1 } else { 2 };
            let last = self.tables.links.get(n + 1).is_none_or(|following| u32_at(following, 0) != inode);
            let nlink = self.tables.rows.get(inode as usize).map_or(0, |raw| u32_at(raw, row::NLINK));
            if last && nlink != names {
                return Err(bad("a wrong link count"));
            }
            before = Some((inode, alias));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_come_as_their_bytes_do(
            start in prop::collection::vec(any::<u8>(), 0..20),
            ends in [prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..20)],
        ) {
            let [a, b] = ends.map(|end| [&start[..], &end].concat());
            prop_assert_eq!(comes_before(&a, &b), a < b);
        }
    }
}
