//! The fields of a written session. Reading takes any bytes, and never panics.

use layer::{Dev, FileType, Ino, NameBuf, Stat, Time};

use super::wrong;
use crate::error::Result;

const MAGIC: &[u8; 8] = b"plyfs-se";
const VERSION: u32 = 2;

/// Writes fields.
pub(super) struct Out {
    pub(super) bytes: Vec<u8>,
}

impl Out {
    pub(super) fn new() -> Self {
        let mut out = Out { bytes: MAGIC.to_vec() };
        out.small(VERSION);
        out
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    pub(super) fn flag(&mut self, flag: bool) {
        self.byte(u8::from(flag));
    }

    pub(super) fn small(&mut self, number: u32) {
        self.bytes.extend(number.to_le_bytes());
    }

    pub(super) fn number(&mut self, number: u64) {
        self.bytes.extend(number.to_le_bytes());
    }

    /// Bytes with their length before them.
    pub(super) fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.bytes.extend(text);
    }

    /// The position of a file that is handed over, if one is.
    pub(super) fn place(&mut self, at: Option<usize>) {
        self.number(at.map_or(u64::MAX, |at| at as u64));
    }

    /// A kind; `None` is a whiteout.
    pub(super) fn kind(&mut self, kind: Option<FileType>) {
        self.small(kind.map_or(0, FileType::mode_bits));
    }

    pub(super) fn stat(&mut self, stat: &Stat) {
        self.number(stat.ino.0);
        self.small(stat.mode());
        for number in [stat.nlink, stat.uid, stat.gid, stat.rdev.major, stat.rdev.minor] {
            self.small(number);
        }
        self.number(stat.size);
        self.number(stat.blocks);
        for time in [stat.atime, stat.mtime, stat.ctime] {
            self.number(time.sec as u64);
            self.small(time.nsec);
        }
    }

    /// A list with its length before it.
    pub(super) fn each<T>(
        &mut self,
        items: impl ExactSizeIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T) -> Result<()>,
    ) -> Result<()> {
        self.number(items.len() as u64);
        let mut items = items;
        items.try_for_each(|item| write(self, item))
    }

    /// The same of what cannot fail.
    pub(super) fn all<T>(&mut self, items: impl ExactSizeIterator<Item = T>, mut write: impl FnMut(&mut Self, T)) {
        self.number(items.len() as u64);
        items.for_each(|item| write(self, item));
    }
}

/// Reads fields.
pub(super) struct In<'a> {
    rest: &'a [u8],
}

impl<'a> In<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self> {
        let mut form = In { rest: bytes };
        if form.take(MAGIC.len())? != MAGIC || form.small()? != VERSION {
            return Err(wrong("the bytes are none, or of another version"));
        }
        Ok(form)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| wrong("the bytes are cut off"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| wrong("the bytes are cut off"))
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn flag(&mut self) -> Result<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(wrong("a flag is neither set nor not")),
        }
    }

    pub(super) fn small(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn number(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn text(&mut self) -> Result<&'a [u8]> {
        let len = usize::try_from(self.number()?).map_err(|_| wrong("the bytes are cut off"))?;
        self.take(len)
    }

    pub(super) fn name(&mut self) -> Result<NameBuf> {
        NameBuf::new(self.text()?).map_err(|_| wrong("a name is none"))
    }

    pub(super) fn place(&mut self) -> Result<Option<usize>> {
        let at = self.number()?;
        Ok((at != u64::MAX).then(|| usize::try_from(at).unwrap_or(usize::MAX)))
    }

    pub(super) fn kind(&mut self) -> Result<Option<FileType>> {
        match self.small()? {
            0 => Ok(None),
            bits => FileType::from_mode(bits).map(Some).ok_or_else(|| wrong("a kind is none")),
        }
    }

    pub(super) fn stat(&mut self) -> Result<Stat> {
        let (ino, mode) = (Ino(self.number()?), self.small()?);
        let kind = FileType::from_mode(mode).ok_or_else(|| wrong("a kind is none"))?;
        let (nlink, uid, gid) = (self.small()?, self.small()?, self.small()?);
        let rdev = Dev { major: self.small()?, minor: self.small()? };
        let (size, blocks) = (self.number()?, self.number()?);
        let mut time = || Ok::<_, crate::Error>(Time { sec: self.number()? as i64, nsec: self.small()? });
        let (atime, mtime, ctime) = (time()?, time()?, time()?);
        let perm = (mode & 0o7777) as u16;
        Ok(Stat { ino, kind, perm, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime })
    }

    pub(super) fn each(&mut self, mut read: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let len = self.number()?;
        (0..len).try_for_each(|_| read(self))
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(wrong("something follows")) }
    }
}
