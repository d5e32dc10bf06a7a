//! The directories of several layers become one: which name comes from which layer, and what hides it.
//!
//! Rules, from the topmost layer down: the first layer that has a name decides what it is. A directory goes on with the
//! directories of that name further down, until a layer has something else there. A whiteout hides its name in all layers below;
//! written as a file `.wh.NAME` it stands beside the entries of its own layer and does not hide those.

use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;

use layer::{FileType, Name};
use rustix::io::{Errno, Result};

use super::Options;
use super::Whiteouts;
use super::marks::Marks;
use crate::override_stat::{self, Override};
use crate::sys::{self, Attributes};

/// A directory of one layer, open for reading.
pub(super) struct Layer<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) number: u16,
    /// No layer is below: what directories say about those does not matter.
    pub(super) last: bool,
    /// Empty regular files may be whiteouts ([`Marks::has_whiteouts`]).
    pub(super) has_whiteouts: bool,
    pub(super) options: Options,
}

/// The names found so far.
#[derive(Default)]
pub(super) struct Merge {
    /// All names, one after the other.
    names: Vec<u8>,
    /// Sorted by name.
    found: Vec<Found>,
}

struct Found {
    name: Range,
    /// `None` for a name that is hidden.
    shown: Option<Box<Shown>>,
}

/// What a name stands for.
pub(super) struct Shown {
    pub(super) attributes: Attributes,
    /// The layers that have it: one, or for a directory those that may be merged.
    pub(super) layers: Vec<u16>,
    /// A directory that nothing has ended yet.
    open: bool,
    /// What a directory says, if that matters; what a file says, if it may be a metadata-only copy.
    pub(super) marks: Option<Box<Marks>>,
}

/// Where a name is in [`Merge::names`].
#[derive(Clone, Copy)]
struct Range {
    start: u32,
    len: u8,
}

struct Raw {
    name: Range,
    kind: Option<FileType>,
}

/// Tells whether a layer hides all that is below.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Opaque {
    Yes,
    No,
}

/// What a layer has under a name.
enum Entry {
    /// Nothing, or no longer.
    Nothing,
    Whiteout,
    There(Attributes, Option<Box<Marks>>),
}

impl Merge {
    /// Adds the next layer below.
    pub(super) fn add(&mut self, layer: &Layer<'_>) -> Result<Opaque> {
        let (mut entries, mut whiteouts, mut opaque) = (Vec::new(), Vec::new(), Opaque::No);
        let mut fits = true;
        sys::read_dir(layer.dir, |entry| {
            let spelling = match layer.options.whiteouts {
                Whiteouts::All => spelling(entry.name),
                Whiteouts::Overlay => Spelling::Plain(entry.name),
            };
            match spelling {
                Spelling::Plain(name) => match self.keep(name) {
                    Ok(name) => entries.push(Raw { name, kind: entry.kind }),
                    Err(TooLong::Name) => log::warn!("a name of {} bytes is left out", name.len()),
                    Err(TooLong::Sum) => fits = false,
                },
                Spelling::Whiteout(name) => match self.keep(name) {
                    Ok(name) => whiteouts.push(name),
                    Err(_) => fits = false,
                },
                Spelling::Opaque => opaque = Opaque::Yes,
                Spelling::Nothing => {}
            }
            if fits { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if !fits {
            return Err(Errno::OVERFLOW);
        }
        self.add_entries(layer, entries)?;
        for name in whiteouts {
            self.hide_below(name);
        }
        Ok(opaque)
    }

    /// Goes through all names that are shown, sorted.
    pub(super) fn shown(&self) -> impl Iterator<Item = (Name<'_>, &Shown)> {
        self.found.iter().filter_map(|found| Some((Name::new(self.bytes(found.name)).ok()?, found.shown.as_deref()?)))
    }

    fn add_entries(&mut self, layer: &Layer<'_>, mut entries: Vec<Raw>) -> Result<()> {
        let names = &self.names;
        entries.sort_unstable_by(|a, b| bytes(names, a.name).cmp(bytes(names, b.name)));
        let mut new = Vec::with_capacity(if self.found.is_empty() { entries.len() } else { 0 });
        for raw in entries {
            match self.position(bytes(&self.names, raw.name)) {
                Ok(index) => self.add_below(index, layer, &raw)?,
                Err(_) => match examine(layer, bytes(&self.names, raw.name))? {
                    Entry::Nothing => {}
                    Entry::Whiteout => new.push(Found { name: raw.name, shown: None }),
                    Entry::There(attributes, marks) => {
                        let open = attributes.stat.kind == FileType::Dir;
                        let shown = Shown { attributes, layers: vec![layer.number], open, marks };
                        new.push(Found { name: raw.name, shown: Some(Box::new(shown)) });
                    }
                },
            }
        }
        self.found.append(&mut new);
        let names = &self.names;
        // Two sorted runs: the stable sort merges them in one go.
        self.found.sort_by(|a, b| bytes(names, a.name).cmp(bytes(names, b.name)));
        Ok(())
    }

    /// Adds what a lower layer has under a name that is decided.
    fn add_below(&mut self, index: usize, layer: &Layer<'_>, raw: &Raw) -> Result<()> {
        let Some(shown) = self.found[index].shown.as_deref_mut().filter(|shown| shown.open) else { return Ok(()) };
        let kind = match raw.kind {
            Some(kind) => Some(kind),
            None => match sys::stat_at(layer.dir, bytes(&self.names, raw.name)) {
                Err(Errno::NOENT) => return Ok(()),
                found => Some(found?.stat.kind),
            },
        };
        match kind {
            Some(FileType::Dir) => shown.layers.push(layer.number),
            _ => shown.open = false,
        }
        Ok(())
    }

    /// Hides a name in the layers below the one that was added last.
    fn hide_below(&mut self, name: Range) {
        match self.position(bytes(&self.names, name)) {
            Ok(index) => {
                if let Some(shown) = self.found[index].shown.as_deref_mut() {
                    shown.open = false;
                }
            }
            Err(index) => self.found.insert(index, Found { name, shown: None }),
        }
    }

    fn position(&self, name: &[u8]) -> std::result::Result<usize, usize> {
        self.found.binary_search_by(|found| self.bytes(found.name).cmp(name))
    }

    fn keep(&mut self, name: &[u8]) -> std::result::Result<Range, TooLong> {
        let len = u8::try_from(name.len()).map_err(|_| TooLong::Name)?;
        let start = u32::try_from(self.names.len()).map_err(|_| TooLong::Sum)?;
        self.names.extend_from_slice(name);
        Ok(Range { start, len })
    }

    fn bytes(&self, name: Range) -> &[u8] {
        bytes(&self.names, name)
    }
}

enum TooLong {
    /// Over 255 bytes, as a few filesystems of other systems have: no program could ask for it by that name here.
    Name,
    /// Over 4 GiB of names in one directory.
    Sum,
}

fn bytes(names: &[u8], name: Range) -> &[u8] {
    &names[name.start as usize..name.start as usize + usize::from(name.len)]
}

/// What a name in a layer stands for, files named `.wh.*` understood.
enum Spelling<'a> {
    Plain(&'a [u8]),
    Whiteout(&'a [u8]),
    Opaque,
    /// Bookkeeping, or a whiteout that hides nothing.
    Nothing,
}

fn spelling(name: &[u8]) -> Spelling<'_> {
    use layer::whiteout;
    if !name.starts_with(whiteout::PREFIX) {
        return Spelling::Plain(name);
    }
    match Name::new(name).and_then(whiteout::spelling) {
        Ok(whiteout::Spelling::Whiteout(hidden)) => Spelling::Whiteout(hidden.as_bytes()),
        Ok(whiteout::Spelling::Opaque) => Spelling::Opaque,
        Ok(whiteout::Spelling::Plain(_) | whiteout::Spelling::Bookkeeping) | Err(_) => Spelling::Nothing,
    }
}

/// Looks at what a layer has under a name that no layer above has.
fn examine(layer: &Layer<'_>, name: &[u8]) -> Result<Entry> {
    let mut attributes = match sys::stat_at(layer.dir, name) {
        // It went while the directory was read; a layer is not to change, but this is as before or after.
        Err(Errno::NOENT) => return Ok(Entry::Nothing),
        found => found?,
    };
    let stat = &mut attributes.stat;
    if layer.options.override_stat
        && matches!(stat.kind, FileType::File | FileType::Dir)
        && let Some(value) = record(layer.dir, name)?
        && let Some(shown) = Override::parse(&value)
    {
        shown.apply(stat);
    }
    if is_whiteout_device(&attributes) {
        return Ok(Entry::Whiteout);
    }
    let marks = match wanted(layer, &attributes) {
        true => Some(marks_at(layer.dir, name)?),
        false => None,
    };
    match &marks {
        Some(marks) if marks.whiteout && is_empty_file(&attributes) => Ok(Entry::Whiteout),
        _ => Ok(Entry::There(attributes, marks.map(Box::new))),
    }
}

/// Reads the record of what an inode stands for. `user.*` can be read by those only who can read the file (xattr(7)): what is
/// closed to this program has no record for it, and what lies beside it can be listed.
fn record(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let names = sys::xattr_names_at(dir, name)?;
    let spelled = [override_stat::NAME, override_stat::FUSE_OVERLAYFS]
        .into_iter()
        .find(|spelled| names.split(|&byte| byte == 0).any(|name| name == *spelled));
    match spelled.map(|spelled| sys::xattr_at(dir, name, spelled)) {
        None | Some(Err(Errno::ACCESS)) => Ok(None),
        Some(record) => record,
    }
}

/// Tells whether the marks of an entry can matter.
fn wanted(layer: &Layer<'_>, found: &Attributes) -> bool {
    let stat = &found.stat;
    match stat.kind {
        FileType::Dir => !layer.last,
        FileType::File if stat.size == 0 => layer.has_whiteouts,
        // A metadata-only copy has its size, and no content but holes.
        FileType::File => stat.blocks.saturating_mul(512) < stat.size,
        _ => false,
    }
}

/// Tells whether this is the kernel's whiteout: a character device numbered 0:0.
pub(super) fn is_whiteout_device(found: &Attributes) -> bool {
    found.stat.kind == FileType::Char && found.stat.rdev == layer::Dev::default()
}

/// Tells whether this may be a whiteout by attribute.
pub(super) fn is_empty_file(found: &Attributes) -> bool {
    found.stat.kind == FileType::File && found.stat.size == 0
}

/// Reads the marks of `name` in `dir`.
pub(super) fn marks_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Marks> {
    Marks::read(&sys::xattr_names_at(dir, name)?, |attribute| sys::xattr_at(dir, name, attribute))
}

/// Reads the marks of what is open as `fd`.
pub(super) fn marks_of(fd: BorrowedFd<'_>) -> Result<Marks> {
    Marks::read(&sys::xattr_names_of(fd)?, |attribute| sys::xattr_of(fd, attribute))
}
