//! Mirrors are asked first, and believed no more than the registry itself.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod common;

use common::{Packed, Reply, Server, Shelf, Stage, image};
use registry::{Credential, PullOptions, Registries, Settings};
use store::Silent;

fn shelf(repository: &str) -> (common::Image, Shelf) {
    let image = image(&["one", "two"], "amd64", Packed::Gzip);
    let mut shelf = Shelf::default();
    shelf.image(repository, "1", &image);
    (image, shelf)
}

#[test]
fn a_mirror_of_registries_conf_serves_and_one_that_fails_is_passed_over() {
    let (image, behind) = shelf("cache/a/b");
    let mirror = behind.serve();
    let broken = Server::start(|_| Reply::new(500, ""));
    let (_, own) = shelf("a/b");
    for good in [true, false] {
        let origin = own.clone().serve();
        let stage = Stage::new();
        let mirrors = if good { format!("{}/cache", mirror.address) } else { broken.address.to_string() };
        let conf = format!(
            "[[registry]]\nlocation = '{}'\ninsecure = true\n[[registry.mirror]]\nlocation = '{mirrors}'\ninsecure = true\n",
            origin.address
        );
        std::fs::write(stage.dir.path().join("registries.conf"), conf).unwrap();
        let credential = Credential::Password { user: "me".into(), password: "sesame".into() };
        let settings = Settings { plain_http: false, credential: Some(credential), ..stage.settings() };
        let name = origin.name("a/b:1");
        let registries = Registries::new(settings).unwrap();
        registries.pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
        stage.assert_whole(&name, &image);
        assert_eq!(origin.gets("/blobs/"), if good { 0 } else { 3 });
    }
    assert!(mirror.gets("/v2/cache/a/b/blobs/") >= 3);
    assert!(mirror.requests().iter().all(|request| !request.headers.contains_key("authorization")));
}

#[test]
fn a_mirror_of_hosts_toml_is_told_which_registry_is_meant() {
    let (image, behind) = shelf("a/b");
    let origin = Server::start(|_| Reply::new(500, ""));
    let mirror = behind.serve();
    let stage = Stage::new();
    let dir = stage.dir.path().join("certs.d").join(origin.address.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    let toml = format!("[host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.url(""));
    std::fs::write(dir.join("hosts.toml"), toml).unwrap();
    let name = origin.name("a/b:1");
    stage.registries().pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
    stage.assert_whole(&name, &image);
    assert!(origin.requests().is_empty());
    let namespace = format!("ns={}", origin.address);
    assert!(mirror.requests().iter().all(|request| request.path.contains(&namespace)));
}

#[test]
fn a_mirror_that_lies_about_a_digest_is_passed_over() {
    let (image, own) = shelf("a/b");
    let origin = own.serve();
    let mirror = Server::start(|_| Reply::new(200, "{}"));
    let stage = Stage::new();
    let conf = format!(
        "[[registry]]\nlocation = '{}'\ninsecure = true\n[[registry.mirror]]\nlocation = '{}'\ninsecure = true\n",
        origin.address, mirror.address
    );
    std::fs::write(stage.dir.path().join("registries.conf"), conf).unwrap();
    let settings = Settings { plain_http: false, ..stage.settings() };
    let name = origin.name(&format!("a/b@{}", image.digest()));
    let registries = Registries::new(settings).unwrap();
    registries.pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
    assert!(!mirror.requests().is_empty());
    assert_eq!(stage.store.images().unwrap()[0].digest, image.digest());
}
