//! The run: layers are prepared, every contestant plays every scene in interleaved rounds, within the time there is.
//!
//! In each round of a scene all contestants play, one after the other, the first of them another one each time: what the machine
//! does meanwhile hits all alike. The time that is left is shared out by the scenes' weights; a scene is played once in any
//! case while there is time at all, and again while its share lasts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};

use crate::contestants::{Contestant, OVERLAYFS, PLAIN, Place};
use crate::interrupt::{self, Interrupted};
use crate::loads;
use crate::machine::{Caches, Machine};
use crate::plan::{Group, Input, Plan, Sizes};
use crate::report::{LeftOut, Report, Row, Section};
use crate::scratch::Scratch;
use crate::stack::{Forms, Kind, Stack};
use crate::workloads::{self, Scene, Stage, Survey, survey};

/// Hears how a run gets on.
pub trait Watch {
    /// What is being done now, and which part of the run is behind us, from 0 to 1.
    fn doing(&self, part: f64, what: &str) {
        let (_, _) = (part, what);
    }

    /// Something will not be measured.
    fn left_out(&self, left: &LeftOut) {
        let _ = left;
    }
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Watch for Silent {}

/// Measures what `plan` says.
///
/// # Errors
/// [`Interrupted`] after a signal; what the layers cannot be made of; the disk. A contestant's failure is no error: it is
/// told in the report.
pub fn run(plan: &Plan, watch: &dyn Watch) -> Result<Report> {
    run_with(plan, plan.length.sizes(), Caches::allowed(), watch)
}

fn run_with(plan: &Plan, sizes: Sizes, caches: Caches, watch: &dyn Watch) -> Result<Report> {
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let scratch = Scratch::make(&plan.dir)?;
    let machine = Machine::look(scratch.dir());
    let (contestants, left_out) = Contestant::of_plan(plan)?;
    left_out.iter().for_each(|left| watch.left_out(left));
    let mut run = Run {
        plan,
        watch,
        clock: Clock::start(plan),
        sizes,
        caches,
        scratch: &scratch,
        contestants,
        left_out,
        notes: Vec::new(),
        ready: BTreeMap::new(),
    };
    let sections = run.play()?;
    let image = match run.ready.get(&Kind::Image) {
        Some(Some(ready)) => format!("{} ({} layers)", ready.stack.name, ready.stack.depth),
        _ if plan.groups.contains(&Group::Store) => plan.inputs.iter().map(Input::label).collect::<Vec<_>>().join(", "),
        _ => "generated stacks".to_string(),
    };
    Ok(Report {
        plyfs: env!("CARGO_PKG_VERSION"),
        began: began.as_secs(),
        seconds: run.clock.began.elapsed().as_secs_f64(),
        length: plan.length.name(),
        machine,
        image,
        contestants: run.contestants.iter().map(Contestant::note).collect(),
        sections,
        left_out: run.left_out,
        notes: run.notes,
    })
}

/// The time a run has.
pub(crate) struct Clock {
    began: Instant,
    limit: Option<Duration>,
    /// The weights of all scenes, and of those that are done.
    whole: f64,
    done: f64,
}

impl Clock {
    fn start(plan: &Plan) -> Self {
        Clock { began: Instant::now(), limit: plan.length.limit(), whole: 1.0, done: 0.0 }
    }

    /// Tells until when a scene of that weight may begin a further round; `None` when there is no time for it at all.
    pub(crate) fn share(&self, weight: f64) -> Option<Instant> {
        let now = Instant::now();
        let Some(limit) = self.limit else { return Some(now + Duration::from_secs(86_400)) };
        let left = (self.began + limit).checked_duration_since(now)?;
        let part = weight / (self.whole - self.done).max(weight);
        Some(now + left.mul_f64(part))
    }

    /// Returns which part of the run is behind us.
    pub(crate) fn part(&self) -> f64 {
        (self.done / self.whole).clamp(0.0, 1.0)
    }
}

struct Run<'a> {
    plan: &'a Plan,
    watch: &'a dyn Watch,
    clock: Clock,
    sizes: Sizes,
    caches: Caches,
    scratch: &'a Scratch,
    contestants: Vec<Contestant>,
    left_out: Vec<LeftOut>,
    notes: Vec<String>,
    /// `None` for a stack that could not be made.
    ready: BTreeMap<Kind, Option<Ready>>,
}

/// A stack on which scenes can be played.
struct Ready {
    stack: Stack,
    survey: Survey,
    /// The contestants that can mount it, by number.
    able: Vec<usize>,
}

/// What one contestant after the other put into a row.
struct Samples {
    key: String,
    of: Vec<Vec<f64>>,
}

impl Run<'_> {
    fn play(&mut self) -> Result<Vec<Section>> {
        let scenes = workloads::scenes(&self.plan.groups, &self.sizes);
        let has_loads = self.plan.groups.contains(&Group::Store);
        let loads = if has_loads { loads::WEIGHT * self.plan.inputs.len() as f64 } else { 0.0 };
        self.clock.whole = scenes.iter().map(|scene| scene.weight).sum::<f64>() + loads;
        if self.caches == Caches::Stay && scenes.iter().any(|scene| scene.rows.iter().any(|row| row.cold)) {
            self.leave_out("cold rows", "only root on the host can empty the kernel's caches");
        }
        let mut sections: Vec<Section> = Vec::new();
        for group in &self.plan.groups {
            let mut rows = Vec::new();
            for scene in scenes.iter().filter(|scene| scene.group == *group) {
                rows.extend(self.scene(scene)?);
                self.clock.done += scene.weight;
            }
            if !rows.is_empty() {
                sections.push(self.section(*group, rows));
            }
            if *group == Group::Store {
                sections.extend(self.loads(loads)?);
            }
        }
        Ok(sections)
    }

    fn loads(&mut self, weight: f64) -> Result<Option<Section>> {
        let Some(until) = self.clock.share(weight) else {
            self.leave_out("store", "no time was left");
            return Ok(None);
        };
        let part = self.clock.part();
        let watch = self.watch;
        let doing = |what: &str| watch.doing(part, what);
        let outcome = loads::run(self.plan, &self.sizes, self.scratch, until, &doing)?;
        outcome.left_out.into_iter().for_each(|left| self.leave_out(left.what, left.why));
        self.clock.done += weight;
        Ok(outcome.section)
    }

    /// Names what will not be measured.
    fn leave_out(&mut self, what: impl std::fmt::Display, why: impl std::fmt::Display) {
        let left = LeftOut::new(what, why);
        self.watch.left_out(&left);
        self.left_out.push(left);
    }

    /// Plays a scene in rounds; returns its rows that have samples.
    fn scene(&mut self, scene: &Scene) -> Result<Vec<Row>> {
        let title = format!("{}: {}", scene.group.name(), scene.name);
        self.watch.doing(self.clock.part(), &format!("{title}: preparing"));
        if self.clock.share(scene.weight).is_none() {
            self.leave_out(&title, "no time was left");
            return Ok(Vec::new());
        }
        self.prepare(scene.stack)?;
        let Some(ready) = self.ready.get(&scene.stack).and_then(Option::as_ref) else {
            // Why was said when it could not be made.
            return Ok(Vec::new());
        };
        if let Err(why) = (scene.possible)(&ready.survey) {
            self.leave_out(&title, why);
            return Ok(Vec::new());
        }
        let mut players: Vec<usize> = ready.able.clone();
        players.retain(|number| (scene.fits)(&self.contestants[*number]));
        let until = self.clock.share(scene.weight).unwrap_or_else(Instant::now);
        let empty = vec![Vec::new(); self.contestants.len()];
        let mut samples: Vec<Samples> =
            scene.rows.iter().map(|row| Samples { key: row.key.clone(), of: empty.clone() }).collect();
        for round in 0..self.plan.rounds.unwrap_or(self.plan.length.rounds()) {
            let began = Instant::now();
            self.round(scene, &title, round, &mut players, &mut samples)?;
            // A further round takes as long as this one.
            if Instant::now() + began.elapsed() > until {
                break;
            }
        }
        Ok(self.rows(scene, &samples))
    }

    /// Has every player play once; who fails is out.
    fn round(
        &mut self,
        scene: &Scene,
        title: &str,
        round: u32,
        players: &mut Vec<usize>,
        samples: &mut [Samples],
    ) -> Result<()> {
        let mut order = players.clone();
        let first = round as usize % order.len().max(1);
        order.rotate_left(first);
        for number in order {
            interrupt::check()?;
            let name = self.contestants[number].name.clone();
            self.watch.doing(self.clock.part(), &format!("{title}, round {}: {name}", round + 1));
            match self.turn(scene, number) {
                Ok(taken) => {
                    for (key, value) in taken {
                        let row = samples.iter_mut().find(|row| row.key == key);
                        row.with_context(|| format!("{title} has no row {key}"))?.of[number].push(value);
                    }
                }
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => {
                    self.leave_out(format_args!("{name}, {title}"), format_args!("{error:#}"));
                    players.retain(|other| *other != number);
                }
            }
        }
        Ok(())
    }

    fn turn(&self, scene: &Scene, number: usize) -> Result<Vec<(String, f64)>> {
        let ready = self.ready.get(&scene.stack).and_then(Option::as_ref).context("the layers are not there")?;
        let mut stage = Stage {
            scratch: self.scratch,
            contestant: &self.contestants[number],
            stack: &ready.stack,
            survey: &ready.survey,
            sizes: &self.sizes,
            caches: self.caches,
            samples: Vec::new(),
        };
        (scene.play)(&mut stage)?;
        Ok(stage.samples)
    }

    fn rows(&self, scene: &Scene, samples: &[Samples]) -> Vec<Row> {
        let base = self.base();
        let pairs = scene.rows.iter().zip(samples).filter(|(_, samples)| samples.of.iter().any(|of| !of.is_empty()));
        pairs.map(|(row, samples)| Row::new(&row.key, &row.title, row.unit, &samples.of, base)).collect()
    }

    /// Everybody is compared with the kernel's overlayfs; where that cannot run, with the plain directory.
    fn base(&self) -> Option<usize> {
        let can = |number: &usize| self.ready.values().flatten().any(|ready| ready.able.contains(number));
        let find = |name| self.contestants.iter().position(|one| one.name == name).filter(can);
        find(OVERLAYFS).or_else(|| find(PLAIN))
    }

    /// Puts a group together, without the columns of those who never played in it.
    fn section(&self, group: Group, mut rows: Vec<Row>) -> Section {
        let played = |number: &usize| rows.iter().any(|row| row.cells[*number].is_some());
        let columns: Vec<usize> = (0..self.contestants.len()).filter(played).collect();
        for row in &mut rows {
            row.cells = columns.iter().map(|number| row.cells[*number].take()).collect();
        }
        let name = |number: &usize| self.contestants[*number].name.clone();
        let base = self.base().filter(|base| columns.contains(base));
        Section {
            group: group.name(),
            title: group.title(),
            base: base.as_ref().map(name),
            contestants: columns.iter().map(name).collect(),
            rows,
        }
    }

    /// Makes a stack unless it is there, and finds out who can mount it and sees the same as the others.
    fn prepare(&mut self, kind: Kind) -> Result<()> {
        if self.ready.contains_key(&kind) {
            return Ok(());
        }
        let room = Stack::room(kind, &self.sizes);
        let free = self.scratch.free()?;
        if free < room {
            let unit = crate::Unit::Bytes;
            let why = format!(
                "{} has {} free, {} are needed; choose another --dir",
                self.plan.dir.display(),
                unit.show(free as f64),
                unit.show(room as f64)
            );
            self.leave_out(stack_name(kind), why);
            self.ready.insert(kind, None);
            return Ok(());
        }
        let forms = Forms {
            layers: self.contestants.iter().any(Contestant::wants_layers),
            merged: self.contestants.iter().any(Contestant::is_plain),
        };
        let stack = match kind {
            Kind::Image => {
                let input = self.plan.inputs.first().unwrap_or(&Input::Generated);
                Stack::of_input(input, &self.plan.store, &self.sizes, self.scratch, forms)?
            }
            kind => Stack::generated(kind, &self.sizes, self.scratch, forms)?,
        };
        if let Some(lost) = &stack.lost {
            self.notes
                .push(format!("plain directories of {} lack {lost}: an ordinary user cannot keep them", stack.name));
        }
        self.scratch.sync()?;
        let ready = self.look_around(stack, kind)?;
        self.ready.insert(kind, ready);
        Ok(())
    }

    fn look_around(&mut self, stack: Stack, kind: Kind) -> Result<Option<Ready>> {
        let mut seen: Option<(String, Survey)> = None;
        let mut able = Vec::new();
        for number in 0..self.contestants.len() {
            let name = self.contestants[number].name.clone();
            self.watch.doing(self.clock.part(), &format!("{}: looking through {name}", stack_name(kind)));
            match self.look_once(number, &stack) {
                Ok(survey) => {
                    able.push(number);
                    match &seen {
                        None => seen = Some((name, survey)),
                        Some((_, other)) if other.tally == survey.tally => {}
                        Some((first, other)) => self.notes.push(format!(
                            "{name} shows {} entries and {} bytes of {}, {first} {} and {}: they do not do the same work",
                            survey.tally.entries, survey.tally.bytes, stack.name, other.tally.entries, other.tally.bytes
                        )),
                    }
                }
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => self.leave_out(format_args!("{name}, {}", stack_name(kind)), format_args!("{error:#}")),
            }
        }
        Ok(seen.map(|(_, survey)| Ready { stack, survey, able }))
    }

    fn look_once(&self, number: usize, stack: &Stack) -> Result<Survey> {
        let mounted = self.contestants[number].mount(stack, Place::make(self.scratch)?)?;
        let found = survey(mounted.root())?;
        mounted.end()?;
        Ok(found)
    }
}

fn stack_name(kind: Kind) -> String {
    match kind {
        Kind::Image => "the image".into(),
        Kind::Deep(1) => "a stack of 1 layer".into(),
        Kind::Deep(layers) => format!("a stack of {layers} layers"),
        Kind::Heavy => "heavy files".into(),
    }
}

/// Where a run's own programs are told to put their temporary files.
pub(crate) fn temporary(scratch: &Scratch) -> Result<std::path::PathBuf> {
    let dir: &Path = scratch.dir();
    let tmp = dir.join("tmp");
    std::fs::create_dir_all(&tmp)?;
    Ok(tmp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Length;

    #[test]
    fn time_is_shared_by_weight() {
        let clock = Clock { began: Instant::now(), limit: Some(Duration::from_secs(100)), whole: 10.0, done: 5.0 };
        let share = clock.share(1.0).unwrap() - Instant::now();
        assert!((19.0..20.5).contains(&share.as_secs_f64()), "{share:?}");
        assert_eq!(clock.part(), 0.5);
        let over = Clock { limit: Some(Duration::ZERO), ..clock };
        assert!(over.share(1.0).is_none());
    }

    /// The floor can be measured by everybody, without any mount.
    #[test]
    fn a_run_of_the_plain_directory_fills_every_row() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("layers");
        std::fs::create_dir_all(source.join("etc")).unwrap();
        std::fs::write(source.join("etc/file"), b"x").unwrap();
        let plan = Plan {
            groups: vec![
                Group::Meta,
                Group::Data,
                Group::Write,
                Group::Cow,
                Group::Programs,
                Group::Depth,
                Group::Parallel,
            ],
            length: Length::Quick,
            rounds: Some(1),
            inputs: vec![Input::Generated],
            dir: dir.path().to_path_buf(),
            store: dir.path().join("store"),
            program: "/nonexistent".into(),
            fuse_overlayfs: Vec::new(),
            mounters: Vec::new(),
            plyfs_options: Vec::new(),
            overlayfs_options: Vec::new(),
            only: vec![PLAIN.into()],
            without: Vec::new(),
        };
        let sizes = Sizes {
            sample: 100,
            missing: 50,
            creates: 40,
            renames: 10,
            mkdirs: 10,
            big: 1 << 20,
            stream: 1 << 20,
            reads: 10,
            writes: 10,
            synced: 2,
            saves: 2,
            sources: 30,
            small: 20,
            branch: 10,
            deep: 200,
            deep_missing: 50,
            mounts: 1,
            containers: 1,
        };
        let report = run_with(&plan, sizes, Caches::Stay, &Silent).unwrap();
        assert_eq!(report.sections.len(), 7, "{:?}", report.left_out);
        for section in &report.sections {
            assert_eq!(section.contestants, [PLAIN]);
            for row in &section.rows {
                assert!(row.cells[0].as_ref().is_some_and(|cell| cell.median > 0.0), "{}", row.key);
            }
        }
        assert!(report.left_out.iter().any(|left| left.what == "plyfs" && left.why.contains("not wanted")));
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["layers"], "nothing stays");
    }
}
