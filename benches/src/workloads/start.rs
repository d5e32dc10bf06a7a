//! Starting containers, and what many of them take.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::data::read_all;
use super::tree::{self, Look};
use super::{Scene, Stage, always, amount, everybody, row, spelled, whoever_mounts};
use crate::contestants::Mounted;
use crate::machine;
use crate::plan::{Group, Sizes};
use crate::stack::Kind;

/// What an image's python3 imports, if it has them.
const MODULES: [&str; 3] = ["numpy", "pandas", "scipy"];

/// Files that each of many containers reads.
const READ: usize = 100;

/// What two containers read to see whether the page cache holds it once, in bytes.
const SHARED: u64 = 256 << 20;

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    let (mounts, containers) = (amount(sizes.mounts), amount(sizes.containers));
    vec![
        Scene {
            rows: vec![
                row("python.cold", "python3 -c 'import ...', cold").cold(),
                row("python.new", "python3 -c 'import ...', new mount"),
            ],
            weight: 8.0,
            possible: |survey| if survey.has_python() { Ok(()) } else { Err("the image has no python3") },
            ..scene("python", python)
        },
        Scene {
            rows: vec![row("mounts", format!("{mounts} mounts")), row("unmounts", format!("{mounts} unmounts"))],
            weight: 4.0,
            fits: whoever_mounts,
            ..scene("mounts", mounts_and_unmounts)
        },
        Scene {
            rows: vec![
                row("memory.resident", "daemon's memory after a walk, RSS").bytes(),
                row("memory.proportional", "daemon's memory after a walk, PSS").bytes(),
            ],
            weight: 4.0,
            fits: whoever_mounts,
            ..scene("memory", memory)
        },
        Scene {
            rows: vec![
                row("containers.start", format!("{containers} containers: mount, read {READ} files, write one")),
                row("containers.disk", "  disk for each").bytes(),
                row("containers.memory", "  daemon's memory for each, PSS").bytes(),
            ],
            weight: 6.0,
            fits: whoever_mounts,
            ..scene("containers", containers_of_one_image)
        },
        Scene {
            rows: vec![
                row("cache.first", "page cache for the largest files, first container").bytes().cold(),
                row("cache.second", "page cache for the same, second container").bytes().cold(),
            ],
            weight: 4.0,
            fits: whoever_mounts,
            ..scene("page cache", page_cache)
        },
    ]
}

fn scene(name: &str, play: impl Fn(&mut Stage<'_>) -> Result<()> + 'static) -> Scene {
    Scene {
        group: Group::Start,
        name: name.into(),
        stack: Kind::Image,
        rows: Vec::new(),
        weight: 1.0,
        fits: everybody,
        possible: always,
        play: Box::new(play),
    }
}

fn python(stage: &mut Stage<'_>) -> Result<()> {
    let modules: Vec<&str> = MODULES.into_iter().filter(|name| stage.survey.has_module(name)).collect();
    let code = if modules.is_empty() { "pass".into() } else { format!("import {}", modules.join(", ")) };
    if stage.chill()? {
        let mounted = stage.mount()?;
        stage.time("python.cold", || run_python(&mounted, &code))?;
        mounted.end()?;
    } else {
        let mounted = stage.mount()?;
        run_python(&mounted, &code)?;
        mounted.end()?;
    }
    let mounted = stage.mount()?;
    stage.time("python.new", || run_python(&mounted, &code))?;
    mounted.end()
}

/// Runs the image's interpreter, which is the workload itself.
fn run_python(mounted: &Mounted, code: &str) -> Result<()> {
    let mut command = Command::new("chroot");
    command.arg(mounted.root()).args(["/usr/bin/env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin"]);
    command.args(["PYTHONDONTWRITEBYTECODE=1", "python3", "-c", code]);
    let output = command.stdin(Stdio::null()).output().context("chroot")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("python3 in a chroot: {}: {}", output.status, said.lines().last().unwrap_or_default());
    }
    Ok(())
}

fn mounts_and_unmounts(stage: &mut Stage<'_>) -> Result<()> {
    stage.settle()?;
    let places = (0..stage.sizes.mounts).map(|_| stage.place()).collect::<Result<Vec<_>>>()?;
    let (contestant, stack) = (stage.contestant, stage.stack);
    let mut all = stage.time("mounts", || {
        places.into_iter().map(|place| contestant.mount(stack, place)).collect::<Result<Vec<_>>>()
    })?;
    all.iter_mut().for_each(Mounted::find_daemon);
    stage.time("unmounts", || all.iter_mut().try_for_each(Mounted::unmount))?;
    all.into_iter().try_for_each(Mounted::end)
}

fn memory(stage: &mut Stage<'_>) -> Result<()> {
    let mut mounted = stage.mount()?;
    tree::walk(mounted.root(), Look::Attributes)?;
    let memory = mounted.memory()?;
    stage.record("memory.resident", memory.resident as f64);
    stage.record("memory.proportional", memory.proportional as f64);
    mounted.end()
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
    fn has_python(&self) -> bool {
        let is_python = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            path.parent().is_some_and(|dir| dir.ends_with("usr/bin") || dir.ends_with("usr/local/bin"))
                && name.starts_with("python3")
        };
        self.paths().any(is_python)
    }

    fn has_module(&self, name: &str) -> bool {
        let is_module = |dir: &PathBuf| {
            dir.file_name().is_some_and(|last| last == name)
                && dir
                    .parent()
                    .is_some_and(|parent| parent.ends_with("site-packages") || parent.ends_with("dist-packages"))
        };
        self.dirs.iter().any(is_module)
    }

    /// Returns `count` files from all over the tree.
    fn spread(&self, count: usize) -> Vec<PathBuf> {
        let step = (self.files.len() / count.max(1)).max(1);
        self.files.iter().step_by(step).take(count).map(|(path, _)| path.clone()).collect()
    }
}
