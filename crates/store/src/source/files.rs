//! The files of a source: a directory, or an archive read in place.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk;
use crate::error::{Error, Result, shown};
use crate::inflate::{Bound, Compression, MAGIC_LEN};
use crate::store::Store;
use crate::tape::{Entry, EntryKind, Tape};

/// The most members of an archive.
const MEMBERS_MAX: usize = 1 << 20;
/// As many as the kernel follows in one path.
const LINKS_MAX: usize = 40;

/// The files of a source, by path: names joined by `/`.
pub(super) enum Files {
    Directory(PathBuf),
    Archive { file: Arc<File>, members: HashMap<Vec<u8>, Member> },
}

/// A member of an archive.
pub(super) enum Member {
    /// A file, by where its content lies.
    File { offset: u64, len: u64 },
    /// A link to that path; `None` if it leads out of the archive.
    Link(Option<Vec<u8>>),
}

/// The content of a file.
#[derive(Clone)]
pub(crate) struct Content {
    file: Arc<File>,
    start: u64,
    len: u64,
}

/// Reads a [`Content`] from its start; several can read one file.
pub(crate) struct ContentReader {
    content: Content,
    at: u64,
}

impl Files {
    pub(super) fn directory(path: &Path) -> Self {
        Files::Directory(path.to_owned())
    }

    /// The archive at `path`, inflated into the store first if it is compressed.
    pub(super) fn archive(path: &Path, store: &Store) -> Result<Self> {
        let file = File::open(path).map_err(Error::at("open", path))?;
        Files::opened(file, store)
    }

    /// The archive on standard input; what is no file is copied into the store first.
    pub(super) fn stdin(store: &Store) -> Result<Self> {
        let stdin = io::stdin();
        let is_file =
            rustix::fs::fstat(&stdin).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file());
        let at_start = rustix::fs::tell(&stdin) == Ok(0);
        match (is_file && at_start).then(|| File::open("/proc/self/fd/0")) {
            Some(Ok(file)) => Files::opened(file, store),
            _ => Files::indexed(spool(stdin, store)?),
        }
    }

    fn opened(file: File, store: &Store) -> Result<Self> {
        let is_file = file.metadata().map_err(|cause| Error::io("look at the archive", cause))?.is_file();
        let mut first = [0; MAGIC_LEN];
        let compressed = is_file && {
            let len = read_up_to(&file, &mut first)?;
            Compression::of(&first[..len], "archive")? != Compression::Plain
        };
        match is_file && !compressed {
            true => Files::indexed(file),
            false => Files::indexed(spool(file, store)?),
        }
    }

    /// Reads the archive's headers, not its contents.
    fn indexed(file: File) -> Result<Self> {
        let end = file.metadata().map_err(|cause| Error::io("look at the archive", cause))?.len();
        let file = Arc::new(file);
        let mut reader = BufReader::with_capacity(16 << 10, Arc::clone(&file));
        reader.seek(SeekFrom::Start(0)).map_err(|cause| Error::io("read the archive", cause))?;
        let mut tape = Tape::new(reader);
        let mut members = HashMap::new();
        while let Some(entry) = tape.next_entry()? {
            drop(tape.take_raw());
            let offset = tape.offset();
            let skip = tape.skipped();
            if offset + entry.packed > end {
                return Err(Error::invalid(
                    format!("member '{}'", shown(&entry.path)),
                    "the archive ends in the middle of it",
                ));
            }
            let forward = i64::try_from(skip).map_err(|_| Error::invalid("archive", "a member without end"))?;
            tape.input().seek_relative(forward).map_err(|cause| Error::io("read the archive", cause))?;
            if let Some((path, member)) = member(&entry, offset) {
                members.insert(path, member);
            }
            if members.len() > MEMBERS_MAX {
                return Err(Error::invalid("archive", format!("more than {MEMBERS_MAX} members")));
            }
        }
        Ok(Files::Archive { file, members })
    }

    /// Tells whether there is such a file.
    pub(super) fn has(&self, path: &str) -> bool {
        self.open(path).is_ok_and(|content| content.is_some())
    }

    /// Opens a file; `None` if there is none.
    pub(super) fn open(&self, path: &str) -> Result<Option<Content>> {
        match self {
            Files::Directory(dir) => {
                // A path in a manifest.json is outside text.
                let Some(path) = normal(b"", path.as_bytes()) else { return Ok(None) };
                let path = dir.join(OsStr::from_bytes(&path));
                let file = match File::open(&path) {
                    Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
                    file => file.map_err(Error::at("open", &path))?,
                };
                let metadata = file.metadata().map_err(Error::at("look at", &path))?;
                if !metadata.is_file() {
                    return Err(Error::invalid(path.display(), "it is no regular file"));
                }
                Ok(Some(Content { file: Arc::new(file), start: 0, len: metadata.len() }))
            }
            Files::Archive { file, members } => {
                let mut path = normal(b"", path.as_bytes());
                for _ in 0..LINKS_MAX {
                    match path.as_ref().and_then(|path| members.get(path)) {
                        None => return Ok(None),
                        Some(Member::File { offset, len }) => {
                            return Ok(Some(Content { file: Arc::clone(file), start: *offset, len: *len }));
                        }
                        Some(Member::Link(target)) => path = target.clone(),
                    }
                }
                Err(Error::invalid("archive", format!("too many links lead to '{}'", shown(&path.unwrap_or_default()))))
            }
        }
    }

    /// Reads a whole small file; `None` if there is none.
    pub(super) fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>> {
        self.open(path)?.map(|content| content.read(path, max)).transpose()
    }
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn reader(&self) -> ContentReader {
        ContentReader { content: self.clone(), at: 0 }
    }

    pub(super) fn read(&self, path: &str, max: u64) -> Result<Vec<u8>> {
        if self.len > max {
            return Err(Error::invalid(path, format!("it has {} bytes; at most {max} are read", self.len)));
        }
        let mut bytes = vec![0; self.len as usize];
        self.file.read_exact_at(&mut bytes, self.start).map_err(Error::at("read", Path::new(path)))?;
        Ok(bytes)
    }
}

impl Read for ContentReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.content.len - self.at).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let len = self.content.file.read_at(&mut buf[..len], self.content.start + self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// Returns what a member is to a source: files and links; directories and the like are nothing.
fn member(entry: &Entry, offset: u64) -> Option<(Vec<u8>, Member)> {
    let path = normal(b"", &entry.path)?;
    let parent = path.iter().rposition(|&b| b == b'/').map_or(&b""[..], |slash| &path[..slash]);
    let member = match entry.kind {
        EntryKind::File if entry.segments.is_none() => Member::File { offset, len: entry.packed },
        EntryKind::Symlink => Member::Link(normal(parent, &entry.link)),
        EntryKind::Hardlink => Member::Link(normal(b"", &entry.link)),
        _ => return None,
    };
    Some((path, member))
}

/// Resolves `path` against the directory `base` by its text alone; `None` for what leads out of the archive.
fn normal(base: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    let base = if path.starts_with(b"/") { b"" } else { base };
    for part in base.split(|&b| b == b'/').chain(path.split(|&b| b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// Copies a stream into a nameless file of the store's filesystem, inflated.
fn spool(stream: impl Read + Send, store: &Store) -> Result<File> {
    let copying = |cause| Error::io(format!("copy the archive to {}", store.layout().ingest().display()), cause);
    let reading = |cause| Error::io("read the archive", cause);
    let file = nameless(store)?;
    let mut stream = BufReader::with_capacity(256 << 10, stream);
    let mut first = Vec::with_capacity(MAGIC_LEN);
    stream.by_ref().take(MAGIC_LEN as u64).read_to_end(&mut first).map_err(reading)?;
    if first.is_empty() {
        return Err(Error::invalid("archive", "it is empty"));
    }
    let compression = Compression::of(&first, "archive")?;
    let mut stream = compression.reader(io::Cursor::new(first).chain(stream)).map_err(reading)?;
    let mut writer = BufWriter::with_capacity(256 << 10, &file);
    let mut buffer = vec![0; 256 << 10];
    let mut given = 0;
    loop {
        let len = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => len,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => return Err(reading(cause)),
        };
        given += len as u64;
        if compression != Compression::Plain {
            // How much was taken is not known here: the disk bounds what it may become.
            Bound::ARCHIVE.check(0, given).map_err(|why| Error::invalid("archive", why))?;
        }
        writer.write_all(&buffer[..len]).map_err(copying)?;
    }
    writer.flush().map_err(copying)?;
    drop(writer);
    Ok(file)
}

fn nameless(store: &Store) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = store.layout().ingest();
    let tmpfile = rustix::fs::OFlags::TMPFILE.bits() as i32;
    let mut options = fs::OpenOptions::new();
    match options.read(true).write(true).mode(0o600).custom_flags(tmpfile).open(&dir) {
        Ok(file) => Ok(file),
        // Not every filesystem has nameless files.
        Err(_) => {
            let path = disk::unfinished(store.layout());
            let file = disk::create(&path, 0o600)?;
            fs::remove_file(&path).map_err(Error::at("delete", &path))?;
            Ok(file)
        }
    }
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(Error::io("read the archive", cause)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_within_the_archive() {
        for (base, path, normal_path) in [
            ("", "./a//b", Some("a/b")),
            ("a/b", "../c/layer.tar", Some("a/c/layer.tar")),
            ("a", "/x", Some("x")),
            ("a", "../../x", None),
            ("", "..", None),
        ] {
            assert_eq!(normal(base.as_bytes(), path.as_bytes()).as_deref(), normal_path.map(str::as_bytes), "{path}");
        }
    }
}
