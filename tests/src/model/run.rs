//! Running a case: a stack, a sequence of operations, and what is compared when.

use std::fmt;

use layer::FileType;
use overlay::Errno;

use super::choose::{Means, choose};
use super::kernel::{Failed, Got};
use super::op::Op;
use super::random::Random;
use super::stack::{Form, Stack, folds, random_stack, spell};
use super::tree::{Expected, Tree};
use super::view::{Identity, Scope, View, agree, compare};

/// One thing to be tested: a stack, how it is watched, and what is done to it.
#[derive(Clone)]
pub struct Case {
    /// The layers.
    pub stack: Stack,
    /// What varies beside it.
    pub settings: Settings,
    /// The operations.
    pub ops: Vec<Op>,
}

/// How a case is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The largest body that is copied up with its metadata.
    pub small: u64,
    /// How many directories are held open.
    pub open_dirs: usize,
    /// From how many bytes on a body is copied piece by piece.
    pub lazy_min: u64,
    /// The whole tree is looked at after so many operations; 0 is never before the end.
    pub look_every: usize,
    /// The union is dropped and made anew from its written session after so many operations, files open; 0 is never.
    pub resume_every: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { small: 8, open_dirs: 3, lazy_min: 1, look_every: 1, resume_every: 0 }
    }
}

/// Prints as the code of a test.
impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "settings: {:?}", self.settings)?;
        writeln!(f, "stack: vec![")?;
        for layer in &self.stack {
            writeln!(f, "    vec![{}],", layer.iter().map(spell).collect::<Vec<_>>().join(", "))?;
        }
        writeln!(f, "]\nops: vec![")?;
        for op in &self.ops {
            writeln!(f, "    Op::{op:?},")?;
        }
        write!(f, "]")
    }
}

/// What a runner compares with the plain tree.
pub trait Subject {
    /// Returns the time as the subject's clock has it.
    fn now(&self) -> layer::Time;

    /// Performs an operation (never a remount).
    ///
    /// # Errors
    /// What a program gets.
    fn run(&mut self, op: &Op) -> Result<Got, Failed>;

    /// Unmounts and mounts again.
    ///
    /// # Errors
    /// In words.
    fn remount(&mut self) -> Result<(), String>;

    /// Ends the mount in order and mounts again; the upper was at rest between.
    ///
    /// # Errors
    /// In words.
    fn rest(&mut self) -> Result<(), String>;

    /// Drops the union and makes it anew from its written session; those who use it go on.
    ///
    /// # Errors
    /// In words.
    fn resume(&mut self) -> Result<(), String> {
        Err("this subject cannot be resumed".into())
    }

    /// Looks at everything.
    ///
    /// # Errors
    /// In words.
    fn view(&mut self) -> Result<View, String>;

    /// Looks at what a remount would show, without one, where the subject can; also at what lies on its disk.
    ///
    /// # Errors
    /// In words.
    fn view_of_copy(&mut self) -> Result<Option<View>, String> {
        Ok(None)
    }

    /// Returns what is compared.
    fn scope(&self) -> Scope {
        Scope::ALL
    }

    /// Tells whether the number of an inode of that kind survives a remount.
    fn keeps_number(&self, _kind: FileType) -> bool {
        true
    }
}

/// A subject with the tree it should be like.
pub struct Run<S> {
    /// What is tested.
    pub subject: S,
    /// What it should be.
    pub tree: Tree,
    /// The numbers that inodes have.
    pub identity: Identity,
    /// How many operations were compared.
    pub compared: u64,
}

impl<S: Subject> Run<S> {
    /// Begins, and looks at everything once.
    ///
    /// # Errors
    /// In words.
    pub fn begin(subject: S, tree: Tree) -> Result<Self, String> {
        let mut run = Run { subject, tree, identity: Identity::default(), compared: 0 };
        run.look().map_err(|why| format!("at the start: {why}"))?;
        Ok(run)
    }

    /// Looks at everything and compares.
    ///
    /// # Errors
    /// In words.
    pub fn look(&mut self) -> Result<(), String> {
        let view = self.subject.view()?;
        self.check(&view)
    }

    fn check(&mut self, view: &View) -> Result<(), String> {
        compare(&self.tree, view, self.subject.scope())?;
        self.identity.check(&self.tree, view)
    }

    /// Performs one operation on both sides and compares the answers.
    ///
    /// # Errors
    /// In words.
    pub fn step(&mut self, op: &Op) -> Result<(), String> {
        let now = self.subject.now();
        if matches!(op, Op::Remount | Op::Rest) {
            self.tree.close_all();
            match op {
                Op::Rest => self.subject.rest()?,
                _ => self.subject.remount()?,
            }
            let forgotten: Vec<_> = self.tree.paths().into_iter().map(|(_, id)| id).collect();
            for id in forgotten.into_iter().filter(|id| !self.subject.keeps_number(self.tree.inode(*id).kind())) {
                self.identity.forget(id);
            }
            return self.look();
        }
        let expected = self.tree.apply(op, now);
        if expected == Ok(Expected::Skip) {
            return Ok(());
        }
        self.compared += 1;
        let got = self.subject.run(op);
        answer_agrees(&mut self.tree, self.subject.scope(), &expected, got)
    }

    /// Looks at what a remount would show.
    ///
    /// # Errors
    /// In words.
    pub fn look_at_copy(&mut self) -> Result<(), String> {
        if let Some(mut view) = self.subject.view_of_copy()? {
            // Another mount gives other nodeids where it must; st_ino stays.
            view.values_mut().for_each(|found| found.seen.node = None);
            self.check(&view).map_err(|why| format!("after a remount: {why}"))?;
        }
        Ok(())
    }

    /// Runs a sequence, looking as the settings say.
    ///
    /// # Errors
    /// In words, with the operation.
    pub fn sequence(&mut self, ops: &[Op], settings: &Settings) -> Result<(), String> {
        for (at, op) in ops.iter().enumerate() {
            self.step_and_look(op, at, settings).map_err(|why| format!("operation {at}, {op:?}: {why}"))?;
        }
        self.end()
    }

    fn step_and_look(&mut self, op: &Op, at: usize, settings: &Settings) -> Result<(), String> {
        self.step(op)?;
        if settings.resume_every > 0 && (at + 1).is_multiple_of(settings.resume_every) {
            self.subject.resume()?;
        }
        if settings.look_every > 0 && (at + 1).is_multiple_of(settings.look_every) {
            self.look()?;
        }
        self.look_at_copy()
    }

    /// Compares for the last time, before and after a remount.
    ///
    /// # Errors
    /// In words.
    pub fn end(&mut self) -> Result<(), String> {
        self.look().map_err(|why| format!("at the end: {why}"))?;
        self.step(&Op::Remount).map_err(|why| format!("after the last remount: {why}"))?;
        self.step(&Op::Rest).map_err(|why| format!("after a rest: {why}"))
    }
}

/// Compares two answers.
///
/// # Errors
/// In words.
pub fn answer_agrees(
    tree: &mut Tree,
    scope: Scope,
    expected: &Result<Expected, Errno>,
    got: Result<Got, Failed>,
) -> Result<(), String> {
    match (expected, got) {
        (_, Err(Failed::Fault(fault))) => Err(fault),
        (Err(errno), Err(Failed::Answer(got))) if *errno == got => Ok(()),
        (Ok(Expected::Done), Ok(_)) => Ok(()),
        (Ok(Expected::Inode(id)), Ok(Got::Attr(seen))) => {
            agree(tree, *id, &seen, scope).map_err(|why| format!("the reply: {why}"))
        }
        (Ok(Expected::Inode(_)), Ok(Got::Done)) => Ok(()),
        (Ok(Expected::Xattrs(id)), Ok(Got::Xattrs(got))) if tree.inode(*id).xattrs == got => Ok(()),
        (Ok(Expected::Bytes(bytes)), Ok(Got::Bytes(got))) if *bytes == got => Ok(()),
        (Ok(Expected::Count(count)), Ok(Got::Count(got))) if *count == got => Ok(()),
        (Ok(Expected::Entries(handle)), Ok(Got::Names(names, ended))) => tree.stream_gave(*handle, &names, ended),
        (Ok(Expected::Seek(content, offset, what)), got) => seek_agrees(content, *offset, *what, got),
        (expected, got) => Err(format!("gives {got:?}, should give {expected:?}")),
    }
}

fn seek_agrees(
    content: &[u8],
    offset: u64,
    what: overlay::upper::Seek,
    got: Result<Got, Failed>,
) -> Result<(), String> {
    let rest = content.get(offset as usize..).unwrap_or_default();
    let fits = match (&got, what) {
        (Err(Failed::Answer(Errno::ENXIO)), overlay::upper::Seek::Hole) => rest.is_empty(),
        (Err(Failed::Answer(Errno::ENXIO)), overlay::upper::Seek::Data) => rest.iter().all(|&b| b == 0),
        (Ok(Got::Count(at)), _) if *at < offset || *at > content.len() as u64 || rest.is_empty() => false,
        (Ok(Got::Count(at)), overlay::upper::Seek::Data) => rest[..(*at - offset) as usize].iter().all(|&b| b == 0),
        (Ok(Got::Count(_)), overlay::upper::Seek::Hole) => true,
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("gives {got:?} in {} bytes from {offset}", content.len())) }
}

/// What is tried: how cases are made and run.
pub struct Trial<'a> {
    /// The form of the lower.
    pub form: Form,
    /// What operations may ask for.
    pub means: Means,
    /// How many operations a case has.
    pub ops: usize,
    /// Runs a case; returns how many operations were compared.
    pub run: &'a dyn Fn(&Case) -> Result<u64, String>,
    /// Makes the tree of a stack, to choose operations by.
    pub tree: &'a dyn Fn(&Stack) -> Tree,
}

impl Trial<'_> {
    /// Makes the case of a seed.
    pub fn case(&self, seed: u64) -> Case {
        let mut random = Random::new(seed);
        let stack = random_stack(&mut random, self.form);
        let settings = Settings {
            small: *random.pick(&[0, 8, 30, 1000]),
            open_dirs: *random.pick(&[1, 2, 1000]),
            lazy_min: *random.pick(&[1, 5000, u64::MAX]),
            look_every: *random.pick(&[0, 1, 7]),
            resume_every: 0,
        };
        let mut tree = (self.tree)(&stack);
        let mut ops = Vec::new();
        let now = layer::Time { sec: 2_000_000_000, nsec: 0 };
        for _ in 0..self.ops {
            let op = choose(&mut random, &tree, self.means);
            // Whatever it answers: the next choice sees what it did.
            tree.apply(&op, now).ok();
            ops.push(op);
        }
        Case { stack, settings, ops }
    }

    /// Runs the cases of `count` seeds from `first` on; returns how many operations were compared.
    ///
    /// # Panics
    /// With the smallest case found that fails, when one fails.
    pub fn run(&self, first: u64, count: u64) -> u64 {
        let mut compared = 0;
        for seed in first..first + count {
            let case = self.case(seed);
            match attempt(self.run, &case) {
                Ok(ops) => compared += ops,
                Err(why) => {
                    let (case, why) = self.shrink(case, why);
                    panic!("seed {seed}: {why}\n{case:?}");
                }
            }
        }
        compared
    }
}

thread_local! {
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Keeps the panics that a case is allowed to end in from being printed.
fn hush() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
}

/// Runs a case; a panic is a failure like any other.
fn attempt(run: &dyn Fn(&Case) -> Result<u64, String>, case: &Case) -> Result<u64, String> {
    hush();
    QUIET.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(case)));
    QUIET.set(false);
    match result {
        Ok(result) => result,
        Err(panic) => {
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
            Err(format!("panic: {}", why.unwrap_or_default()))
        }
    }
}

impl Trial<'_> {
    /// Makes a failing case smaller for as long as it fails in any way.
    fn shrink(&self, mut case: Case, mut why: String) -> (Case, String) {
        let mut tries = 3000;
        loop {
            let before = (case.ops.len(), case.stack.iter().map(Vec::len).sum::<usize>());
            let mut attempt_at = |smaller: Case, case: &mut Case, why: &mut String| {
                tries -= 1;
                if tries <= 0 || !folds(&smaller.stack, self.form) {
                    return false;
                }
                match attempt(self.run, &smaller) {
                    Ok(_) => false,
                    Err(reason) => {
                        (*case, *why) = (smaller, reason);
                        true
                    }
                }
            };
            for settings in [
                Settings { look_every: 1, ..case.settings },
                Settings { look_every: 0, ..case.settings },
                Settings { open_dirs: 1000, ..case.settings },
                Settings { small: 1000, ..case.settings },
                Settings { lazy_min: u64::MAX, ..case.settings },
                Settings { resume_every: 0, ..case.settings },
            ] {
                let simpler = settings != case.settings && (settings.look_every, case.settings.look_every) != (1, 0);
                if simpler {
                    attempt_at(Case { settings, ..case.clone() }, &mut case, &mut why);
                }
            }
            let mut chunk = (case.ops.len() / 2).max(1);
            loop {
                let mut at = case.ops.len();
                while at > 0 {
                    at = at.saturating_sub(chunk);
                    let mut smaller = case.clone();
                    smaller.ops.drain(at..(at + chunk).min(smaller.ops.len()));
                    attempt_at(smaller, &mut case, &mut why);
                    at = at.min(case.ops.len());
                }
                if chunk == 1 {
                    break;
                }
                chunk /= 2;
            }
            for layer in (0..case.stack.len()).rev() {
                for item in (0..case.stack[layer].len()).rev() {
                    let mut smaller = case.clone();
                    smaller.stack[layer].remove(item);
                    attempt_at(smaller, &mut case, &mut why);
                }
                if case.stack[layer].is_empty() {
                    let mut smaller = case.clone();
                    smaller.stack.remove(layer);
                    attempt_at(smaller, &mut case, &mut why);
                }
            }
            if before == (case.ops.len(), case.stack.iter().map(Vec::len).sum::<usize>()) {
                return (case, why);
            }
        }
    }
}

/// How much is tried: stacks by day, stacks by night (`PLYFS_NIGHTLY`), operations on each.
#[derive(Clone, Copy, Debug)]
pub struct Amount(pub u64, pub u64, pub usize);

/// Reads how much is asked for from the environment: `PLYFS_MODEL_STACKS` stacks of `PLYFS_MODEL_OPS` operations each, from
/// `PLYFS_MODEL_SEED` on; else as `usual` says.
pub fn asked(usual: Amount) -> (u64, u64, usize) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let Amount(by_day, by_night, ops) = usual;
    let stacks = if std::env::var_os("PLYFS_NIGHTLY").is_some() { by_night } else { by_day };
    let ops = number("PLYFS_MODEL_OPS").map_or(ops, |ops| ops as usize);
    (number("PLYFS_MODEL_SEED").unwrap_or(0), number("PLYFS_MODEL_STACKS").unwrap_or(stacks), ops)
}
