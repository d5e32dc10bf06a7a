//! Many layers with few descriptors; a program of its own, for the limit holds for a whole process.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod scanned_stack;

use backing::scanned::{Options, Scanned};
use overlay::Lower;
use rustix::process::{Resource, Rlimit};
use scanned_stack::{Put, Stack, children, dir, file, read, slot, tree};

#[test]
fn a_thousand_layers_work_with_64_descriptors() {
    let deep = "a/b/c/d";
    let layers: Vec<Vec<Put>> =
        (0..1000).map(|n| vec![file(&format!("{deep}/{n}"), &n.to_string()), dir(&format!("own{n}/e/f/g"))]).collect();
    let stack = Stack::new(&layers).unwrap();
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..limit }).unwrap();
    let lower = Scanned::open(&stack.layers, Options::default()).unwrap();
    assert_eq!(children(&lower, slot(&lower, deep)).unwrap().len(), 1000);
    for n in [0, 31, 32, 999] {
        assert_eq!(read(&lower, slot(&lower, &format!("{deep}/{n}"))).unwrap(), n.to_string().as_bytes());
    }
    assert_eq!(tree(&lower).len(), 1 + 4 + 1000 + 4 * 1000);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 50, "{open} descriptors are open");
    assert_eq!(lower.parent(lower.root()).unwrap(), lower.root());
}
