//! What containers of one image share: time, disk, memory, the page cache.

use std::path::PathBuf;

use anyhow::Result;

use super::data::read_all;
use super::{Scene, Stage, always, amount, row, spelled, whoever_mounts};
use crate::contestants::Mounted;
use crate::machine;
use crate::plan::{Group, Sizes};
use crate::stack::Kind;

/// Files that each of many containers reads.
const READ: usize = 100;

/// What two containers read to see whether the page cache holds it once, in bytes.
const SHARED: u64 = 256 << 20;

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    let containers = amount(sizes.containers);
    vec![
        Scene {
            rows: vec![
                row("containers.start", format!("{containers} containers: mount, read {READ} files, write one")),
                row("containers.disk", "  disk for each").bytes(),
                row("containers.memory", "  daemon's memory for each, PSS").bytes(),
            ],
            weight: 6.0,
            ..scene("containers", containers_of_one_image)
        },
        Scene {
            rows: vec![
                row("cache.first", "page cache for the largest files, first container").bytes().cold(),
                row("cache.second", "page cache for the same, second container").bytes().cold(),
            ],
            weight: 4.0,
            ..scene("page cache", page_cache)
        },
    ]
}

fn scene(name: &str, play: impl Fn(&mut Stage<'_>) -> Result<()> + 'static) -> Scene {
    Scene {
        group: Group::Sharing,
        name: name.into(),
        stack: Kind::Image,
        rows: Vec::new(),
        weight: 1.0,
        fits: whoever_mounts,
        possible: always,
        play: Box::new(play),
    }
}

fn containers_of_one_image(stage: &mut Stage<'_>) -> Result<()> {
    stage.settle()?;
    let files: Vec<PathBuf> = stage.survey.spread(READ);
    let count = stage.sizes.containers;
    let once = stage.mount()?;
    read_all(&spelled(once.root(), &files)?)?; // So that the first container pays no more than the others.
    once.end()?;
    let places = (0..count).map(|_| stage.place()).collect::<Result<Vec<_>>>()?;
    let (contestant, stack) = (stage.contestant, stage.stack);
    let mut all = stage.time("containers.start", || {
        let start = |place| {
            let mounted = contestant.mount(stack, place)?;
            read_all(&spelled(mounted.root(), &files)?)?;
            std::fs::write(mounted.root().join("plyfs-bench"), b"one small file\n")?;
            Ok(mounted)
        };
        places.into_iter().map(start).collect::<Result<Vec<_>>>()
    })?;
    stage.settle()?;
    let (mut disk, mut memory) = (0, 0);
    for mounted in &mut all {
        disk += mounted.disk()?;
        memory += mounted.memory()?.proportional;
    }
    stage.record("containers.disk", disk as f64 / f64::from(count));
    stage.record("containers.memory", memory as f64 / f64::from(count));
    all.into_iter().try_for_each(Mounted::end)
}

/// Reads the largest files in one container, then in another, and sees how the page cache grows.
fn page_cache(stage: &mut Stage<'_>) -> Result<()> {
    if !stage.chill()? {
        return Ok(());
    }
    let mut files = stage.survey.files.clone();
    files.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let mut left = SHARED;
    let wanted = files.iter().take_while(|(_, size)| {
        let fits = left > 0;
        left = left.saturating_sub(*size);
        fits
    });
    let wanted: Vec<PathBuf> = wanted.map(|(path, _)| path.clone()).collect();
    let containers = [stage.mount()?, stage.mount()?];
    for (row, container) in ["cache.first", "cache.second"].into_iter().zip(&containers) {
        let before = machine::page_cache();
        read_all(&spelled(container.root(), &wanted)?)?;
        stage.record(row, machine::page_cache().saturating_sub(before) as f64);
    }
    containers.into_iter().try_for_each(Mounted::end)
}

impl super::Survey {
    /// Returns `count` files from all over the tree.
    fn spread(&self, count: usize) -> Vec<PathBuf> {
        let step = (self.files.len() / count.max(1)).max(1);
        self.files.iter().step_by(step).take(count).map(|(path, _)| path.clone()).collect()
    }
}
