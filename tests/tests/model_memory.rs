//! The model over the pure core: everything in memory. Failures that were found stay here by hand, each with its story.
//!
//! `PLYFS_MODEL_STACKS` and `PLYFS_MODEL_OPS` say how many stacks of how many operations are tried, `PLYFS_MODEL_SEED` where the
//! seeds begin. `PLYFS_NIGHTLY=1` tries 12,500 stacks of 100 operations each; a million or so of these can be done.

use layer::fixture::{Item, dir, file, hardlink, object};
use overlay::Access::{Read, Truncate, Write};
use overlay::Privilege::{Drops, Keeps};
use overlay::RenameFlags::{Exchange, NoReplace, Replace};
use overlay::upper::SetXattr;
use overlay::{Caller, Overlay};
use plyfs_tests::model::choose::Means;
use plyfs_tests::model::crash::{self, Blow};
use plyfs_tests::model::in_memory;
use plyfs_tests::model::memory::{Disk, MemoryUpper};
use plyfs_tests::model::op::{Kind, Op, p};
use plyfs_tests::model::run::{Amount, Case, Settings, Trial, asked};
use plyfs_tests::model::stack::{Form, Stack, fold};

fn random_cases(amount: Amount, run: &dyn Fn(&Case) -> Result<u64, String>) {
    let (first, stacks, ops) = asked(amount);
    let trial = Trial { form: Form::Image, means: Means::ALL, ops, run, tree: &in_memory::tree };
    let compared = trial.run(first, stacks);
    println!("{compared} operations over {stacks} stacks");
}

#[test]
fn random_operations_over_random_stacks_look_like_a_plain_tree() {
    random_cases(Amount(300, 12_500, 100), &in_memory::run);
}

#[test]
fn a_crash_at_any_step_leaves_the_tree_before_or_after() {
    random_cases(Amount(60, 1500, 40), &|case| crash::run(case, Blow::Crash));
}

#[test]
fn a_full_disk_at_any_step_leaves_the_tree_as_it_was() {
    random_cases(Amount(60, 1500, 40), &|case| crash::run(case, Blow::Full));
}

/// The same case with the union dropped and made anew after every so many operations.
fn resumed(case: &Case, every: usize) -> Case {
    Case { settings: Settings { resume_every: every, ..case.settings }, ..case.clone() }
}

#[test]
fn a_session_that_is_taken_up_goes_on_as_if_nothing_had_happened() {
    random_cases(Amount(100, 1500, 60), &|case| in_memory::run(&resumed(case, 1)));
    random_cases(Amount(100, 1500, 60), &|case| in_memory::run(&resumed(case, 7)));
}

/// Runs a sequence that failed once, however it is watched and interrupted.
fn keep<const N: usize>(stack: [Vec<Item>; N], ops: &[Op]) {
    let stack: Stack = stack.into_iter().collect();
    for (small, lazy_min) in [(0, 1), (0, u64::MAX), (1000, 1), (1000, u64::MAX)] {
        for (open_dirs, look_every) in [(1, 0), (1000, 0), (1000, 1)] {
            let settings = Settings { small, open_dirs, lazy_min, look_every, resume_every: 0 };
            let case = Case { stack: stack.clone(), settings, ops: ops.to_vec() };
            in_memory::run(&case).unwrap_or_else(|why| panic!("{why}\n{case:?}"));
            in_memory::run(&resumed(&case, 1)).unwrap_or_else(|why| panic!("resumed: {why}\n{case:?}"));
            for blow in [Blow::Crash, Blow::Full] {
                crash::run(&case, blow).unwrap_or_else(|why| panic!("{blow:?}: {why}\n{case:?}"));
            }
        }
    }
}

/// Attributes of a lower file that had lost its name were looked for in the upper, where it never was.
#[test]
fn an_open_file_without_a_name_keeps_its_attributes() {
    let below = || [vec![file("d/e", "content").perm(0o4755).xattr("user.x", "x")]];
    let after = [
        Op::Unlink(p("d/e")),
        Op::XattrsOpen(0),
        Op::SetXattrOpen(0, p("user.y"), b"y".to_vec()),
        Op::ChownOpen(0, Some(1000), None),
        Op::XattrsOpen(0),
        Op::Stat(0),
        Op::ChmodOpen(0, 0o600),
        Op::Stat(0),
        Op::Read(0, 0, 100),
    ];
    let open = Op::Open(0, p("d/e"), Read, Keeps);
    keep(below(), &[std::slice::from_ref(&open), &after[..]].concat());
    // The same of a metadata-only copy: its attributes are in the upper, its body is not.
    let change = Op::SetXattr(p("d/e"), p("user.z"), b"z".to_vec(), SetXattr::Any);
    keep(below(), &[&[change, open], &after[..]].concat());
}

/// A change of owner left the capabilities of a lower file that had lost its name.
#[test]
fn an_open_file_without_a_name_loses_capabilities_with_its_owner() {
    let capability = plyfs_tests::model::stack::capability();
    let below = [vec![file("b/c", "content").xattr("trusted.t", "t").xattr("security.capability", capability)]];
    let ops = [
        Op::Open(3, p("b/c"), Read, Keeps),
        Op::Unlink(p("b/c")),
        Op::ChownOpen(3, Some(1000), None),
        Op::XattrsOpen(3),
    ];
    keep(below, &ops);
}

/// There is one file to those who read the old bytes and to all others, also for the next process.
#[test]
fn what_was_left_to_a_reader_is_known_when_the_session_is_taken_up() {
    let below: Stack = vec![vec![object("a", "lower")]];
    let upper = MemoryUpper::new(Disk::new());
    let (lower, options) = (|| fold(&below), overlay::Options::default());
    let find = |overlay: &Overlay<_, MemoryUpper>| {
        let name = layer::Name::new(b"a").expect("a name");
        overlay.lookup(overlay::ROOT, name).expect("a lookup").expect("a").id
    };
    let overlay = Overlay::new(lower(), Some(upper.clone()), options.clone()).expect("the layers mount");
    let old = find(&overlay);
    overlay.open(old, Read, Keeps).map(drop).expect("a reader");
    assert!(overlay.detach(old, Write).expect("a copy").is_some());
    let written = overlay.write_session().expect("a session");
    let again = Overlay::resume(lower(), Some(upper), options, written).expect("the same session");
    let new = again.heir(old).expect("who has the file now");
    assert_eq!((find(&again), again.heir(new)), (new, None));
    let set = |perm| overlay::upper::SetAttr { perm: Some(perm), ..Default::default() };
    again.setattr(old, &set(0o600), None, Keeps).expect("a change by the reader");
    assert_eq!(again.getattr(new).expect("attributes").stat.perm, 0o600);
    again.setattr(new, &set(0o604), Some(2), Keeps).expect("a change by another");
    let seen = |id| again.getattr(id).map(|attr| (attr.stat.perm, attr.stat.size)).expect("attributes");
    assert_eq!((seen(old), seen(new)), ((0o604, 5), (0o604, 2)));
    // Nobody needs the file's node any more once the kernel forgot both.
    again.forget(new, 1);
    assert_eq!(seen(old), (0o604, 5));
    again.release(old);
    again.forget(old, 1);
    assert_eq!(again.nodes_in_memory(), 1);
}

/// Readers who were left behind with the old bytes still had the number when the mount ended: the copy got no names, and was
/// removed with the index.
#[test]
fn a_hard_linked_copy_is_kept_although_old_readers_are_left_behind() {
    let below: Stack = vec![vec![object("a", "lower"), hardlink("b", "a"), hardlink("c", "a")]];
    let upper = MemoryUpper::new(Disk::new());
    let mount = |upper: &MemoryUpper| {
        Overlay::new(fold(&below), Some(upper.clone()), overlay::Options::default()).expect("the layers mount")
    };
    let find = |overlay: &Overlay<_, MemoryUpper>, name: &'static str| {
        let name = layer::Name::new(name.as_bytes()).expect("a name");
        overlay.lookup(overlay::ROOT, name).expect("a lookup").map(|attr| (attr.id, attr.stat.nlink))
    };
    let overlay = mount(&upper);
    let (old, _) = find(&overlay, "a").expect("a");
    overlay.open(old, Read, Keeps).map(drop).expect("a reader");
    assert!(overlay.detach(old, Write).expect("a copy").is_some());
    let (new, _) = find(&overlay, "b").expect("b");
    assert_ne!(new, old);
    overlay.open(new, Write, Keeps).map(drop).expect("a writer");
    overlay.write(new, 0, b"upper", Keeps).expect("a write");
    overlay.unlink(overlay::ROOT, layer::Name::new(b"c").expect("a name")).expect("a name less");
    assert_eq!(find(&overlay, "a"), Some((new, 2)));
    overlay.settle().expect("at rest");
    drop(overlay);
    let again = mount(&MemoryUpper::new(upper.disk().recovered()));
    for name in ["a", "b"] {
        let (id, nlink) = find(&again, name).expect(name);
        again.open(id, Read, Keeps).map(drop).expect("a reader");
        let read = again.read(id, 0, &mut [0; 16], <[u8]>::to_vec).expect("a read");
        assert_eq!((read.as_slice(), nlink), (&b"upper"[..], 2), "{name}");
    }
    assert_eq!(find(&again, "c"), None);
}

/// A hard-linked file that was copied up by one name and forgotten was copied up again by the other.
#[test]
fn a_hard_link_is_copied_up_once() {
    let below = [vec![file("a/d", "content"), hardlink("d/a/c", "a/d")]];
    let ops =
        [Op::Rename(p("d/a"), p("a/c"), Replace), Op::Unlink(p("a/c/c")), Op::Forget(p("")), Op::Unlink(p("a/d"))];
    keep(below, &ops);
}

/// Names in directories that were moved before this mount were taken for hidden, and the link count was too low.
#[test]
fn hard_links_in_moved_directories_are_counted_after_a_remount() {
    let below = || [vec![file("n/c", ""), hardlink("d/c", "n/c"), dir("c")]];
    let ops = [
        Op::Rename(p("n"), p("c/n"), NoReplace),
        Op::Rename(p("d"), p("c/d"), Replace),
        Op::Remount,
        Op::Rename(p("c/d/c"), p("c/b"), NoReplace),
        Op::Remount,
        Op::Unlink(p("c/b")),
    ];
    keep(below(), &ops);
    // A directory may have been moved out of one that was removed since.
    let below = [vec![file("n/a/c", ""), hardlink("c/a", "n/a/c"), dir("a")]];
    let ops = [
        Op::Unlink(p("c/a")),
        Op::Rename(p("n/a"), p("a/a"), Replace),
        Op::Rmdir(p("n")),
        Op::Remount,
        Op::Chmod(p("a/a/c"), 0o600),
    ];
    keep(below, &ops);
}

/// An open file whose one known name was removed counted as nameless, although the upper had other names of it.
#[test]
fn a_file_lives_on_by_names_that_this_mount_has_not_met() {
    let below = || [vec![dir("e/a/b"), object("a/e/e", "G"), dir("b/c")]];
    let prepare = [
        Op::Open(0, p("a/e/e"), Truncate, Keeps),
        Op::LinkOpen(0, p("e/a/b/b")),
        Op::Remount,
        Op::Open(2, p("e/a/b/b"), Write, Keeps),
        Op::Unlink(p("e/a/b/b")),
        Op::Stat(2),
    ];
    let link = [Op::LinkOpen(2, p("b/x")), Op::Stat(2)];
    keep(below(), &[&prepare[..], &link[..]].concat());
    // It is the same file by its other name, while it is open too.
    let rename = [Op::Rename(p("a/e/e"), p("e/x"), NoReplace), Op::LinkOpen(2, p("b/x")), Op::Look(p("e/x"))];
    keep(below(), &[&prepare[..], &rename[..]].concat());
}

/// A rename onto a directory of whiteouts that failed for want of room showed the lower's names again, or lost the number.
#[test]
fn a_rename_onto_an_emptied_directory_may_fail() {
    let below = [vec![dir("d/e/d"), dir("a/c/d")]];
    let umask = Caller { umask: 0o022, ..Caller::default() };
    let ops = [
        Op::Rmdir(p("d/e/d")),
        Op::Rename(p("a/c/d"), p("d/e"), Replace),
        Op::Make(p("d/e/d"), 0o755, umask, Kind::Dir),
    ];
    keep(below, &ops);
}

/// What was cut to nothing came back: the crash left an empty file whose body was still to be found below.
#[test]
fn a_body_that_was_cut_off_stays_cut_off_over_a_crash() {
    let below = [vec![object("b/b", "NIICS").perm(0o4755)]];
    let ops = [
        Op::Rename(p("b/b"), p("b/c"), Replace),
        Op::Open(0, p("b/c"), Truncate, Drops),
        Op::Write(0, 3, plyfs_tests::model::op::Fill(1, 9), Drops),
    ];
    keep(below, &ops);
}

/// The count of a hard link's names is written in another step than the name that goes.
#[test]
fn hard_links_are_counted_right_after_a_crash() {
    let below = [vec![file("e/a", ""), hardlink("d/a/b", "e/a"), hardlink("x", "e/a")]];
    let ops = [
        Op::Unlink(p("d/a/b")),
        Op::Rename(p("x"), p("y"), Exchange),
        Op::Rename(p("x"), p("y"), NoReplace),
        Op::Rest,
        Op::Unlink(p("e/a")),
        Op::Unlink(p("y")),
    ];
    keep(below, &ops);
}

/// The kernel takes capabilities from a file that is written to, and a crash came before they were given back.
#[test]
fn a_crash_while_a_body_is_completed_takes_no_capability() {
    let capability = plyfs_tests::model::stack::capability();
    let below = || [vec![object("a", "lower body").xattr("security.capability", capability.clone())]];
    let open = Op::Open(0, p("a"), Write, Keeps);
    // At rest, for a call that needs the whole file, and where the body alone was below.
    keep(below(), &[open.clone(), Op::Rest]);
    keep(below(), &[open.clone(), Op::Allocate(0, libc::FALLOC_FL_KEEP_SIZE, 0, 4)]);
    keep(below(), &[Op::Chmod(p("a"), 0o700), Op::Remount, open, Op::Rest]);
}
