//! The command against Debian's `docker-registry`, and beside skopeo.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::registry::{Access, PASSWORD, Registry, USER, has};
use support::{Stage, skip};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What a push or a pull is compared by: the image's ID and its layers.
fn identity(stage: &Stage, name: &str) -> (String, Value) {
    let found = json(&stage.ok(["inspect", name]));
    (found[0]["Id"].as_str().unwrap().to_owned(), found[0]["RootFS"]["Layers"].clone())
}

fn run(program: &str, args: &[&str]) -> String {
    // Whose passwords there are is no matter of these tests, nor whether they can be read.
    let passwords = tempfile::tempdir().unwrap();
    let file = passwords.path().join("auth.json");
    std::fs::write(&file, "{}").unwrap();
    let output = Command::new(program).args(args).env("REGISTRY_AUTH_FILE", &file).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The line `Digest: ...` of a pull, or `TAG: digest: ...` of a push.
fn digest(text: &str) -> String {
    let line = text.lines().find(|line| line.contains("igest: ")).unwrap_or_else(|| panic!("no digest: {text}"));
    line.split("igest: ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn an_image_is_pushed_and_pulled_back_as_it_was() {
    if !has("docker-registry", "an_image_is_pushed_and_pulled_back_as_it_was") {
        return;
    }
    let stage = Stage::with_sample();
    let registry = Registry::start(&stage.path("registry"), Access::Anybody);
    let name = registry.name("team/sample:1");
    let before = identity(&stage, "plyfs/sample");
    stage.ok(["tag", "plyfs/sample", &name]);
    let pushed = stage.run(["push", "--plain-http", &name]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    assert!(pushed.out.starts_with(&format!("The push refers to repository [{}]\n", registry.name("team/sample"))));
    assert!(pushed.out.lines().last().unwrap().starts_with("1: digest: sha256:"), "{pushed:?}");
    assert_eq!(pushed.err.lines().filter(|line| line.ends_with(": Pushed")).count(), 4, "{pushed:?}");
    // Once more: nothing is sent, and the manifest is the same.
    let again = stage.run(["image", "push", "--plain-http", &name]);
    assert_eq!(again.err.lines().filter(|line| line.ends_with(": Layer already exists")).count(), 4, "{again:?}");
    assert_eq!(digest(&again.out), digest(&pushed.out));
    // Into another repository: mounted.
    let other = registry.name("other/sample:2");
    let mounted = stage.run(["push", "--plain-http", &name, &other]);
    assert_eq!(
        mounted.err.lines().filter(|line| line.contains(": Mounted from team/sample")).count(),
        4,
        "{mounted:?}"
    );

    let fresh = Stage::new();
    let pulled = fresh.run(["pull", "--plain-http", &name]);
    assert_eq!(pulled.code, 0, "{pulled:?}");
    let expected = format!(
        "1: Pulling from team/sample\nDigest: {}\nStatus: Downloaded newer image for {name}\n{name}\n",
        digest(&pushed.out)
    );
    assert_eq!(pulled.out, expected);
    assert_eq!(pulled.err.lines().filter(|line| line.ends_with(": Pull complete")).count(), 4, "{pulled:?}");
    assert_eq!(identity(&fresh, &name), before);
    let again = fresh.ok(["image", "pull", "--plain-http", &name]);
    assert!(again.contains(&format!("Status: Image is up to date for {name}\n")), "{again}");
    assert_eq!(fresh.ok(["pull", "-q", "--plain-http", &name]), format!("{name}\n"));
    // By digest, and every tag.
    let pinned = format!("{}@{}", registry.name("team/sample"), digest(&pushed.out));
    assert!(fresh.ok(["pull", "--plain-http", &pinned]).ends_with(&format!("{pinned}\n")));
    stage.ok(["push", "-q", "--plain-http", &name, &registry.name("team/sample:two")]);
    let all = fresh.ok(["pull", "--plain-http", "-a", &registry.name("team/sample")]);
    assert_eq!(all.lines().filter(|line| line.starts_with("Digest: ")).count(), 2, "{all}");
    // Pushed again by who pulled it, the digest is the same: the registry has the layers.
    assert_eq!(fresh.ok(["push", "-q", "--plain-http", &name]).trim(), digest(&pushed.out));
    fresh.ok(["gc"]);
}

#[test]
fn a_registry_is_inspected_and_searched_without_a_pull() {
    if !has("docker-registry", "a_registry_is_inspected_and_searched_without_a_pull") {
        return;
    }
    let stage = Stage::with_sample();
    let registry = Registry::start(&stage.path("registry"), Access::Anybody);
    let name = registry.name("team/sample:1");
    let pushed = stage.ok(["push", "-q", "--plain-http", "plyfs/sample", &name]);
    let manifest = json(&stage.ok(["manifest", "inspect", "--plain-http", &name]));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 4);
    let verbose = json(&stage.ok(["manifest", "inspect", "-v", "--plain-http", &name]));
    assert_eq!(verbose["Descriptor"]["digest"], pushed.trim());
    assert_eq!(verbose["Manifest"], manifest);
    let raw = stage.ok(["manifest", "inspect", "--raw", "--plain-http", &name]);
    assert_eq!(json(&raw), manifest);
    let found = stage.ok(["search", "--plain-http", &registry.name("samp")]);
    assert!(found.starts_with("NAME"), "{found}");
    assert!(found.lines().nth(1).unwrap().starts_with(&registry.name("team/sample")), "{found}");
    let names = stage.ok(["image", "search", "--plain-http", "--format", "{{.Name}}", &registry.name("nothing")]);
    assert_eq!(names, "");
    let line = stage.fails(["manifest", "inspect", "--plain-http", &registry.name("team/sample:none")]);
    assert!(line.contains("does not have it"), "{line}");
    assert!(stage.fails(["pull", "--plain-http", &registry.name("nothing")]).contains("does not have it"));
}

#[test]
fn a_password_is_asked_for_kept_and_forgotten() {
    let test = "a_password_is_asked_for_kept_and_forgotten";
    if !has("docker-registry", test) || !has("htpasswd", test) {
        return;
    }
    let stage = Stage::with_sample();
    let registry = Registry::start(&stage.path("registry"), Access::Password);
    let name = registry.name("private/sample:1");
    let auth = stage.path("auth.json");
    let auth = ["--authfile", auth.to_str().unwrap()];
    let push = ["push", "--plain-http", auth[0], auth[1], "-q", "plyfs/sample", &name];
    let line = stage.fails(push);
    assert!(line.contains("plyfs login"), "{line}");
    let login = ["login", "--plain-http", auth[0], auth[1], "-u", USER, "--password-stdin", &registry.address];
    let wrong = stage.feed(login, b"open barley\n");
    assert_eq!(wrong.code, 1);
    assert!(wrong.err.contains("the name or the password is wrong") && !wrong.err.contains("barley"), "{wrong:?}");
    let right = stage.feed(login, format!("{PASSWORD}\n").as_bytes());
    assert_eq!((right.code, right.out.as_str()), (0, "Login Succeeded\n"), "{right:?}");
    assert!(!std::fs::read_to_string(auth[1]).unwrap().contains(PASSWORD));
    stage.ok(push);
    let fresh = Stage::new();
    fresh.ok(["pull", "--plain-http", auth[0], auth[1], "-q", &name]);
    assert_eq!(identity(&fresh, &name), identity(&stage, "plyfs/sample"));
    let creds = format!("{USER}:{PASSWORD}");
    fresh.ok(["manifest", "inspect", "--plain-http", "--creds", &creds, &name]);
    assert!(stage.ok(["logout", auth[0], auth[1], &registry.address]).starts_with("Removing login credentials"));
    assert!(stage.ok(["logout", auth[0], auth[1], &registry.address]).starts_with("Not logged in"));
    assert!(fresh.fails(["pull", "--plain-http", auth[0], auth[1], &name]).contains("plyfs login"));
}

#[test]
fn skopeo_reads_what_was_pushed_and_writes_what_is_pulled() {
    let test = "skopeo_reads_what_was_pushed_and_writes_what_is_pulled";
    if !has("docker-registry", test) || !has("skopeo", test) {
        return;
    }
    let place = Stage::new();
    let registry = Registry::start(&place.path("registry"), Access::Anybody);
    for format in ["gzip", "zstd"] {
        // A store that has pushed before would have its layers mounted, as they went.
        let stage = Stage::with_sample();
        let before = identity(&stage, "plyfs/sample");
        let name = registry.name(&format!("ours/{format}:1"));
        stage.ok(["push", "-q", "--plain-http", "--compression-format", format, "plyfs/sample", &name]);
        let layout = format!("oci:{}:x", stage.path(format).display());
        run("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{name}"), &layout]);
        let fresh = Stage::new();
        fresh.ok(["load", "-q", &layout]);
        assert_eq!(identity(&fresh, "x"), before);
        // And the other way: as an OCI image, and as docker's.
        for form in ["oci", "v2s2"] {
            // skopeo knows no zstd layers in docker's form.
            if (format, form) == ("zstd", "v2s2") {
                continue;
            }
            let theirs = registry.name(&format!("theirs/{format}-{form}:1"));
            let to = format!("docker://{theirs}");
            run("skopeo", &["copy", "--dest-tls-verify=false", "--format", form, &layout, &to]);
            let fresh = Stage::new();
            fresh.ok(["pull", "-q", "--plain-http", &theirs]);
            assert_eq!(identity(&fresh, &theirs).1, before.1, "{format} {form}");
        }
    }
}

/// The directory of the real images, if it is there.
fn real_images(test: &str) -> Option<String> {
    let dir = std::env::var("PLYFS_TEST_IMAGES").ok().filter(|dir| Path::new(dir).join("index.json").exists());
    if dir.is_none() {
        skip(test, "PLYFS_TEST_IMAGES does not name the real images; run scripts/make-images.sh");
    }
    dir
}

#[test]
fn layers_that_a_real_image_shares_with_another_are_not_fetched() {
    let test = "layers_that_a_real_image_shares_with_another_are_not_fetched";
    if !has("docker-registry", test) || !has("skopeo", test) {
        return;
    }
    let Some(images) = real_images(test) else { return };
    let stage = Stage::new();
    let registry = Registry::start(&stage.path("registry"), Access::Anybody);
    for image in ["python", "sci"] {
        let to = format!("docker://{}", registry.name(&format!("{image}:1")));
        run("skopeo", &["copy", "--dest-tls-verify=false", &format!("oci:{images}:{image}"), &to]);
    }
    let (python, sci) = (registry.name("python:1"), registry.name("sci:1"));
    stage.ok(["pull", "-q", "--plain-http", &python]);
    let before = registry.asked().len();
    stage.ok(["pull", "-q", "--plain-http", &sci]);
    let asked = registry.asked().split_off(before);
    let gets = |part: &str| asked.iter().filter(|line| line.contains(part)).count();
    let shared = identity(&stage, &python).1.as_array().unwrap().len();
    let all = identity(&stage, &sci).1.as_array().unwrap().len();
    assert_eq!((gets("/manifests/"), gets("/blobs/")), (1, all - shared + 1), "{asked:?}");
    // Pushed back, the registry has all of it, and the manifest is what it was.
    let remote =
        run("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{sci}")]);
    assert_eq!(stage.ok(["push", "-q", "--plain-http", &sci]), remote);
}
