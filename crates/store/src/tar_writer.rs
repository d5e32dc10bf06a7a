//! Writing a tar stream: ustar headers, and PAX records for what these cannot hold (POSIX pax).
//!
//! The same members give the same bytes. What the loader refuses is refused here too: an attribute whose name a record cannot spell.

use std::io::{self, Read, Write};

use layer::{Dev, Time};

use crate::error::{Error, Result, shown};

const BLOCK: usize = 512;
/// The largest number that eleven octal digits hold.
const OCTAL_11: u64 = 0o777_7777_7777;
const OCTAL_7: u64 = 0o777_7777;

/// What a member is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind<'a> {
    /// A file of that many bytes; they follow.
    File(u64),
    Dir,
    Symlink(&'a [u8]),
    /// A further name of a member before, by its path.
    Hardlink(&'a [u8]),
    Char(Dev),
    Block(Dev),
    Fifo,
}

/// A member's metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    /// Without a slash at either end.
    pub(crate) path: &'a [u8],
    pub(crate) kind: Kind<'a>,
    pub(crate) perm: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Head<'a> {
    /// A file of root's, as old as the epoch.
    pub(crate) fn plain(path: &'a str, size: u64) -> Self {
        let path = path.as_bytes();
        Head { path, kind: Kind::File(size), perm: 0o644, uid: 0, gid: 0, mtime: Time::default(), xattrs: &[] }
    }
}

/// A tar being written.
pub(crate) struct TarWriter<'a> {
    out: &'a mut dyn Write,
}

impl<'a> TarWriter<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        TarWriter { out }
    }

    /// Writes a member without a body.
    pub(crate) fn bare(&mut self, head: &Head<'_>) -> Result<()> {
        self.head(head)
    }

    /// Writes a file whose bytes are here.
    pub(crate) fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.head(&Head::plain(path, bytes.len() as u64))?;
        self.write(bytes)?;
        self.pad(bytes.len() as u64)
    }

    /// Writes a file; `body` must give exactly the bytes that the head says.
    pub(crate) fn file(&mut self, head: &Head<'_>, body: &mut dyn Read) -> Result<()> {
        let Kind::File(size) = head.kind else { return self.bare(head) };
        self.head(head)?;
        let mut left = size;
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match body.read(&mut buffer[..part]) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(|cause| Error::io(format!("read '{}'", shown(head.path)), cause))?,
            };
            if read == 0 {
                let why = format!("it became shorter while it was read: {left} of {size} bytes are missing");
                return Err(Error::io(format!("read '{}'", shown(head.path)), io::Error::other(why)));
            }
            self.write(&buffer[..read])?;
            left -= read as u64;
        }
        // Its digest, where it has one, is told with the end.
        body.read(&mut [0]).map_err(|cause| Error::io(format!("read '{}'", shown(head.path)), cause))?;
        self.pad(size)
    }

    /// Ends the archive.
    pub(crate) fn end(self) -> Result<()> {
        self.out.write_all(&[0; 2 * BLOCK]).and_then(|()| self.out.flush()).map_err(writing)
    }

    fn head(&mut self, head: &Head<'_>) -> Result<()> {
        let mut path = head.path.to_vec();
        if matches!(head.kind, Kind::Dir) {
            path.extend_from_slice(if path.is_empty() { b"./" } else { b"/" });
        }
        let (flag, link, size, dev) = match head.kind {
            Kind::File(size) => (b'0', &[][..], size, None),
            Kind::Dir => (b'5', &[][..], 0, None),
            Kind::Symlink(link) => (b'2', link, 0, None),
            Kind::Hardlink(link) => (b'1', link, 0, None),
            Kind::Char(dev) => (b'3', &[][..], 0, Some(dev)),
            Kind::Block(dev) => (b'4', &[][..], 0, Some(dev)),
            Kind::Fifo => (b'6', &[][..], 0, None),
        };
        let records = records(head, &path, link, size)?;
        if !records.is_empty() {
            let mut block = Block::new(b"PaxHeaders/0", b'x');
            block.numbers(0o644, 0, 0, records.len() as u64, 0);
            self.write(&block.seal())?;
            self.write(&records)?;
            self.pad(records.len() as u64)?;
        }
        let mut block = Block::new(&path, flag);
        block.text(157, 100, link);
        let mtime = u64::try_from(head.mtime.sec).unwrap_or_default();
        block.numbers(head.perm, head.uid, head.gid, size, mtime);
        if let Some(dev) = dev {
            for (at, number) in [(329, dev.major), (337, dev.minor)] {
                if u64::from(number) > OCTAL_7 {
                    let why = format!("its device number {}:{} does not fit into a tar", dev.major, dev.minor);
                    return Err(Error::unsupported(format!("'{}'", shown(head.path)), why));
                }
                block.octal(at, 7, number.into());
            }
        }
        self.write(&block.seal())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(writing)
    }

    fn pad(&mut self, len: u64) -> Result<()> {
        let padding = (BLOCK as u64 - len % BLOCK as u64) % BLOCK as u64;
        self.write(&[0; BLOCK][..padding as usize])
    }
}

/// Returns the PAX records of what the header cannot say.
fn records(head: &Head<'_>, path: &[u8], link: &[u8], size: u64) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    if path.len() > 100 {
        record(&mut all, b"path", path);
    }
    if link.len() > 100 {
        record(&mut all, b"linkpath", link);
    }
    for (key, number, most) in
        [(&b"size"[..], size, OCTAL_11), (b"uid", u64::from(head.uid), OCTAL_7), (b"gid", u64::from(head.gid), OCTAL_7)]
    {
        if number > most {
            record(&mut all, key, number.to_string().as_bytes());
        }
    }
    if head.mtime.nsec > 0 || u64::try_from(head.mtime.sec).map_or(true, |sec| sec > OCTAL_11) {
        record(&mut all, b"mtime", decimal(head.mtime).as_bytes());
    }
    for (name, value) in head.xattrs {
        if name.contains(&b'=') {
            let why = format!("a tar cannot spell its extended attribute '{}'", shown(name));
            return Err(Error::unsupported(format!("'{}'", shown(head.path)), why));
        }
        record(&mut all, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    Ok(all)
}

/// Adds `LENGTH KEY=VALUE\n`; the length counts its own digits too.
fn record(all: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    all.extend_from_slice(format!("{len} ").as_bytes());
    for part in [key, b"=", value, b"\n"] {
        all.extend_from_slice(part);
    }
}

/// Spells a time; before 1970 both parts count backwards.
fn decimal(time: Time) -> String {
    let (sign, sec, nsec) = match (time.sec, time.nsec) {
        (sec, 0) if sec < 0 => ("-", sec.unsigned_abs(), 0),
        (sec, nsec) if sec < 0 => ("-", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
        (sec, nsec) => ("", sec.unsigned_abs(), nsec),
    };
    match nsec {
        0 => format!("{sign}{sec}"),
        nsec => format!("{sign}{sec}.{}", format!("{nsec:09}").trim_end_matches('0')),
    }
}

struct Block([u8; BLOCK]);

impl Block {
    fn new(path: &[u8], flag: u8) -> Self {
        let mut block = Block([0; BLOCK]);
        block.text(0, 100, path);
        block.0[156] = flag;
        block.text(257, 8, b"ustar\x0000");
        block
    }

    fn numbers(&mut self, perm: u16, uid: u32, gid: u32, size: u64, mtime: u64) {
        self.octal(100, 7, perm.into());
        // A record says what does not fit.
        self.octal(108, 7, if u64::from(uid) > OCTAL_7 { 0 } else { uid.into() });
        self.octal(116, 7, if u64::from(gid) > OCTAL_7 { 0 } else { gid.into() });
        self.octal(124, 11, if size > OCTAL_11 { 0 } else { size });
        self.octal(136, 11, if mtime > OCTAL_11 { 0 } else { mtime });
    }

    fn text(&mut self, at: usize, len: usize, text: &[u8]) {
        let len = text.len().min(len);
        self.0[at..at + len].copy_from_slice(&text[..len]);
    }

    fn octal(&mut self, at: usize, digits: usize, number: u64) {
        self.text(at, digits, format!("{number:0digits$o}").as_bytes());
    }

    fn seal(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|&b| u64::from(b)).sum();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

fn writing(cause: io::Error) -> Error {
    Error::io("write the archive", cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::{EntryKind, Tape};

    fn read(bytes: &[u8]) -> Vec<crate::tape::Entry> {
        let mut tape = Tape::new(bytes);
        std::iter::from_fn(|| tape.next_entry().unwrap()).collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let long = [b"d/".repeat(90), b"name\xff\n".to_vec()].concat();
        let xattrs = vec![(b"user.a".to_vec(), b"x\0y\n".to_vec()), (b"security.capability".to_vec(), vec![0; 20])];
        let time = |sec, nsec| Time { sec, nsec };
        let dev = Dev { major: 259, minor: 70_000 };
        let heads = [
            (Kind::Dir, time(0, 0)),
            (Kind::File(5), time(1 << 34, 5)),
            (Kind::Symlink(&long), time(-1, 500_000_000)),
            (Kind::Hardlink(b"short"), time(-2, 0)),
            (Kind::Char(dev), time(1, 999_999_999)),
            (Kind::Block(dev), time(0o777_7777_7777, 0)),
            (Kind::Fifo, time(-1, 1)),
        ];
        let mut bytes = Vec::new();
        let mut tar = TarWriter::new(&mut bytes);
        for path in [&b"short"[..], &long] {
            for (kind, mtime) in heads {
                let head = Head { path, kind, perm: 0o4755, uid: 3_000_000, gid: 7, mtime, xattrs: &xattrs };
                tar.file(&head, &mut &b"12345"[..]).unwrap();
            }
        }
        tar.end().unwrap();
        let entries = read(&bytes);
        assert_eq!(entries.len(), 14);
        for (at, entry) in entries.iter().enumerate() {
            let (kind, mtime) = heads[at % 7];
            let path = if at < 7 { &b"short"[..] } else { &long };
            assert_eq!(entry.path.strip_suffix(b"/").unwrap_or(&entry.path), path);
            assert_eq!((entry.perm, entry.uid, entry.gid, entry.mtime), (0o4755, 3_000_000, 7, mtime));
            assert_eq!(entry.xattrs, xattrs);
            let (expected, link, size) = match kind {
                Kind::Dir => (EntryKind::Dir, &b""[..], 0),
                Kind::File(size) => (EntryKind::File, &b""[..], size),
                Kind::Symlink(link) => (EntryKind::Symlink, link, 0),
                Kind::Hardlink(link) => (EntryKind::Hardlink, link, 0),
                Kind::Char(dev) => (EntryKind::Char(dev), &b""[..], 0),
                Kind::Block(dev) => (EntryKind::Block(dev), &b""[..], 0),
                Kind::Fifo => (EntryKind::Fifo, &b""[..], 0),
            };
            assert_eq!((entry.kind, &entry.link[..], entry.size), (expected, link, size));
        }
    }

    #[test]
    fn what_a_tar_cannot_say_is_refused() {
        let xattrs = vec![(b"user.a=b".to_vec(), b"c".to_vec())];
        let head = Head { xattrs: &xattrs, ..Head::plain("file", 0) };
        let error = TarWriter::new(&mut Vec::new()).bare(&head).unwrap_err().to_string();
        assert!(error.contains("'file'") && error.contains("user.a=b"), "{error}");
        let error = TarWriter::new(&mut Vec::new()).file(&Head::plain("file", 3), &mut &b"12"[..]).unwrap_err();
        assert!(error.to_string().contains("became shorter"), "{error}");
    }
}
