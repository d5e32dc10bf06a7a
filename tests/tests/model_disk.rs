//! The model over an upper on a disk, with plain directories and with an image below.
//!
//! Needs root, for `trusted.*` attributes, owners and devices; one test becomes an ordinary user. `PLYFS_MODEL_STACKS`, `PLYFS_MODEL_OPS` and `PLYFS_MODEL_SEED` as in
//! `model_memory`.

use std::os::unix::process::CommandExt;

use backing::upper::Durability;
use plyfs_tests::model::choose::Means;
use plyfs_tests::model::on_disk::{self, How};
use plyfs_tests::model::run::{Amount, Case, Settings, Trial, asked};
use plyfs_tests::model::stack::Form;

/// Plain directories as layers are made with owners, devices and `trusted.*` attributes; an ordinary user skips what needs them.
fn can_write_layers(test: &str) -> bool {
    if !on_disk::privileged() {
        plyfs_tests::skip(test, "needs root; run the tests with sudo");
    }
    on_disk::privileged()
}

const PLAIN: How = How { form: Form::Dirs, durability: Durability::Volatile, always_override: false };

fn random_cases(stacks: u64, how: How) {
    random_cases_as(stacks, how, &|case| case.clone());
}

fn random_cases_as(stacks: u64, how: How, change: &dyn Fn(&Case) -> Case) {
    let (first, stacks, ops) = asked(Amount(stacks, stacks * 20, 50));
    let tree = |stack: &_| on_disk::tree(how.form, stack);
    let means = Means { privileged: on_disk::privileged(), ..Means::ALL };
    let trial = Trial { form: how.form, means, ops, run: &|case| on_disk::run(&change(case), how), tree: &tree };
    let compared = trial.run(first, stacks);
    println!("{compared} operations over {stacks} stacks");
}

#[test]
fn plain_directories_with_an_upper_look_like_a_plain_tree() {
    if !can_write_layers("plain_directories_with_an_upper_look_like_a_plain_tree") {
        return;
    }
    random_cases(60, PLAIN);
}

#[test]
fn an_image_with_an_upper_looks_like_a_plain_tree() {
    random_cases(60, How { form: Form::Image, ..PLAIN });
}

/// Open files without a name are handed over as descriptors.
#[test]
fn a_session_over_a_disk_goes_on_when_it_is_taken_up() {
    if !can_write_layers("a_session_over_a_disk_goes_on_when_it_is_taken_up") {
        return;
    }
    for form in [Form::Dirs, Form::Image] {
        for every in [1, 5] {
            let settings = |case: &Case| Settings { resume_every: every, ..case.settings };
            random_cases_as(20, How { form, ..PLAIN }, &|case| Case { settings: settings(case), ..case.clone() });
        }
    }
}

#[test]
fn a_synced_upper_looks_like_a_plain_tree() {
    if !can_write_layers("a_synced_upper_looks_like_a_plain_tree") {
        return;
    }
    random_cases(10, How { durability: Durability::Synced, ..PLAIN });
}

#[test]
fn an_upper_of_recorded_owners_looks_like_a_plain_tree() {
    if !can_write_layers("an_upper_of_recorded_owners_looks_like_a_plain_tree") {
        return;
    }
    random_cases(30, How { always_override: true, ..PLAIN });
}

/// Marks in `user.*`, owners, modes and devices in records.
#[test]
fn an_ordinary_users_upper_looks_like_a_plain_tree() {
    const NAME: &str = "an_ordinary_users_upper_looks_like_a_plain_tree";
    const NOBODY: u32 = 65534;
    if !on_disk::privileged() {
        return random_cases(40, How { form: Form::Image, ..PLAIN });
    }
    let own = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(own.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let exe = std::env::current_exe().unwrap();
    let ran = std::process::Command::new(exe)
        .args(["--exact", NAME, "--nocapture"])
        .env("TMPDIR", own.path())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("1 passed"), "{said}");
}
