//! `explain`: which layer won, and what was met on the way.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use layer::TreePath;
use store::{LoadOptions, Met, Place, Silent, Source, Store};

type Member<'a> = (&'a str, tar::EntryType, &'a [u8]);

fn tar_of(members: &[Member<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, body) in members {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_size(body.len() as u64);
        builder.append_data(&mut header, path, *body).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Writes an OCI layout of uncompressed layers.
fn layout(dir: &Path, layers: &[Vec<u8>]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = layer::Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        digest.to_string()
    };
    let digests: Vec<String> = layers.iter().map(|layer| put(layer)).collect();
    let config =
        serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": digests}})
            .to_string();
    let described: Vec<_> = layers
        .iter()
        .zip(&digests)
        .map(|(layer, digest)| serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": layer.len()}))
        .collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(config.as_bytes()), "size": config.len()},
        "layers": described})
    .to_string();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": put(manifest.as_bytes()), "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": "t"}}]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn the_winner_and_what_hides_the_others_are_told() {
    use tar::EntryType::{Directory, Regular};
    let temp = tempfile::tempdir().unwrap();
    let base = tar_of(&[
        ("d/", Directory, b""),
        ("d/a", Regular, b"1"),
        ("d/b", Regular, b"1"),
        ("o/", Directory, b""),
        ("o/x", Regular, b"1"),
    ]);
    let middle = tar_of(&[("d/a", Regular, b"22"), ("d/.wh.b", Regular, b""), ("o/.wh..wh..opq", Regular, b"")]);
    let top = tar_of(&[("d/c", Regular, b"333")]);
    layout(&temp.path().join("layout"), &[base, middle, top]);
    let store = Store::open(&temp.path().join("store")).unwrap();
    let source = Source::parse(&format!("oci:{}", temp.path().join("layout").display())).unwrap();
    store.load(&source, &LoadOptions::default(), &Silent).unwrap();
    let image = store.images().unwrap().remove(0);
    let explain = |path: &str| store.explain_image(&image, &TreePath::parse(path.as_bytes()).unwrap()).unwrap();

    let layer_of = |path: &str| {
        explain(path).winner().map(|step| match step.place {
            Place::Layer(number, diff_id) => (number, diff_id),
            Place::Upper => panic!("an image has no upper"),
        })
    };
    assert_eq!(layer_of("d/a"), Some((1, image.diff_ids[1])));
    assert_eq!(layer_of("d/c"), Some((2, image.diff_ids[2])));
    assert_eq!(layer_of("d/b"), None);
    assert!(
        explain("d/b")
            .steps
            .iter()
            .any(|step| step.met == Met::Whiteout && step.place == Place::Layer(1, image.diff_ids[1]))
    );
    assert_eq!(layer_of("o/x"), None);
    assert!(explain("o/x").steps.iter().any(|step| step.met == Met::Opaque));
    assert_eq!(explain("nowhere").steps, []);

    let container = store.create_container(&image, Some("c")).unwrap();
    fs::create_dir(container.upper.join("d")).unwrap();
    fs::write(container.upper.join("d/a"), b"mine").unwrap();
    let mine = store.explain_container(&container, &TreePath::parse(b"d/a").unwrap()).unwrap();
    assert_eq!(mine.winner().map(|step| step.place), Some(Place::Upper));
    let theirs = store.explain_container(&container, &TreePath::parse(b"d/c").unwrap()).unwrap();
    assert_eq!(theirs.winner().map(|step| step.place), Some(Place::Layer(2, image.diff_ids[2])));
}
