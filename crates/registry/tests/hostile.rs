//! Registries that lie: nothing of it is believed, and nothing of it stays.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod common;

use common::{DOCKER, INDEX, LIST, OCI, Packed, Reply, Server, Shelf, Stage, descriptor, image};
use layer::Digest;
use registry::PullOptions;
use serde_json::{Value, json};
use store::Silent;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Pulls `x:1`, which must fail, and tells why; the store must be clean then.
#[track_caller]
fn refused(server: &Server) -> String {
    let stage = Stage::new();
    let pulled = stage.registries().pull(&stage.store, &server.name("x:1"), &PullOptions::default(), &Silent);
    let error = pulled.unwrap_err().to_string();
    assert!(!error.contains(['\n', '\x1b']), "{error:?}");
    stage.store.gc().unwrap();
    stage.assert_clean();
    error
}

#[test]
fn documents_that_break_a_rule_are_refused() {
    let made = image(&["x"], "amd64", Packed::Gzip);
    let own: Value = serde_json::from_slice(&made.manifest).unwrap();
    let change = |change: &dyn Fn(&mut Value)| {
        let mut document = own.clone();
        change(&mut document);
        document.to_string()
    };
    let digest = Digest::of(b"x").to_string();
    let upper = digest.to_uppercase().replace("SHA256", "sha256");
    let cases: Vec<(&str, String, &str)> = vec![
        (OCI, change(&|m| m["manifests"] = json!([])), "parts of a manifest and of an index"),
        (INDEX, own.to_string(), "what names it says"),
        (DOCKER, own.to_string(), "what names it says"),
        (OCI, json!({ "schemaVersion": 2, "manifests": [] }).to_string(), "parts of an index"),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            json!({ "schemaVersion": 1, "fsLayers": [] }).to_string(),
            "schema 1",
        ),
        ("text/html", "<html>".into(), "JSON"),
        (OCI, "[".repeat(100_000), "JSON"),
        (OCI, own.to_string().replacen('{', r#"{"layers":[],"#, 1), "twice"),
        (OCI, change(&|m| m["layers"] = json!([])), "diff_ids"),
        (OCI, change(&|m| m["layers"][0]["size"] = json!(-1)), "size"),
        (OCI, change(&|m| m["layers"][0]["size"] = json!(1)), "the registry says"),
        (OCI, change(&|m| m["layers"][0]["digest"] = json!("sha512:00")), "only sha256"),
        (OCI, change(&|m| m["layers"][0]["digest"] = json!(upper)), "hex digits"),
        (OCI, change(&|m| m["layers"][0]["digest"] = json!("sha256:../../etc/passwd")), "hex digits"),
        (OCI, change(&|m| m["layers"][0]["mediaType"] = json!("application/x-tar")), "media type"),
        (OCI, change(&|m| m["layers"][0]["mediaType"] = json!(format!("{GZIP}+encrypted"))), "encrypted"),
        (OCI, change(&|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")), "artifact"),
        (OCI, change(&|m| m["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json")), "artifact"),
        (OCI, change(&|m| m["config"]["size"] = json!(5_000_000)), "at most"),
        (OCI, change(&|m| m["config"]["size"] = json!(3)), "more than 3 bytes"),
        (OCI, change(&|m| m["config"]["data"] = json!("aGFoYQ==")), "should have"),
        (OCI, change(&|m| m["config"]["digest"] = json!(digest)), "does not have it"),
        (OCI, change(&|m| m["config"]["digest"] = json!("\u{1b}[31m\n")), "digest"),
    ];
    for (media_type, text, says) in cases {
        let mut shelf = Shelf::default();
        shelf.image("x", "good", &made).manifest("x", "1", media_type, text.as_bytes());
        let error = refused(&shelf.serve());
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn content_that_is_not_what_its_digest_says_is_refused() {
    let made = image(&["x"], "amd64", Packed::Gzip);
    let other = image(&["y"], "amd64", Packed::Gzip);
    // The manifest is not what the header says, or what was asked for.
    let mut shelf = Shelf::default();
    shelf.image("x", "1", &made);
    let lie = shelf.clone();
    let server = Server::start(move |request| {
        lie.answer(request).with("docker-content-digest", Digest::of(b"something else").to_string())
    });
    assert!(refused(&server).contains("sent content with the digest"));
    let stage = Stage::new();
    let mut swapped = Shelf::default();
    swapped.answers.insert(format!("/v2/x/manifests/{}", made.digest()), (OCI.into(), other.manifest.clone()));
    let server = swapped.serve();
    let name = server.name(&format!("x@{}", made.digest()));
    let error = stage.registries().pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap_err();
    assert!(error.to_string().contains("sent content with the digest"), "{error}");
    // The config is another one of the same length.
    let mut shelf = Shelf::default();
    shelf.image("x", "1", &made);
    let path = format!("/v2/x/blobs/{}", Digest::of(&made.config));
    let mut config = made.config.clone();
    config[2] ^= 1;
    shelf.answers.insert(path, ("application/octet-stream".into(), config));
    assert!(refused(&shelf.serve()).contains("has the digest"));
    // The layer's blob is right, but its tar is not the one that the config names.
    let mut shelf = Shelf::default();
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI, "config": descriptor(CONFIG, &made.config),
        "layers": [descriptor(GZIP, &other.blobs[0])] });
    shelf.image("x", "good", &made).image("x", "other", &other);
    shelf.manifest("x", "1", OCI, manifest.to_string().as_bytes());
    assert!(refused(&shelf.serve()).contains("diffID"));
}

#[test]
fn indexes_without_end_are_refused() {
    // Each index holds the next one; no hash can hold itself, but a chain can be long.
    let mut shelf = Shelf::default();
    let made = image(&["x"], "amd64", Packed::Gzip);
    shelf.image("x", "good", &made);
    let (mut inner, mut kind) = (made.manifest.clone(), OCI);
    for _ in 0..20 {
        inner = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(kind, &inner)] })
            .to_string()
            .into();
        kind = INDEX;
        shelf.manifest("x", "1", INDEX, &inner);
    }
    let server = shelf.serve();
    assert!(refused(&server).contains("levels of indexes"));
    // Very many entries, of which none says what it is for.
    let entries: Vec<Value> = (0..20_000).map(|n: u32| descriptor(INDEX, &n.to_le_bytes())).collect();
    let mut shelf = Shelf::default();
    let many = json!({ "schemaVersion": 2, "mediaType": LIST, "manifests": entries }).to_string();
    shelf.manifest("x", "1", LIST, many.as_bytes());
    let empty = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }).to_string();
    let answers = move |request: &common::Request| match request.path.ends_with("/1") {
        true => shelf.answer(request),
        false => Reply::new(200, empty.clone()).with("content-type", INDEX),
    };
    let server = Server::start(answers);
    assert!(refused(&server).contains("digest"));
    assert!(server.requests().len() < 10);
    // A document without end.
    let server = Server::start(|_| Reply::new(200, vec![b' '; 5 << 20]).with("content-type", OCI));
    assert!(refused(&server).contains("more than"));
}

#[test]
fn redirects_that_lead_astray_are_not_followed() {
    let made = image(&["x"], "amd64", Packed::Gzip);
    for (location, says) in [
        ("file:///etc/shadow", "of the kind 'file'"),
        ("gopher://127.0.0.1/", "of the kind 'gopher'"),
        ("/v2/x/manifests/1", "redirected more than"),
        ("http://[", "no address"),
    ] {
        let server = Server::start(move |_| Reply::new(307, "").with("location", location));
        let error = refused(&server);
        assert!(error.contains(says), "{location}: {error}");
    }
    // Addresses in the manifest itself are not looked at.
    let elsewhere = Server::start(|_| Reply::new(200, ""));
    let mut manifest: Value = serde_json::from_slice(&made.manifest).unwrap();
    manifest["layers"][0]["urls"] = json!([elsewhere.url("/layer")]);
    let mut shelf = Shelf::default();
    shelf.blob("x", &made.config).manifest("x", "1", OCI, manifest.to_string().as_bytes());
    assert!(refused(&shelf.serve()).contains("does not have it"));
    assert!(elsewhere.requests().is_empty());
}

#[test]
fn schema_1_is_refused_by_name_whatever_its_digest() {
    // The registry tells the digest of what was signed; the bytes have the signatures, too.
    let server = Server::start(|_| {
        Reply::new(200, r#"{"schemaVersion":1,"fsLayers":[],"signatures":[]}"#)
            .with("content-type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
            .with("docker-content-digest", Digest::of(b"signed").to_string())
    });
    assert!(refused(&server).contains("schema 1"));
}
