//! Reading a tar stream strictly: what is malformed is refused by name, never skipped or guessed.
//!
//! Forms: v7, ustar, star's prefix, PAX (`x`, `g`), GNU (`L`, `K`, base-256 numbers), sparse members in GNU's four forms. Every
//! byte comes out exactly once, either as raw bytes ([`Tape::take_raw`]) or as a body ([`Tape::body`]), so that the stream can
//! be put together again. Where readers are known to disagree (a global header that renames or resizes, a PAX path
//! beside another GNU long name, a record given twice), the member is refused.

mod header;
mod pax;
mod sparse;

use std::io::{self, BufRead, ErrorKind};

use layer::{Dev, Time};

use crate::error::{Error, Result, shown};
use header::{BLOCK, Header};
use pax::Pax;

pub(crate) use sparse::Segment;

/// The longest extended header or long name, in bytes (as Go's archive/tar, which docker and containerd read with).
const EXTENSION_MAX: u64 = 1 << 20;
/// The longest that all extensions of one member are, in bytes.
const EXTENSIONS_MAX: u64 = 8 << 20;
/// The longest path, in bytes: no unpacker could create a longer one (`PATH_MAX`, limits.h).
const PATH_MAX: usize = 4095;

/// A member of a tar.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    pub(crate) perm: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The target of a link.
    pub(crate) link: Vec<u8>,
    /// The length of a file, holes included.
    pub(crate) size: u64,
    /// The bytes that follow as its body.
    pub(crate) packed: u64,
    /// Where these bytes belong, if the file travelled without its holes.
    pub(crate) segments: Option<Vec<Segment>>,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Hardlink,
    Symlink,
    Char(Dev),
    Block(Dev),
    Dir,
    Fifo,
}

/// A tar stream being read.
pub(crate) struct Tape<R> {
    input: R,
    /// Bytes read so far.
    offset: u64,
    raw: Vec<u8>,
    /// What is left of the member's body, and of the padding behind it.
    body: u64,
    padding: u64,
    /// For messages: the member that is being read.
    member: String,
    ended: bool,
}

/// What extension members said about the next one.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

enum Fill {
    Full,
    Nothing,
    Partial,
}

impl<R: BufRead> Tape<R> {
    pub(crate) fn new(input: R) -> Self {
        Tape { input, offset: 0, raw: Vec::new(), body: 0, padding: 0, member: String::new(), ended: false }
    }

    /// Returns how many bytes were read so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns all bytes read since it was last asked that are no body.
    pub(crate) fn take_raw(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.raw)
    }

    /// Reads up to the next member's body; `None` at the end of the archive. What is left of the body before is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.body(&mut |_| Ok(()))?;
        self.read_raw(self.padding, "the padding after a body")?;
        self.padding = 0;
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.header_block()? else {
                return if extensions.is_empty() {
                    Ok(None)
                } else {
                    Err(self.invalid("an extended header with no member behind it"))
                };
            };
            let header = Header::new(&block);
            self.member = shown(&header.path());
            header.check().map_err(|why| match self.offset {
                512 => Error::invalid("tar", format!("this is no tar archive: {why}")),
                _ => self.invalid(why),
            })?;
            if !self.extension(&header, &mut extensions)? {
                return self.entry(&header, extensions).map(Some);
            }
        }
    }

    /// Passes the body of the member to `sink`, piece by piece.
    pub(crate) fn body(&mut self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while self.body > 0 {
            let chunk = self.input.fill_buf().map_err(reading)?;
            if chunk.is_empty() {
                return Err(self.truncated("the content"));
            }
            let len = chunk.len().min(usize::try_from(self.body).unwrap_or(usize::MAX));
            sink(&chunk[..len])?;
            self.input.consume(len);
            self.body -= len as u64;
            self.offset += len as u64;
        }
        Ok(())
    }

    /// Takes it that the caller has moved the input past the body, and past the padding behind it.
    pub(crate) fn skipped(&mut self) -> u64 {
        let skip = self.body + self.padding;
        self.offset += skip;
        (self.body, self.padding) = (0, 0);
        skip
    }

    pub(crate) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    /// Passes what stands behind the end of the archive to `sink`, piece by piece.
    pub(crate) fn rest(&mut self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        loop {
            let chunk = self.input.fill_buf().map_err(reading)?;
            let len = chunk.len();
            if len == 0 {
                return Ok(());
            }
            sink(chunk)?;
            self.input.consume(len);
            self.offset += len as u64;
        }
    }

    /// Reads the next header; `None` at the end.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if self.ended || !self.header_or_end(&mut block)? {
            self.ended = true;
            return Ok(None);
        }
        if block.iter().any(|&b| b != 0) {
            return Ok(Some(block));
        }
        // Two zero blocks end an archive; one, or none, at the end of the stream is tolerated.
        self.ended = true;
        if self.header_or_end(&mut block)? && block.iter().any(|&b| b != 0) {
            return Err(self.invalid("a lone zero block with more behind it"));
        }
        Ok(None)
    }

    fn header_or_end(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        match self.fill(block)? {
            Fill::Full => Ok(true),
            Fill::Nothing => Ok(false),
            Fill::Partial if self.offset < BLOCK as u64 => Err(self.invalid("this is no tar archive")),
            Fill::Partial => Err(self.truncated("a header")),
        }
    }

    /// Reads the member as an extension of the next one; `false` if it is none.
    fn extension(&mut self, header: &Header<'_>, extensions: &mut Extensions) -> Result<bool> {
        let flag = header.flag();
        if !matches!(flag, b'x' | b'g' | b'L' | b'K') {
            return Ok(false);
        }
        let size = header.size().map_err(|why| self.invalid(why))?;
        if size > EXTENSION_MAX {
            return Err(self.invalid(format!("an extended header of {size} bytes; at most {EXTENSION_MAX} are read")));
        }
        let start = self.raw.len();
        if start as u64 > EXTENSIONS_MAX {
            return Err(self.invalid(format!("more than {EXTENSIONS_MAX} bytes of extended headers for one member")));
        }
        self.read_raw(size, "an extended header")?;
        let content = self.raw[start..].to_vec();
        self.read_raw(padding(size), "the padding after an extended header")?;
        let twice = match flag {
            b'x' => extensions.pax.replace(Pax::read(&content).map_err(|why| self.invalid(why))?).is_some(),
            b'g' => {
                pax::check_global(&content).map_err(|why| self.invalid(why))?;
                false
            }
            b'L' => extensions.long_path.replace(long_name(&content).map_err(|why| self.invalid(why))?).is_some(),
            _ => extensions.long_link.replace(long_name(&content).map_err(|why| self.invalid(why))?).is_some(),
        };
        if twice { Err(self.invalid("two extended headers of one kind for one member")) } else { Ok(true) }
    }

    fn entry(&mut self, header: &Header<'_>, extensions: Extensions) -> Result<Entry> {
        let Extensions { pax, long_path, long_link } = extensions;
        let pax = pax.unwrap_or_default();
        let path = pax.sparse.name.clone().or(pax.path);
        let path = self.one_of(path, long_path, "path")?.unwrap_or_else(|| header.path());
        self.member = shown(&path);
        let link = self.one_of(pax.linkpath, long_link, "link target")?.unwrap_or_else(|| header.link().to_vec());
        self.check_path(&path)?;
        let bad = |tape: &Self, why: String| tape.invalid(why);
        let id = |name, from_pax: Option<i64>, from_header: std::result::Result<i64, String>| {
            let id = from_pax.map_or(from_header, Ok)?;
            // The kernel's (uid_t)-1 is nobody: no file can belong to it.
            u32::try_from(id)
                .ok()
                .filter(|&id| id != u32::MAX)
                .ok_or_else(|| format!("the {name} {id} is out of range"))
        };
        let uid = id("owner", pax.uid, header.uid()).map_err(|why| bad(self, why))?;
        let gid = id("group", pax.gid, header.gid()).map_err(|why| bad(self, why))?;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => Time { sec: header.mtime().map_err(|why| bad(self, why))?, nsec: 0 },
        };
        let perm = header.mode().map_err(|why| bad(self, why))? & 0o7777;
        let kind = kind(header, &path).map_err(|why| bad(self, why))?;
        let stated = match pax.size {
            Some(size) => size,
            None => header.size().map_err(|why| bad(self, why))?,
        };
        let mut entry =
            Entry { path, kind, perm, uid, gid, mtime, xattrs: pax.xattrs, link, size: 0, packed: 0, segments: None };
        if kind == EntryKind::File {
            (entry.size, entry.packed) = (stated, stated);
            self.padding = padding(stated);
            self.sparse(header, pax.sparse, &mut entry)?;
        } else if pax.sparse.form().is_some() {
            return Err(self.invalid("only a file can be sparse"));
        }
        self.body = entry.packed;
        Ok(entry)
    }

    /// Reads the map of a member that travelled without its holes.
    fn sparse(&mut self, header: &Header<'_>, pax: pax::PaxSparse, entry: &mut Entry) -> Result<()> {
        let map = match (header.flag(), pax.form()) {
            (b'S', None) => {
                let mut map = header.sparse_map().map_err(|why| self.invalid(why))?;
                let mut extended = header.is_sparse_extended();
                let mut block = [0; BLOCK];
                while extended {
                    self.read_block(&mut block, "a sparse map")?;
                    extended = sparse::read_old_block(&block, &mut map).map_err(|why| self.invalid(why))?;
                }
                entry.size = header.real_size().map_err(|why| self.invalid(why))?;
                map
            }
            (b'S', Some(_)) => return Err(self.invalid("it is sparse in two ways")),
            (_, None) => return Ok(()),
            (_, Some(form)) => {
                let (size, map) = pax.size_and_map().map_err(|why| self.invalid(why))?;
                entry.size = size;
                match form {
                    pax::SparseForm::InHeader => map,
                    pax::SparseForm::InBody => self.map_in_body(entry)?,
                }
            }
        };
        sparse::check(&map, entry.size, entry.packed).map_err(|why| self.invalid(why))?;
        entry.segments = Some(map.into_iter().filter(|segment| segment.len > 0).collect());
        Ok(())
    }

    /// GNU sparse 1.0: the map stands as decimal lines before the data, padded to a block.
    fn map_in_body(&mut self, entry: &mut Entry) -> Result<Vec<Segment>> {
        let mut reader = sparse::MapText::default();
        loop {
            if entry.packed < BLOCK as u64 {
                return Err(self.invalid("its sparse map is longer than its body"));
            }
            let mut block = [0; BLOCK];
            self.read_block(&mut block, "a sparse map")?;
            entry.packed -= BLOCK as u64;
            if let Some(map) = reader.feed(&block).map_err(|why| self.invalid(why))? {
                return Ok(map);
            }
        }
    }

    /// A name may come by PAX, by GNU's long name, or by both alike: readers disagree on which one wins.
    fn one_of(&self, pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>, what: &str) -> Result<Option<Vec<u8>>> {
        match (pax, gnu) {
            (Some(pax), Some(gnu)) if pax != gnu => {
                Err(self.invalid(format!("its {what} is given twice, as '{}' and '{}'", shown(&pax), shown(&gnu))))
            }
            (pax, gnu) => Ok(pax.or(gnu)),
        }
    }

    fn check_path(&self, path: &[u8]) -> Result<()> {
        match path {
            b"" => Err(self.invalid("it has no name")),
            _ if path.len() > PATH_MAX => {
                Err(self.invalid(format!("a path of {} bytes; Linux allows {PATH_MAX}", path.len())))
            }
            _ if path.contains(&0) => Err(self.invalid("a NUL byte in its path")),
            _ => Ok(()),
        }
    }

    fn read_raw(&mut self, len: u64, what: &str) -> Result<()> {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        while left > 0 {
            let chunk = self.input.fill_buf().map_err(reading)?;
            if chunk.is_empty() {
                return Err(self.truncated(what));
            }
            let len = chunk.len().min(left);
            self.raw.extend_from_slice(&chunk[..len]);
            self.input.consume(len);
            self.offset += len as u64;
            left -= len;
        }
        Ok(())
    }

    fn read_block(&mut self, block: &mut [u8; BLOCK], what: &str) -> Result<()> {
        match self.fill(block)? {
            Fill::Full => Ok(()),
            _ => Err(self.truncated(what)),
        }
    }

    fn fill(&mut self, block: &mut [u8; BLOCK]) -> Result<Fill> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(Fill::Nothing),
                Ok(0) => return Ok(Fill::Partial),
                Ok(len) => filled += len,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(reading(cause)),
            }
        }
        self.raw.extend_from_slice(block);
        self.offset += BLOCK as u64;
        Ok(Fill::Full)
    }

    fn truncated(&self, what: &str) -> Error {
        self.invalid(format!("the archive ends in the middle of {what}"))
    }

    fn invalid(&self, why: impl std::fmt::Display) -> Error {
        match self.member.as_str() {
            "" => Error::invalid(format!("tar, byte {}", self.offset), why),
            member => Error::invalid(format!("member '{member}'"), why),
        }
    }
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_path.is_none() && self.long_link.is_none()
    }
}

fn kind(header: &Header<'_>, path: &[u8]) -> std::result::Result<EntryKind, String> {
    Ok(match header.flag() {
        // v7 knew no directories but by their name.
        0 if path.ends_with(b"/") => EntryKind::Dir,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::Hardlink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::Char(header.device()?),
        b'4' => EntryKind::Block(header.device()?),
        b'5' => EntryKind::Dir,
        b'6' => EntryKind::Fifo,
        other => return Err(format!("a member of type '{}', which no layer may hold", other.escape_ascii())),
    })
}

/// GNU `L` and `K`: a name with NUL bytes behind it.
fn long_name(content: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let end = content.iter().position(|&b| b == 0).unwrap_or(content.len());
    match content[end..].iter().all(|&b| b == 0) {
        true => Ok(content[..end].to_vec()),
        false => Err("a NUL byte within a GNU long name".into()),
    }
}

fn padding(len: u64) -> u64 {
    (BLOCK as u64 - len % BLOCK as u64) % BLOCK as u64
}

fn reading(cause: io::Error) -> Error {
    Error::io("read the tar stream", cause)
}

#[cfg(test)]
mod tests;
