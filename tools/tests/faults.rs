//! Pulls and pushes over bad ways to a real registry: they come through, or fail clearly; the store stays sound.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use layer::DiffId;
use registry::{
    AuthFiles, Compression, Credential, LayerPushed, Patience, PullOptions, PushOptions, PushProgress, Registries,
    Settings,
};
use store::{Reference, Silent, Store};
use support::proxy::{Asked, Fault, Proxy};
use support::registry::{Access, PASSWORD, Registry, USER, has};
use support::{Ran, Stage};

struct Nobody;

impl PushProgress for Nobody {
    fn layer(&self, _: DiffId, _: LayerPushed) {}
}

/// Plain HTTP, no files of the user's, little patience.
fn settings(stage: &Stage) -> Settings {
    let conf = stage.path("registries.conf");
    std::fs::write(&conf, "").unwrap();
    Settings {
        plain_http: true,
        auth_files: AuthFiles::only(stage.path("auth.json")),
        registries_conf: Some(conf),
        hosts_dir: Some(stage.path("certs.d")),
        patience: Patience { attempts: 4, pause: Duration::from_millis(10), idle: Duration::from_millis(700) },
        ..Settings::default()
    }
}

fn pull_with(stage: &Stage, settings: Settings, name: &str) -> Result<(), String> {
    let store = Store::open(&stage.path("store")).unwrap();
    let registries = Registries::new(settings).unwrap();
    let pulled = registries.pull(&store, &Reference::parse(name).unwrap(), &PullOptions::default(), &Silent);
    pulled.map(drop).map_err(|error| error.to_string())
}

fn pull(stage: &Stage, name: &str) -> Result<(), String> {
    pull_with(stage, settings(stage), name)
}

fn push(stage: &Stage, image: &str, name: &str) -> Result<String, String> {
    let store = Store::open(&stage.path("store")).unwrap();
    let registries = Registries::new(settings(stage)).unwrap();
    let options = PushOptions { compression: Compression::Gzip(6) };
    let image = store.image(image).unwrap();
    let pushed = registries.push(&store, &image, &Reference::parse(name).unwrap(), &options, &Nobody);
    pushed.map(|pushed| pushed.digest.to_string()).map_err(|error| error.to_string())
}

/// The image's ID and its layers.
fn identity(stage: &Stage, name: &str) -> String {
    stage.ok(["inspect", "-f", "{{.Id}} {{json .RootFS}}", name])
}

/// A registry with the sample as `team/sample:1`, and what the image is.
fn with_sample(stage: &Stage) -> (Registry, String) {
    let registry = Registry::start(&stage.path("registry"), Access::Anybody);
    stage.ok(["push", "-q", "--plain-http", "plyfs/sample", &registry.name("team/sample:1")]);
    (registry, identity(stage, "plyfs/sample"))
}

#[test]
fn a_pull_comes_through_what_passes() {
    if !has("docker-registry", "a_pull_comes_through_what_passes") {
        return;
    }
    let stage = Stage::with_sample();
    let (registry, image) = with_sample(&stage);
    for fault in [
        Fault::Drop,
        Fault::Swallow,
        Fault::Cut(0),
        Fault::Cut(300),
        Fault::Stall(0),
        Fault::Stall(200),
        Fault::Busy(0),
        Fault::Busy(1),
    ] {
        // Everything that is asked goes wrong the first time; blobs the second time, too.
        let its = fault.clone();
        let proxy = Proxy::start(&registry.address, move |asked: &Asked| {
            let times = if asked.path.contains("/blobs/") { 2 } else { 1 };
            if asked.before < times { its.clone() } else { Fault::None }
        });
        let fresh = Stage::new();
        let name = proxy.name("team/sample:1");
        pull(&fresh, &name).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(identity(&fresh, &name), image, "{fault:?}");
        assert!(proxy.count("GET", "/manifests/") >= 2 && proxy.count("GET", "/blobs/") > 5, "{fault:?}");
        fresh.assert_sound();
    }
}

#[test]
fn a_pull_that_cannot_succeed_says_why_and_leaves_a_sound_store() {
    if !has("docker-registry", "a_pull_that_cannot_succeed_says_why_and_leaves_a_sound_store") {
        return;
    }
    let stage = Stage::with_sample();
    let (registry, image) = with_sample(&stage);
    for (fault, part, says) in [
        (Fault::Drop, "/manifests/", "127.0.0.1"),
        (Fault::Drop, "/blobs/", "127.0.0.1"),
        (Fault::Cut(0), "/blobs/", "127.0.0.1"),
        (Fault::Stall(100), "/manifests/", "127.0.0.1"),
        (Fault::Corrupt(20), "/manifests/", "digest"),
        (Fault::Corrupt(40), "/blobs/", "digest"),
        (Fault::Busy(86_400), "/blobs/", "too many requests"),
        (Fault::Redirect("file:///etc".into()), "/blobs/", "not followed"),
        (Fault::Redirect("http://127.0.0.1:1".into()), "/blobs/", "127.0.0.1:1"),
    ] {
        let its = fault.clone();
        let proxy = Proxy::start(
            &registry.address,
            move |asked: &Asked| {
                if asked.path.contains(part) { its.clone() } else { Fault::None }
            },
        );
        let fresh = Stage::new();
        let name = proxy.name("team/sample:1");
        let error = pull(&fresh, &name).expect_err(&format!("{fault:?}"));
        assert!(error.contains(says) && !error.contains('\n'), "{fault:?}: {error}");
        assert_eq!(fresh.ok(["images", "-q"]), "", "{fault:?}");
        fresh.assert_sound();
        // What came whole may stay; the next pull goes on with it.
        pull(&fresh, &registry.name("team/sample:1")).unwrap();
        assert_eq!(identity(&fresh, &registry.name("team/sample:1")), image, "{fault:?}");
        fresh.assert_sound();
    }
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let test = "credentials_do_not_follow_a_redirect_to_another_host";
    if !has("docker-registry", test) || !has("htpasswd", test) {
        return;
    }
    let stage = Stage::with_sample();
    let guarded = Registry::start(&stage.path("guarded"), Access::Password);
    let creds = format!("{USER}:{PASSWORD}");
    stage.ok(["push", "-q", "--plain-http", "--creds", &creds, "plyfs/sample", &guarded.name("team/sample:1")]);
    // The same content for everybody, as a registry's store of blobs has it.
    let open = stage.make_dir("open");
    symlink(stage.path("guarded").join("data"), open.join("data")).unwrap();
    let open = Registry::start(&open, Access::Anybody);
    let elsewhere = Proxy::start(&open.address, |_| Fault::None);
    let to = format!("http://{}", elsewhere.address);
    let proxy = Proxy::start(&guarded.address, move |asked| match asked.path.contains("/blobs/") {
        true => Fault::Redirect(to.clone()),
        false => Fault::None,
    });
    let fresh = Stage::new();
    let credential = Credential::Password { user: USER.into(), password: PASSWORD.into() };
    let name = proxy.name("team/sample:1");
    pull_with(&fresh, Settings { credential: Some(credential), ..settings(&fresh) }, &name).unwrap();
    assert_eq!(identity(&fresh, &name), identity(&stage, "plyfs/sample"));
    assert!(proxy.asked().iter().any(|asked| asked.authorization.is_some()));
    assert_eq!(elsewhere.asked().len(), 5, "four layers and a config: {:?}", elsewhere.asked());
    assert!(elsewhere.asked().iter().all(|asked| asked.authorization.is_none()), "{:?}", elsewhere.asked());
    fresh.assert_sound();
}

#[test]
fn a_push_comes_through_what_passes() {
    if !has("docker-registry", "a_push_comes_through_what_passes") {
        return;
    }
    let stage = Stage::with_sample();
    let registry = Registry::start(&stage.path("registry"), Access::Anybody);
    for (at, fault) in
        [Fault::Drop, Fault::Swallow, Fault::CutRequest(0), Fault::CutRequest(100), Fault::Stall(0), Fault::Busy(0)]
            .into_iter()
            .enumerate()
    {
        // Each kind of request goes wrong once; a second kind only after the first came through.
        let met = Mutex::new(Vec::new());
        let its = fault.clone();
        let proxy = Proxy::start(&registry.address, move |asked: &Asked| {
            let kind = match (asked.method.as_str(), asked.path.contains("/manifests/")) {
                (method @ ("POST" | "PATCH" | "PUT"), is_manifest) => {
                    (method.to_owned(), is_manifest, asked.length > 0)
                }
                _ => return Fault::None,
            };
            let mut met = met.lock().unwrap();
            match met.contains(&kind) {
                true => Fault::None,
                false => {
                    met.push(kind);
                    its.clone()
                }
            }
        });
        // A store of its own: what it knows of blobs at the registry is nothing.
        let from = Stage::with_sample();
        let name = proxy.name(&format!("pushed/{at}:1"));
        let digest = push(&from, "plyfs/sample", &name).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        let fresh = Stage::new();
        let pinned = format!("{}@{digest}", registry.name(&format!("pushed/{at}")));
        pull(&fresh, &pinned).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(identity(&fresh, &pinned), identity(&from, "plyfs/sample"), "{fault:?}");
        from.assert_sound();
        fresh.assert_sound();
    }
}

#[test]
fn a_push_that_broke_is_repeated_and_sends_only_the_rest() {
    if !has("docker-registry", "a_push_that_broke_is_repeated_and_sends_only_the_rest") {
        return;
    }
    let stage = Stage::with_sample();
    let registry = Registry::start(&stage.path("registry"), Access::Anybody);
    // After two layers nothing goes any more.
    let sent = Arc::new(Mutex::new(0));
    let proxy = Proxy::start(&registry.address, move |asked: &Asked| {
        let mut sent = sent.lock().unwrap();
        if asked.method == "PATCH" {
            *sent += 1;
        }
        if *sent > 2 && asked.method == "PATCH" { Fault::CutRequest(50) } else { Fault::None }
    });
    let error = push(&stage, "plyfs/sample", &proxy.name("team/sample:1")).unwrap_err();
    assert!(error.contains(&proxy.address) && !error.contains('\n'), "{error}");
    stage.assert_sound();
    let clean = Proxy::start(&registry.address, |_| Fault::None);
    let digest = push(&stage, "plyfs/sample", &clean.name("team/sample:1")).unwrap();
    let again = push(&stage, "plyfs/sample", &clean.name("team/sample:2")).unwrap();
    assert_eq!(digest, again);
    assert!(clean.count("PATCH", "/blobs/uploads/") <= 4, "the second push of the two sends no layer");
    let fresh = Stage::new();
    pull(&fresh, &registry.name("team/sample:2")).unwrap();
    assert_eq!(identity(&fresh, &registry.name("team/sample:2")), identity(&stage, "plyfs/sample"));
}

#[test]
fn kept_blobs_give_the_same_manifest_at_another_registry() {
    if !has("docker-registry", "kept_blobs_give_the_same_manifest_at_another_registry") {
        return;
    }
    let stage = Stage::with_sample();
    let (one, other) =
        (Registry::start(&stage.path("one"), Access::Anybody), Registry::start(&stage.path("other"), Access::Anybody));
    let push = ["push", "-q", "--plain-http", "--compression-format", "zstd", "--compression-level", "9"];
    let name = one.name("team/sample:1");
    let digest = stage.ok([&push[..], &["plyfs/sample", &name]].concat());
    let kept = Stage::new();
    kept.ok(["pull", "-q", "--plain-http", "--keep-blobs", &name]);
    assert_eq!(kept.ok(["push", "-q", "--plain-http", &name, &other.name("team/sample:1")]), digest);
    // Without them, the layers are the same, but not how they travel.
    let bare = Stage::new();
    bare.ok(["pull", "-q", "--plain-http", &name]);
    let made = bare.ok(["push", "-q", "--plain-http", &name, &other.name("made/sample:1")]);
    assert_ne!(made, digest);
    let fresh = Stage::new();
    for name in [other.name("team/sample:1"), other.name("made/sample:1")] {
        fresh.ok(["pull", "-q", "--plain-http", &name]);
        assert_eq!(identity(&fresh, &name), identity(&stage, "plyfs/sample"));
    }
    fresh.assert_sound();
}

#[test]
fn tls_is_by_a_file_of_certificates_or_blind_when_asked() {
    let test = "tls_is_by_a_file_of_certificates_or_blind_when_asked";
    if !has("docker-registry", test) || !has("openssl", test) {
        return;
    }
    let stage = Stage::with_sample();
    let registry = Registry::start(&stage.path("registry"), Access::Tls);
    let ca = stage.path("registry").join("ca.pem");
    let ca = ["--ca-file", ca.to_str().unwrap()];
    let name = registry.name("team/sample:1");
    let line = stage.fails(["push", "-q", "plyfs/sample", &name]);
    assert!(line.contains("--ca-file"), "{line}");
    stage.ok(["push", "-q", ca[0], ca[1], "plyfs/sample", &name]);
    let fresh = Stage::new();
    assert!(fresh.fails(["pull", "-q", &name]).contains("--insecure"));
    fresh.fails(["pull", "-q", "--plain-http", &name]);
    assert_eq!(fresh.ok(["images", "-q"]), "");
    fresh.ok(["pull", "-q", ca[0], ca[1], &name]);
    assert_eq!(identity(&fresh, &name), identity(&stage, "plyfs/sample"));
    Stage::new().ok(["pull", "-q", "--insecure", &name]);
    // The name counts, too: the certificate is not for this one.
    let other = name.replace("127.0.0.1", "127.0.0.2");
    let line = fresh.fails(["pull", "-q", ca[0], ca[1], &other]);
    assert!(line.contains("127.0.0.2"), "{line}");
    let nothing = stage.path("nothing.pem");
    std::fs::write(&nothing, "no certificate").unwrap();
    let line = fresh.fails(["pull", "-q", "--ca-file", nothing.to_str().unwrap(), &name]);
    assert!(line.contains("nothing.pem") && line.contains("no certificate in PEM"), "{line}");
}

/// A credential helper that keeps its one secret in a file.
fn write_helper(dir: &Path) {
    let script = "#!/bin/sh\n\
        file=$(dirname \"$0\")/secret\n\
        case $1 in\n\
        store) cat >\"$file\" ;;\n\
        erase) rm -f \"$file\" ;;\n\
        get) read -r host; [ -f \"$file\" ] && grep -q \"$host\" \"$file\" && cat \"$file\" ||\n\
          { echo 'credentials not found in native keychain'; exit 1; } ;;\n\
        esac\n";
    let path = dir.join("docker-credential-plyfstest");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_credential_helper_keeps_gives_and_forgets() {
    let test = "a_credential_helper_keeps_gives_and_forgets";
    if !has("docker-registry", test) || !has("htpasswd", test) {
        return;
    }
    let stage = Stage::with_sample();
    let registry = Registry::start(&stage.path("registry"), Access::Password);
    let dir = stage.make_dir("helper");
    write_helper(&dir);
    let config = stage.path("config.json");
    std::fs::write(&config, format!(r#"{{"credHelpers":{{"{}":"plyfstest"}}}}"#, registry.address)).unwrap();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let run = |args: &[&str]| {
        let mut command = stage.command();
        command.args(args).arg("--authfile").arg(&config).env("PATH", &path);
        Ran::from(command.output().unwrap())
    };
    let name = registry.name("team/sample:1");
    let push = ["push", "-q", "--plain-http", "plyfs/sample", &name];
    assert!(run(&push).err.contains("plyfs login"));
    let login = run(&["login", "--plain-http", "-u", USER, "-p", PASSWORD, &registry.address]);
    assert_eq!(login.code, 0, "{login:?}");
    assert!(std::fs::read_to_string(dir.join("secret")).unwrap().contains(PASSWORD));
    assert!(!std::fs::read_to_string(&config).unwrap().contains("auths\":{\""), "the helper keeps it");
    let pushed = run(&push);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let pulled = run(&["pull", "-q", "--plain-http", &name]);
    assert_eq!(pulled.code, 0, "{pulled:?}");
    assert!(!pulled.err.contains(PASSWORD) && !pulled.out.contains(PASSWORD));
    assert_eq!(run(&["logout", &registry.address]).code, 0);
    assert!(!dir.join("secret").exists());
    assert!(run(&["pull", "-q", "--plain-http", &name]).err.contains("plyfs login"));
}
