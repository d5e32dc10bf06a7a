//! Pulls from a registry that behaves, and from one that does not.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{DOCKER, Fault, INDEX, LIST, OCI, Packed, Reply, Request, Server, Shelf, Stage, descriptor, image};
use layer::Digest;
use registry::{PullOptions, Registries, Settings};
use serde_json::json;
use store::{Origin, Platform, Silent};

/// A registry that does something else with some requests; the number says how often such a one came before.
fn bent(shelf: Shelf, part: String, bend: impl Fn(&Request, Reply, usize) -> Reply + Send + Sync + 'static) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |request| {
        let reply = shelf.answer(request);
        match request.path.contains(&part) {
            true => bend(request, reply, count.fetch_add(1, Ordering::SeqCst)),
            false => reply,
        }
    })
}

fn one_image() -> (common::Image, Shelf) {
    let image = image(&["one", "two"], "amd64", Packed::Gzip);
    let mut shelf = Shelf::default();
    shelf.image("a/b", "1", &image);
    (image, shelf)
}

#[test]
fn a_tag_and_a_digest_are_pulled_and_nothing_comes_twice() {
    let (image, shelf) = one_image();
    let (server, stage) = (shelf.serve(), Stage::new());
    let registries = stage.registries();
    let name = server.name("a/b:1");
    let options = PullOptions::default();
    let pulled = registries.pull(&stage.store, &name, &options, &Silent).unwrap();
    assert_eq!((pulled.digest, pulled.up_to_date), (image.digest(), false));
    stage.assert_whole(&name, &image);
    assert_eq!((server.gets("/manifests/"), server.gets("/blobs/")), (1, 3));
    let again = registries.pull(&stage.store, &name, &options, &Silent).unwrap();
    assert!(again.up_to_date);
    assert_eq!((server.gets("/manifests/"), server.gets("/blobs/")), (2, 3));

    let pinned = server.name(&format!("a/b:other@{}", image.digest()));
    let by_digest = registries.pull(&stage.store, &pinned, &options, &Silent).unwrap();
    assert_eq!(by_digest.name.to_string(), server.name(&format!("a/b@{}", image.digest())).to_string());
    assert_eq!(server.gets("/blobs/"), 3);
    assert_eq!(stage.store.image(&by_digest.name.to_string()).unwrap().digest, image.digest());
}

#[test]
fn a_layer_that_another_image_has_is_not_fetched() {
    let (first, mut shelf) = one_image();
    let second = image(&["one", "two", "three"], "amd64", Packed::Gzip);
    shelf.image("c", "2", &second);
    let (server, stage) = (shelf.serve(), Stage::new());
    let registries = stage.registries();
    registries.pull(&stage.store, &server.name("a/b:1"), &PullOptions::default(), &Silent).unwrap();
    let pulled = registries.pull(&stage.store, &server.name("c:2"), &PullOptions::default(), &Silent).unwrap();
    let origins: Vec<Origin> = pulled.loaded.layers.iter().map(|layer| layer.origin).collect();
    assert_eq!(origins, [Origin::Existing, Origin::Existing, Origin::Fetched]);
    assert_eq!(first.blobs[0], second.blobs[0]);
    let asked: Vec<String> =
        server.requests().into_iter().map(|request| request.path).filter(|path| path.starts_with("/v2/c/")).collect();
    let config = format!("/v2/c/blobs/{}", Digest::of(&second.config));
    assert_eq!(asked, ["/v2/c/manifests/2".to_owned(), config, format!("/v2/c{}", second.blob_path(2))]);
}

#[test]
fn two_pulls_at_once_fetch_each_layer_once() {
    let (image, shelf) = one_image();
    let server = bent(shelf, "/blobs/".into(), |_, reply, _| {
        std::thread::sleep(Duration::from_millis(100));
        reply
    });
    let stage = Stage::new();
    let name = server.name("a/b:1");
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| stage.registries().pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap())
            })
            .collect();
        pulls.into_iter().for_each(|pull| drop(pull.join().unwrap()));
    });
    stage.assert_whole(&name, &image);
    for at in 0..2 {
        assert_eq!(server.gets(&image.blob_path(at)), 1);
    }
    assert_eq!(std::fs::read_dir(stage.store.root().join("ingest")).unwrap().count(), 0);
}

#[test]
fn zstd_layers_and_docker_manifests_are_taken() {
    let zstd = image(&["z"], "amd64", Packed::Zstd);
    let mut shelf = Shelf::default();
    shelf.image("z", "1", &zstd);
    let plain = image(&["d"], "amd64", Packed::Gzip);
    let docker = json!({ "schemaVersion": 2, "mediaType": DOCKER,
        "config": descriptor("application/vnd.docker.container.image.v1+json", &plain.config),
        "layers": [descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", &plain.blobs[0])] });
    let docker = docker.to_string().into_bytes();
    shelf.image("d", "oci", &plain).manifest("d", "1", &format!("{DOCKER}; charset=utf-8"), &docker);
    let (server, stage) = (shelf.serve(), Stage::new());
    for name in [server.name("z:1"), server.name("d:1")] {
        stage.registries().pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
    }
    stage.assert_whole(&server.name("z:1"), &zstd);
    assert_eq!(stage.store.image(&server.name("d:1").to_string()).unwrap().manifest, docker);
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let (image, shelf) = one_image();
    let half = image.blobs[0].len() / 2;
    let server = bent(shelf, image.blob_path(0), move |_, reply, before| match before {
        0 => reply.fault(Fault::Cut(half)),
        1 => reply.fault(Fault::Cut(1000)),
        _ => reply,
    });
    let stage = Stage::new();
    let name = server.name("a/b:1");
    stage.registries().pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
    stage.assert_whole(&name, &image);
    let asked = server.requests().into_iter().filter(|request| request.path.contains(&image.blob_path(0)));
    let ranges: Vec<Option<String>> = asked.map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some(format!("bytes={half}-")), Some(format!("bytes={}-", half + 1000))]);
}

#[test]
fn a_server_that_knows_no_ranges_is_read_again_from_the_start() {
    let (image, shelf) = one_image();
    let whole = image.blobs[0].clone();
    let server = bent(shelf, image.blob_path(0), move |_, _, before| match before {
        0 => Reply::new(200, whole.clone()).fault(Fault::Cut(5000)),
        _ => Reply::new(200, whole.clone()),
    });
    let stage = Stage::new();
    let name = server.name("a/b:1");
    stage.registries().pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
    stage.assert_whole(&name, &image);
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let (image, shelf) = one_image();
    let server = bent(shelf, image.blob_path(1), |_, reply, before| match before {
        0 => reply.fault(Fault::Stall(3000)),
        _ => reply,
    });
    let stage = Stage::new();
    let mut settings = stage.settings();
    settings.patience.idle = Duration::from_millis(400);
    let name = server.name("a/b:1");
    Registries::new(settings).unwrap().pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
    stage.assert_whole(&name, &image);
}

#[test]
fn what_stays_broken_fails_clearly_and_leaves_nothing() {
    for (fault, says) in [
        ("cut", "broke at byte 0"),
        ("corrupt", "has the digest"),
        ("short", "the registry says"),
        ("long", "the registry says"),
        ("wrong range", "another range"),
        ("gone", "does not have it"),
        ("forbidden", "plyfs login"),
        ("busy", "too many requests"),
        ("failing", "answers 503"),
    ] {
        let (image, shelf) = one_image();
        let server = bent(shelf, image.blob_path(1), move |request, mut reply, _| match fault {
            "cut" => reply.fault(Fault::Cut(0)),
            "corrupt" => {
                let middle = reply.body.len() / 2;
                reply.body[middle] ^= 1;
                reply
            }
            "short" => {
                reply.body.truncate(100);
                reply
            }
            "long" => {
                reply.body.push(0);
                reply
            }
            "wrong range" if request.headers.contains_key("range") => {
                Reply::new(206, reply.body).with("content-range", "bytes 1-2/3")
            }
            "wrong range" => reply.fault(Fault::Cut(2000)),
            "gone" => Reply::new(404, ""),
            "forbidden" => Reply::new(403, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#),
            "busy" => Reply::new(429, "").with("retry-after", "0"),
            _ => Reply::new(503, "<html>"),
        });
        let stage = Stage::new();
        let name = server.name("a/b:1");
        let pulled = stage.registries().pull(&stage.store, &name, &PullOptions::default(), &Silent);
        let error = pulled.unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{fault}: {error}");
        // The layer that came whole may stay for the next try; nothing else does.
        assert!(stage.store.images().unwrap().is_empty(), "{fault}");
        assert_eq!(std::fs::read_dir(stage.store.root().join("ingest")).unwrap().count(), 0, "{fault}");
        stage.store.gc().unwrap();
        stage.assert_clean();
    }
}

#[test]
fn a_busy_registry_is_asked_again_when_it_says() {
    let (image, shelf) = one_image();
    let server = bent(shelf, "/v2/".into(), |_, reply, before| match before % 3 {
        0 => Reply::new(429, "").with("retry-after", "0"),
        1 => Reply::new(503, ""),
        _ => reply,
    });
    let stage = Stage::new();
    let name = server.name("a/b:1");
    let options = PullOptions { parallel: Some(1), ..PullOptions::default() };
    stage.registries().pull(&stage.store, &name, &options, &Silent).unwrap();
    stage.assert_whole(&name, &image);
    // A registry that wants to be left alone for long is not waited for.
    let busy = Server::start(|_| Reply::new(429, "").with("retry-after", "86400"));
    let pulled = stage.registries().pull(&stage.store, &busy.name("a/b:1"), &PullOptions::default(), &Silent);
    assert!(pulled.unwrap_err().to_string().contains("too many requests"));
    assert_eq!(busy.requests().len(), 1);
}

/// An index of one image for each platform, some with a variant, and things that are no image.
fn index(shelf: &mut Shelf, media_type: &str) -> Vec<(String, common::Image)> {
    let mut images = Vec::new();
    let mut entries = vec![json!({ "mediaType": "application/vnd.example.signature", "digest": "?", "size": 1 })];
    for platform in ["linux/arm/v7", "linux/386", "linux/amd64/v3", "linux/amd64", "linux/arm64/v8", "windows/amd64"] {
        let parts: Vec<&str> = platform.split('/').collect();
        let made = image(&[platform], parts[1], Packed::Gzip);
        shelf.image("m", platform, &made);
        let mut entry = descriptor(OCI, &made.manifest);
        entry["platform"] = json!({ "os": parts[0], "architecture": parts[1], "variant": parts.get(2) });
        entries.push(entry);
        images.push((platform.to_owned(), made));
    }
    let attestation = image(&["attestation"], "unknown", Packed::Gzip);
    shelf.image("m", "att", &attestation);
    let mut entry = descriptor(OCI, &attestation.manifest);
    entry["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    entry["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    entries.push(entry);
    let text = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries }).to_string();
    shelf.manifest("m", "all", media_type, text.as_bytes());
    let nested =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(media_type, text.as_bytes())] });
    shelf.manifest("m", "nested", INDEX, nested.to_string().as_bytes());
    images
}

#[test]
fn an_index_gives_the_manifest_that_runs_on_the_platform() {
    for media_type in [INDEX, LIST] {
        let mut shelf = Shelf::default();
        let images = index(&mut shelf, media_type);
        let (server, stage) = (shelf.serve(), Stage::new());
        for (wanted, chosen) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/amd64/v2", "linux/amd64"),
            ("linux/amd64/v4", "linux/amd64/v3"),
            ("linux/386", "linux/386"),
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/arm/v8", "linux/arm/v7"),
            ("windows/amd64", "windows/amd64"),
        ] {
            for tag in ["all", "nested"] {
                let options =
                    PullOptions { platform: Some(Platform::parse(wanted).unwrap()), ..PullOptions::default() };
                let name = server.name(&format!("m:{tag}"));
                let pulled = stage.registries().pull(&stage.store, &name, &options, &Silent).unwrap();
                let (_, image) = images.iter().find(|(platform, _)| platform == chosen).unwrap();
                assert_eq!(pulled.loaded.digest, image.digest(), "{wanted} of {tag}");
                assert_ne!(pulled.digest, image.digest());
                let found = stage.store.image(&name.to_string()).unwrap();
                assert_eq!(found.digest_of(&pulled.name), pulled.digest, "{wanted} of {tag}");
                let pinned = format!("{}/m@{}", server.address, pulled.digest);
                assert_eq!(stage.store.image(&pinned).unwrap().id, found.id, "by the index's digest");
                assert!(
                    stage.store.inspect(&found).unwrap()["RepoDigests"].as_array().unwrap().contains(&json!(pinned))
                );
            }
        }
        let options = PullOptions { platform: Some(Platform::parse("linux/s390x").unwrap()), ..PullOptions::default() };
        let pulled = stage.registries().pull(&stage.store, &server.name("m:all"), &options, &Silent);
        let error = pulled.unwrap_err().to_string();
        assert!(error.contains("no image for linux/s390x") && error.contains("linux/arm/v7"), "{error}");
        // One that stands alone must be for the platform that is asked for.
        let pulled =
            stage.registries().pull(&stage.store, &server.name("m:all").with_tag("att").unwrap(), &options, &Silent);
        assert!(pulled.unwrap_err().to_string().contains("no image for linux/s390x"));
    }
}

#[test]
fn all_tags_are_listed_page_by_page() {
    let (_, shelf) = one_image();
    let server = Server::start(move |request| match request.path.as_str() {
        "/v2/a/b/tags/list?n=1000" => Reply::new(200, r#"{"tags":["1","two"]}"#)
            .with("link", r#"</v2/a/b/tags/list?n=1000&last=two>; rel="next""#),
        "/v2/a/b/tags/list?n=1000&last=two" => Reply::new(200, r#"{"tags":["3","../../evil"]}"#),
        _ => shelf.answer(request),
    });
    let stage = Stage::new();
    assert_eq!(stage.registries().tags(&server.name("a/b")).unwrap(), ["1", "3", "two"]);
}

#[test]
fn blobs_are_kept_where_that_is_asked_for_and_go_with_their_image() {
    let (image, shelf) = one_image();
    let (server, stage) = (shelf.serve(), Stage::new());
    let options = PullOptions { keep_blobs: true, ..PullOptions::default() };
    let name = server.name("a/b:1");
    stage.registries().pull(&stage.store, &name, &options, &Silent).unwrap();
    for blob in &image.blobs {
        let mut kept = Vec::new();
        let mut file = stage.store.kept_blob(&Digest::of(blob)).unwrap().unwrap();
        std::io::Read::read_to_end(&mut file, &mut kept).unwrap();
        assert_eq!(kept, *blob);
    }
    stage.store.remove_image(&name.to_string(), store::Removal::Ask).unwrap();
    stage.store.gc().unwrap();
    assert!(stage.store.kept_blob(&Digest::of(&image.blobs[0])).unwrap().is_none());
    stage.assert_clean();
}

#[test]
fn tls_is_not_left_out_unless_that_is_asked_for() {
    let (_, shelf) = one_image();
    let (server, stage) = (shelf.serve(), Stage::new());
    let name = server.name("a/b:1");
    let strict = Registries::new(Settings { plain_http: false, ..stage.settings() }).unwrap();
    let error = strict.pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap_err().to_string();
    assert!(error.contains("https://") && error.contains("--plain-http"), "{error}");
    assert!(server.requests().iter().all(|request| !request.path.starts_with("/v2/")));
    let lax = Registries::new(Settings { plain_http: false, insecure: true, ..stage.settings() }).unwrap();
    lax.pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
}
