//! The same tests without privilege over the machine.

use std::process::Command;

use crate::area::in_user_namespace;

#[test]
fn everything_holds_in_a_user_namespace() {
    if in_user_namespace() {
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["-Urm", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    // Two at a time: these run beside the others.
    unshare.args([
        "--skip",
        "root::",
        "--skip",
        "disks::",
        "--skip",
        "owners::",
        "--skip",
        "documents::",
        "--test-threads",
        "2",
        "-q",
    ]);
    let output = unshare.output().unwrap();
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{failed}");
    assert!(said.contains("test result: ok"), "{said}");
}
