//! An upper in memory: kernel-overlayfs format without a disk, strict about what the core tells it, and able to stop between any
//! two steps.
//!
//! Inode numbers are given out again at once when they are free, as ext4 does it. A step that the core describes wrongly (a name
//! that is there where it said "nothing") is a panic: on a disk it would destroy something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use layer::{Dev, FileType, Ino, Name, NameBuf, Stat, Time};
use overlay::upper::{
    CopyUp, Kept, Leave, Listed, Marks, New, Onto, Over, Rename, Seek, SetAttr, SetTime, SetXattr, Source, StatFs,
    Target, What, unseen,
};
use overlay::{Errno, Error, LowerFile, Result, Upper, UpperFile};

use super::tree::CAPABILITY;

/// What happens to a step that changes something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing: it works.
    #[default]
    None,
    /// So many more steps work, then the machine is gone: every call fails, and what is on the disk stays as it is.
    CrashAfter(u32),
    /// So many more steps work, then one fails with this answer, then all work again.
    FailAfter(u32, Errno),
    /// The machine is gone.
    Crashed,
}

/// What lies on the disk.
#[derive(Clone, Debug)]
pub struct Disk {
    inodes: BTreeMap<u64, Inode>,
    index: BTreeMap<Ino, u64>,
    partials: BTreeSet<u64>,
    opens: BTreeMap<u64, u32>,
    /// Seconds; every change takes one.
    clock: i64,
    trouble: Trouble,
    /// How many steps were taken.
    pub steps: u64,
}

#[derive(Clone, Debug)]
struct Inode {
    body: Body,
    stat: Stat,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    marks: Marks,
    /// What a crash must not take while a body is brought up.
    kept: Option<Kept>,
}

impl Inode {
    fn give_back(&mut self, kept: &Kept) {
        if let Some(capability) = &kept.capability {
            self.xattrs.insert(CAPABILITY.to_vec(), capability.clone());
        }
        self.stat.perm = kept.perm.unwrap_or(self.stat.perm);
        (self.stat.atime, self.stat.mtime) = (kept.atime, kept.mtime);
    }
}

#[derive(Clone, Debug)]
enum Body {
    Whiteout,
    Dir(BTreeMap<NameBuf, u64>),
    File(Content),
    Symlink(Vec<u8>),
    Node,
}

/// Bytes, and which blocks of them were ever written: the rest are holes.
#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    written: BTreeSet<usize>,
}

impl Content {
    fn new(bytes: Vec<u8>) -> Self {
        let written = (0..bytes.len().div_ceil(BLOCK)).collect();
        Content { bytes, written }
    }

    fn hole(size: u64) -> Self {
        Content { bytes: vec![0; size as usize], written: BTreeSet::new() }
    }

    fn resize(&mut self, size: usize) {
        self.bytes.resize(size, 0);
        self.written.retain(|block| *block < size.div_ceil(BLOCK));
    }

    fn write(&mut self, bytes: &[u8], start: usize) {
        let end = start + bytes.len();
        if self.bytes.len() < end {
            self.resize(end);
        }
        self.bytes[start..end].copy_from_slice(bytes);
        self.written.extend(start / BLOCK..end.div_ceil(BLOCK));
    }

    fn zero(&mut self, start: usize, end: usize) {
        let (start, end) = (start.min(self.bytes.len()), end.min(self.bytes.len()));
        self.bytes[start..end].fill(0);
        let last = if end == self.bytes.len() { end.div_ceil(BLOCK) } else { end / BLOCK };
        for block in start.div_ceil(BLOCK)..last {
            self.written.remove(&block);
        }
    }

    fn seek(&self, offset: usize, what: Seek) -> Option<u64> {
        if offset >= self.bytes.len() {
            return None;
        }
        for block in offset / BLOCK..self.bytes.len().div_ceil(BLOCK) {
            if self.written.contains(&block) == (what == Seek::Data) {
                return Some((block * BLOCK).max(offset) as u64);
            }
        }
        (what == Seek::Hole).then_some(self.bytes.len() as u64)
    }
}

/// The block of the filesystem, in bytes.
const BLOCK: usize = 4096;
const ROOT: u64 = 2;

/// An upper in memory; clones share the disk.
#[derive(Clone, Debug)]
pub struct MemoryUpper {
    disk: Arc<Mutex<Disk>>,
}

/// An open file.
#[derive(Debug)]
pub struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    ino: u64,
}

/// A copy without a name.
pub struct Staged {
    inode: Inode,
}

impl Disk {
    /// An empty upper, whose root is 0755 and belongs to root.
    pub fn new() -> Self {
        let mut disk = Disk {
            inodes: BTreeMap::new(),
            index: BTreeMap::new(),
            partials: BTreeSet::new(),
            opens: BTreeMap::new(),
            clock: 2_000_000_000,
            trouble: Trouble::None,
            steps: 0,
        };
        let root = disk.blank(Body::Dir(BTreeMap::new()), FileType::Dir, 0o755, (0, 0));
        disk.inodes.insert(ROOT, root);
        disk
    }

    /// What a mount finds after a crash: files without a name are gone, links that are no partial copy's too; privileges that were
    /// kept are given back.
    pub fn recovered(&self) -> Self {
        let mut disk = Disk { opens: BTreeMap::new(), trouble: Trouble::None, ..self.clone() };
        for inode in disk.inodes.values_mut() {
            if let Some(kept) = inode.kept.take() {
                inode.give_back(&kept);
            }
        }
        let inodes = &disk.inodes;
        disk.partials.retain(|ino| inodes.get(ino).is_some_and(|inode| inode.marks.partial.is_some()));
        disk.sweep();
        disk
    }

    /// Decides what happens to the next steps.
    pub fn set_trouble(&mut self, trouble: Trouble) {
        self.trouble = trouble;
    }

    /// Tells whether the machine went down.
    pub fn crashed(&self) -> bool {
        self.trouble == Trouble::Crashed
    }

    /// Tells whether trouble that was set has not come yet.
    pub fn trouble_pending(&self) -> bool {
        matches!(self.trouble, Trouble::CrashAfter(_) | Trouble::FailAfter(..))
    }

    /// The time.
    pub fn now(&self) -> Time {
        Time { sec: self.clock, nsec: 0 }
    }

    fn tick(&mut self) -> Time {
        self.clock += 1;
        self.now()
    }

    fn blank(&self, body: Body, kind: FileType, perm: u16, (uid, gid): (u32, u32)) -> Inode {
        let time = self.now();
        let stat = Stat {
            ino: Ino(0),
            kind,
            perm,
            nlink: 0,
            uid,
            gid,
            rdev: Dev::default(),
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
        };
        Inode { body, stat, xattrs: BTreeMap::new(), marks: Marks::default(), kept: None }
    }

    /// Begins a step that needs no room: a full disk does not stop it.
    fn roomless_step(&mut self) -> Result<()> {
        match self.trouble {
            Trouble::FailAfter(..) => {
                self.steps += 1;
                self.tick();
                Ok(())
            }
            _ => self.step(),
        }
    }

    /// Begins a step that changes something.
    fn step(&mut self) -> Result<()> {
        match &mut self.trouble {
            Trouble::None => {}
            Trouble::Crashed => return Err(gone()),
            Trouble::CrashAfter(0) => {
                self.trouble = Trouble::Crashed;
                return Err(gone());
            }
            Trouble::FailAfter(0, errno) => {
                let errno = *errno;
                self.trouble = Trouble::None;
                return Err(Error::Answer(errno));
            }
            Trouble::CrashAfter(left) | Trouble::FailAfter(left, _) => *left -= 1,
        }
        self.steps += 1;
        self.tick();
        Ok(())
    }

    fn inode(&self, ino: u64) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or_else(|| missing(ino))
    }

    fn inode_mut(&mut self, ino: u64) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(|| missing(ino))
    }

    fn entries(&self, dir: u64) -> Result<&BTreeMap<NameBuf, u64>> {
        match &self.inode(dir)?.body {
            Body::Dir(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    fn entries_mut(&mut self, dir: u64) -> Result<&mut BTreeMap<NameBuf, u64>> {
        match &mut self.inode_mut(dir)?.body {
            Body::Dir(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    fn child(&self, dir: u64, name: Name<'_>) -> Result<u64> {
        self.entries(dir)?.get(name.as_bytes()).copied().ok_or(Error::Answer(Errno::ENOENT))
    }

    fn is_whiteout(&self, ino: u64) -> bool {
        self.inodes.get(&ino).is_some_and(|inode| matches!(inode.body, Body::Whiteout))
    }

    /// Takes the lowest free number.
    fn insert(&mut self, inode: Inode) -> u64 {
        let mut ino = ROOT + 1;
        while self.inodes.contains_key(&ino) {
            ino += 1;
        }
        self.inodes.insert(ino, inode);
        ino
    }

    fn changed(&mut self, dir: u64) {
        let now = self.now();
        if let Some(inode) = self.inodes.get_mut(&dir) {
            (inode.stat.mtime, inode.stat.ctime) = (now, now);
        }
    }

    fn put(&mut self, dir: u64, name: Name<'_>, ino: u64) -> Result<()> {
        if self.dead(dir) {
            return Err(Errno::ENOENT.into());
        }
        self.entries_mut(dir)?.insert(name.to_buf(), ino);
        self.changed(dir);
        Ok(())
    }

    /// Tells whether a directory was removed while somebody holds it.
    fn dead(&self, dir: u64) -> bool {
        dir != ROOT
            && !self
                .inodes
                .values()
                .any(|inode| matches!(&inode.body, Body::Dir(entries) if entries.values().any(|i| *i == dir)))
    }

    /// Makes the name vacant in the same step, as the core says it is.
    fn make_room(&mut self, dir: u64, name: Name<'_>, over: Over) -> Result<()> {
        let there = self.entries(dir)?.get(name.as_bytes()).copied();
        match (there, over) {
            (None, Over::Nothing) => {}
            (Some(ino), Over::Whiteout) if self.is_whiteout(ino) => {
                self.entries_mut(dir)?.remove(name.as_bytes());
            }
            // A rename onto this directory failed after its whiteouts were taken out.
            (None, Over::Whiteout) if self.inode(dir)?.marks.opaque => {}
            (there, over) => panic!("the core said {over:?} under '{name}', there is {there:?}"),
        }
        Ok(())
    }

    fn whiteout(&mut self) -> u64 {
        let whiteout = self.blank(Body::Whiteout, FileType::Char, 0, (0, 0));
        self.insert(whiteout)
    }

    /// Frees what no name and no handle leads to.
    fn sweep(&mut self) {
        loop {
            let mut held: BTreeSet<u64> =
                self.index.values().chain(self.opens.keys()).chain(&self.partials).copied().collect();
            held.insert(ROOT);
            for inode in self.inodes.values() {
                if let Body::Dir(entries) = &inode.body {
                    held.extend(entries.values());
                }
            }
            let before = self.inodes.len();
            self.inodes.retain(|ino, _| held.contains(ino));
            if self.inodes.len() == before {
                return;
            }
        }
    }

    fn links(&self, ino: u64) -> u32 {
        let names = self.inodes.values().filter_map(|inode| match &inode.body {
            Body::Dir(entries) => Some(entries.values().filter(|i| **i == ino).count()),
            _ => None,
        });
        let own = self.index.values().chain(&self.partials).filter(|i| **i == ino).count();
        (names.sum::<usize>() + own) as u32
    }

    fn stat(&self, ino: u64) -> Result<Stat> {
        let inode = self.inode(ino)?;
        let mut stat = Stat { ino: Ino(ino), ..inode.stat };
        match &inode.body {
            Body::Dir(entries) => {
                let dirs =
                    entries.values().filter(|i| matches!(self.inodes.get(i), Some(Inode { body: Body::Dir(_), .. })));
                stat.nlink = if self.dead(ino) { 0 } else { 2 + dirs.count() as u32 };
                stat.size = 4096;
            }
            Body::File(data) => (stat.nlink, stat.size) = (self.links(ino), data.bytes.len() as u64),
            Body::Symlink(target) => (stat.nlink, stat.size) = (self.links(ino), target.len() as u64),
            Body::Node | Body::Whiteout => stat.nlink = self.links(ino),
        }
        stat.blocks = match &inode.body {
            Body::File(data) => data.written.len() as u64 * 8,
            _ => stat.size.div_ceil(4096) * 8,
        };
        Ok(stat)
    }

    fn set_attr(&mut self, ino: u64, attr: &SetAttr) -> Result<()> {
        let now = self.now();
        let inode = self.inode_mut(ino)?;
        let stat = &mut inode.stat;
        if attr.uid.is_some() || attr.gid.is_some() {
            (stat.uid, stat.gid) = (attr.uid.unwrap_or(stat.uid), attr.gid.unwrap_or(stat.gid));
            if stat.kind != FileType::Dir {
                let perm = stat.perm & !0o4000;
                stat.perm = if perm & 0o2010 == 0o2010 { perm & !0o2000 } else { perm };
                inode.xattrs.remove(CAPABILITY);
            }
        }
        if let Some(perm) = attr.perm
            && stat.kind != FileType::Symlink
        {
            stat.perm = perm;
        }
        let time = |set: Option<SetTime>, old| match set {
            Some(SetTime::At(time)) => time,
            Some(SetTime::Now) => now,
            None => old,
        };
        (stat.atime, stat.mtime) = (time(attr.atime, stat.atime), time(attr.mtime, stat.mtime));
        stat.ctime = now;
        Ok(())
    }

    fn build(&mut self, new: &New<'_>) -> Inode {
        let (body, kind) = match new.what {
            What::File => (Body::File(Content::default()), FileType::File),
            What::Dir { .. } => (Body::Dir(BTreeMap::new()), FileType::Dir),
            What::Symlink(target) => (Body::Symlink(target.to_vec()), FileType::Symlink),
            What::Device(kind, _) | What::Special(kind) => (Body::Node, kind),
        };
        let perm = if kind == FileType::Symlink { 0o777 } else { new.perm };
        let mut inode = self.blank(body, kind, perm, (new.uid, new.gid));
        if let What::Device(_, dev) = new.what {
            inode.stat.rdev = dev;
        }
        inode.xattrs = new.xattrs.iter().cloned().collect();
        inode.marks.opaque = new.what == What::Dir { opaque: true };
        if let Some((atime, mtime)) = new.times {
            (inode.stat.atime, inode.stat.mtime) = (atime, mtime);
        }
        inode
    }

    fn content_mut(&mut self, ino: u64) -> Result<&mut Content> {
        let now = self.now();
        let inode = self.inode_mut(ino)?;
        inode.stat.mtime = now;
        inode.stat.ctime = now;
        inode.xattrs.remove(CAPABILITY);
        match &mut inode.body {
            Body::File(data) => Ok(data),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn only_whiteouts(&self, dir: u64) -> Result<bool> {
        Ok(self.entries(dir)?.values().all(|ino| self.is_whiteout(*ino)))
    }

    /// Tells what is left that only a mount of ours understands.
    pub fn rest_errors(&self) -> Vec<String> {
        let mut wrong = self.format_errors();
        wrong.extend(self.index.keys().map(|origin| format!("{origin:?} is in the index")));
        wrong.extend(self.partials.iter().map(|ino| format!("inode {ino} is a partial copy")));
        for (ino, inode) in &self.inodes {
            if inode.marks.partial.is_some() {
                wrong.push(format!("inode {ino} is marked as a partial copy"));
            }
            if inode.kept.is_some() {
                wrong.push(format!("inode {ino} bears a note of its privileges"));
            }
        }
        wrong
    }

    /// Tells what is not as kernel overlayfs would have it.
    pub fn format_errors(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (ino, inode) in &self.inodes {
            let marks = &inode.marks;
            if marks.opaque && inode.stat.kind != FileType::Dir {
                wrong.push(format!("inode {ino}: opaque, and no directory"));
            }
            if marks.metacopy && inode.stat.kind != FileType::File {
                wrong.push(format!("inode {ino}: a metadata-only copy of what is no file"));
            }
            if marks.redirect.as_ref().is_some_and(|to| !to.starts_with(b"/") && to.contains(&b'/')) {
                wrong.push(format!("inode {ino}: redirect {:?}", marks.redirect));
            }
            if marks.opaque && marks.redirect.is_some() {
                wrong.push(format!("inode {ino}: opaque and redirected"));
            }
        }
        for (origin, ino) in &self.index {
            if self.inodes.get(ino).is_none_or(|inode| inode.marks.origin.is_none_or(|o| o.ino != *origin)) {
                wrong.push(format!("index entry {origin:?} is of another origin"));
            }
        }
        wrong
    }
}

impl Default for Disk {
    fn default() -> Self {
        Disk::new()
    }
}

fn gone() -> Error {
    Error::fault("use the upper", Errno::EIO, "the machine went down")
}

fn missing(ino: u64) -> Error {
    Error::fault(format!("use inode {ino}"), Errno::EIO, "it was freed")
}

impl MemoryUpper {
    /// Mounts a disk.
    pub fn new(disk: Disk) -> Self {
        MemoryUpper { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Looks at the disk, or changes what happens to it.
    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        match self.disk.lock() {
            Ok(disk) => disk,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn reading(&self) -> Result<MutexGuard<'_, Disk>> {
        let disk = self.disk();
        if disk.crashed() { Err(gone()) } else { Ok(disk) }
    }

    fn changing(&self) -> Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk();
        disk.step()?;
        Ok(disk)
    }

    fn lessening(&self) -> Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk();
        disk.roomless_step()?;
        Ok(disk)
    }

    fn file(&self, disk: &mut Disk, ino: u64) -> MemoryFile {
        *disk.opens.entry(ino).or_default() += 1;
        MemoryFile { disk: self.disk.clone(), ino }
    }
}

fn resolve(disk: &Disk, of: Target<'_, MemoryUpper>) -> Result<u64> {
    match of {
        Target::At(dir, name) => disk.child(*dir, name),
        Target::Dir(dir) => Ok(*dir),
        Target::File(file) => Ok(file.ino),
        Target::Index(origin) => disk.index.get(&origin).copied().ok_or(Error::Answer(Errno::ENOENT)),
        Target::Partial(ino) => disk.partials.get(&ino).copied().ok_or(Error::Answer(Errno::ENOENT)),
    }
}

fn read_source(source: Source<'_>, size: u64) -> Result<Vec<u8>> {
    match source {
        Source::Empty => Ok(Vec::new()),
        Source::Bytes(bytes) => Ok(bytes.to_vec()),
        Source::File(file) => {
            let mut data = vec![0; size as usize];
            let mut at = 0;
            while at < data.len() {
                match file.read_at(&mut data[at..], at as u64)? {
                    0 => break,
                    count => at += count,
                }
            }
            Ok(data)
        }
    }
}

fn private(name: &[u8]) -> bool {
    [&b"trusted.overlay."[..], b"user.overlay.", b"trusted.plyfs."].iter().any(|prefix| name.starts_with(prefix))
}

impl Upper for MemoryUpper {
    type Dir = u64;
    type File = MemoryFile;
    type Staged = Staged;

    fn root(&self) -> u64 {
        ROOT
    }

    fn open_dir(&self, dir: &u64, name: Name<'_>) -> Result<u64> {
        let disk = self.reading()?;
        let ino = disk.child(*dir, name)?;
        disk.entries(ino).map(|_| ino)
    }

    fn list(&self, dir: &u64) -> Result<Vec<Listed>> {
        let disk = self.reading()?;
        let kind = |ino: &u64| match disk.inodes.get(ino) {
            Some(Inode { body: Body::Whiteout, .. }) | None => None,
            Some(inode) => Some(inode.stat.kind),
        };
        // In no order that means anything.
        let mut listed: Vec<Listed> = disk
            .entries(*dir)?
            .iter()
            .map(|(name, ino)| Listed { name: name.clone(), kind: kind(ino), ino: *ino })
            .collect();
        listed.sort_by_key(|listed| listed.ino.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Ok(listed)
    }

    fn stat(&self, of: Target<'_, Self>) -> Result<Stat> {
        let disk = self.reading()?;
        disk.stat(resolve(&disk, of)?)
    }

    fn find(&self, of: Target<'_, Self>) -> Result<(Stat, Marks)> {
        let disk = self.reading()?;
        let ino = resolve(&disk, of)?;
        assert!(!disk.is_whiteout(ino), "the core takes a whiteout for a file");
        Ok((disk.stat(ino)?, disk.inode(ino)?.marks.clone()))
    }

    fn link_target(&self, of: Target<'_, Self>) -> Result<Vec<u8>> {
        let disk = self.reading()?;
        match &disk.inode(resolve(&disk, of)?)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn open(&self, of: Target<'_, Self>) -> Result<MemoryFile> {
        let mut disk = self.reading()?;
        let ino = resolve(&disk, of)?;
        assert!(matches!(disk.inode(ino)?.body, Body::File(_)), "the core opens what is no file");
        Ok(self.file(&mut disk, ino))
    }

    fn make(&self, dir: &u64, name: Name<'_>, new: &New<'_>, over: Over) -> Result<Stat> {
        let mut disk = self.changing()?;
        disk.make_room(*dir, name, over)?;
        let inode = disk.build(new);
        let ino = disk.insert(inode);
        disk.put(*dir, name, ino)?;
        disk.sweep();
        disk.stat(ino)
    }

    fn create(&self, dir: &u64, name: Name<'_>, new: &New<'_>, over: Over) -> Result<(Stat, MemoryFile)> {
        let stat = self.make(dir, name, new, over)?;
        let mut disk = self.disk();
        Ok((stat, self.file(&mut disk, stat.ino.0)))
    }

    fn stage(&self, copy: &CopyUp<'_>) -> Result<Staged> {
        let mut disk = self.changing()?;
        let stat = copy.stat;
        let what = match stat.kind {
            FileType::File => What::File,
            FileType::Dir => panic!("directories are made, not staged"),
            FileType::Symlink => What::Symlink(copy.target.expect("a link has a target")),
            FileType::Char | FileType::Block => What::Device(stat.kind, stat.rdev),
            FileType::Fifo | FileType::Socket => What::Special(stat.kind),
        };
        let times = Some((stat.atime, stat.mtime));
        let new = New { what, perm: stat.perm, uid: stat.uid, gid: stat.gid, xattrs: copy.xattrs, times };
        let mut inode = disk.build(&new);
        if let Body::File(data) = &mut inode.body {
            // A metadata-only copy has the size and no content.
            *data = match copy.body {
                Some(source) => Content::new(read_source(source, stat.size)?),
                None => Content::hole(stat.size),
            };
            inode.marks.metacopy = copy.body.is_none();
        }
        inode.marks.origin = Some(copy.origin);
        inode.marks.redirect = copy.redirect.map(<[u8]>::to_vec);
        inode.marks.lower_names = copy.lower_names;
        Ok(Staged { inode })
    }

    fn publish(&self, staged: Staged, dir: &u64, name: Name<'_>) -> Result<(Stat, Option<MemoryFile>)> {
        let mut disk = self.changing()?;
        disk.make_room(*dir, name, Over::Nothing)?;
        let is_file = staged.inode.stat.kind == FileType::File;
        let ino = disk.insert(staged.inode);
        disk.put(*dir, name, ino)?;
        let file = is_file.then(|| self.file(&mut disk, ino));
        Ok((disk.stat(ino)?, file))
    }

    fn publish_index(&self, staged: Staged, origin: Ino) -> Result<Stat> {
        let mut disk = self.changing()?;
        assert!(!disk.index.contains_key(&origin), "the index has that origin");
        let ino = disk.insert(staged.inode);
        disk.index.insert(origin, ino);
        disk.stat(ino)
    }

    fn remove_index(&self, origin: Ino) -> Result<()> {
        let mut disk = self.lessening()?;
        disk.index.remove(&origin).ok_or(Error::Answer(Errno::ENOENT))?;
        disk.sweep();
        Ok(())
    }

    fn indexed(&self) -> Result<Vec<Ino>> {
        Ok(self.reading()?.index.keys().copied().collect())
    }

    fn keep(&self, of: Target<'_, Self>) -> Result<Kept> {
        let disk = self.reading()?;
        let ino = resolve(&disk, of)?;
        let Inode { stat, xattrs, .. } = disk.inode(ino)?;
        let (atime, mtime, capability) = (stat.atime, stat.mtime, xattrs.get(CAPABILITY).cloned());
        // Who writes here may keep set-user-ID bits.
        let kept = Kept { perm: None, atime, mtime, capability };
        drop(disk);
        if kept.is_privilege() {
            self.changing()?.inode_mut(ino)?.kept = Some(kept.clone());
        }
        Ok(kept)
    }

    fn give_back(&self, of: Target<'_, Self>, kept: &Kept) -> Result<()> {
        let mut disk = self.lessening()?;
        let ino = resolve(&disk, of)?;
        disk.inode_mut(ino)?.give_back(kept);
        if kept.is_privilege() {
            drop(disk);
            self.lessening()?.inode_mut(ino)?.kept = None;
        }
        Ok(())
    }

    fn fill(&self, of: Target<'_, Self>, body: Source<'_>, size: u64) -> Result<()> {
        let ino = {
            let disk = self.reading()?;
            let ino = resolve(&disk, of)?;
            assert!(disk.inode(ino)?.marks.metacopy, "the core fills a whole file");
            ino
        };
        unseen(self, of, || {
            let content = Content::new(read_source(body, size)?);
            *self.changing()?.content_mut(ino)? = content;
            Ok(())
        })?;
        // A crash before this leaves the mark, and the body is read from below.
        let mut disk = self.lessening()?;
        let inode = disk.inode_mut(ino)?;
        (inode.marks.metacopy, inode.marks.redirect) = (false, None);
        Ok(())
    }

    fn sync_copy(&self, _of: Target<'_, Self>) -> Result<()> {
        self.reading().map(drop)
    }

    fn note_path(&self, _of: Target<'_, Self>, _path: &[u8]) -> Result<()> {
        self.reading().map(drop)
    }

    fn begin_partial(&self, of: Target<'_, Self>, limit: u64) -> Result<()> {
        let mut disk = self.changing()?;
        let ino = resolve(&disk, of)?;
        assert!(disk.inode(ino)?.marks.metacopy, "the core begins to fill a whole file");
        disk.partials.insert(ino);
        // A link without the mark is swept by the next mount.
        let marked = disk.step();
        if marked.is_err() && !disk.crashed() {
            disk.partials.remove(&ino);
        }
        marked?;
        disk.inode_mut(ino)?.marks.partial = Some(limit);
        Ok(())
    }

    fn limit_partial(&self, of: Target<'_, Self>, limit: u64) -> Result<()> {
        let mut disk = self.lessening()?;
        let ino = resolve(&disk, of)?;
        disk.inode_mut(ino)?.marks.partial = Some(limit);
        Ok(())
    }

    fn finish_partial(&self, of: Target<'_, Self>) -> Result<()> {
        let disk = self.reading()?;
        let ino = resolve(&disk, of)?;
        drop(disk);
        let mut disk = self.lessening()?;
        let marks = &mut disk.inode_mut(ino)?.marks;
        (marks.metacopy, marks.redirect) = (false, None);
        drop(disk);
        self.lessening()?.inode_mut(ino)?.marks.partial = None;
        self.drop_partial(ino)
    }

    fn drop_partial(&self, backing: u64) -> Result<()> {
        let mut disk = self.lessening()?;
        disk.partials.remove(&backing);
        disk.sweep();
        Ok(())
    }

    fn clone_body(&self, _of: Target<'_, Self>, _body: &dyn LowerFile) -> Result<bool> {
        self.reading().map(|_| false)
    }

    fn partials(&self) -> Result<Vec<u64>> {
        Ok(self.reading()?.partials.iter().copied().collect())
    }

    fn link(&self, of: Target<'_, Self>, dir: &u64, name: Name<'_>, over: Over) -> Result<()> {
        let mut disk = self.changing()?;
        let ino = resolve(&disk, of)?;
        assert_ne!(disk.inode(ino)?.stat.kind, FileType::Dir, "the core links a directory");
        if disk.links(ino) == 0 {
            return Err(Errno::ENOENT.into());
        }
        disk.make_room(*dir, name, over)?;
        disk.put(*dir, name, ino)?;
        disk.sweep();
        Ok(())
    }

    fn whiteout(&self, dir: &u64, name: Name<'_>) -> Result<()> {
        let mut disk = self.changing()?;
        disk.make_room(*dir, name, Over::Nothing)?;
        let whiteout = disk.whiteout();
        disk.put(*dir, name, whiteout)
    }

    fn unlink(&self, dir: &u64, name: Name<'_>, leave: Leave) -> Result<()> {
        let mut disk = if leave == Leave::Nothing { self.lessening()? } else { self.changing()? };
        let ino = disk.child(*dir, name)?;
        assert!(
            disk.inode(ino)?.stat.kind != FileType::Dir && !disk.is_whiteout(ino),
            "the core unlinks what is no file"
        );
        disk.take(*dir, name, leave)
    }

    fn remove_dir(&self, dir: &u64, name: Name<'_>, leave: Leave) -> Result<()> {
        let mut disk = if leave == Leave::Nothing { self.lessening()? } else { self.changing()? };
        let ino = disk.child(*dir, name)?;
        assert!(disk.only_whiteouts(ino)?, "the core removes a directory that is not empty");
        disk.take(*dir, name, leave)
    }

    fn rename(&self, from: (&u64, Name<'_>), to: (&u64, Name<'_>), how: Rename) -> Result<()> {
        let mut disk = self.changing()?;
        let moving = disk.child(*from.0, from.1)?;
        let there = disk.entries(*to.0)?.get(to.1.as_bytes()).copied();
        let is_dir = |disk: &Disk, ino: u64| disk.inode(ino).map(|inode| inode.stat.kind == FileType::Dir);
        match (there, how.onto) {
            (None, Onto::Nothing) => {}
            (Some(ino), Onto::Whiteout) if disk.is_whiteout(ino) => {}
            (None, Onto::Whiteout) if disk.inode(*to.0)?.marks.opaque => {}
            (Some(ino), Onto::File) if !disk.is_whiteout(ino) && !is_dir(&disk, ino)? => {}
            (Some(ino), Onto::EmptyDir) if is_dir(&disk, ino)? && disk.only_whiteouts(ino)? => {
                // Its whiteouts cannot go in the same step.
                if !disk.entries(ino)?.is_empty() {
                    let inode = disk.inode_mut(ino)?;
                    inode.body = Body::Dir(BTreeMap::new());
                    (inode.marks.opaque, inode.marks.redirect) = (true, None);
                    disk.sweep();
                    drop(disk);
                    disk = self.changing()?;
                }
            }
            (Some(_), Onto::Exchange) => {}
            (there, onto) => panic!("the core said {onto:?} under '{}', there is {there:?}", to.1),
        }
        assert!(!disk.is_whiteout(moving), "the core moves a whiteout");
        disk.entries_mut(*from.0)?.remove(from.1.as_bytes());
        match (how.onto, there) {
            (Onto::Exchange, Some(other)) => disk.put(*from.0, from.1, other)?,
            _ if how.leave == Leave::Whiteout => {
                let whiteout = disk.whiteout();
                disk.put(*from.0, from.1, whiteout)?;
            }
            _ => disk.changed(*from.0),
        }
        disk.put(*to.0, to.1, moving)?;
        disk.sweep();
        Ok(())
    }

    fn set_opaque(&self, dir: &u64) -> Result<()> {
        let mut disk = self.changing()?;
        disk.inode_mut(*dir)?.marks.opaque = true;
        Ok(())
    }

    fn set_redirect(&self, of: Target<'_, Self>, path: &[u8]) -> Result<()> {
        let mut disk = self.changing()?;
        let ino = resolve(&disk, of)?;
        disk.inode_mut(ino)?.marks.redirect = Some(path.to_vec());
        Ok(())
    }

    fn remove_redirect(&self, of: Target<'_, Self>) -> Result<()> {
        let mut disk = self.changing()?;
        let ino = resolve(&disk, of)?;
        disk.inode_mut(ino)?.marks.redirect = None;
        Ok(())
    }

    fn set_attr(&self, of: Target<'_, Self>, attr: &SetAttr) -> Result<()> {
        let mut disk = self.lessening()?;
        let ino = resolve(&disk, of)?;
        disk.set_attr(ino, attr)
    }

    fn xattr(&self, of: Target<'_, Self>, name: &[u8]) -> Result<Vec<u8>> {
        let disk = self.reading()?;
        let inode = disk.inode(resolve(&disk, of)?)?;
        inode.xattrs.get(name).cloned().ok_or(Error::Answer(Errno::ENODATA))
    }

    fn xattr_names(&self, of: Target<'_, Self>) -> Result<Vec<Vec<u8>>> {
        let disk = self.reading()?;
        let inode = disk.inode(resolve(&disk, of)?)?;
        Ok(inode.xattrs.keys().cloned().collect())
    }

    fn set_xattr(&self, of: Target<'_, Self>, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        if private(name) {
            return Err(Errno::EPERM.into());
        }
        let mut disk = self.changing()?;
        let ino = resolve(&disk, of)?;
        let now = disk.now();
        let inode = disk.inode_mut(ino)?;
        match (how, inode.xattrs.contains_key(name)) {
            (SetXattr::Create, true) => return Err(Errno::EEXIST.into()),
            (SetXattr::Replace, false) => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        inode.xattrs.insert(name.to_vec(), value.to_vec());
        inode.stat.ctime = now;
        Ok(())
    }

    fn remove_xattr(&self, of: Target<'_, Self>, name: &[u8]) -> Result<()> {
        if private(name) {
            return Err(Errno::EPERM.into());
        }
        let mut disk = self.reading()?;
        let ino = resolve(&disk, of)?;
        if !disk.inode(ino)?.xattrs.contains_key(name) {
            return Err(Errno::ENODATA.into());
        }
        disk.roomless_step()?;
        disk.inode_mut(ino)?.xattrs.remove(name);
        Ok(())
    }

    fn set_lower_names(&self, of: Target<'_, Self>, count: u32) -> Result<()> {
        let mut disk = self.lessening()?;
        let ino = resolve(&disk, of)?;
        disk.inode_mut(ino)?.marks.lower_names = count;
        Ok(())
    }

    fn sync_dir(&self, _dir: &u64) -> Result<()> {
        self.reading().map(drop)
    }

    fn statfs(&self) -> Result<StatFs> {
        drop(self.reading()?);
        Ok(StatFs { block: 4096, blocks: 1000, free: 500, available: 500, files: 1000, files_free: 500 })
    }

    fn has_acls(&self) -> bool {
        true
    }
}

impl Disk {
    fn take(&mut self, dir: u64, name: Name<'_>, leave: Leave) -> Result<()> {
        self.entries_mut(dir)?.remove(name.as_bytes());
        self.changed(dir);
        if leave == Leave::Whiteout {
            let whiteout = self.whiteout();
            self.put(dir, name, whiteout)?;
        }
        self.sweep();
        Ok(())
    }
}

impl MemoryFile {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        match self.disk.lock() {
            Ok(disk) => disk,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn changing(&self) -> Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk();
        disk.step()?;
        Ok(disk)
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let mut disk = self.disk();
        let last = match disk.opens.get_mut(&self.ino) {
            Some(opens) => {
                *opens -= 1;
                *opens == 0
            }
            None => false,
        };
        if last {
            disk.opens.remove(&self.ino);
            disk.sweep();
        }
    }
}

impl UpperFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let disk = self.disk();
        if disk.crashed() {
            return Err(gone());
        }
        let Body::File(data) = &disk.inode(self.ino)?.body else { return Err(Errno::EINVAL.into()) };
        let rest = data.bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        let mut disk = self.changing()?;
        disk.content_mut(self.ino)?.write(bytes, offset as usize);
        Ok(bytes.len())
    }

    fn truncate(&self, size: u64) -> Result<()> {
        let mut disk = self.disk();
        let grows = disk.stat(self.ino)?.size < size;
        if grows {
            disk.step()?
        } else {
            disk.roomless_step()?
        }
        disk.content_mut(self.ino)?.resize(size as usize);
        Ok(())
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        let mut disk = self.changing()?;
        let data = disk.content_mut(self.ino)?;
        let end = (offset + len) as usize;
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && data.bytes.len() < end {
            data.resize(end);
        }
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            data.zero(offset as usize, end);
        }
        Ok(())
    }

    fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        let disk = self.disk();
        let Body::File(data) = &disk.inode(self.ino)?.body else { return Err(Errno::EINVAL.into()) };
        data.seek(offset as usize, what).ok_or(Error::Answer(Errno::ENXIO))
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        if self.disk().crashed() { Err(gone()) } else { Ok(()) }
    }

    fn copy_range(&self, offset: u64, to: &Self, to_offset: u64, len: u64) -> Result<u64> {
        let mut bytes = vec![0; len as usize];
        let read = self.read_at(&mut bytes, offset)?;
        to.write_at(&bytes[..read], to_offset).map(|count| count as u64)
    }
}
