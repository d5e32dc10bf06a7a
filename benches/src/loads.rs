//! Loading images into empty storage: ours, podman's, and the layers' tars just unpacked.
//!
//! Everybody reads the same OCI layout, which is in the page cache, into an empty directory, and is done when the disk has it. Only
//! `plyfs load` and `podman pull` verify digests; tar does not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use store::Store;

use crate::contestants::on_path;
use crate::interrupt::{self, Interrupted};
use crate::machine;
use crate::plan::{Group, Input, Plan, Sizes};
use crate::report::{LeftOut, Row, Section};
use crate::runner::temporary;
use crate::scratch::{Scratch, disk_use, remove_tree};
use crate::stack::Stored;
use crate::units::Unit;

/// About how long one image takes in a round, in seconds.
pub(crate) const WEIGHT: f64 = 40.0;

/// How often it is looked how much memory a program has.
const PULSE: Duration = Duration::from_millis(20);

/// The group's rows, and what is not in them.
pub(crate) struct Outcome {
    pub(crate) section: Option<Section>,
    pub(crate) left_out: Vec<LeftOut>,
}

/// Who fills an empty directory with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loader {
    Plyfs,
    Podman,
    Tar,
}

impl Loader {
    const ALL: [Loader; 3] = [Loader::Podman, Loader::Tar, Loader::Plyfs];

    fn name(self) -> &'static str {
        match self {
            Loader::Plyfs => "plyfs load",
            Loader::Podman => "podman pull",
            Loader::Tar => "zcat | tar x",
        }
    }

    /// Tells why it cannot run here.
    fn obstacle(self) -> Option<&'static str> {
        match self {
            Loader::Plyfs => None,
            Loader::Podman if on_path("podman").is_none() => Some("not found in PATH"),
            Loader::Podman if !is_root() => Some("only measured as root: rootless storage is another matter"),
            Loader::Podman => None,
            Loader::Tar if on_path("tar").is_none() || on_path("zcat").is_none() => {
                Some("tar or zcat not found in PATH")
            }
            Loader::Tar if !is_root() => Some("an ordinary user cannot make the devices and owners of an image"),
            Loader::Tar => None,
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root() && machine::is_host_namespace()
}

/// An image as an OCI layout.
struct Layout {
    dir: PathBuf,
    reference: String,
    name: String,
    /// The layers' blobs, base first, and the program that unpacks each.
    layers: Vec<(PathBuf, &'static str)>,
}

/// What a load took.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    wall: f64,
    processor: f64,
    memory: f64,
    disk: f64,
}

/// A row of one image, or of all together: its key, its title, and what it shows.
type Measure = (&'static str, &'static str, Unit, fn(&Spent) -> f64);

const ROWS: [Measure; 4] = [
    ("wall", "load, disk included", Unit::Seconds, |spent| spent.wall),
    ("processor", "  processor time", Unit::Seconds, |spent| spent.processor),
    ("memory", "  most memory", Unit::Bytes, |spent| spent.memory),
    ("disk", "  stored on the disk", Unit::Bytes, |spent| spent.disk),
];

/// Measures the loads of all images of the plan, until `until`.
pub(crate) fn run(
    plan: &Plan,
    sizes: &Sizes,
    scratch: &Scratch,
    until: Instant,
    doing: &dyn Fn(&str),
) -> Result<Outcome> {
    let mut left_out = Vec::new();
    let mut loaders = Loader::ALL.to_vec();
    loaders.retain(|loader| match loader.obstacle() {
        Some(why) => {
            left_out.push(LeftOut::new(loader.name(), why));
            false
        }
        None => true,
    });
    let mut layouts = Vec::new();
    for input in &plan.inputs {
        doing("store: finding the image's layers");
        match Layout::of_input(input, plan, sizes, scratch) {
            Ok(layout) => layouts.push(layout),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => left_out.push(LeftOut::new("store", format_args!("{error:#}"))),
        }
    }
    let mut sets: Vec<Vec<&Layout>> = layouts.iter().map(|layout| vec![layout]).collect();
    if layouts.len() > 1 {
        sets.push(layouts.iter().collect());
    }
    let mut race = Race { plan, scratch, loaders, left_out, samples: Vec::new() };
    race.samples = vec![vec![Vec::new(); Loader::ALL.len()]; sets.len()];
    for round in 0..plan.rounds.unwrap_or(3) {
        let began = Instant::now();
        race.round(&sets, round, until, doing)?;
        if Instant::now() + began.elapsed() > until {
            break;
        }
    }
    let section = (!sets.is_empty()).then(|| race.section(&sets));
    Ok(Outcome { section, left_out: race.left_out })
}

struct Race<'a> {
    plan: &'a Plan,
    scratch: &'a Scratch,
    loaders: Vec<Loader>,
    left_out: Vec<LeftOut>,
    /// By set of images and by loader.
    samples: Vec<Vec<Vec<Spent>>>,
}

impl Race<'_> {
    fn round(&mut self, sets: &[Vec<&Layout>], round: u32, until: Instant, doing: &dyn Fn(&str)) -> Result<()> {
        let began = Instant::now();
        for (number, set) in sets.iter().enumerate() {
            // All together take about as long as they took one by one.
            if set.len() > 1 && Instant::now() + began.elapsed() > until {
                if self.samples[number].iter().all(Vec::is_empty) {
                    let why = format!("no time was left: it takes about {:.0} s", began.elapsed().as_secs_f64());
                    self.left_out.push(LeftOut::new(format_args!("store: {}", set_name(set)), why));
                }
                continue;
            }
            let mut order = self.loaders.clone();
            let first = round as usize % order.len().max(1);
            order.rotate_left(first);
            for loader in order {
                interrupt::check()?;
                doing(&format!("store: {}, round {}: {}", set_name(set), round + 1, loader.name()));
                match self.load(loader, set) {
                    Ok(spent) => self.samples[number][loader as usize].push(spent),
                    Err(error) if error.is::<Interrupted>() => return Err(error),
                    Err(error) => {
                        self.left_out.push(LeftOut::new(loader.name(), format_args!("{error:#}")));
                        self.loaders.retain(|other| *other != loader);
                    }
                }
            }
        }
        Ok(())
    }

    /// Loads images one after the other into one empty directory.
    fn load(&self, loader: Loader, set: &[&Layout]) -> Result<Spent> {
        let target = self.scratch.fresh("load")?;
        set.iter().try_for_each(|layout| layout.warm())?;
        self.scratch.sync()?;
        let mut sum = Spent::default();
        for (number, layout) in set.iter().enumerate() {
            let spent = measure(self.commands(loader, layout, &target, number)?, self.scratch)?;
            sum.wall += spent.wall;
            sum.processor += spent.processor;
            sum.memory = spent.memory.max(sum.memory);
        }
        sum.disk = disk_use(&target)? as f64;
        remove_tree(&target)?;
        self.scratch.sync()?;
        Ok(sum)
    }

    /// `number` tells apart the images that share a target.
    fn commands(&self, loader: Loader, layout: &Layout, target: &Path, number: usize) -> Result<Vec<Command>> {
        let source = format!("oci:{}:{}", layout.dir.display(), layout.reference);
        match loader {
            Loader::Plyfs => {
                let mut command = Command::new(&self.plan.program);
                command.arg("--root").arg(target.join("store")).args(["load", "--quiet", &source]);
                Ok(vec![command])
            }
            Loader::Podman => {
                let policy = temporary(self.scratch)?.join("policy.json");
                fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
                let mut command = Command::new("podman");
                command.arg("--root").arg(target.join("root")).arg("--runroot").arg(target.join("run"));
                command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "pull", "--quiet"]);
                command.arg("--signature-policy").arg(policy).arg(source).env("TMPDIR", temporary(self.scratch)?);
                Ok(vec![command])
            }
            Loader::Tar => {
                let dir = |n: usize| target.join(format!("{number}.{n}"));
                layout.layers.iter().enumerate().map(|(n, layer)| untar(layer, &dir(n))).collect()
            }
        }
    }

    fn section(&self, sets: &[Vec<&Layout>]) -> Section {
        // The columns: who loaded anything, in the order of `Loader::ALL`.
        let played = |loader: &Loader| self.samples.iter().any(|set| !set[*loader as usize].is_empty());
        let with: Vec<Loader> = Loader::ALL.into_iter().filter(played).collect();
        let base = with.iter().position(|loader| *loader != Loader::Plyfs);
        let mut rows = Vec::new();
        for (set, samples) in sets.iter().zip(&self.samples).filter(|(_, of)| of.iter().any(|it| !it.is_empty())) {
            for (key, title, unit, value) in ROWS {
                let columns: Vec<Vec<f64>> =
                    with.iter().map(|loader| samples[*loader as usize].iter().map(value).collect()).collect();
                let name = set_name(set);
                let title = if title.starts_with(' ') { title.to_string() } else { format!("{name}: {title}") };
                rows.push(Row::new(&format!("load.{name}.{key}"), &title, unit, &columns, base));
            }
        }
        let name = |loader: &Loader| loader.name().to_string();
        Section {
            group: Group::Store.name(),
            title: Group::Store.title(),
            base: base.map(|base| name(&with[base])),
            contestants: with.iter().map(name).collect(),
            rows,
        }
    }
}

fn set_name(set: &[&Layout]) -> String {
    match set {
        [one] => one.name.clone(),
        many => format!("all {} in one store", many.len()),
    }
}

impl Layout {
    /// Finds the OCI layout of an image, or makes one.
    fn of_input(input: &Input, plan: &Plan, sizes: &Sizes, scratch: &Scratch) -> Result<Self> {
        if let Input::Source(text) = input
            && let Some((dir, reference)) = text.strip_prefix("oci:").and_then(|rest| rest.split_once(':'))
        {
            return Layout::read(Path::new(dir), reference);
        }
        let dir = scratch.fresh("oci")?;
        match input {
            Input::Dirs(_) => bail!("plain directories are not loaded"),
            Input::Generated => crate::stack::write_sample(&dir, sizes)?,
            Input::Loaded(name) => {
                let store = Store::open(&plan.store)?;
                let image = store.image(name)?;
                Stored::new(store, image)?.export(&dir, "image")?;
                return Ok(Layout { name: name.clone(), ..Layout::read(&dir, "image")? });
            }
            Input::Source(text) => {
                let source = store::Source::parse(text)?;
                Stored::load(&source, text, scratch)?.export(&dir, "image")?;
                return Layout::read(&dir, "image");
            }
        }
        Layout::read(&dir, "sample")
    }

    /// Reads which layers an image of a layout has; the loaders check them, we do not.
    fn read(dir: &Path, reference: &str) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        let json = |path: PathBuf| -> Result<Value> {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
        };
        let index = json(dir.join("index.json"))?;
        let is_meant = |manifest: &&Value| {
            manifest["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(reference)
        };
        let manifest = index["manifests"].as_array().into_iter().flatten().find(is_meant);
        let manifest = manifest.with_context(|| format!("{}: it holds no image '{reference}'", dir.display()))?;
        let manifest = json(blob(&dir, manifest)?)?;
        let layers = manifest["layers"].as_array().context("a manifest without layers")?;
        let layers = layers.iter().map(|layer| Ok((blob(&dir, layer)?, unpacker(layer)))).collect::<Result<_>>()?;
        Ok(Layout { dir, reference: reference.into(), name: reference.into(), layers })
    }

    /// Has the blobs in the page cache.
    fn warm(&self) -> Result<()> {
        for (blob, _) in &self.layers {
            interrupt::check()?;
            std::io::copy(&mut File::open(blob)?, &mut std::io::sink())?;
        }
        Ok(())
    }
}

fn blob(dir: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    let digest =
        digest.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())).context("a blob without a sha256 digest")?;
    Ok(dir.join("blobs/sha256").join(digest))
}

/// Returns the program that decompresses a layer.
fn unpacker(layer: &Value) -> &'static str {
    match layer["mediaType"].as_str().unwrap_or_default() {
        gzip if gzip.ends_with("gzip") => "zcat",
        zstd if zstd.ends_with("zstd") => "zstdcat",
        _ => "cat",
    }
}

/// The pipeline that unpacks a layer into a directory of its own, which it makes.
fn untar((blob, program): &(PathBuf, &'static str), dir: &Path) -> Result<Command> {
    fs::create_dir_all(dir)?;
    let mut command = Command::new("sh");
    command.args(["-c", "\"$1\" < \"$2\" | tar -x -p --numeric-owner -C \"$3\"", "sh", program]).arg(blob).arg(dir);
    Ok(command)
}

/// Runs commands at once until all have ended and the disk has what they wrote.
fn measure(commands: Vec<Command>, scratch: &Scratch) -> Result<Spent> {
    let before = machine::children_time();
    let began = Instant::now();
    let mut running = Running::start(commands, &temporary(scratch)?)?;
    let mut memory = 0;
    while running.goes_on()? {
        interrupt::check()?;
        memory = memory.max(running.memory());
        std::thread::sleep(PULSE);
    }
    scratch.sync()?;
    let wall = began.elapsed().as_secs_f64();
    Ok(Spent { wall, processor: machine::children_time() - before, memory: memory as f64, disk: 0.0 })
}

/// Programs that run at once, each with its children in a group of its own; they end with this.
struct Running(Vec<(Program, bool)>);

/// A program that was started. It complains into a file: nobody empties a pipe while it runs.
struct Program {
    child: Child,
    complaints: File,
}

impl Running {
    /// Starts commands; `dir` holds what they complain of.
    fn start(commands: Vec<Command>, dir: &Path) -> Result<Self> {
        let mut running = Running(Vec::new());
        for mut command in commands {
            let complaints = tempfile::tempfile_in(dir).with_context(|| dir.display().to_string())?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaints.try_clone()?).process_group(0);
            let program = command.get_program().to_owned();
            let child = command.spawn().with_context(|| Path::new(&program).display().to_string())?;
            running.0.push((Program { child, complaints }, true));
        }
        Ok(running)
    }

    /// Tells whether one of them still runs.
    fn goes_on(&mut self) -> Result<bool> {
        let mut any = false;
        for (program, runs) in self.0.iter_mut().filter(|(_, runs)| *runs) {
            match program.child.try_wait()? {
                None => any = true,
                Some(status) => {
                    *runs = false;
                    if !status.success() {
                        bail!("{status}: {}", program.complaint());
                    }
                }
            }
        }
        Ok(any)
    }

    /// Returns what they and their children have in memory, in bytes.
    fn memory(&self) -> u64 {
        let mut pids: BTreeSet<u32> = BTreeSet::new();
        let mut queue: Vec<u32> =
            self.0.iter().filter(|(_, runs)| *runs).map(|(program, _)| program.child.id()).collect();
        while let Some(pid) = queue.pop() {
            if pids.insert(pid) {
                queue.extend(children(pid));
            }
        }
        pids.iter().map(|pid| resident(*pid)).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for (Program { child, .. }, _) in self.0.iter_mut().filter(|(_, runs)| *runs) {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                kill_process_group(group, Signal::KILL).ok(); // It may have ended just now.
            }
            child.wait().ok();
        }
    }
}

impl Program {
    /// Returns the last line of its complaints.
    fn complaint(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.complaints.rewind().and_then(|()| self.complaints.read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        read.map_or_else(|error| error.to_string(), |_| text.trim().lines().last().unwrap_or_default().to_string())
    }
}

/// Returns the children of a process; those of its other threads too.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_told_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::make(dir.path()).unwrap();
        let shell = |code: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", code]);
            command
        };
        let spent = measure(vec![shell("sleep 0.1"), shell("sleep 0.05; true")], &scratch).unwrap();
        assert!(spent.wall >= 0.1 && spent.memory > 0.0, "{spent:?}");
        let error =
            measure(vec![shell("echo one >&2; echo two >&2; exit 3"), shell("sleep 100")], &scratch).unwrap_err();
        assert!(error.to_string().contains("two") && error.to_string().contains('3'), "{error}");
        let talkative = "head -c 1000000 /dev/zero >&2; echo end >&2; exit 1";
        let error = measure(vec![shell(talkative)], &scratch).unwrap_err();
        assert!(error.to_string().contains("end"), "what fills a pipe does not stop a program: {error}");
    }

    #[test]
    fn a_layout_tells_its_layers() {
        let dir = tempfile::tempdir().unwrap();
        crate::stack::write_sample(&dir.path().join("l"), &Sizes { sample: 100, ..crate::Length::Quick.sizes() })
            .unwrap();
        let layout = Layout::read(&dir.path().join("l"), "sample").unwrap();
        assert_eq!(layout.layers.len(), 4);
        assert!(layout.layers.iter().all(|(blob, program)| blob.is_file() && *program == "zcat"));
        assert!(Layout::read(&dir.path().join("l"), "other").is_err());
    }
}
