//! The model over an upper on a disk, with plain directories and with an image below.
//!
//! Needs root, for `trusted.*` attributes, owners and devices. `PLYFS_MODEL_STACKS`, `PLYFS_MODEL_OPS` and `PLYFS_MODEL_SEED` as in
//! `model_memory`.

use backing::upper::Durability;
use plyfs_tests::model::choose::Means;
use plyfs_tests::model::on_disk::{self, How};
use plyfs_tests::model::run::{Trial, asked};
use plyfs_tests::model::stack::Form;

const PLAIN: How = How { form: Form::Dirs, durability: Durability::Volatile, always_override: false };

fn random_cases(stacks: u64, how: How) {
    let (first, stacks, ops) = asked(stacks, 50);
    let tree = |stack: &_| on_disk::tree(how.form, stack);
    let trial = Trial { form: how.form, means: Means::ALL, ops, run: &|case| on_disk::run(case, how), tree: &tree };
    let compared = trial.run(first, stacks);
    println!("{compared} operations over {stacks} stacks");
}

#[test]
fn plain_directories_with_an_upper_look_like_a_plain_tree() {
    random_cases(60, PLAIN);
}

#[test]
fn an_image_with_an_upper_looks_like_a_plain_tree() {
    random_cases(60, How { form: Form::Image, ..PLAIN });
}

#[test]
fn a_synced_upper_looks_like_a_plain_tree() {
    random_cases(10, How { durability: Durability::Synced, ..PLAIN });
}

#[test]
fn an_upper_of_recorded_owners_looks_like_a_plain_tree() {
    random_cases(30, How { always_override: true, ..PLAIN });
}
