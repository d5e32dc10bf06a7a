//! Writing and making new files. Nothing of the image is touched.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::{Mode, OFlags};

use super::data::random_page;
use super::{Scene, Stage, always, amount, everybody, row, spelled};
use crate::contestants::Mounted;
use crate::interrupt;
use crate::plan::{Group, Sizes};
use crate::stack::{Kind, Noise};
use crate::units::Unit;

const CHUNK: usize = 1 << 20;
const BLOCK: usize = 4096;

/// The directory at the root in which all happens.
const DIR: &str = "plyfs-bench";

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    let stream = Unit::Bytes.show(sizes.stream as f64).replace(".0 ", " ");
    let creates = amount(sizes.creates);
    vec![
        Scene {
            rows: vec![
                row("write.stream", format!("write {stream}")),
                row("write.random", format!("{} random writes of 4 KiB", amount(sizes.writes))),
                row("write.synced", format!("{} writes of 4 KiB, each synced", amount(sizes.synced))),
            ],
            weight: 8.0,
            ..scene("writing a large file", large_file)
        },
        Scene {
            rows: vec![
                row("storm.mkdir", format!("make {} directories", amount(sizes.mkdirs))),
                row("storm.create", format!("create {creates} files")),
                row("storm.rename", format!("rename {} files", amount(sizes.renames))),
                row("storm.unlink", format!("unlink {creates} files")),
                row("storm.rmdir", format!("remove {} directories", amount(sizes.mkdirs))),
            ],
            weight: 14.0,
            ..scene("storms", storms)
        },
        Scene {
            rows: vec![row("save", format!("{} safe saves", amount(sizes.saves)))],
            weight: 4.0,
            ..scene("safe saves", saves)
        },
    ]
}

fn scene(name: &str, play: impl Fn(&mut Stage<'_>, &Path) -> Result<()> + 'static) -> Scene {
    Scene {
        group: Group::Write,
        name: name.into(),
        stack: Kind::Image,
        rows: Vec::new(),
        weight: 1.0,
        fits: everybody,
        possible: always,
        play: Box::new(move |stage| in_new_dir(stage, |stage, dir| play(stage, dir))),
    }
}

/// Plays in a new directory of a new mount.
pub(super) fn in_new_dir(stage: &mut Stage<'_>, play: impl FnOnce(&mut Stage<'_>, &Path) -> Result<()>) -> Result<()> {
    stage.settle()?;
    let mounted = stage.mount()?;
    let new = NewDir::make(&mounted)?;
    play(stage, &new.dir)?;
    drop(new);
    mounted.end()
}

/// A directory that must not stay where the layers themselves are written to.
struct NewDir {
    dir: PathBuf,
    stays: bool,
}

impl NewDir {
    fn make(mounted: &Mounted) -> Result<Self> {
        let dir = mounted.root().join(DIR);
        fs::create_dir(&dir)?;
        Ok(NewDir { dir, stays: !mounted.is_plain() })
    }
}

impl Drop for NewDir {
    fn drop(&mut self) {
        if !self.stays {
            fs::remove_dir_all(&self.dir).ok(); // The next round says so if it is still there.
        }
    }
}

fn large_file(stage: &mut Stage<'_>, dir: &Path) -> Result<()> {
    let sizes = stage.sizes;
    let chunk = vec![0x5a; CHUNK];
    let file = File::create_new(dir.join("large"))?;
    stage.time("write.stream", || {
        for offset in (0..sizes.stream).step_by(CHUNK) {
            interrupt::check()?;
            rustix::io::pwrite(&file, &chunk, offset)?;
        }
        Ok(())
    })?;
    file.sync_all()?;
    let mut random = Noise::new(2);
    let mut write = |count: u32, synced: bool| -> Result<()> {
        for _ in 0..count {
            interrupt::check()?;
            rustix::io::pwrite(&file, &chunk[..BLOCK], random_page(&mut random, sizes.stream))?;
            if synced {
                rustix::fs::fdatasync(&file)?;
            }
        }
        Ok(())
    };
    stage.time("write.random", || write(sizes.writes, false))?;
    file.sync_all()?;
    stage.time("write.synced", || write(sizes.synced, true))
}

fn storms(stage: &mut Stage<'_>, dir: &Path) -> Result<()> {
    let sizes = stage.sizes;
    let dirs: Vec<PathBuf> = (0..sizes.mkdirs).map(|n| format!("dir{n}").into()).collect();
    let dirs = spelled(dir, &dirs)?;
    stage.time("storm.mkdir", || each(&dirs, |path| Ok(rustix::fs::mkdir(path, Mode::from(0o755))?)))?;
    let files: Vec<PathBuf> = (0..sizes.creates).map(|n| format!("file{n}").into()).collect();
    let files = spelled(dir, &files)?;
    stage.time("storm.create", || create(&files))?;
    let renamed: Vec<PathBuf> = (0..sizes.renames).map(|n| format!("renamed{n}").into()).collect();
    let renamed = spelled(dir, &renamed)?;
    stage.time("storm.rename", || {
        files.iter().zip(&renamed).try_for_each(|(old, new)| {
            interrupt::check()?;
            Ok(rustix::fs::rename(old, new)?)
        })
    })?;
    let left: Vec<_> = renamed.iter().chain(&files[renamed.len().min(files.len())..]).collect();
    stage.time("storm.unlink", || each(left, |path| Ok(rustix::fs::unlink(path)?)))?;
    stage.time("storm.rmdir", || each(&dirs, |path| Ok(rustix::fs::rmdir(path)?)))
}

fn each<T>(paths: impl IntoIterator<Item = T>, work: impl Fn(T) -> Result<()>) -> Result<()> {
    paths.into_iter().try_for_each(|path| {
        interrupt::check()?;
        work(path)
    })
}

/// Creates small files with some content.
pub(super) fn create(files: &[std::ffi::CString]) -> Result<()> {
    each(files, |path| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::from(0o644))?;
        rustix::io::write(&file, &[0x5a; 100])?;
        Ok(())
    })
}

/// As editors save: a new file, synced, takes the old one's name.
fn saves(stage: &mut Stage<'_>, dir: &Path) -> Result<()> {
    let (old, new) = (dir.join("text"), dir.join("text.new"));
    let count = stage.sizes.saves;
    stage.time("save", || {
        for _ in 0..count {
            interrupt::check()?;
            let mut file = File::create_new(&new)?;
            file.write_all(&[0x5a; BLOCK])?;
            file.sync_all()?;
            fs::rename(&new, &old)?;
        }
        Ok(())
    })
}
