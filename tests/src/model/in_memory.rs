//! The pure core over layers and an upper in memory.

use layer::Time;
use overlay::{Options, Overlay};

use super::kernel::{Failed, Got, Kernel};
use super::memory::{Disk, MemoryUpper};
use super::op::Op;
use super::run::{Case, Run, Settings, Subject};
use super::stack::{MemoryLower, Stack, fold, new_root, tree_of};
use super::tree::Tree;
use super::view::View;

/// A union in memory with a kernel above it.
pub struct InMemory {
    stack: Stack,
    settings: Settings,
    upper: MemoryUpper,
    kernel: Option<Kernel<MemoryLower, MemoryUpper>>,
}

/// Makes the tree that a stack shows.
pub fn tree(stack: &Stack) -> Tree {
    tree_of(&fold(stack), new_root())
}

fn options(settings: &Settings) -> Options {
    Options { small: settings.small, open_dirs: settings.open_dirs, lazy_min: settings.lazy_min, ..Options::default() }
}

fn mount(stack: &Stack, settings: &Settings, upper: &MemoryUpper) -> Result<Kernel<MemoryLower, MemoryUpper>, String> {
    let overlay =
        Overlay::new(fold(stack), Some(upper.clone()), options(settings)).map_err(|error| format!("mount: {error}"))?;
    Ok(Kernel::new(overlay))
}

impl InMemory {
    /// Mounts a stack with a disk that may have been used before.
    ///
    /// # Errors
    /// In words.
    pub fn new(stack: &Stack, settings: &Settings, disk: Disk) -> Result<Self, String> {
        let upper = MemoryUpper::new(disk);
        let kernel = Some(mount(stack, settings, &upper)?);
        Ok(InMemory { stack: stack.clone(), settings: *settings, upper, kernel })
    }

    /// Brings the upper to rest.
    ///
    /// # Errors
    /// In words: it failed, or left something behind.
    pub fn settle(&mut self) -> Result<(), String> {
        self.kernel().close_all();
        self.kernel().overlay.settle().map_err(|error| format!("settle: {error}"))?;
        match self.upper.disk().rest_errors().first() {
            Some(wrong) => Err(format!("at rest: {wrong}")),
            None => Ok(()),
        }
    }

    fn kernel(&mut self) -> &mut Kernel<MemoryLower, MemoryUpper> {
        self.kernel.as_mut().expect("it is mounted")
    }

    /// Returns the upper.
    pub fn upper(&self) -> &MemoryUpper {
        &self.upper
    }
}

impl Subject for InMemory {
    fn now(&self) -> Time {
        self.upper.disk().now()
    }

    fn run(&mut self, op: &Op) -> Result<Got, Failed> {
        self.kernel().run(op)
    }

    fn remount(&mut self) -> Result<(), String> {
        let disk = self.upper.disk().recovered();
        *self = InMemory::new(&self.stack, &self.settings, disk)?;
        Ok(())
    }

    fn rest(&mut self) -> Result<(), String> {
        self.kernel().run(&Op::Forget(super::op::p(""))).map_err(|why| format!("{why:?}"))?;
        self.settle()?;
        self.remount()
    }

    fn resume(&mut self) -> Result<(), String> {
        let kernel = self.kernel.take().expect("it is mounted");
        let (lower, upper, options) = (fold(&self.stack), self.upper.clone(), options(&self.settings));
        self.kernel = Some(kernel.resume(|written| Overlay::resume(lower, Some(upper), options, written))?);
        Ok(())
    }

    fn view(&mut self) -> Result<View, String> {
        self.kernel().view()
    }

    fn view_of_copy(&mut self) -> Result<Option<View>, String> {
        let disk = self.upper.disk().recovered();
        if let Some(wrong) = disk.format_errors().first() {
            return Err(format!("on the disk: {wrong}"));
        }
        let upper = MemoryUpper::new(disk);
        mount(&self.stack, &self.settings, &upper)?.view().map(Some).map_err(|why| format!("after a remount: {why}"))
    }
}

/// Runs a case.
///
/// # Errors
/// In words.
pub fn run(case: &Case) -> Result<u64, String> {
    let subject = InMemory::new(&case.stack, &case.settings, Disk::new())?;
    let mut run = Run::begin(subject, tree(&case.stack))?;
    run.sequence(&case.ops, &case.settings)?;
    Ok(run.compared)
}
