//! The model over the pure core: everything in memory.

use plyfs_tests::model::choose::Means;
use plyfs_tests::model::in_memory;
use plyfs_tests::model::run::{Trial, asked};
use plyfs_tests::model::stack::Form;

#[test]
fn random_operations_over_random_stacks_look_like_a_plain_tree() {
    let (first, stacks, ops) = asked(300, 60);
    let trial = Trial { form: Form::Image, means: Means::ALL, ops, run: &in_memory::run, tree: &in_memory::tree };
    let compared = trial.run(first, stacks);
    println!("{compared} operations over {stacks} stacks");
}
