//! The model through real mounts: ours, and the kernel's overlayfs over our uppers and we over the kernel's.
//!
//! A runner of its own (`harness = false`): this program is also the daemon. Needs root. `PLYFS_MODEL_STACKS`, `PLYFS_MODEL_OPS` and
//! `PLYFS_MODEL_SEED` as in `model_memory`; with `PLYFS_TEST_NO_SKIPS` set a skip is a failure.

// Without the standard harness clippy does not know these for tests.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::ExitCode;

use layer::fixture::ItemKind;
use mountd::Settle;
use mountd::options::Call;
use plyfs_tests::model::choose::Means;
use plyfs_tests::model::dirs::{survey, unchanged, write_stack};
use plyfs_tests::model::mounted::{Ghosts, Mounted, Place, Server, look_at};
use plyfs_tests::model::on_disk;
use plyfs_tests::model::op::{Kind, Op};
use plyfs_tests::model::run::{Amount, Case, Run, Subject, Trial, asked};
use plyfs_tests::model::stack::{Form, new_root, tree_of};
use plyfs_tests::model::tree::{Inode, When};
use plyfs_tests::model::view::same;

/// What an upper of ours at rest is to be read with, and what the kernel is to write uppers with.
const KERNEL: &str = "metacopy=on,redirect_dir=on,index=off,xino=off";

const TESTS: &[(&str, fn())] = &[
    ("a_mount_looks_like_a_plain_tree", || random_cases(25, &|case| ours(case, &[]))),
    ("a_mount_without_passthrough_looks_like_a_plain_tree", || {
        random_cases(25, &|case| ours(case, &["plyfs.disable=passthrough:readdirplus"]));
    }),
    ("the_kernel_shows_an_upper_of_ours_as_we_do", || random_cases(25, &kernel_reads_ours)),
    ("we_show_an_upper_of_the_kernels_as_it_does", || random_cases(25, &|case| ours_reads_kernel(case, KERNEL))),
    ("we_show_an_indexed_upper_of_the_kernels_as_it_does", || {
        random_cases(25, &|case| ours_reads_kernel(case, "metacopy=on,redirect_dir=on,index=on,xino=off"));
    }),
    ("a_plainly_settled_upper_shows_the_same_by_the_kernel", || random_cases(25, &kernel_reads_plain)),
    ("a_former_upper_of_ours_is_a_layer_for_us_and_the_kernel", || {
        random_cases(20, &|case| as_layer(case, Writer::Ours))
    }),
    ("a_former_upper_of_the_kernels_is_a_layer_here", || random_cases(20, &|case| as_layer(case, Writer::Kernel))),
];

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|word| word == mountd::DAEMON_WORD) {
        return mountd::run_from_args(args);
    }
    let filter = args.get(1).and_then(|word| word.to_str()).filter(|word| !word.starts_with('-')).unwrap_or_default();
    if !on_disk::privileged() || !Path::new("/dev/fuse").exists() {
        for (name, _) in TESTS {
            plyfs_tests::skip(name, "needs root and /dev/fuse; run the tests with sudo");
        }
        return told(TESTS.len(), 0);
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(filter)) {
        let good = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if good { "ok" } else { "FAILED" });
        *(if good { &mut passed } else { &mut failed }) += 1;
    }
    told(passed, failed)
}

/// Sums up as other test programs do.
fn told(passed: usize, failed: usize) -> ExitCode {
    println!("test result: {}. {passed} passed; {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn random_cases(stacks: u64, run: &dyn Fn(&Case) -> Result<u64, String>) {
    let (first, stacks, ops) = asked(Amount(stacks, stacks * 20, 40));
    let tree = |stack: &_| on_disk::tree(Form::Dirs, stack);
    let means = Means { callers: false, ..Means::ALL };
    let run = |case: &Case| run(&without_set_id(case));
    let compared = Trial { form: Form::Dirs, means, ops, run: &run, tree: &tree }.run(first, stacks);
    println!("{compared} operations over {stacks} stacks");
}

/// Takes set-user-ID and set-group-ID from files. The kernel does not tell the daemon who cuts a file, nor that it is the superuser,
/// who would keep them; the core's own runners have them.
fn without_set_id(case: &Case) -> Case {
    let mut case = case.clone();
    for item in case.stack.iter_mut().flatten().filter(|item| item.kind != ItemKind::Dir) {
        item.perm &= 0o1777;
    }
    for op in &mut case.ops {
        match op {
            Op::Create(_, _, perm, _) | Op::Chmod(_, perm) | Op::ChmodOpen(_, perm) => *perm &= 0o1777,
            Op::Make(_, perm, _, kind) if *kind != Kind::Dir => *perm &= 0o1777,
            _ => {}
        }
    }
    case
}

/// A stack in directories, with what else a mount needs.
struct Stage {
    top: tempfile::TempDir,
    place: Place,
    before: std::collections::BTreeMap<std::path::PathBuf, String>,
}

impl Stage {
    fn new(case: &Case) -> Result<Self, String> {
        let io = |error: std::io::Error| error.to_string();
        let top = tempfile::Builder::new().prefix("plyfs-model-").tempdir().map_err(io)?;
        let at = |name: &str| top.path().join(name);
        for name in ["layers", "upper", "work", "other-work", "mnt"] {
            std::fs::create_dir(at(name)).map_err(io)?;
        }
        let layers = write_stack(&at("layers"), &case.stack).map_err(io)?;
        let before = survey(&at("layers")).map_err(io)?;
        let place = Place { layers, upper: at("upper"), work: at("work"), target: at("mnt") };
        Ok(Stage { top, place, before })
    }

    /// The same over the same upper, prepared elsewhere.
    fn other(&self) -> Place {
        Place { work: self.top.path().join("other-work"), ..self.place.clone() }
    }

    fn layers_are_unchanged(&self) -> Result<(), String> {
        let after = survey(&self.top.path().join("layers")).map_err(|error| error.to_string())?;
        unchanged(&self.before, &after).map_err(|why| format!("the layers changed: {why}"))
    }
}

/// Runs a sequence through a mount of ours; returns the mount, still there, with how much was compared.
fn run_ours(case: &Case, stage: &Stage, options: &[&str]) -> Result<(Mounted, u64), String> {
    let options = options.iter().map(OsString::from).collect();
    let mut subject = Mounted::new(Server::Ours(options), stage.place.clone())?;
    let root = subject.run(&Op::Look(plyfs_tests::model::op::p(""))).map_err(|why| format!("{why:?}"))?;
    let plyfs_tests::model::kernel::Got::Attr(root) = root else { return Err("no root".into()) };
    let (atime, mtime) = (When::At(root.atime), When::At(root.mtime));
    let inode = Inode { perm: root.perm, uid: root.uid, gid: root.gid, atime, mtime, ..new_root() };
    let mut run = Run::begin(subject, tree_of(&on_disk::open(&stage.place.layers), inode))?;
    run.sequence(&case.ops, &case.settings)?;
    Ok((run.subject, run.compared))
}

fn ours(case: &Case, options: &[&str]) -> Result<u64, String> {
    let stage = Stage::new(case)?;
    let (mut mount, compared) = run_ours(case, &stage, options)?;
    mount.end()?;
    stage.layers_are_unchanged()?;
    Ok(compared)
}

fn kernel_reads_ours(case: &Case) -> Result<u64, String> {
    let stage = Stage::new(case)?;
    let (mut mount, compared) = run_ours(case, &stage, &[])?;
    let here = look_at(mount.target(), Ghosts::Refuse)?;
    mount.end()?;
    let mut kernel = Mounted::new(Server::Kernel(KERNEL.into()), stage.other())?;
    same(&here, &look_at(kernel.target(), Ghosts::Ignore)?).map_err(|why| format!("ours and the kernel's: {why}"))?;
    kernel.end()?;
    stage.layers_are_unchanged()?;
    Ok(compared)
}

fn kernel_reads_plain(case: &Case) -> Result<u64, String> {
    let stage = Stage::new(case)?;
    let (mut mount, compared) = run_ours(case, &stage, &[])?;
    let here = look_at(mount.target(), Ghosts::Refuse)?;
    mount.end()?;
    settle_plain(&stage.place)?;
    let plain = "metacopy=off,redirect_dir=nofollow,index=off,xino=off";
    let mut kernel = Mounted::new(Server::Kernel(plain.into()), stage.other())?;
    same(&here, &look_at(kernel.target(), Ghosts::Ignore)?).map_err(|why| format!("ours and the kernel's: {why}"))?;
    kernel.end()?;
    let mut mount = Mounted::new(Server::Ours(Vec::new()), stage.place.clone())?;
    same(&here, &look_at(mount.target(), Ghosts::Refuse)?).map_err(|why| format!("before and after: {why}"))?;
    mount.end()?;
    stage.layers_are_unchanged()?;
    Ok(compared)
}

fn settle_plain(place: &Place) -> Result<(), String> {
    let words = [
        "-o".into(),
        mountd::options::spell_list("lowerdir", &place.layers),
        "-o".into(),
        mountd::options::spell("upperdir", &place.upper),
        "-o".into(),
        mountd::options::spell("workdir", &place.work),
        place.target.clone().into(),
    ];
    match mountd::options::parse(&words) {
        Ok(Call::Mount(options)) => mountd::settle(&options, Settle::Plain).map_err(|failure| failure.to_string()),
        other => Err(format!("{other:?}")),
    }
}

/// Who wrote an upper that is to be a layer.
#[derive(Clone, Copy)]
enum Writer {
    Ours,
    Kernel,
}

/// The upper becomes the topmost layer of another mount, which shows the same.
fn as_layer(case: &Case, writer: Writer) -> Result<u64, String> {
    let stage = Stage::new(case)?;
    let mut first = match writer {
        Writer::Ours => run_ours(case, &stage, &[])?.0,
        Writer::Kernel => {
            let mut kernel = Mounted::new(Server::Kernel(KERNEL.into()), stage.place.clone())?;
            case.ops.iter().filter(|op| !matches!(op, Op::Remount | Op::Rest)).for_each(|op| drop(kernel.run(op)));
            kernel
        }
    };
    // The root is the new upper's own.
    let look = |target: &Path, ghosts| {
        let mut view = look_at(target, ghosts)?;
        view.remove(&plyfs_tests::model::op::p(""));
        Ok::<_, String>(view)
    };
    let here = look(first.target(), Ghosts::Ignore)?;
    first.end()?;
    let at = |name: &str| stage.top.path().join(name);
    for name in ["second", "second-work"] {
        std::fs::create_dir(at(name)).map_err(|error| error.to_string())?;
    }
    let layers = [std::slice::from_ref(&stage.place.upper), &stage.place.layers[..]].concat();
    let upper_before = survey(&stage.place.upper).map_err(|error| error.to_string())?;
    let second = Place { layers, upper: at("second"), work: at("second-work"), target: stage.place.target.clone() };
    // Names that begin with `.wh.` are ordinary in an upper.
    for server in [Server::Ours(vec!["plyfs.whiteouts=overlay".into()]), Server::Kernel(KERNEL.into())] {
        let mut mount = Mounted::new(server.clone(), second.clone())?;
        same(&here, &look(mount.target(), Ghosts::Ignore)?)
            .map_err(|why| format!("as a layer of {server:?}: {why}"))?;
        mount.end()?;
    }
    let upper_after = survey(&stage.place.upper).map_err(|error| error.to_string())?;
    unchanged(&upper_before, &upper_after).map_err(|why| format!("the former upper changed: {why}"))?;
    stage.layers_are_unchanged()?;
    Ok(case.ops.len() as u64)
}

fn ours_reads_kernel(case: &Case, options: &str) -> Result<u64, String> {
    let stage = Stage::new(case)?;
    let mut kernel = Mounted::new(Server::Kernel(options.into()), stage.place.clone())?;
    for op in &case.ops {
        match op {
            Op::Remount | Op::Rest => kernel.remount()?,
            // What it answers is its own affair.
            op => drop(kernel.run(op)),
        }
    }
    let there = look_at(kernel.target(), Ghosts::Ignore)?;
    kernel.end()?;
    // The kernel's index of hard-linked origins lies in its work directory.
    let place = if options.contains("index=on") { stage.place.clone() } else { stage.other() };
    let mut mount = Mounted::new(Server::Ours(Vec::new()), place)?;
    same(&there, &look_at(mount.target(), Ghosts::Refuse)?).map_err(|why| format!("the kernel's and ours: {why}"))?;
    mount.end()?;
    stage.layers_are_unchanged()?;
    Ok(case.ops.len() as u64)
}
