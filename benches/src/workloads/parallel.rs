//! One to eight clients at once.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::data::read_all;
use super::tree::{self, Look};
use super::write::{create, in_new_dir};
use super::{Scene, Stage, always, amount, everybody, row, spelled};
use crate::plan::{Group, Sizes};
use crate::stack::Kind;

/// How many clients there are.
pub(crate) const CLIENTS: [u32; 4] = [1, 2, 4, 8];

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    let creates = amount(sizes.creates);
    vec![
        scene("walkers", 14.0, |n| format!("{n}: each walks the tree, warm"), walkers),
        scene("readers", 6.0, |n| format!("{n}: together read every file, warm"), readers),
        scene("creators", 12.0, move |n| format!("{n}: together create {creates} files"), creators),
    ]
}

fn scene(
    name: &str,
    weight: f64,
    title: impl Fn(&str) -> String,
    play: impl Fn(&mut Stage<'_>) -> Result<()> + 'static,
) -> Scene {
    let of = |clients: u32| if clients == 1 { "1 client".to_string() } else { format!("{clients} clients") };
    Scene {
        group: Group::Parallel,
        name: name.into(),
        stack: Kind::Image,
        rows: CLIENTS.into_iter().map(|n| row(&key(name, n), title(&of(n)))).collect(),
        weight,
        fits: everybody,
        possible: always,
        play: Box::new(play),
    }
}

fn key(name: &str, clients: u32) -> String {
    format!("parallel.{name}.{clients}")
}

/// Has so many threads do `work` at once, each with its number.
fn at_once(clients: u32, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..clients as usize).map(|number| scope.spawn(move || work(number))).collect();
        let ends = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a client panicked")));
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

fn walkers(stage: &mut Stage<'_>) -> Result<()> {
    let mounted = stage.mount()?;
    let walk = |root: &Path| tree::walk(root, Look::Names).map(drop);
    walk(mounted.root())?;
    for clients in CLIENTS {
        stage.time(&key("walkers", clients), || at_once(clients, |_| walk(mounted.root())))?;
    }
    mounted.end()
}

fn readers(stage: &mut Stage<'_>) -> Result<()> {
    let mounted = stage.mount()?;
    let files = spelled(mounted.root(), stage.survey.paths())?;
    read_all(&files)?;
    for clients in CLIENTS {
        let share = |number: usize| read_all(files.iter().skip(number).step_by(clients as usize));
        stage.time(&key("readers", clients), || at_once(clients, share))?;
    }
    mounted.end()
}

fn creators(stage: &mut Stage<'_>) -> Result<()> {
    for clients in CLIENTS {
        in_new_dir(stage, |stage, dir| {
            let shares = (0..clients).map(|number| share(stage, dir, number, clients)).collect::<Result<Vec<_>>>()?;
            stage.time(&key("creators", clients), || at_once(clients, |number| create(&shares[number])))
        })?;
    }
    Ok(())
}

/// Makes a client's directory, and the names of its files in it.
fn share(stage: &Stage<'_>, dir: &Path, number: u32, clients: u32) -> Result<Vec<std::ffi::CString>> {
    let own = dir.join(format!("client{number}"));
    std::fs::create_dir(&own)?;
    let names: Vec<PathBuf> = (0..stage.sizes.creates / clients).map(|n| format!("file{n}").into()).collect();
    spelled(&own, &names)
}
