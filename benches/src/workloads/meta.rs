//! Mounting, walking the tree, names that are missing, opening.

use std::ffi::CString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::tree::{self, Look};
use super::{Scene, Stage, always, amount, everybody, row, spelled, whoever_mounts};
use crate::contestants::Place;
use crate::interrupt;
use crate::plan::{Group, Sizes};
use crate::stack::Kind;

/// Mounts are short: several in each round.
const MOUNTS: usize = 5;

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    let missing = amount(sizes.missing);
    vec![
        Scene {
            rows: vec![
                row("mount.cold", "mount until the first stat, cold").cold(),
                row("mount.new", "mount until the first stat"),
                row("mount.command", "the same by the command 'plyfs mount'"),
            ],
            weight: 2.0,
            fits: whoever_mounts,
            ..scene("mount", mount)
        },
        Scene {
            rows: vec![
                row("walk.cold", "tree walk, cold").cold(),
                row("walk.new", "tree walk, new mount"),
                row("walk.warm", "tree walk, warm"),
            ],
            weight: 5.0,
            ..scene("tree walk", walk)
        },
        Scene {
            rows: vec![row("du.cold", "du, cold").cold(), row("du.warm", "du, warm")],
            weight: 7.0,
            ..scene("du", |stage| {
                cold_and_warm(stage, ["du.cold", "du.warm"], |root| tree::walk(root, Look::Attributes))
            })
        },
        Scene {
            rows: vec![row("ls.cold", "ls -lR with xattrs, cold").cold(), row("ls.warm", "ls -lR with xattrs, warm")],
            weight: 14.0,
            ..scene("ls -lR", |stage| cold_and_warm(stage, ["ls.cold", "ls.warm"], tree::list))
        },
        Scene {
            rows: vec![
                row("missing.cold", format!("{missing} missing names, cold")).cold(),
                row("missing.warm", format!("{missing} missing names, warm")),
            ],
            weight: 6.0,
            ..scene("missing names", |stage| {
                missing_names(stage, stage.sizes.missing, "missing.cold", Some("missing.warm"))
            })
        },
        Scene {
            rows: vec![
                row("open.new", "open and close every file, new mount"),
                row("open.warm", "open and close every file, warm"),
            ],
            weight: 6.0,
            ..scene("opens", opens)
        },
    ]
}

fn scene(name: &str, play: impl Fn(&mut Stage<'_>) -> Result<()> + 'static) -> Scene {
    Scene {
        group: Group::Meta,
        name: name.into(),
        stack: Kind::Image,
        rows: Vec::new(),
        weight: 1.0,
        fits: everybody,
        possible: always,
        play: Box::new(play),
    }
}

fn mount(stage: &mut Stage<'_>) -> Result<()> {
    let place = stage.place()?;
    if stage.chill()? {
        mount_once(stage, "mount.cold", place)?;
    }
    for _ in 0..MOUNTS {
        let place = stage.place()?;
        mount_once(stage, "mount.new", place)?;
        by_command(stage)?;
    }
    Ok(())
}

fn mount_once(stage: &mut Stage<'_>, row: &str, place: Place) -> Result<()> {
    let (contestant, stack) = (stage.contestant, stage.stack);
    stage.time(row, || contestant.mount(stack, place))?.end()
}

/// Mounts by the command that people type, where there is one: others have no other than the one that was measured already.
fn by_command(stage: &mut Stage<'_>) -> Result<()> {
    let (Some(program), Some(stored)) = (stage.contestant.command(), &stage.stack.stored) else {
        let place = stage.place()?;
        return mount_once(stage, "mount.command", place);
    };
    let place = stage.place()?;
    let run = |words: &[&std::ffi::OsStr]| -> Result<()> {
        let mut command = Command::new(program);
        command.arg("--root").arg(stored.store.root()).args(words);
        let output = command.stdin(Stdio::null()).output()?;
        match output.status.success() {
            true => Ok(()),
            false => bail!("{}", String::from_utf8_lossy(&output.stderr).trim()),
        }
    };
    let id = stored.image.id.to_string();
    stage.time("mount.command", || {
        run(&["mount".as_ref(), id.as_ref(), place.mnt.as_ref()])?;
        Ok(rustix::fs::stat(&place.mnt)?)
    })?;
    run(&["umount".as_ref(), place.mnt.as_ref()])?;
    crate::scratch::remove_tree(&place.dir)
}

fn walk(stage: &mut Stage<'_>) -> Result<()> {
    let walk = |root: &Path| tree::walk(root, Look::Names);
    if let Some(mounted) = stage.time_cold("walk.cold", walk)? {
        mounted.end()?;
    }
    let mounted = stage.mount()?;
    stage.time("walk.new", || walk(mounted.root()))?;
    stage.time("walk.warm", || walk(mounted.root()))?;
    mounted.end()
}

/// Does `work` cold, where that is possible, and once more on the same mount.
fn cold_and_warm<T>(stage: &mut Stage<'_>, [cold, warm]: [&str; 2], work: impl Fn(&Path) -> Result<T>) -> Result<()> {
    let mounted = match stage.time_cold(cold, &work)? {
        Some(mounted) => mounted,
        None => {
            let mounted = stage.mount()?;
            work(mounted.root())?;
            mounted
        }
    };
    stage.time(warm, || work(mounted.root()))?;
    mounted.end()
}

/// Looks up names that are nowhere, all over the tree, by path; cold, and warm if there is such a row.
pub(super) fn missing_names(stage: &mut Stage<'_>, count: u32, cold: &str, warm: Option<&str>) -> Result<()> {
    let is_cold = stage.chill()?;
    if !is_cold && warm.is_none() {
        return Ok(());
    }
    let mounted = stage.mount()?;
    let dirs = &stage.survey.dirs;
    let names: Vec<_> = (0..count as usize).map(|n| dirs[n % dirs.len()].join(format!("missing-{n}"))).collect();
    let names = spelled(mounted.root(), &names)?;
    let look = || -> Result<()> {
        for name in &names {
            interrupt::check()?;
            match rustix::fs::statat(CWD, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => bail!("{name:?} is there"),
            }
        }
        Ok(())
    };
    match is_cold {
        true => stage.time(cold, look)?,
        false => look()?,
    }
    if let Some(warm) = warm {
        stage.time(warm, look)?;
    }
    mounted.end()
}

fn opens(stage: &mut Stage<'_>) -> Result<()> {
    let once = stage.mount()?;
    open_all(&spelled(once.root(), stage.survey.paths())?)?; // So that the lower files are cached.
    once.end()?;
    let mounted = stage.mount()?;
    let files = spelled(mounted.root(), stage.survey.paths())?;
    stage.time("open.new", || open_all(&files))?;
    stage.time("open.warm", || open_all(&files))?;
    mounted.end()
}

fn open_all(files: &[CString]) -> Result<()> {
    for file in files {
        interrupt::check()?;
        rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    }
    Ok(())
}
