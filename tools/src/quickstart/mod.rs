//! `plyfs quickstart`: everything that plyfs does, once, for somebody who has just met it.
//!
//! It looks at what it says: a container that sees what another one wrote ends it with an error.

mod next;
mod scene;
mod view;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, bail};
use rustix::process::geteuid;
use store::{Container, Image, LoadOptions, Source, Store};

use crate::cli::{IdMap, QuickstartArgs};
use crate::print::table::{Table, ellipsis};
use crate::print::units;
use crate::{namespace, progress, sample};

use scene::Scene;
use view::{Changes, Seen};

const HEADING: Style = Style::new().bold();
const COMMAND: Style = AnsiColor::Cyan.on_default();
const INDENT: &str = "   ";

/// Widest cell of the table that compares what containers see.
const CELL: usize = 34;

/// Who mounts here, and so who sees the mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the open: as root, or through fusermount3.
    Outside,
    /// In a namespace that ends with this process.
    Namespace,
}

/// `plyfs quickstart`
pub(crate) fn run(root: PathBuf, args: &QuickstartArgs) -> Result<()> {
    let place = find_place()?;
    let given = match &args.image {
        None => Given::Sample,
        Some(text) => Given::find(text, &root)?,
    };
    let in_users_store = args.keep || matches!(given, Given::Loaded(_));
    let scene = Scene::set(in_users_store.then_some(&root))?;
    let done = Quickstart { scene: &scene, place, keep: args.keep, out: anstream::stdout() }.play(&given);
    scene.leave_if_interrupted();
    match (done, args.keep) {
        (Ok(()), true) => scene.keep(place == Place::Outside),
        (done, _) => done.and(scene.clear()),
    }
}

/// Finds a way to mount: as root, in a namespace, by fusermount3; the first that works.
fn find_place() -> Result<Place> {
    namespace::open_fuse_device()?;
    if geteuid().is_root() {
        return Ok(Place::Outside);
    }
    let Some(obstacle) = namespace::obstacle() else {
        namespace::enter(IdMap::Single)?;
        return Ok(Place::Namespace);
    };
    match namespace::on_path("fusermount3") {
        Some(_) => Ok(Place::Outside),
        None => bail!("cannot mount as an ordinary user: {obstacle}; install the package fuse3, or run it as root"),
    }
}

/// The image to play with.
enum Given {
    Sample,
    Source(Source),
    /// One that the user's store has.
    Loaded(String),
}

impl Given {
    fn find(text: &str, root: &Path) -> Result<Given> {
        if !Source::is_source(text) && root.join("version").exists() {
            match Store::open(root)?.image(text) {
                Ok(_) => return Ok(Given::Loaded(text.to_string())),
                Err(error) if error.is_not_found() && Path::new(text).exists() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Given::Source(crate::images::source_of(text)?))
    }
}

struct Quickstart<'a, W> {
    scene: &'a Scene,
    place: Place,
    keep: bool,
    out: W,
}

impl<W: Write> Quickstart<'_, W> {
    fn play(mut self, given: &Given) -> Result<()> {
        writeln!(self.out, "{HEADING}plyfs {}: one image, two containers{HEADING:#}", env!("CARGO_PKG_VERSION"))?;
        let image = self.load(given)?;
        let [red, blue] = self.mount(&image)?;
        let changes = self.choose(given)?;
        let before = self.looks(&changes)?;
        self.change(&changes, &red)?;
        self.compare(&changes, &before, [&red, &blue])?;
        self.show_uppers([&red, &blue])?;
        self.show_shared(&image)?;
        self.say_what_next(&image, [&red, &blue])
    }

    fn heading(&mut self, number: u32, text: &str) -> Result<()> {
        writeln!(self.out, "\n{HEADING}{number}. {text}{HEADING:#}")?;
        Ok(())
    }

    fn table(&mut self, table: &Table) -> Result<()> {
        let mut text = Vec::new();
        table.write(&mut text)?;
        for line in String::from_utf8_lossy(&text).lines() {
            writeln!(self.out, "{INDENT}{line}")?;
        }
        Ok(())
    }

    fn load(&mut self, given: &Given) -> Result<Image> {
        self.heading(1, "Load an image: each layer is unpacked and stored once")?;
        self.out.flush()?;
        let (store, began) = (self.scene.store(), Instant::now());
        let load = |source: &Source| -> Result<Image> {
            let loaded =
                store.load(source, &LoadOptions::default(), &*progress::new(matches!(given, Given::Sample)))?;
            Ok(store.image_by_id(loaded.first().context("the source holds no image")?.id)?)
        };
        let image = match given {
            Given::Loaded(name) => store.image(name)?,
            Given::Source(source) => load(source)?,
            Given::Sample => {
                let archive = self.scene.dir().join("sample.tar");
                std::fs::write(&archive, sample::archive()?).with_context(|| archive.display().to_string())?;
                load(&Source::archive(archive))?
            }
        };
        let took = began.elapsed();
        let mut table = Table::new(["LAYER", "SIZE", "MADE BY"]);
        let history = store.history(&image)?;
        for layer in &image.diff_ids {
            let step = history.iter().find(|step| step.layer == Some(*layer));
            let (size, maker) = step.map(|step| (units::size(step.size), step.created_by.as_str())).unwrap_or_default();
            table.row([&layer.0.hex()[..12], &size, &ellipsis(maker, 64)]);
        }
        self.table(&table)?;
        let when = match given {
            Given::Loaded(_) => "it was in the store".to_string(),
            Given::Sample | Given::Source(_) => format!("in the store after {}", milliseconds(took)),
        };
        let (layers, size) = (image.diff_ids.len(), units::size(image.size));
        writeln!(self.out, "{INDENT}{}, {layers} layers, {size}: {when}", image.label())?;
        Ok(image)
    }

    fn mount(&mut self, image: &Image) -> Result<[Container; 2]> {
        self.heading(2, "Mount it: read-write for two containers, and once read-only")?;
        let red = self.scene.container(image, "red")?;
        let blue = self.scene.container(image, "blue")?;
        let mut table = Table::new(["NAME", "MOUNTED AT", "MODE", "AFTER"]);
        for container in [&red, &blue] {
            let began = Instant::now();
            let target = self.scene.mount_container(container)?;
            let took = milliseconds(began.elapsed());
            table.row([&container.name, &target.display().to_string(), "read-write", &took]);
        }
        let began = Instant::now();
        let target = self.scene.mount_image(image)?;
        let took = milliseconds(began.elapsed());
        table.row(["(image)", &target.display().to_string(), "read-only", &took]);
        self.table(&table)?;
        if self.place == Place::Namespace {
            writeln!(self.out, "{INDENT}(in a user namespace of this process: only it sees them)")?;
        }
        Ok([red, blue])
    }

    fn choose(&self, given: &Given) -> Result<Changes> {
        match given {
            Given::Sample => Ok(Changes::of_sample()),
            Given::Source(_) | Given::Loaded(_) => Changes::find(&self.scene.image_dir()),
        }
    }

    /// What the image shows before anything is changed.
    fn looks(&self, changes: &Changes) -> Result<Vec<Seen>> {
        changes.paths().map(|path| view::look(&self.scene.image_dir().join(path))).collect()
    }

    fn change(&mut self, changes: &Changes, red: &Container) -> Result<()> {
        self.heading(3, &format!("Change files in {}", red.name))?;
        let dir = self.scene.dir_of(red);
        let above = format!("cd {}", self.scene.dir().display());
        for command in [above].into_iter().chain(changes.make(&dir)?) {
            writeln!(self.out, "{INDENT}{COMMAND}$ {command}{COMMAND:#}")?;
        }
        Ok(())
    }

    fn compare(&mut self, changes: &Changes, before: &[Seen], [red, blue]: [&Container; 2]) -> Result<()> {
        self.heading(4, &format!("Look: only {} has changed", red.name))?;
        let mut table = Table::new(["FILE", "IN THE IMAGE", &format!("IN {}", red.name), &format!("IN {}", blue.name)]);
        for (path, before) in changes.paths().zip(before) {
            let image = view::look(&self.scene.image_dir().join(path))?;
            let [in_red, in_blue] =
                [view::look(&self.scene.dir_of(red).join(path))?, view::look(&self.scene.dir_of(blue).join(path))?];
            for (seen, who) in [(&image, "the image"), (&in_blue, blue.name.as_str())] {
                if seen != before {
                    bail!("/{}: {who} sees what {} wrote; this is a fault of plyfs", path.display(), red.name);
                }
            }
            if in_red == *before {
                bail!("/{}: {} does not see what it wrote; this is a fault of plyfs", path.display(), red.name);
            }
            let cells = [&image, &in_red, &in_blue].map(|seen| ellipsis(&seen.to_string(), CELL));
            table.row([format!("/{}", path.display())].iter().chain(&cells));
        }
        self.table(&table)
    }

    fn show_uppers(&mut self, containers: [&Container; 2]) -> Result<()> {
        self.heading(5, "What each container holds: its changes, and nothing else")?;
        for container in containers {
            let held = view::held(&container.upper)?;
            let count = match held.entries.len() {
                0 => "nothing".to_string(),
                1 => "1 entry".to_string(),
                n => format!("{n} entries"),
            };
            writeln!(self.out, "{INDENT}{}: {count}, {} on the disk", container.name, units::size(held.bytes))?;
            let mut table = Table::new(["", "", ""]);
            for entry in &held.entries {
                table.row([&entry.path, &entry.kind, &entry.note]);
            }
            let mut text = Vec::new();
            table.write(&mut text)?;
            for line in String::from_utf8_lossy(&text).lines().skip(1) {
                writeln!(self.out, "{INDENT}{INDENT}{line}")?;
            }
        }
        Ok(())
    }

    fn show_shared(&mut self, image: &Image) -> Result<()> {
        self.heading(6, "What they share: the image")?;
        let df = self.scene.store().df()?;
        let Some(usage) = df.images.iter().find(|usage| usage.id == image.id) else { return Ok(()) };
        let bytes = units::size(usage.shared + usage.unique);
        writeln!(
            self.out,
            "{INDENT}{} layers, {bytes} on the disk, once for the image and all its containers",
            image.diff_ids.len()
        )?;
        if usage.shared > 0 {
            writeln!(self.out, "{INDENT}{} of it shared with other images", units::size(usage.shared))?;
        }
        Ok(())
    }

    fn say_what_next(&mut self, image: &Image, containers: [&Container; 2]) -> Result<()> {
        writeln!(self.out, "\n{HEADING}What to type next{HEADING:#}")?;
        let lines = match self.keep {
            true => next::after_keeping(self.scene, self.place, image, containers),
            false => next::after_clearing(self.place),
        };
        let width = lines.iter().map(|(command, _)| command.chars().count()).max().unwrap_or_default();
        for (command, why) in lines {
            writeln!(self.out, "{INDENT}{COMMAND}{command:width$}{COMMAND:#}   {why}")?;
        }
        self.out.flush()?;
        Ok(())
    }
}

fn milliseconds(time: Duration) -> String {
    match time.as_millis() {
        0..=9999 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}
