//! What the union notes on upper inodes, in extended attributes (kernel overlayfs.rst), and the records of what the
//! filesystem could not hold (podman's `user.containers.override_stat`).

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use layer::{FileType, Ino, Stat};
use overlay::upper::{Kept, Marks, Origin, SetXattr};
use overlay::{Errno, Error, Result};
use rustix::fs::XattrFlags;
use rustix::io::Errno as Raw;

use super::{Found, error, kept};
use crate::override_stat::Override;

/// The directory hides everything below (`y`); `x` says that it may hold whiteouts in attribute form.
pub(super) const OPAQUE: &str = "overlay.opaque";
/// The directory holds something with a part in the lower, whose number must be looked at.
pub(super) const IMPURE: &str = "overlay.impure";
/// Where in the lower it came from.
pub(super) const REDIRECT: &str = "overlay.redirect";
/// Only the metadata is here.
pub(super) const METACOPY: &str = "overlay.metacopy";
/// A whiteout in attribute form.
pub(super) const WHITEOUT: &str = "overlay.whiteout";
/// The kernel's: by how many the link count of an indexed inode differs from what programs see.
pub(super) const NLINK: &str = "overlay.nlink";
/// Ours, under a prefix that the kernel's overlayfs hides from programs: key and number of the lower inode it was copied from,
/// how many names that has in the lower alone, and, for a copy that took its name unsynced, how long its body must be, in which
/// epoch that was, and where in the lower it came from if that is not where it is. Short, to be had in ext4's inode of 256 bytes.
const COPY: &str = "overlay.plyfs.copy";
/// The same as it was spelled before: with fields of a fixed length.
const ORIGIN: &str = "overlay.plyfs.origin";
/// Ours: the copy is partial, and the lower counts up to this many bytes.
const PARTIAL: &str = "overlay.plyfs.partial";
/// Ours: what a write that no program asked for takes from the file, while it is written ([`kept`]).
const KEPT: &str = "overlay.plyfs.kept";
const TRUSTED_KEPT: &[u8] = b"trusted.overlay.plyfs.kept";
const USER_KEPT: &[u8] = b"user.overlay.plyfs.kept";
/// Ours, on the upper's root: a union of ours wrote it.
pub(super) const OURS: &str = "overlay.plyfs.ours";
/// Ours, on the index: the key of the layers whose files without a mark are there.
const INDEX_KEY: &str = "overlay.plyfs.layers";
const OVERRIDE: &[u8] = crate::override_stat::NAME;

/// The namespace that marks are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    prefix: &'static str,
    /// Owners, modes and kinds are read from records.
    overrides: bool,
    /// They are always recorded, never set.
    always: bool,
    /// `trusted.*` can be written, and be believed where a program's user could have written `user.*`.
    trusted: bool,
    /// Unsynced copies of this epoch are not known to be on disk; those of earlier ones are.
    pub(super) epoch: u64,
}

impl Space {
    /// Finds out whether `trusted.*` can be used; without privilege it is `user.*`, as the kernel's `userxattr` has it, and so
    /// it is where `user` asks for it.
    pub(super) fn probe(tmp: &OwnedFd, always: bool, user: bool) -> Self {
        let trusted = rustix::fs::fsetxattr(tmp, "trusted.plyfs.probe", b"y", XattrFlags::empty()).is_ok();
        let prefix = if trusted && !user { "trusted." } else { "user." };
        Space { prefix, overrides: always || !trusted, always, trusted, epoch: 0 }
    }

    pub(super) fn overrides(&self) -> bool {
        self.overrides
    }

    pub(super) fn always_overrides(&self) -> bool {
        self.always
    }

    /// Tells whether a program never sees this attribute: it is the union's own.
    pub(super) fn is_private(&self, name: &[u8]) -> bool {
        [&b"trusted.overlay."[..], b"user.overlay.", b"trusted.plyfs.", b"user.plyfs.", b"user.fuseoverlayfs."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            || (self.overrides && name == OVERRIDE)
    }

    /// Tells whether inodes of every kind can bear marks (xattr(7): `user.*` is for files and directories).
    pub(super) fn marks_all(&self) -> bool {
        self.prefix != "user."
    }

    pub(super) fn index_key(&self, index: &Found<'_>) -> Result<Option<u64>> {
        Ok(self.get(index, INDEX_KEY)?.and_then(|value| value.try_into().ok()).map(u64::from_le_bytes))
    }

    pub(super) fn set_index_key(&self, index: &Found<'_>, key: u64) -> Result<()> {
        self.set(index, INDEX_KEY, &key.to_le_bytes())
    }

    fn full(&self, mark: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), mark.as_bytes()].concat()
    }

    pub(super) fn get(&self, of: &Found<'_>, mark: &str) -> Result<Option<Vec<u8>>> {
        get(of, &self.full(mark))
    }

    pub(super) fn set(&self, of: &Found<'_>, mark: &str, value: &[u8]) -> Result<()> {
        match set(of, &self.full(mark), value, SetXattr::Any) {
            // `user.*` is for files and directories only (xattr(7)): a link or device of a rootless upper goes unmarked.
            Err(Error::Answer(Errno::EPERM | Errno::EOPNOTSUPP)) if self.prefix == "user." => Ok(()),
            done => done,
        }
    }

    pub(super) fn remove(&self, of: &Found<'_>, mark: &str) -> Result<()> {
        match remove(of, &self.full(mark)) {
            Err(Error::Answer(Errno::ENODATA)) => Ok(()),
            done => done,
        }
    }

    /// Reads all marks, and attributes as they are meant; tells whether there is a note of what is to be given back.
    pub(super) fn read(&self, of: &Found<'_>, stat: Stat) -> Result<(Marks, Stat, bool)> {
        let mut marks = Marks::default();
        let mut meant = stat;
        let mut noted = false;
        for name in list(of)? {
            let value = || Ok::<_, Error>(get(of, &name)?.unwrap_or_default());
            if self.overrides && name == OVERRIDE {
                meant = apply(&value()?, stat);
                continue;
            }
            if name == self.full_kept() {
                noted = true;
                continue;
            }
            let Some(mark) = name.strip_prefix(self.prefix.as_bytes()) else { continue };
            match Mark::read(mark, value)? {
                Some(Mark::Opaque) => marks.opaque = true,
                Some(Mark::Redirect(path)) => marks.redirect = Some(path),
                Some(Mark::Metacopy) => marks.metacopy = stat.kind == FileType::File,
                Some(Mark::Origin(record)) => {
                    if record.old && marks.origin.is_some() {
                        continue;
                    }
                    (marks.origin, marks.lower_names) = (record.origin, record.lower_names);
                    marks.unsynced = record.length > 0 && record.epoch == self.epoch;
                }
                Some(Mark::Partial(limit)) => marks.partial = Some(limit),
                // The kernel's form for layers; an upper of ours has devices.
                Some(Mark::Whiteout | Mark::Kept(_)) | None => {}
            }
        }
        Ok((marks, meant, noted))
    }

    /// Returns attributes as they are meant: with the record, where there is one.
    pub(super) fn overridden(&self, of: &Found<'_>, stat: Stat) -> Result<Stat> {
        if !self.overrides || !matches!(stat.kind, FileType::File | FileType::Dir) {
            return Ok(stat);
        }
        Ok(get(of, OVERRIDE)?.map_or(stat, |record| apply(&record, stat)))
    }

    /// Writes a record, which takes the place of an old one.
    pub(super) fn set_origin(&self, of: &Found<'_>, record: &OriginRecord) -> Result<()> {
        let Some(origin) = record.origin else { return Ok(()) };
        self.set(of, COPY, &record.spell(origin))?;
        if record.old { self.remove(of, ORIGIN) } else { Ok(()) }
    }

    pub(super) fn origin(&self, of: &Found<'_>) -> Result<OriginRecord> {
        match self.get(of, COPY)? {
            Some(value) => Ok(OriginRecord::read(&value)),
            None => Ok(OriginRecord::read_old(&self.get(of, ORIGIN)?.unwrap_or_default())),
        }
    }

    pub(super) fn set_partial(&self, of: &Found<'_>, limit: u64) -> Result<()> {
        self.set(of, PARTIAL, &limit.to_le_bytes())
    }

    pub(super) fn is_partial(&self, of: &Found<'_>) -> Result<bool> {
        Ok(self.get(of, PARTIAL)?.is_some())
    }

    pub(super) fn end_partial(&self, of: &Found<'_>) -> Result<()> {
        self.remove(of, PARTIAL)
    }

    /// Where notes lie that privileges are given back by: nobody may write there who could not set these himself.
    fn full_kept(&self) -> &'static [u8] {
        if self.trusted { TRUSTED_KEPT } else { USER_KEPT }
    }

    pub(super) fn set_kept(&self, of: &Found<'_>, value: &Kept) -> Result<()> {
        set(of, self.full_kept(), &kept::spell(value), SetXattr::Any)
    }

    pub(super) fn kept(&self, of: &Found<'_>) -> Result<Option<Kept>> {
        Ok(get(of, self.full_kept())?.and_then(|value| kept::read(&value)))
    }

    pub(super) fn end_kept(&self, of: &Found<'_>) -> Result<()> {
        match remove(of, self.full_kept()) {
            Err(Error::Answer(Errno::ENODATA)) => Ok(()),
            done => done,
        }
    }

    /// Returns the kind that a file stands for, if it stands for another.
    pub(super) fn stood_for(&self, of: &Found<'_>) -> Result<Option<FileType>> {
        if !self.overrides {
            return Ok(None);
        }
        let kind = self.recorded(of)?.and_then(|record| record.kind).map(|(kind, _)| kind);
        Ok(kind.filter(|kind| *kind != FileType::Dir))
    }

    /// Records owner, mode and kind.
    pub(super) fn record(&self, of: &Found<'_>, record: &Override) -> Result<()> {
        set(of, OVERRIDE, record.format().as_bytes(), SetXattr::Any)
    }

    /// Returns the record, if there is one.
    pub(super) fn recorded(&self, of: &Found<'_>) -> Result<Option<Override>> {
        Ok(get(of, OVERRIDE)?.and_then(|record| Override::parse(&record)))
    }
}

fn apply(record: &[u8], stat: Stat) -> Stat {
    let mut meant = stat;
    if let Some(record) = Override::parse(record) {
        record.apply(&mut meant);
        if !matches!(meant.kind, FileType::File | FileType::Dir | FileType::Symlink) {
            meant.size = 0;
        }
    }
    meant
}

/// Tells whether an inode of that kind can bear `user.*` attributes.
pub(super) fn bears_marks(kind: FileType) -> bool {
    matches!(kind, FileType::File | FileType::Dir)
}

/// A mark of an upper inode, read.
#[derive(Clone, Debug)]
pub enum Mark {
    /// The directory hides everything below it.
    Opaque,
    /// Where in the lower it came from, as it is spelled.
    Redirect(Vec<u8>),
    /// Only the metadata of a file is here.
    Metacopy,
    /// An empty file that is a whiteout.
    Whiteout,
    /// What a copy was made of.
    Origin(OriginRecord),
    /// The copy is partial, and the lower counts up to so many bytes.
    Partial(u64),
    /// A body was being brought up, which no program wrote: what the file is to have again.
    Kept(Kept),
}

impl Mark {
    /// Reads an attribute, its name without `trusted.` or `user.` before it; `None` if it is no mark, or says nothing.
    ///
    /// # Errors
    /// Those of `value`.
    pub fn read<E>(
        name: &[u8],
        value: impl FnOnce() -> std::result::Result<Vec<u8>, E>,
    ) -> std::result::Result<Option<Self>, E> {
        let is = |mark: &str| name == mark.as_bytes();
        Ok(match () {
            () if is(OPAQUE) => (value()? == b"y").then_some(Mark::Opaque),
            () if is(REDIRECT) => Some(Mark::Redirect(value()?)),
            () if is(METACOPY) => Some(Mark::Metacopy),
            () if is(WHITEOUT) => Some(Mark::Whiteout),
            () if is(COPY) => Some(Mark::Origin(OriginRecord::read(&value()?))),
            () if is(ORIGIN) => Some(Mark::Origin(OriginRecord::read_old(&value()?))),
            () if is(KEPT) => kept::read(&value()?).map(Mark::Kept),
            () if is(PARTIAL) => value()?.try_into().ok().map(|bytes| Mark::Partial(u64::from_le_bytes(bytes))),
            () => None,
        })
    }
}

/// What is noted of the lower inode that a copy was made of.
#[derive(Clone, Debug, Default)]
pub struct OriginRecord {
    /// Which inode that was.
    pub origin: Option<Origin>,
    /// How many names it has in the lower alone.
    pub(super) lower_names: u32,
    /// A file shorter than this lost its body in a power cut; 0 for a copy that was synced.
    pub length: u64,
    /// When that was.
    pub epoch: u64,
    /// Where in the lower its body is, as redirects spell it; empty where that is the name it has.
    pub(super) path: Vec<u8>,
    /// It was spelled as it used to be; where there is another on the same file, that one counts.
    pub old: bool,
}

impl OriginRecord {
    /// The same of a body that is on disk.
    pub(super) fn synced(self) -> Self {
        OriginRecord { length: 0, epoch: 0, path: Vec::new(), ..self }
    }

    fn read(value: &[u8]) -> Self {
        Self::parse(value).unwrap_or_default()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (&[FORM], mut rest) = value.split_first_chunk()? else { return None };
        let key = u64::from_le_bytes(*take(&mut rest)?);
        let origin = Some(Origin { key, ino: Ino(take_number(&mut rest)?) });
        let lower_names = u32::try_from(take_number(&mut rest)?).ok()?;
        let whole = OriginRecord { origin, lower_names, ..OriginRecord::default() };
        if rest.is_empty() {
            return Some(whole);
        }
        let length = take_number(&mut rest)?;
        let epoch = u64::from_le_bytes(*take(&mut rest)?);
        Some(OriginRecord { length, epoch, path: rest.to_vec(), ..whole })
    }

    fn spell(&self, origin: Origin) -> Vec<u8> {
        let mut value = vec![FORM];
        value.extend(origin.key.to_le_bytes());
        put_number(&mut value, origin.ino.0);
        put_number(&mut value, self.lower_names.into());
        if self.length > 0 {
            put_number(&mut value, self.length);
            value.extend(self.epoch.to_le_bytes());
            value.extend(&self.path);
        }
        value
    }

    fn read_old(value: &[u8]) -> Self {
        let number = |at: usize| value.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        OriginRecord {
            origin: number(0).zip(number(8)).map(|(key, ino)| Origin { key, ino: Ino(ino) }),
            lower_names: value.get(16..20).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes),
            length: number(20).unwrap_or(0),
            epoch: number(28).unwrap_or(0),
            path: value.get(36..).unwrap_or_default().to_vec(),
            old: true,
        }
    }
}

/// The form of [`COPY`].
const FORM: u8 = 1;

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(taken)
}

/// Appends a number in as few bytes as it needs, seven bits to each (LEB128).
fn put_number(value: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        value.push(number as u8 | 0x80);
        number >>= 7;
    }
    value.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let &[byte] = take(rest)?;
        number |= u64::from(byte & 0x7f).checked_shl(shift).filter(|part| part >> shift == u64::from(byte & 0x7f))?;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Spells the path of a descriptor, or of a name in that directory, for calls that take no descriptor.
pub(super) fn fd_path(fd: BorrowedFd<'_>, name: Option<&[u8]>) -> CString {
    let mut path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
    if let Some(name) = name {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    CString::new(path).unwrap_or_else(|_| unreachable!("names hold no NUL"))
}

fn xattr_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::EINVAL.into())
}

enum Way<'a> {
    Path(CString),
    Fd(BorrowedFd<'a>),
}

fn way<'a>(of: &Found<'a>) -> Way<'a> {
    match of {
        Found::At(dir, name) => Way::Path(fd_path(*dir, Some(name.as_bytes()))),
        Found::Open(fd) => Way::Fd(*fd),
    }
}

/// Tells whether a directory is opaque by any name that some union filesystem has for it.
pub(super) fn opaque_elsewhere(of: &Found<'_>) -> Result<bool> {
    for name in [&b"user.fuseoverlayfs.opaque"[..], b"user.overlay.opaque", b"trusted.overlay.opaque"] {
        if get(of, name)?.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns one attribute.
pub(super) fn get(of: &Found<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let name = xattr_name(name)?;
    let way = way(of);
    let read = |buf: &mut [u8]| match &way {
        Way::Path(path) => rustix::fs::lgetxattr(path.as_c_str(), name.as_c_str(), buf),
        Way::Fd(fd) => rustix::fs::fgetxattr(fd, name.as_c_str(), buf),
    };
    let mut buf = vec![0; 256];
    loop {
        match read(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(Some(buf));
            }
            Err(Raw::NODATA | Raw::OPNOTSUPP) => return Ok(None),
            Err(Raw::RANGE) if buf.len() < 65536 => buf.resize(65536, 0),
            Err(raw) => return Err(error(|| of.doing(&format!("read attribute {name:?} of")), raw)),
        }
    }
}

/// Returns the names of all attributes.
pub(super) fn list(of: &Found<'_>) -> Result<Vec<Vec<u8>>> {
    let way = way(of);
    let read = |buf: &mut [u8]| match &way {
        Way::Path(path) => rustix::fs::llistxattr(path.as_c_str(), buf),
        Way::Fd(fd) => rustix::fs::flistxattr(fd, buf),
    };
    let mut small = [0u8; 512];
    let mut large = Vec::new();
    let names = match read(&mut small) {
        Ok(len) => &small[..len],
        Err(Raw::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Raw::RANGE) => {
            large.resize(65536, 0);
            match read(&mut large) {
                Ok(len) => &large[..len],
                Err(raw) => return Err(error(|| of.doing("list attributes of"), raw)),
            }
        }
        Err(raw) => return Err(error(|| of.doing("list attributes of"), raw)),
    };
    Ok(names.split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Sets one attribute.
pub(super) fn set(of: &Found<'_>, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
    let name = xattr_name(name)?;
    let flags = match how {
        SetXattr::Any => XattrFlags::empty(),
        SetXattr::Create => XattrFlags::CREATE,
        SetXattr::Replace => XattrFlags::REPLACE,
    };
    let name: &CStr = &name;
    let done = match way(of) {
        Way::Path(path) => rustix::fs::lsetxattr(path.as_c_str(), name, value, flags),
        Way::Fd(fd) => rustix::fs::fsetxattr(fd, name, value, flags),
    };
    done.map_err(|raw| error(|| of.doing(&format!("set attribute {name:?} of")), raw))
}

/// Removes one attribute.
pub(super) fn remove(of: &Found<'_>, name: &[u8]) -> Result<()> {
    let name = xattr_name(name)?;
    let done = match way(of) {
        Way::Path(path) => rustix::fs::lremovexattr(path.as_c_str(), name.as_c_str()),
        Way::Fd(fd) => rustix::fs::fremovexattr(fd, name.as_c_str()),
    };
    done.map_err(|raw| error(|| of.doing(&format!("remove attribute {name:?} of")), raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ino: u64, lower_names: u32, length: u64, path: &[u8]) -> OriginRecord {
        let epoch = if length > 0 { 0x1234_5678_9abc_def0 } else { 0 };
        let origin = Some(Origin { key: 0xfedc_ba98_7654_3210, ino: Ino(ino) });
        OriginRecord { origin, lower_names, length, epoch, path: path.to_vec(), old: false }
    }

    #[test]
    fn a_record_is_read_as_it_was_spelled() {
        for (ino, lower_names, length, path) in [
            (1, 0, 0, &b""[..]),
            (127, 3, 128, b""),
            (128, u32::MAX, 1 << 20, b"/usr/bin/tool"),
            (u64::MAX, 1, u64::MAX, b"/a"),
        ] {
            let known = record(ino, lower_names, length, path);
            let spelled = known.spell(known.origin.unwrap());
            let read = OriginRecord::read(&spelled);
            assert_eq!((read.origin, read.lower_names), (known.origin, lower_names));
            assert_eq!((read.length, read.epoch, &read.path[..], read.old), (length, known.epoch, path, false));
            let whole = known.clone().synced();
            let whole = whole.spell(whole.origin.unwrap());
            for cut in 0..whole.len() {
                assert_eq!(OriginRecord::read(&spelled[..cut]).origin, None, "cut to {cut} bytes");
            }
        }
        assert_eq!(OriginRecord::read(b"").origin, None);
        assert_eq!(OriginRecord::read(&[0xff; 40]).origin, None, "another form");
        assert_eq!(OriginRecord::read(&[&[FORM; 9][..], &[0xff; 11]].concat()).origin, None, "a number without end");
    }

    /// ext4 has 96 bytes for attributes in an inode of 256: 4 go to a magic number, 4 to the end, and 16 to each entry beside its
    /// name (without `trusted.`) and its value, both rounded up to 4.
    #[test]
    fn an_unsynced_copys_record_fits_into_an_inode() {
        let known = record(5_000_000, 0, 1 << 20, b"");
        let value = known.spell(known.origin.unwrap()).len();
        assert!(8 + 16 + COPY.len().next_multiple_of(4) + value.next_multiple_of(4) <= 96, "{value} bytes");
    }

    #[test]
    fn an_old_record_is_understood_and_gives_way_to_a_new_one() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("copy");
        std::fs::write(&path, b"body").unwrap();
        let tmp = rustix::fs::open(scratch.path(), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        let space = Space::probe(&tmp, false, true);
        let file = std::fs::File::open(&path).unwrap();
        let of = Found::Open(std::os::fd::AsFd::as_fd(&file));
        let stat = super::super::attr::stat_of(&rustix::fs::stat(&path).unwrap()).unwrap();
        let old: Vec<u8> =
            [7u64, 9].iter().flat_map(|n| n.to_le_bytes()).chain(2u32.to_le_bytes()).chain([0; 16]).collect();
        space.set(&of, ORIGIN, &old).unwrap();
        let seen = || space.read(&of, stat).unwrap().0;
        let origin = Some(Origin { key: 7, ino: Ino(9) });
        assert_eq!((seen().origin, seen().lower_names), (origin, 2));

        let known = space.origin(&of).unwrap();
        space.set_origin(&of, &OriginRecord { lower_names: 1, ..known.clone() }).unwrap();
        assert_eq!((seen().origin, seen().lower_names), (origin, 1));
        assert_eq!(space.get(&of, ORIGIN).unwrap(), None);
        // A crash between the two.
        space.set(&of, ORIGIN, &old).unwrap();
        assert_eq!((seen().origin, seen().lower_names), (origin, 1));
        assert_eq!(space.origin(&of).unwrap().lower_names, 1);
    }
}
