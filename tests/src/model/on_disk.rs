//! The core over an upper on a disk, and plain directories or an image in memory below.

use std::path::PathBuf;

use backing::scanned::{self, Scanned};
use backing::upper::{Durability, Settings as UpperSettings, UpperDir};
use layer::{FileType, Time};
use overlay::{Lower, Options, Overlay};
use tempfile::TempDir;

use super::dirs::{survey, unchanged, write_stack, xattrs};
use super::in_memory;
use super::kernel::{Failed, Got, Kernel};
use super::op::Op;
use super::run::{Case, Run, Settings, Subject};
use super::stack::{Form, Stack, fold, new_root, tree_of};
use super::tree::{Inode, Tree, When};
use super::view::{Scope, View};

/// A union on a disk with a kernel above it.
pub struct OnDisk<L: Lower> {
    top: TempDir,
    how: How,
    settings: Settings,
    lower: Box<dyn Fn() -> L>,
    kernel: Option<Kernel<L, UpperDir>>,
}

/// What varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// What the lower is made of.
    pub form: Form,
    /// Whether copies are synced.
    pub durability: Durability,
    /// Owners and modes are recorded even where they could be set.
    pub always_override: bool,
}

impl<L: Lower> OnDisk<L> {
    fn new(how: How, settings: &Settings, top: TempDir, lower: Box<dyn Fn() -> L>) -> Result<Self, String> {
        for name in ["upper", "work"] {
            std::fs::create_dir(top.path().join(name)).map_err(|error| format!("make {name}: {error}"))?;
        }
        let mut this = OnDisk { top, how, settings: *settings, lower, kernel: None };
        this.mount()?;
        Ok(this)
    }

    fn mount(&mut self) -> Result<(), String> {
        let upper = self.open_upper().map_err(|error| format!("mount: {error}"))?;
        let overlay = Overlay::new((self.lower)(), Some(upper), self.options());
        self.kernel = Some(Kernel::new(overlay.map_err(|error| format!("mount: {error}"))?));
        Ok(())
    }

    fn open_upper(&self) -> overlay::Result<UpperDir> {
        let at = |name| self.top.path().join(name);
        let settings = UpperSettings {
            durability: self.how.durability,
            always_override: self.how.always_override,
            user_marks: false,
        };
        UpperDir::open(&at("upper"), &at("work"), settings)
    }

    fn options(&self) -> Options {
        Options {
            small: self.settings.small,
            open_dirs: self.settings.open_dirs,
            lazy_min: self.settings.lazy_min,
            ..Options::default()
        }
    }

    fn kernel(&mut self) -> &mut Kernel<L, UpperDir> {
        self.kernel.as_mut().expect("it is mounted")
    }

    fn tree(&mut self) -> Result<Tree, String> {
        let root = self.kernel().overlay.getattr(overlay::ROOT).map_err(|error| error.to_string())?.stat;
        let (atime, mtime) = (When::At(root.atime), When::At(root.mtime));
        let inode = Inode { perm: root.perm, uid: root.uid, gid: root.gid, atime, mtime, ..new_root() };
        Ok(tree_of(self.kernel().overlay.lower(), inode))
    }

    /// Looks for what kernel overlayfs would not know in the upper, and what an upper in use leaves in the work directory.
    fn check_upper(&self, at_rest: bool) -> Result<(), String> {
        let root = self.top.path().join("upper");
        let mut todo = vec![root.clone()];
        while let Some(path) = todo.pop() {
            let failed = |error: std::io::Error| format!("{}: {error}", path.display());
            for (name, value) in xattrs(&path).map_err(failed)? {
                if path == root && name.ends_with(b"overlay.plyfs.ours") {
                    continue;
                }
                check_mark(&name, &value, at_rest).map_err(|why| format!("{}: {why}", path.display()))?;
            }
            if path.symlink_metadata().map_err(failed)?.is_dir() {
                for entry in std::fs::read_dir(&path).map_err(failed)? {
                    todo.push(entry.map_err(failed)?.path());
                }
            }
        }
        let own = self.top.path().join("work/plyfs");
        let empty: &[&str] = if at_rest { &["tmp", "index", "partial"] } else { &["tmp"] };
        for name in empty {
            let mut left = match std::fs::read_dir(own.join(name)) {
                // Made when something is put there.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && *name != "tmp" => continue,
                left => left.map_err(|error| format!("{name}: {error}"))?,
            };
            if let Some(Ok(entry)) = left.next() {
                return Err(format!("{} is left", entry.path().display()));
            }
        }
        Ok(())
    }
}

fn check_mark(name: &[u8], value: &[u8], at_rest: bool) -> Result<(), String> {
    let shown = || format!("{}={}", name.escape_ascii(), value.escape_ascii());
    let Some(mark) = name.strip_prefix(b"trusted.").or_else(|| name.strip_prefix(b"user.")) else { return Ok(()) };
    match mark {
        b"overlay.opaque" | b"overlay.impure" if value == b"y" => Ok(()),
        b"overlay.redirect" | b"overlay.metacopy" | b"overlay.plyfs.copy" => Ok(()),
        b"overlay.plyfs.partial" if !at_rest => Ok(()),
        _ if mark.starts_with(b"overlay.") || mark.starts_with(b"plyfs.") => Err(format!("bears {}", shown())),
        _ => Ok(()),
    }
}

impl<L: Lower> Subject for OnDisk<L> {
    fn now(&self) -> Time {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Time { sec: now.tv_sec, nsec: now.tv_nsec as u32 }
    }

    fn run(&mut self, op: &Op) -> Result<Got, Failed> {
        self.kernel().run(op)
    }

    fn remount(&mut self) -> Result<(), String> {
        self.kernel().close_all();
        self.kernel = None;
        self.mount()?;
        self.check_upper(false)
    }

    fn rest(&mut self) -> Result<(), String> {
        self.kernel().close_all();
        self.kernel().overlay.settle().map_err(|error| format!("settle: {error}"))?;
        self.kernel = None;
        self.check_upper(true)?;
        self.mount()
    }

    fn resume(&mut self) -> Result<(), String> {
        let kernel = self.kernel.take().expect("it is mounted");
        let make = |written| Overlay::resume((self.lower)(), Some(self.open_upper()?), self.options(), written);
        self.kernel = Some(kernel.resume(make)?);
        Ok(())
    }

    fn view(&mut self) -> Result<View, String> {
        self.kernel().view()
    }

    fn keeps_number(&self, kind: FileType) -> bool {
        // `user.*` attributes are for files and directories only (xattr(7)): a link's origin cannot be noted.
        privileged() || matches!(kind, FileType::File | FileType::Dir)
    }

    fn scope(&self) -> Scope {
        // Plain directories do not count the directories in merged ones; a disk changes times of access as it likes.
        Scope { dir_links: self.how.form == Form::Image, atime: false, ..Scope::ALL }
    }
}

fn run_over<L: Lower>(case: &Case, mut subject: OnDisk<L>) -> Result<u64, String> {
    let tree = subject.tree()?;
    let mut run = Run::begin(subject, tree)?;
    run.sequence(&case.ops, &case.settings)?;
    Ok(run.compared)
}

/// Runs a case in a temporary directory; the layers are looked at before and after.
///
/// # Errors
/// In words.
pub fn run(case: &Case, how: How) -> Result<u64, String> {
    let temporary = || tempfile::Builder::new().prefix("plyfs-model-").tempdir().map_err(|error| error.to_string());
    // Modes are asked for with the caller's mask in them already, as the daemon has it.
    rustix::process::umask(rustix::fs::Mode::empty());
    let (top, below) = (temporary()?, temporary()?);
    if how.form == Form::Image {
        let mut stack = case.stack.clone();
        if !privileged() {
            as_anybody(&mut stack);
        }
        return run_over(case, OnDisk::new(how, &case.settings, top, Box::new(move || fold(&stack)))?);
    }
    let layers = write_stack(below.path(), &case.stack).map_err(|error| format!("write the layers: {error}"))?;
    let surveyed = || survey(below.path()).map_err(|error| error.to_string());
    let before = surveyed()?;
    let compared = run_over(case, OnDisk::new(how, &case.settings, top, Box::new(move || open(&layers)))?)?;
    unchanged(&before, &surveyed()?).map_err(|why| format!("the layers changed: {why}"))?;
    Ok(compared)
}

/// Tells whether this process may set what only root may set.
pub fn privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Takes out of a stack what an ordinary user cannot keep on a copy.
fn as_anybody(stack: &mut Stack) {
    for item in stack.iter_mut().flatten() {
        item.xattrs.retain(|(name, _)| name.starts_with(b"user."));
    }
}

/// Makes the tree that a stack shows, to choose operations by.
pub fn tree(form: Form, stack: &Stack) -> Tree {
    if form == Form::Image {
        let mut stack = stack.clone();
        if !privileged() {
            as_anybody(&mut stack);
        }
        return in_memory::tree(&stack);
    }
    let below = tempfile::tempdir().expect("there is room for a temporary directory");
    let layers = write_stack(below.path(), stack).expect("the layers are written");
    tree_of(&open(&layers), new_root())
}

/// Opens plain directories as a lower.
///
/// # Panics
/// If they cannot be used.
pub fn open(layers: &[PathBuf]) -> Scanned {
    let options = scanned::Options { whiteouts: scanned::Whiteouts::All, override_stat: false };
    Scanned::open(layers, options).expect("the layers open")
}
