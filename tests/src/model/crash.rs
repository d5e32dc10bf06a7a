//! Stopping between any two steps: the machine goes down, or the disk is full, and the tree is as it was before the operation or
//! as it should be after it.

use layer::FileType;
use overlay::{Access, Errno, Privilege};

use super::in_memory::{InMemory, tree};
use super::kernel::Failed;
use super::memory::{Disk, Trouble};
use super::op::{Handle, Op, Path};
use super::run::{Case, Run, Subject};
use super::tree::{Expected, Tree};
use super::view::{Identity, Mtime, Scope, View, compare};

/// What is done to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// The machine goes down.
    Crash,
    /// The disk is full for a moment.
    Full,
}

/// Runs a case, and every operation of it many more times with a blow before each of its steps.
///
/// # Errors
/// In words.
pub fn run(case: &Case, blow: Blow) -> Result<u64, String> {
    let subject = InMemory::new(&case.stack, &case.settings, Disk::new())?;
    let mut run = Run::begin(subject, tree(&case.stack))?;
    let mut compared = 0;
    for (at, op) in case.ops.iter().enumerate() {
        let failed = |why: String| format!("operation {at}, {op:?}: {why}");
        if let Some(trial) = Trial::new(case, &run, op) {
            compared += trial.blows(blow).map_err(failed)?;
        }
        run.step(op).map_err(failed)?;
    }
    run.end()?;
    Ok(compared)
}

/// One operation to be interrupted.
struct Trial<'a> {
    case: &'a Case,
    op: &'a Op,
    /// Opens what the operation has open.
    opening: Vec<Op>,
    disk: Disk,
    before: Tree,
    after: Tree,
    identity: Identity,
}

impl<'a> Trial<'a> {
    /// Prepares it; `None` for what changes nothing, or works on a file without a name.
    fn new(case: &'a Case, run: &Run<InMemory>, op: &'a Op) -> Option<Self> {
        let before = run.tree.at_rest();
        let opening = opening(&run.tree, op)?;
        let disk = run.subject.upper().disk().recovered();
        let mut after = before.clone();
        for open in &opening {
            after.apply(open, disk.now()).ok()?;
        }
        if matches!(after.apply(op, disk.now()), Ok(Expected::Skip)) {
            return None;
        }
        let after = after.at_rest();
        let mut identity = run.identity.clone();
        if let Op::Rename(_, to, _) = op
            && let Ok(id) = before.walk(to)
            && before.inode(id).kind() == FileType::Dir
        {
            // An empty directory that is about to be replaced may be found as another one.
            identity.forget(id);
        }
        Some(Trial { case, op, opening, disk, before, after, identity })
    }

    /// Interrupts it before each of its steps; returns how often.
    fn blows(&self, blow: Blow) -> Result<u64, String> {
        for step in 0.. {
            let mut subject = InMemory::new(&self.case.stack, &self.case.settings, self.disk.clone())?;
            for open in &self.opening {
                subject.run(open).map_err(|why| format!("{open:?}: {why:?}"))?;
            }
            let trouble = match blow {
                Blow::Crash => Trouble::CrashAfter(step),
                Blow::Full => Trouble::FailAfter(step, Errno::ENOSPC),
            };
            subject.upper().disk().set_trouble(trouble);
            let answer = match self.op {
                Op::Rest => subject.settle().map(|()| super::kernel::Got::Done).map_err(Failed::Fault),
                op => subject.run(op),
            };
            if subject.upper().disk().trouble_pending() {
                return Ok(u64::from(step));
            }
            let checked = match blow {
                Blow::Crash => self.check_crash(&subject),
                Blow::Full => self.check_full(subject, answer),
            };
            checked.map_err(|why| format!("stopped before step {step}: {why}"))?;
        }
        Ok(0)
    }

    fn check_crash(&self, subject: &InMemory) -> Result<(), String> {
        let disk = subject.upper().disk().recovered();
        if let Some(wrong) = disk.format_errors().first() {
            return Err(format!("on the disk: {wrong}"));
        }
        let mut recovered = InMemory::new(&self.case.stack, &self.case.settings, disk)?;
        let scope = Scope { mtime: Mtime::Before(self.disk.now()), ..Scope::ALL };
        let view = recovered.view()?;
        let Err(not_before) = self.is_before(&view, scope) else { return self.again(recovered) };
        let Err(not_after) = self.is(&self.after, &view, Scope { mtime: Mtime::None, ..scope }) else { return Ok(()) };
        if self.emptied(&view, scope) {
            return self.again(recovered);
        }
        Err(format!("neither before ({not_before}) nor after ({not_after})"))
    }

    fn check_full(&self, mut subject: InMemory, answer: Result<super::kernel::Got, Failed>) -> Result<(), String> {
        if *self.op == Op::Rest {
            // It is resumed by the next mount.
            subject.remount()?;
            self.is(&self.before, &subject.view()?, Scope { mtime: Mtime::Before(self.disk.now()), ..Scope::ALL })?;
            return subject.settle();
        }
        let view = subject.view()?;
        // The times of a directory are not set back where that fails.
        let scope = Scope { mtime: Mtime::Before(self.disk.now()), ..Scope::ALL };
        match answer {
            Err(Failed::Answer(Errno::ENOSPC)) => {
                self.is_before(&view, scope).map_err(|why| format!("refused, and yet {why}"))?;
            }
            Err(Failed::Fault(why)) => return Err(why),
            _ => return self.is(&self.after, &view, scope),
        }
        self.again_in(&mut subject)?;
        subject.remount()?;
        self.is(&self.after, &subject.view()?, scope).map_err(|why| format!("after a remount: {why}"))
    }

    /// As before; or, where content is about to change, already without privileges, as on a plain disk.
    fn is_before(&self, view: &View, scope: Scope) -> Result<(), String> {
        let differs = self.is(&self.before, view, scope);
        let (Err(_), Some((path, privilege))) = (&differs, self.written()) else { return differs };
        self.is_stripped(&self.before, &path, privilege, view, scope).or(differs)
    }

    /// Mode and capability go in two steps; the capability alone where a body is brought up first.
    fn is_stripped(
        &self,
        tree: &Tree,
        path: &Path,
        privilege: Privilege,
        view: &View,
        scope: Scope,
    ) -> Result<(), String> {
        let mut mode = tree.clone();
        mode.strip_mode(path, privilege);
        let mut capability = tree.clone();
        capability.strip_capability(path);
        let mut both = mode.clone();
        both.strip_capability(path);
        let one = self.is(&mode, view, scope).or_else(|_| self.is(&capability, view, scope));
        one.or_else(|_| self.is(&both, view, scope))
    }

    /// A file that is cut to nothing may be found empty with its old mode: nothing is to be run in it.
    fn emptied(&self, view: &View, scope: Scope) -> bool {
        let empties =
            matches!(self.op, Op::Truncate(_, 0, _) | Op::TruncateOpen(_, 0, _) | Op::Open(_, _, Access::Truncate, _));
        let Some((path, privilege)) = self.written().filter(|_| empties) else { return false };
        let mut emptied = self.before.clone();
        let cut = emptied.empty(&path).is_ok();
        let scope = Scope { mtime: Mtime::None, ..scope };
        let stripped = |privilege| self.is_stripped(&emptied, &path, privilege, view, scope).is_ok();
        cut && (stripped(Privilege::Keeps) || stripped(privilege))
    }

    /// The file whose content changes.
    fn written(&self) -> Option<(Path, Privilege)> {
        let opened = |handle: &Handle| {
            self.opening.iter().find_map(|op| match op {
                Op::Open(open, path, ..) if open == handle => Some(path.clone()),
                _ => None,
            })
        };
        Some(match self.op {
            Op::Truncate(path, _, privilege) | Op::Open(_, path, Access::Truncate, privilege) => {
                (path.clone(), *privilege)
            }
            Op::Write(handle, _, _, privilege) | Op::TruncateOpen(handle, _, privilege) => {
                (opened(handle)?, *privilege)
            }
            _ => return None,
        })
    }

    fn is(&self, tree: &Tree, view: &View, scope: Scope) -> Result<(), String> {
        compare(tree, view, scope)?;
        self.identity.clone().check(tree, view)
    }

    /// What was cut off can be done now.
    fn again(&self, mut subject: InMemory) -> Result<(), String> {
        for open in &self.opening {
            subject.run(open).map_err(|why| format!("{open:?} after it: {why:?}"))?;
        }
        self.again_in(&mut subject)
    }

    fn again_in(&self, subject: &mut InMemory) -> Result<(), String> {
        let answer = match self.op {
            Op::Rest => return subject.rest(),
            op => subject.run(op),
        };
        let view = subject.view()?;
        let scope = Scope { mtime: Mtime::Before(self.disk.now()), ..Scope::ALL };
        self.is(&self.after, &view, scope).map_err(|why| format!("done again ({answer:?}): {why}"))
    }
}

/// Returns what opens the files of an operation; `None` where that cannot be, or nothing is changed.
fn opening(tree: &Tree, op: &Op) -> Option<Vec<Op>> {
    let open = |handle: &Handle| {
        let (_, id, access) = tree.opened().find(|(open, ..)| open == handle)?;
        let access = if access == Access::Read { Access::Read } else { Access::Write };
        Some(Op::Open(*handle, tree.path_of(id)?, access, Privilege::Keeps))
    };
    Some(match op {
        Op::Create(..)
        | Op::Make(..)
        | Op::Link(..)
        | Op::Unlink(_)
        | Op::Rmdir(_)
        | Op::Rename(..)
        | Op::Chmod(..)
        | Op::Chown(..)
        | Op::Utimens(..)
        | Op::Truncate(..)
        | Op::SetXattr(..)
        | Op::RemoveXattr(..)
        | Op::Open(_, _, Access::Write | Access::Truncate, _) => Vec::new(),
        Op::Write(handle, ..)
        | Op::TruncateOpen(handle, ..)
        | Op::ChmodOpen(handle, _)
        | Op::ChownOpen(handle, ..)
        | Op::SetXattrOpen(handle, ..)
        | Op::Allocate(handle, ..)
        | Op::LinkOpen(handle, _) => vec![open(handle)?],
        Op::Rest => Vec::new(),
        Op::CopyRange(from, _, to, ..) if from != to => vec![open(from)?, open(to)?],
        _ => return None,
    })
}
