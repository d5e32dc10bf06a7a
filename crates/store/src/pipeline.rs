//! The stages of an unpacking layer, each on its own thread, joined by short queues of chunks.
//!
//! Memory is bounded by the queues, whatever the layer's size. A stage that fails hangs up; its neighbours notice and stop.
//! The error that is told is the cause: a blob that is not what its digest says comes before what that did to later stages.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use layer::Digest;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::inflate::{Bound, Compression, MAGIC_LEN};

/// Bytes per chunk.
const CHUNK: usize = 256 << 10;
/// Chunks that wait between two stages.
const DEPTH: usize = 4;

/// Bytes on their way to several stages.
type Chunk = Arc<Vec<u8>>;

enum Message {
    Chunk(Chunk),
    /// All is said; without it, hanging up means failure.
    End,
}

/// Why a stage did not finish.
pub(crate) enum Halt {
    /// Because a neighbour did not, or the whole load is being given up.
    Stopped,
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Halt::Failed(error)
    }
}

/// The result of a stage.
pub(crate) type Staged<T> = std::result::Result<T, Halt>;

/// What a blob must be.
pub(crate) struct Blob<'a> {
    /// For messages.
    pub(crate) what: &'a str,
    pub(crate) size: u64,
    /// `None` where only the layer's diffID is known (docker archives).
    pub(crate) digest: Option<Digest>,
    pub(crate) bound: Bound,
}

/// Runs `blob` through reading, inflating and hashing, and through `untar` on this thread. Returns what `untar` returned and the
/// hash of the inflated stream.
pub(crate) fn run<T>(
    blob: &Blob<'_>,
    source: &mut (dyn Read + Send),
    read_so_far: &(dyn Fn(u64) + Sync),
    give_up: &AtomicBool,
    untar: impl FnOnce(&mut ChunkReader) -> Result<T>,
) -> Staged<(T, Digest)> {
    let (to_inflate, from_blob) = sync_channel(DEPTH);
    let (to_hash, from_inflate) = sync_channel(DEPTH);
    let (to_untar, for_untar) = sync_channel(DEPTH);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read_blob(blob, source, read_so_far, give_up, to_inflate));
        let inflater = scope.spawn(move || inflate(blob, from_blob, &[to_hash, to_untar]));
        let hasher = scope.spawn(move || hash(from_inflate));
        let mut stream = ChunkReader::new(for_untar);
        let unpacked = untar(&mut stream).map_err(|error| if stream.stopped { Halt::Stopped } else { error.into() });
        drop(stream);
        match (joined(reader.join()), joined(inflater.join()), unpacked, joined(hasher.join())) {
            (Ok(()), Ok(()), Ok(unpacked), Ok(digest)) => Ok((unpacked, digest)),
            // In the order of causes: what failed in an early stage explains what failed in a later one.
            (read, inflated, unpacked, hashed) => {
                let halts = [read.err(), inflated.err(), unpacked.err(), hashed.err()];
                let cause = halts.into_iter().flatten().find(|halt| matches!(halt, Halt::Failed(_)));
                Err(cause.unwrap_or(Halt::Stopped))
            }
        }
    })
}

fn joined<T>(stage: std::thread::Result<Staged<T>>) -> Staged<T> {
    stage.unwrap_or_else(|_| Err(Halt::Failed(Error::io("unpack a layer", io::Error::other("a stage panicked")))))
}

/// Reads the blob, passes it on, and checks length and digest.
fn read_blob(
    blob: &Blob<'_>,
    source: &mut (dyn Read + Send),
    read_so_far: &(dyn Fn(u64) + Sync),
    give_up: &AtomicBool,
    out: SyncSender<Message>,
) -> Staged<()> {
    // Whoever takes the chunks may be gone for the blob's sake: then the digest tells.
    let mut out = Some(out);
    let mut hash = Sha256::new();
    let mut done = 0;
    // One byte more than it should have shows that there is more.
    let mut limited = source.take(blob.size.saturating_add(1));
    loop {
        if give_up.load(Ordering::Relaxed) {
            return Err(Halt::Stopped);
        }
        let chunk = read_chunk(&mut limited).map_err(|cause| Error::io(format!("read {}", blob.what), cause))?;
        if chunk.is_empty() {
            break;
        }
        if blob.digest.is_some() {
            hash.update(&chunk);
        }
        done += chunk.len() as u64;
        read_so_far(done.min(blob.size));
        let message = Message::Chunk(Arc::new(chunk));
        out = out.filter(|out| out.send(message).is_ok());
    }
    if done != blob.size {
        let found = if done > blob.size { "more".to_owned() } else { done.to_string() };
        return Err(Error::invalid(blob.what, format!("it should have {} bytes, but has {found}", blob.size)).into());
    }
    let digest = Digest::from_bytes(hash.finalize().into());
    if let Some(expected) = blob.digest.filter(|expected| *expected != digest) {
        return Err(Error::invalid(blob.what, format!("its content has the digest {digest}, not {expected}")).into());
    }
    match out.map(|out| out.send(Message::End)) {
        Some(Ok(())) => Ok(()),
        _ => Err(Halt::Stopped),
    }
}

fn inflate(blob: &Blob<'_>, from: Receiver<Message>, out: &[SyncSender<Message>; 2]) -> Staged<()> {
    let mut input = ChunkReader::new(from);
    let mut first = Vec::with_capacity(MAGIC_LEN);
    let reading = |cause: io::Error| Error::invalid(blob.what, format!("it does not inflate: {cause}"));
    let peeked = (&mut input).take(MAGIC_LEN as u64).read_to_end(&mut first);
    if input.stopped {
        return Err(Halt::Stopped);
    }
    peeked.map_err(reading)?;
    let compression = Compression::of(&first, blob.what)?;
    let taken = std::sync::atomic::AtomicU64::new(0);
    let stopped = AtomicBool::new(false);
    let input = Counted { input: io::Cursor::new(first).chain(input), taken: &taken, stopped: &stopped };
    let mut stream = compression.reader(input).map_err(reading)?;
    let mut given = 0;
    loop {
        let chunk = match read_chunk(&mut stream) {
            Err(_) if stopped.load(Ordering::Relaxed) => return Err(Halt::Stopped),
            chunk => chunk.map_err(reading)?,
        };
        if chunk.is_empty() {
            break;
        }
        given += chunk.len() as u64;
        blob.bound.check(taken.load(Ordering::Relaxed), given).map_err(|why| Error::invalid(blob.what, why))?;
        send(out, &Arc::new(chunk))?;
    }
    for out in out {
        out.send(Message::End).map_err(|_| Halt::Stopped)?;
    }
    Ok(())
}

fn send(out: &[SyncSender<Message>; 2], chunk: &Chunk) -> Staged<()> {
    out.iter().try_for_each(|out| out.send(Message::Chunk(Arc::clone(chunk))).map_err(|_| Halt::Stopped))
}

fn hash(from: Receiver<Message>) -> Staged<Digest> {
    let mut hash = Sha256::new();
    loop {
        match from.recv() {
            Ok(Message::Chunk(chunk)) => hash.update(&*chunk),
            Ok(Message::End) => return Ok(Digest::from_bytes(hash.finalize().into())),
            Err(_) => return Err(Halt::Stopped),
        }
    }
}

/// Reads a full chunk, or less at the end.
fn read_chunk(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; CHUNK];
    let mut filled = 0;
    while filled < CHUNK {
        match source.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    chunk.truncate(filled);
    Ok(chunk)
}

/// The reading end of a queue.
pub(crate) struct ChunkReader {
    from: Receiver<Message>,
    chunk: Chunk,
    at: usize,
    ended: bool,
    /// The stage before has failed or stopped.
    stopped: bool,
}

impl ChunkReader {
    fn new(from: Receiver<Message>) -> Self {
        ChunkReader { from, chunk: Chunk::default(), at: 0, ended: false, stopped: false }
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() && !self.ended {
            match self.from.recv() {
                Ok(Message::Chunk(chunk)) => (self.chunk, self.at) = (chunk, 0),
                Ok(Message::End) => self.ended = true,
                Err(_) => {
                    self.stopped = true;
                    return Err(io::Error::other("the stage before has stopped"));
                }
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, len: usize) {
        self.at = (self.at + len).min(self.chunk.len());
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buf)?;
        self.consume(len);
        Ok(len)
    }
}

/// Counts what is taken, and remembers that the stage before has stopped: decompressors own their input.
struct Counted<'a, R> {
    input: R,
    taken: &'a std::sync::atomic::AtomicU64,
    stopped: &'a AtomicBool,
}

impl<R: BufRead> BufRead for Counted<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf().inspect_err(|_| self.stopped.store(true, Ordering::Relaxed))
    }

    fn consume(&mut self, len: usize) {
        self.taken.fetch_add(len as u64, Ordering::Relaxed);
        self.input.consume(len);
    }
}

impl<R: BufRead> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buf)?;
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &[u8] = &[42; 3_000_000];

    fn run_all(bytes: &[u8], size: u64, digest: Option<Digest>, take: usize) -> std::result::Result<Digest, String> {
        let blob = Blob { what: "blob", size, digest, bound: Bound::LAYER };
        let untar = |stream: &mut ChunkReader| match take {
            0 => Err(Error::invalid("tar", "refused")),
            _ => io::copy(stream, &mut io::sink()).map(drop).map_err(|cause| Error::io("untar", cause)),
        };
        match run(&blob, &mut &bytes[..], &|_| (), &AtomicBool::new(false), untar) {
            Ok(((), digest)) => Ok(digest),
            Err(Halt::Failed(error)) => Err(error.to_string()),
            Err(Halt::Stopped) => Err("stopped".into()),
        }
    }

    #[test]
    fn all_hashes_are_told() {
        let packed = zstd::encode_all(DATA, 1).unwrap();
        let result = run_all(&packed, packed.len() as u64, Some(Digest::of(&packed)), 1);
        assert_eq!(result, Ok(Digest::of(DATA)));
        assert_eq!(run_all(DATA, DATA.len() as u64, None, 1), Ok(Digest::of(DATA)));
        assert_eq!(run_all(b"", 0, None, 1), Ok(Digest::of(b"")));
    }

    #[test]
    fn the_first_cause_is_told() {
        let packed = zstd::encode_all(DATA, 1).unwrap();
        let (len, digest) = (packed.len() as u64, Some(Digest::of(&packed)));
        assert!(run_all(&packed, len + 1, digest, 1).unwrap_err().contains("but has"));
        assert!(run_all(&packed, len - 1, digest, 1).unwrap_err().contains("but has more"));
        assert!(run_all(&packed, len, Some(Digest::of(b"")), 1).unwrap_err().contains("has the digest"));
        assert!(run_all(&packed[..50], 50, None, 1).unwrap_err().contains("does not inflate"));
        assert!(run_all(&packed, len, digest, 0).unwrap_err().contains("refused"));
        assert!(run_all(&packed, len, Some(Digest::of(b"")), 0).unwrap_err().contains("has the digest"));
        assert!(run_all(DATA, DATA.len() as u64, None, 0).unwrap_err().contains("refused"));
    }

    #[test]
    fn a_load_that_is_given_up_stops() {
        let blob = Blob { what: "blob", size: u64::MAX, digest: None, bound: Bound::LAYER };
        let untar =
            |stream: &mut ChunkReader| io::copy(stream, &mut io::sink()).map_err(|cause| Error::io("untar", cause));
        let result = run(&blob, &mut io::repeat(0), &|_| (), &AtomicBool::new(true), untar);
        assert!(matches!(result, Err(Halt::Stopped)));
    }
}
