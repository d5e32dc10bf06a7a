//! Bundles: what is written, what is mounted, and what is left when it does not work.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::fs;

use serde_json::Value;
use support::{Stage, can_mount, mounts_below};

fn config(stage: &Stage, dir: &str) -> Value {
    serde_json::from_slice(&fs::read(stage.path(dir).join("config.json")).unwrap()).unwrap()
}

#[test]
fn bundle_of_an_image_is_read_only_and_of_a_container_is_not() {
    if !can_mount("bundle_of_an_image_is_read_only_and_of_a_container_is_not") {
        return;
    }
    let stage = Stage::with_sample();
    let (image, container) = (stage.path("image"), stage.path("container"));
    stage.ok(["create", "--name", "one", "plyfs/sample"]);
    let printed = stage.ok(["bundle", "plyfs/sample", image.to_str().unwrap(), "/bin/sh", "-c", "true"]);
    assert_eq!(printed, format!("{}\n", image.display()));
    stage.ok(["bundle", "one", container.to_str().unwrap(), "/bin/sh"]);
    let (of_image, of_container) = (config(&stage, "image"), config(&stage, "container"));
    assert_eq!(of_image["root"], serde_json::json!({"path": "rootfs", "readonly": true}));
    assert_eq!(of_container["root"], serde_json::json!({"path": "rootfs", "readonly": false}));
    assert_eq!(of_image["process"]["args"], serde_json::json!(["/bin/sh", "-c", "true"]));
    assert_eq!(fs::read_to_string(image.join("rootfs/etc/motd")).unwrap().lines().count(), 1);
    fs::write(container.join("rootfs/srv/new"), "x").unwrap();
    assert!(fs::write(image.join("rootfs/srv/new"), "x").is_err());
    assert!(stage.fails(["bundle", "plyfs/sample", image.to_str().unwrap()]).contains("there already"));
    for dir in [&image, &container] {
        stage.ok(["umount", dir.join("rootfs").to_str().unwrap()]);
    }
    assert_eq!(stage.ok(["diff", "one"]), "C /srv\nA /srv/new\n");
}

#[test]
fn bundle_that_cannot_be_written_leaves_no_mount() {
    if !can_mount("bundle_that_cannot_be_written_leaves_no_mount") {
        return;
    }
    let stage = Stage::with_sample();
    stage.ok(["create", "--name", "one", "plyfs/sample"]);
    // A name is looked up in the image alone: a link to the host's passwd leads nowhere.
    let dir = stage.make_dir("mounted");
    stage.ok(["mount", "one", dir.to_str().unwrap()]);
    fs::remove_file(dir.join("etc/passwd")).ok(); // The sample may have none.
    std::os::unix::fs::symlink(stage.path("passwd"), dir.join("etc/passwd")).unwrap();
    fs::write(stage.path("passwd"), "spy:x:1:1::/:\n").unwrap();
    stage.ok(["umount", "one"]);
    let bundle = stage.path("bundle");
    stage.ok(["bundle", "one", bundle.to_str().unwrap(), "sh"]);
    stage.ok(["umount", "one"]);
    fs::remove_file(bundle.join("config.json")).unwrap();
    fs::remove_dir(bundle.join("rootfs")).unwrap();
    fs::write(bundle.join("rootfs"), "").unwrap();
    stage.fails(["bundle", "one", bundle.to_str().unwrap(), "sh"]);
    assert_eq!(mounts_below(&stage.path("")), Vec::<std::path::PathBuf>::new());
    let ran = stage.run(["run", "--rm", "-u", "spy", "plyfs/sample", "sh"]);
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.err.contains("no user 'spy'") || ran.err.contains("no OCI runtime"), "{ran:?}");
    assert_eq!(stage.ok(["ps", "-aq"]).lines().count(), 1, "a container that did not start is removed");
    assert_eq!(mounts_below(&stage.path("")), Vec::<std::path::PathBuf>::new());
}

#[test]
fn what_a_runtime_logs_does_not_change_how_a_command_ended() {
    if !can_mount("what_a_runtime_logs_does_not_change_how_a_command_ended") {
        return;
    }
    let stage = Stage::with_sample();
    // Stands in for crun: it is called as 'PROGRAM --root DIR --log FILE ... run ... --pid-file FILE ID'.
    let runtime = |name: &str, started: bool, status: u8, says: &str| {
        let path = stage.path(name);
        let note = if started { "echo 1 > \"$pid\"" } else { "" };
        let script = format!(
            "#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in --log) log=$2;; --pid-file) pid=$2;; esac; shift; done\n\
             echo '{{\"level\":\"error\",\"msg\":\"{says}\"}}' > \"$log\"\n{note}\nexit {status}\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    for (name, started, status, says, code) in [
        ("ran", true, 1, "cannot remove the cgroup: no such file or directory", 1),
        ("ran-long", true, 7, "permission denied", 7),
        ("ran-well", true, 0, "cannot remove the cgroup", 0),
        ("missing", false, 1, "executable file not found in $PATH", 127),
        ("closed", false, 1, "open executable: Permission denied", 126),
        ("broken", false, 1, "cannot make a cgroup", 125),
    ] {
        let runtime = runtime(name, started, status, says);
        let ran = stage.run(["run", "--rm", "--runtime", runtime.to_str().unwrap(), "plyfs/sample", "sh"]);
        assert_eq!(ran.code, code, "{name}: {ran:?}");
    }
    assert_eq!(stage.ok(["ps", "-aq"]), "");
    assert_eq!(mounts_below(&stage.path("")), Vec::<std::path::PathBuf>::new());
}
