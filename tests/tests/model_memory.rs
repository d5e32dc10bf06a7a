//! The model over the pure core: everything in memory.

use plyfs_tests::model::choose::Means;
use plyfs_tests::model::crash::{self, Blow};
use plyfs_tests::model::in_memory;
use plyfs_tests::model::run::{Case, Trial, asked};
use plyfs_tests::model::stack::Form;

fn random_cases(stacks: u64, ops: usize, run: &dyn Fn(&Case) -> Result<u64, String>) {
    let (first, stacks, ops) = asked(stacks, ops);
    let trial = Trial { form: Form::Image, means: Means::ALL, ops, run, tree: &in_memory::tree };
    let compared = trial.run(first, stacks);
    println!("{compared} operations over {stacks} stacks");
}

#[test]
fn random_operations_over_random_stacks_look_like_a_plain_tree() {
    random_cases(600, 60, &in_memory::run);
}

#[test]
fn a_crash_at_any_step_leaves_the_tree_before_or_after() {
    random_cases(150, 40, &|case| crash::run(case, Blow::Crash));
}

#[test]
fn a_full_disk_at_any_step_leaves_the_tree_as_it_was() {
    random_cases(150, 40, &|case| crash::run(case, Blow::Full));
}
