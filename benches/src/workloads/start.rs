//! Starting containers, and what their daemons take.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::tree::{self, Look};
use super::{Scene, Stage, always, amount, everybody, row, whoever_mounts};
use crate::contestants::Mounted;
use crate::plan::{Group, Sizes};
use crate::stack::Kind;

/// What an image's python3 imports, if it has them.
const MODULES: [&str; 3] = ["numpy", "pandas", "scipy"];

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    let mounts = amount(sizes.mounts);
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
}
