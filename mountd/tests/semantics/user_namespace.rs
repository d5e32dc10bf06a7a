//! The same tests without privilege over the machine.

use std::process::{Command, Stdio};

use crate::area::{in_user_namespace, skip};

#[test]
fn everything_holds_in_a_user_namespace() {
    if in_user_namespace() {
        return;
    }
    let allowed = Command::new("unshare").args(["-Urm", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        return skip(
            "everything_holds_in_a_user_namespace",
            "user namespaces are not to be had: nothing of what a mount promises was tested; run the tests with sudo",
        );
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
