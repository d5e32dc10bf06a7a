//! Reading: every file of the image, and one large file.

use std::ffi::CString;
use std::fs::File;
use std::path::Path;

use anyhow::Result;
use backing::mmap::Map;
use rustix::fs::{Mode, OFlags};

use super::{Scene, Stage, always, amount, everybody, row, spell, spelled};
use crate::interrupt;
use crate::machine::Caches;
use crate::plan::{Group, Sizes};
use crate::stack::{BIG, Kind, Noise};
use crate::units::Unit;

/// What cat asks for at once.
const CHUNK: usize = 128 << 10;
const PAGE: usize = 4096;

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    let stream = Unit::Bytes.show(sizes.stream as f64).replace(".0 ", " ");
    let reads = amount(sizes.reads);
    vec![
        Scene {
            group: Group::Data,
            name: "reading every file".into(),
            stack: Kind::Image,
            rows: vec![
                row("read.cold", "read every file, cold").cold(),
                row("read.new", "read every file, new mount"),
                row("read.warm", "read every file, warm"),
            ],
            weight: 16.0,
            fits: everybody,
            possible: always,
            play: Box::new(every_file),
        },
        Scene {
            group: Group::Data,
            name: "reading a large file".into(),
            stack: Kind::Heavy,
            rows: vec![
                row("stream.cold", format!("read {stream} of one file, cold")).cold(),
                row("stream.warm", format!("read {stream} of one file, warm")),
                row("stream.mmap", format!("read {stream} by mmap, warm")),
                row("random.pread", format!("{reads} random reads of 4 KiB")),
                row("random.mmap", format!("{reads} random reads by mmap")),
            ],
            weight: 8.0,
            fits: everybody,
            possible: always,
            play: Box::new(large_file),
        },
    ]
}

fn every_file(stage: &mut Stage<'_>) -> Result<()> {
    if stage.chill()? {
        let mounted = stage.mount()?;
        let files = spelled(mounted.root(), stage.survey.paths())?;
        stage.time("read.cold", || read_all(&files))?;
        mounted.end()?;
    }
    let mounted = stage.mount()?;
    let files = spelled(mounted.root(), stage.survey.paths())?;
    if stage.caches == Caches::Stay {
        read_all(&files)?; // So that the lower files are in the page cache, as after a cold round.
    }
    stage.time("read.new", || read_all(&files))?;
    stage.time("read.warm", || read_all(&files))?;
    mounted.end()
}

/// Opens, reads and closes each file.
pub(super) fn read_all<'f>(files: impl IntoIterator<Item = &'f CString>) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    for file in files {
        interrupt::check()?;
        let file = rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        while rustix::io::read(&file, &mut buffer[..])? > 0 {}
    }
    Ok(())
}

fn large_file(stage: &mut Stage<'_>) -> Result<()> {
    let sizes = stage.sizes;
    let read = |root: &Path| read_start(root, sizes.stream);
    let mounted = match stage.time_cold("stream.cold", read)? {
        Some(mounted) => mounted,
        None => stage.mount()?,
    };
    read(mounted.root())?; // The kernel may have dropped some of a stream that it read once.
    stage.time("stream.warm", || read(mounted.root()))?;
    let file = File::open(mounted.root().join(BIG))?;
    let mut random = Noise::new(1);
    stage.time("random.pread", || {
        let mut page = [0; PAGE];
        for _ in 0..sizes.reads {
            interrupt::check()?;
            rustix::io::pread(&file, &mut page[..], random_page(&mut random, sizes.stream))?;
        }
        Ok(())
    })?;
    stage.time("stream.mmap", || Ok(touch(&Map::of(&file)?, (0..sizes.stream).step_by(PAGE))))?;
    stage.time("random.mmap", || {
        let offsets = (0..sizes.reads).map(|_| random_page(&mut random, sizes.stream));
        Ok(touch(&Map::of(&file)?, offsets))
    })?;
    drop(file);
    mounted.end()
}

fn read_start(root: &Path, len: u64) -> Result<()> {
    let file = rustix::fs::open(&spell(root, BIG)?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = vec![0; CHUNK];
    let mut left = len;
    while left > 0 {
        interrupt::check()?;
        let got = rustix::io::read(&file, &mut buffer[..])? as u64;
        if got == 0 {
            break;
        }
        left = left.saturating_sub(got);
    }
    Ok(())
}

/// Chooses a page below `len`.
pub(super) fn random_page(random: &mut Noise, len: u64) -> u64 {
    let page = PAGE as u64;
    random.next() % (len / page).max(1) * page
}

/// Reads a byte at each offset of a map, in a way that is not optimised out.
fn touch(map: &Map, offsets: impl Iterator<Item = u64>) -> u64 {
    let bytes = map.as_ref();
    let byte = |offset: u64| bytes.get(offset as usize).copied().map_or(0, u64::from);
    std::hint::black_box(offsets.map(byte).fold(0, u64::wrapping_add))
}
