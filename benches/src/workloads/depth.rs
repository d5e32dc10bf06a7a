//! Stacks of 1, 32 and 128 layers: the same merged tree, so that only the number of layers differs.

use std::ffi::CString;
use std::path::Path;

use anyhow::Result;
use rustix::fs::{AtFlags, CWD};

use super::meta::missing_names;
use super::tree::{self, Look};
use super::{Scene, Stage, always, amount, everybody, row, spelled};
use crate::interrupt;
use crate::plan::{Group, Sizes};
use crate::stack::Kind;

/// How many layers the stacks have.
pub(crate) const DEPTHS: [u32; 3] = [1, 32, 128];

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    DEPTHS.into_iter().map(|layers| scene(layers, sizes)).collect()
}

fn scene(layers: u32, sizes: &Sizes) -> Scene {
    let of = if layers == 1 { "1 layer".to_string() } else { format!("{layers} layers") };
    let key = |name: &str| format!("depth.{layers}.{name}");
    let (missing, files) = (amount(sizes.deep_missing), amount(sizes.deep));
    Scene {
        group: Group::Depth,
        name: of.clone(),
        stack: Kind::Deep(layers),
        rows: vec![
            row(&key("mount"), format!("{of}: mount until the first stat")),
            row(&key("walk.cold"), format!("{of}: tree walk, cold")).cold(),
            row(&key("walk.new"), format!("{of}: tree walk, new mount")),
            row(&key("missing.cold"), format!("{of}: {missing} missing names, cold")).cold(),
            row(&key("stat.new"), format!("{of}: stat of {files} files, new mount")),
        ],
        weight: 4.0,
        fits: everybody,
        possible: always,
        play: Box::new(move |stage| play(stage, layers)),
    }
}

fn play(stage: &mut Stage<'_>, layers: u32) -> Result<()> {
    let key = |name: &str| format!("depth.{layers}.{name}");
    let walk = |root: &Path| tree::walk(root, Look::Names);
    missing_names(stage, stage.sizes.deep_missing, &key("missing.cold"), None)?;
    let first = match stage.time_cold(&key("walk.cold"), walk)? {
        Some(mounted) => mounted,
        None => stage.mount()?,
    };
    stat_all(&spelled(first.root(), stage.survey.paths())?)?; // So that the lower inodes are cached.
    first.end()?;

    let place = stage.place()?;
    let (contestant, stack) = (stage.contestant, stage.stack);
    let mount = || contestant.mount(stack, place);
    let mounted = match contestant.is_plain() {
        true => mount()?,
        false => stage.time(&key("mount"), mount)?,
    };
    stage.time(&key("walk.new"), || walk(mounted.root()))?;
    mounted.end()?;

    let mounted = stage.mount()?;
    let files = spelled(mounted.root(), stage.survey.paths())?;
    stage.time(&key("stat.new"), || stat_all(&files))?;
    mounted.end()
}

fn stat_all(files: &[CString]) -> Result<()> {
    for file in files {
        interrupt::check()?;
        rustix::fs::statat(CWD, file, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
