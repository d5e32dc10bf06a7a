//! Lazy copy-up: a large file is written at once, and only what was written is in the upper; the rest is read from the lower.
//!
//! The copy is a metadata-only one with blocks of its own. Which blocks those are is not written down: they are what the
//! file has that is not a hole, so that a crash needs no journal. A block that is written in part is completed from the
//! lower first. When the mount ends, [`Overlay::settle`] fetches the rest and makes the copy an ordinary file.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::error::{Errno, Error, Result};
use crate::lower::{Body, Lower, LowerFile};
use crate::node::{Node, OpenBody, Place};
use crate::union::Overlay;
use crate::upper::{Marks, Seek, Target, Upper, UpperFile, unseen};
use layer::{FileType, Slot};

/// The unit in which bodies are completed, in bytes; no smaller than the upper's blocks.
pub(crate) const BLOCK: u64 = 4096;
/// Bodies below this many bytes are copied whole: that takes no longer than a program notices.
pub(crate) const LAZY_MIN: u64 = 4 << 20;

/// A body that is on both sides.
pub(crate) struct Partial<F, G> {
    pub(crate) upper: Arc<F>,
    lower: G,
    /// One writer at a time, so that completing a block and writing to it are one step.
    writing: Mutex<()>,
    state: RwLock<State>,
}

struct State {
    /// Blocks that are in the upper, one bit each.
    present: Vec<u64>,
    /// The lower counts up to here.
    limit: u64,
    size: u64,
}

impl State {
    fn has(&self, block: u64) -> bool {
        self.present.get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    fn add(&mut self, first: u64, end: u64) {
        let words = end.div_ceil(64) as usize;
        if self.present.len() < words {
            self.present.resize(words, 0);
        }
        for block in first..end {
            self.present[(block / 64) as usize] |= 1 << (block % 64);
        }
    }

    /// Returns the end of the run of blocks that are alike, from `block` up to `end`.
    fn run(&self, block: u64, end: u64) -> u64 {
        let here = self.has(block);
        (block + 1..end).find(|&next| self.has(next) != here).unwrap_or(end)
    }
}

impl<F: UpperFile, G: LowerFile> Partial<F, G> {
    /// Puts both sides together; `size` is the file's, `limit` how far the lower counts.
    pub(crate) fn new(upper: Arc<F>, lower: G, size: u64, limit: u64) -> Result<Self> {
        let mut state = State { present: Vec::new(), limit, size };
        let mut at = 0;
        while at < size {
            let data = match upper.seek(at, Seek::Data) {
                Ok(data) => data,
                Err(Error::Answer(Errno::ENXIO)) => break,
                Err(error) => return Err(error),
            };
            let hole = upper.seek(data, Seek::Hole)?;
            state.add(data / BLOCK, hole.div_ceil(BLOCK));
            at = hole.max(data + 1);
        }
        Ok(Partial { upper, lower, writing: Mutex::new(()), state: RwLock::new(state) })
    }

    pub(crate) fn size(&self) -> u64 {
        self.state.read().size
    }

    pub(crate) fn limit(&self) -> u64 {
        self.state.read().limit
    }

    /// Reads at `offset`; short only at the end of the file.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let size = self.size();
        let end = size.min(offset.saturating_add(buf.len() as u64));
        let mut at = offset;
        while at < end {
            let (here, run_end, limit) = {
                let state = self.state.read();
                let block = at / BLOCK;
                (state.has(block), state.run(block, end.div_ceil(BLOCK)) * BLOCK, state.limit)
            };
            let run_end = run_end.min(end);
            let part = &mut buf[(at - offset) as usize..(run_end - offset) as usize];
            match here {
                true => read_full(part, at, |buf, at| self.upper.read_at(buf, at))?,
                false => self.read_below(part, at, limit)?,
            }
            at = run_end;
        }
        Ok(end.saturating_sub(offset) as usize)
    }

    fn read_below(&self, part: &mut [u8], at: u64, limit: u64) -> Result<()> {
        let below = limit.saturating_sub(at).min(part.len() as u64) as usize;
        part[below..].fill(0);
        read_full(&mut part[..below], at, |buf, at| self.lower.read_at(buf, at))
    }

    /// Writes at `offset`, completing the blocks at both ends.
    pub(crate) fn write_at(&self, data: &[u8], offset: u64) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        let _writing = self.writing.lock();
        let end = offset.checked_add(data.len() as u64).ok_or(Error::Answer(Errno::EFBIG))?;
        if !offset.is_multiple_of(BLOCK) {
            self.complete(offset / BLOCK)?;
        }
        if !end.is_multiple_of(BLOCK) {
            self.complete(end / BLOCK)?;
        }
        let written = self.upper.write_at(data, offset)?;
        let end = offset + written as u64;
        let mut state = self.state.write();
        // A block that was not reached to its end by a short write was completed above, or is not claimed.
        let whole = if end.is_multiple_of(BLOCK) || written == data.len() { end.div_ceil(BLOCK) } else { end / BLOCK };
        state.add(offset / BLOCK, whole);
        state.size = state.size.max(end);
        Ok(written)
    }

    /// Brings one block up from the lower, if it is not there.
    fn complete(&self, block: u64) -> Result<()> {
        let (size, limit) = {
            let state = self.state.read();
            if state.has(block) {
                return Ok(());
            }
            (state.size, state.limit)
        };
        let start = block * BLOCK;
        let len = size.min(limit).saturating_sub(start).min(BLOCK) as usize;
        if len == 0 {
            return Ok(());
        }
        let mut bytes = [0; BLOCK as usize];
        self.read_below(&mut bytes[..len], start, limit)?;
        if self.upper.write_at(&bytes[..len], start)? < len {
            return Err(Errno::ENOSPC.into());
        }
        self.state.write().add(block, block + 1);
        Ok(())
    }

    /// Cuts or extends the file; `lower_limit` is called where the lower is to count for less.
    pub(crate) fn truncate(&self, size: u64, lower_limit: impl FnOnce(u64) -> Result<()>) -> Result<()> {
        let _writing = self.writing.lock();
        // The file first: what is found shorter than its limit after a crash was about to be cut.
        self.upper.truncate(size)?;
        self.state.write().size = size;
        if size < self.limit() {
            lower_limit(size)?;
            let mut state = self.state.write();
            state.limit = size;
            let end = size.div_ceil(BLOCK);
            let kept = end.div_ceil(64) as usize;
            state.present.truncate(kept);
            if !end.is_multiple_of(64)
                && let Some(last) = state.present.get_mut(kept - 1)
            {
                *last &= (1 << (end % 64)) - 1;
            }
        }
        Ok(())
    }

    /// Fetches all that is still below; nobody writes meanwhile.
    fn complete_all(&self) -> Result<()> {
        const CHUNK: usize = 1 << 20;
        let mut buf = vec![0; CHUNK];
        let (limit, size) = (self.limit().min(self.size()), self.size());
        let mut at = 0;
        while at < limit {
            let (here, run_end) = {
                let state = self.state.read();
                (state.has(at / BLOCK), state.run(at / BLOCK, limit.div_ceil(BLOCK)) * BLOCK)
            };
            let run_end = run_end.min(limit);
            if here {
                at = run_end;
                continue;
            }
            // What is a hole below stays one.
            let raw = match self.lower.seek(at, Seek::Data, size) {
                Ok(data) => data,
                Err(Error::Answer(Errno::ENXIO)) => break,
                Err(error) => return Err(error),
            };
            if raw / BLOCK * BLOCK > at {
                at = (raw / BLOCK * BLOCK).min(run_end);
                continue;
            }
            let hole = self.lower.seek(at.max(raw), Seek::Hole, size)?.next_multiple_of(BLOCK);
            let len = (run_end.min(hole) - at).min(CHUNK as u64) as usize;
            self.read_below(&mut buf[..len], at, limit)?;
            if self.upper.write_at(&buf[..len], at)? < len {
                return Err(Errno::ENOSPC.into());
            }
            self.state.write().add(at / BLOCK, (at + len as u64).div_ceil(BLOCK));
            at += len as u64;
        }
        Ok(())
    }
}

fn read_full(buf: &mut [u8], offset: u64, read: impl Fn(&mut [u8], u64) -> Result<usize>) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match read(&mut buf[done..], offset + done as u64)? {
            0 => {
                buf[done..].fill(0);
                return Ok(());
            }
            count => done += count,
        }
    }
    Ok(())
}

/// Fetches all that is below, and gives back what the kernel takes from a file that is written to: no program wrote.
fn complete_unseen<U: Upper, G: LowerFile>(upper: &U, partial: &Partial<U::File, G>) -> Result<()> {
    // What a program's write takes meanwhile must not come back.
    let _writing = partial.writing.lock();
    unseen(upper, Target::File(&*partial.upper), || partial.complete_all())
}

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Makes a metadata-only copy writable: by sharing the lower's blocks where the filesystem can, else as a partial copy.
    pub(crate) fn make_writable(&self, node: &Arc<Node<L, U>>, slot: Slot) -> Result<()> {
        let Body::File(lower) = self.lower.body(slot)? else { return Err(Errno::EINVAL.into()) };
        let limit = self.lower.stat(slot)?.size;
        let path = self.lower_path(slot)?;
        let _path = self.path.read();
        let cloned = self.with_target(node, |upper, target| {
            if upper.clone_body(target, &lower)? {
                return Ok(true);
            }
            upper.set_redirect(target, &path)?;
            upper.begin_partial(target, limit)?;
            Ok(false)
        })?;
        if let Place::Upper(up) = &mut *node.place.write() {
            match cloned {
                true => up.body_below = None,
                false => up.partial = Some(limit),
            }
        }
        Ok(())
    }

    /// Opens a partial copy.
    pub(crate) fn open_partial(&self, node: &Arc<Node<L, U>>, slot: Slot, limit: u64) -> Result<OpenBody<L, U>> {
        let Body::File(lower) = self.lower.body(slot)? else { return Err(Errno::EIO.into()) };
        let _path = self.path.read();
        self.with_target(node, |upper, target| {
            let size = upper.stat(target)?.size;
            if size < limit {
                upper.limit_partial(target, size)?;
            }
            let limit = limit.min(size);
            let partial = Partial::new(Arc::new(upper.open(target)?), lower, size, limit)?;
            Ok(OpenBody::Partial(Arc::new(partial)))
        })
    }

    /// Completes one partial copy while it is in use.
    pub(crate) fn complete(&self, node: &Arc<Node<L, U>>, partial: &Partial<U::File, L::File>) -> Result<()> {
        complete_unseen(self.writable()?, partial)?;
        {
            let _path = self.path.read();
            self.with_target(node, |upper, target| upper.finish_partial(target))?;
        }
        if let Place::Upper(up) = &mut *node.place.write() {
            (up.body_below, up.partial) = (None, None);
        }
        let mut open = node.open.write();
        if open.count > 0 {
            open.body = OpenBody::Upper(partial.upper.clone());
        }
        Ok(())
    }

    /// Brings the upper to rest: completes partial copies, and gives hard-linked origins the names that only the lower has,
    /// so that the upper is a plain kernel-overlayfs one. To be called when no program uses the union any more.
    ///
    /// # Errors
    /// The first that occurred (`ENOSPC`...); the rest is done all the same, and what is left is resumed by the next mount.
    pub fn settle(&self) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let mut result = Ok(());
        for backing in upper.partials()? {
            let done = self.settle_partial(upper, backing);
            result = result.and(done);
        }
        let indexed: Vec<_> = self.indexed.read().iter().copied().collect();
        for (origin, (slot, names)) in self.names_below(indexed.into_iter())? {
            let done = self.settle_links(origin, slot, names);
            result = result.and(done);
        }
        result.and(upper.rest())
    }

    fn settle_partial(&self, upper: &U, backing: u64) -> Result<()> {
        let (stat, marks) = upper.find(Target::Partial(backing))?;
        let Some(limit) = marks.partial.filter(|_| stat.nlink > 1) else {
            return upper.drop_partial(backing);
        };
        if !marks.metacopy {
            // It was whole when a crash came: what is a hole now was made one by a program.
            return upper.finish_partial(Target::Partial(backing));
        }
        let slot = self.copied_from(&marks)?;
        let Body::File(lower) = self.lower.body(slot)? else { return Err(Errno::EIO.into()) };
        let file = Arc::new(upper.open(Target::Partial(backing))?);
        let partial = Partial::new(file, lower, stat.size, limit.min(stat.size))?;
        complete_unseen(upper, &partial)?;
        upper.finish_partial(Target::File(&*partial.upper))
    }

    /// Finds the lower file of a copy by what is noted on it.
    fn copied_from(&self, marks: &Marks) -> Result<Slot> {
        let by_number =
            marks.origin.filter(|origin| origin.key == self.lower.key()).and_then(|origin| self.lower.slot(origin.ino));
        if let Some(slot) = by_number {
            return Ok(slot);
        }
        let path = marks.redirect.as_deref().and_then(|path| path.strip_prefix(b"/"));
        let missing = || Error::fault("settle a partial copy", Errno::EIO, "its lower file is missing");
        let path = layer::TreePath::parse(path.ok_or_else(missing)?).map_err(|_| missing())?;
        let mut slot = self.lower.root();
        for name in path.names() {
            slot = self.lower.lookup(slot, name)?.ok_or_else(missing)?;
        }
        Ok(slot)
    }

    /// Links a hard-linked origin to every name that programs see in the lower alone.
    fn settle_links(&self, origin: layer::Ino, slot: Slot, names: Vec<(Slot, layer::NameBuf)>) -> Result<()> {
        for (dir, name) in names {
            if self.visible_below(dir, name.as_name())? {
                let parent = self.dir_in_upper(self.id_of(dir))?;
                self.name_in_upper(&parent, name.as_name())?;
            }
        }
        let node = self.indexed_node(origin, slot)?;
        if let Place::Upper(up) = &mut *node.place.write() {
            up.lower_names = 0;
        }
        let upper = self.writable()?;
        upper.set_lower_names(Target::Index(origin), 0)?;
        if node.kind == FileType::File && matches!(&*node.place.read(), Place::Upper(up) if up.body_below.is_some()) {
            // A metadata-only copy keeps its note of where the body is.
            upper.set_redirect(Target::Index(origin), &self.lower_path(slot)?)?;
        }
        upper.remove_index(origin)?;
        self.indexed.write().remove(&origin);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory that knows which of its blocks were written.
    #[derive(Default)]
    struct Memory {
        bytes: Mutex<Vec<u8>>,
        written: Mutex<std::collections::BTreeSet<u64>>,
    }

    impl UpperFile for Memory {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            let bytes = self.bytes.lock();
            let from = bytes.get(offset as usize..).unwrap_or_default();
            let len = from.len().min(buf.len());
            buf[..len].copy_from_slice(&from[..len]);
            Ok(len)
        }
        fn write_at(&self, data: &[u8], offset: u64) -> Result<usize> {
            let mut bytes = self.bytes.lock();
            let end = offset as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[offset as usize..end].copy_from_slice(data);
            self.written.lock().extend(offset / BLOCK..(end as u64).div_ceil(BLOCK));
            Ok(data.len())
        }
        fn truncate(&self, size: u64) -> Result<()> {
            self.bytes.lock().resize(size as usize, 0);
            self.written.lock().retain(|block| *block < size.div_ceil(BLOCK));
            Ok(())
        }
        fn allocate(&self, _: i32, _: u64, _: u64) -> Result<()> {
            Err(Errno::EOPNOTSUPP.into())
        }
        fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
            let size = self.bytes.lock().len() as u64;
            let written = self.written.lock();
            let mut block = offset / BLOCK;
            while block * BLOCK < size {
                if written.contains(&block) == (what == Seek::Data) {
                    return Ok((block * BLOCK).max(offset));
                }
                block += 1;
            }
            if what == Seek::Data { Err(Errno::ENXIO.into()) } else { Ok(size) }
        }
        fn sync(&self, _: bool) -> Result<()> {
            Ok(())
        }
        fn copy_range(&self, _: u64, _: &Self, _: u64, _: u64) -> Result<u64> {
            Err(Errno::EXDEV.into())
        }
    }

    struct Below(Vec<u8>);

    impl LowerFile for Below {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            let from = self.0.get(offset as usize..).unwrap_or_default();
            let len = from.len().min(buf.len());
            buf[..len].copy_from_slice(&from[..len]);
            Ok(len)
        }
    }

    /// What a plain file would hold after the same steps, compared after each; the union of both sides is reopened midway.
    #[test]
    fn a_partial_copy_is_a_plain_file_to_its_reader() {
        let mut seed = 7u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for round in 0..60 {
            let body: Vec<u8> = (0..random(60_000) + 1).map(|i| (i % 251) as u8 | 1).collect();
            let upper = Arc::new(Memory::default());
            upper.truncate(body.len() as u64).unwrap();
            let (mut plain, mut limit) = (body.clone(), body.len() as u64);
            let mut partial = Partial::new(upper.clone(), Below(body.clone()), plain.len() as u64, limit).unwrap();
            for step in 0..40 {
                let at = random(70_000);
                match random(5) {
                    0 => {
                        partial
                            .truncate(at, |to| {
                                limit = to;
                                Ok(())
                            })
                            .unwrap();
                        plain.resize(at as usize, 0);
                    }
                    1 => partial = Partial::new(upper.clone(), Below(body.clone()), plain.len() as u64, limit).unwrap(),
                    _ => {
                        let data = vec![(step + 1) as u8; random(9000) as usize + 1];
                        assert_eq!(partial.write_at(&data, at).unwrap(), data.len());
                        let end = at as usize + data.len();
                        if plain.len() < end {
                            plain.resize(end, 0);
                        }
                        plain[at as usize..end].copy_from_slice(&data);
                    }
                }
                let mut read = vec![0xee; plain.len() + 100];
                let len = partial.read_at(&mut read, 0).unwrap();
                assert_eq!(len, plain.len(), "round {round} step {step}");
                assert!(read[..len] == plain[..], "round {round} step {step}");
            }
            partial.complete_all().unwrap();
            assert!(*upper.bytes.lock() == plain, "round {round}: the completed copy");
        }
    }
}
