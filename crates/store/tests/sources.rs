//! Every kind of source and every form of compression.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use layer::index::Index;
use layer::{Digest, Name, Slot};
use serde_json::json;
use store::{LoadOptions, Origin, Platform, Silent, Source};

fn layers() -> Vec<Layer> {
    let base = Tar::new().dir("etc/").file("etc/hosts", b"127.0.0.1").file("big", &noise(1, 200_000)).end();
    let top = Tar::new().file("etc/.wh.hosts", b"").file("new", b"new").hardlink("again", "big").end();
    vec![Layer::gzip(base), Layer::plain(top)]
}

/// The names at the root of an image's merged tree.
fn root_names(test: &TestStore, name: &str) -> Vec<String> {
    let image = test.store.image(name).unwrap();
    let index = Index::open(std::fs::read(test.store.lower(&image).unwrap().index).unwrap()).unwrap();
    index.children(Slot(0)).map(|slot| index.row(Slot(slot)).unwrap().name().unwrap().to_string()).collect()
}

#[test]
fn an_oci_layout_is_loaded_by_name_and_whole() {
    let mut layout = Layout::of("redis", &layers());
    layout.image("quay.io/a/b:1", &layers()[..1]);
    let test = TestStore::new();
    let one = Source::parse(&format!("oci:{}:redis", layout.path().display())).unwrap();
    let loaded = test.load(&one);
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].names[0].to_string(), "docker.io/library/redis:latest");
    assert!(loaded[0].layers.iter().all(|layer| layer.origin == Origin::Fetched));
    assert_eq!(root_names(&test, "redis"), ["again", "big", "etc", "new"]);

    let all = test.load(&layout.source());
    assert_eq!(all.len(), 2);
    assert!(all.iter().flat_map(|image| &image.layers).all(|layer| layer.origin == Origin::Existing));
    for (text, count) in [("@1", 1), ("quay.io/a/b:1", 1)] {
        let source = Source::parse(&format!("oci:{}:{text}", layout.path().display())).unwrap();
        assert_eq!(test.load(&source).len(), count, "{text}");
    }
    for (layer, given) in loaded[0].layers.iter().zip(layers()) {
        assert_eq!(test.tar(&layer.diff_id), given.tar);
    }
    let image = test.store.image("redis").unwrap();
    assert_eq!(layer::Digest::of(&image.config), image.id.0);
    assert_eq!(image.size, layers().iter().map(|layer| layer.tar.len() as u64).sum::<u64>());
}

#[test]
fn a_mount_finds_the_note_that_its_index_is_checked() {
    let layout = Layout::of("redis", &layers());
    let test = TestStore::new();
    test.load(&layout.source());
    let path = test.store.lower(&test.store.image("redis").unwrap()).unwrap().index;
    let file = std::fs::File::open(&path).unwrap();
    let index = Index::open(std::fs::read(&path).unwrap()).unwrap();
    let found = backing::index_note::read(&file);
    // Not every filesystem has attributes for notes.
    let has_attributes = backing::index_note::write(&file, &index).is_ok();
    assert_eq!(found, if has_attributes { index.note().to_vec() } else { Vec::new() });
}

#[test]
fn an_oci_archive_is_read_in_place_compressed_or_not() {
    let layout = Layout::of("redis", &layers());
    let file = tempfile::NamedTempFile::new().unwrap();
    for archive in [layout.archive(), gzip(&layout.archive()), zstd(&layout.archive())] {
        std::fs::write(file.path(), archive).unwrap();
        let by_kind = Source::parse(&format!("oci-archive:{}:redis:latest", file.path().display())).unwrap();
        for source in [by_kind, Source::archive(file.path())] {
            let test = TestStore::new();
            assert_eq!(test.load(&source)[0].names.len(), 1);
            assert_eq!(root_names(&test, "redis"), ["again", "big", "etc", "new"]);
        }
    }
}

#[test]
fn a_classic_docker_archive_may_link_and_repeat_its_layers() {
    let [base, top]: [Layer; 2] = layers().try_into().ok().unwrap();
    let stack = [base.clone(), top.clone(), base.clone()];
    let config = config(&stack).to_string();
    let config_path = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = json!([{"Config": config_path, "RepoTags": ["redis:7", "mine/redis:latest"],
        "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}]);
    let tar = Tar::new()
        .dir("a/")
        .symlink("c/layer.tar", "../a/layer.tar")
        .file("a/layer.tar", &base.tar)
        .file("a/VERSION", b"1.0")
        .file("b/layer.tar", &top.tar)
        .file(&config_path, config.as_bytes())
        .file("repositories", b"{}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), docker_archive(&manifest, tar)).unwrap();
    let path = file.path().display();
    for source in [
        format!("docker-archive:{path}"),
        format!("docker-archive:{path}:mine/redis"),
        format!("docker-archive:{path}:@0"),
    ] {
        let test = TestStore::new();
        let loaded = test.load(&Source::parse(&source).unwrap());
        assert_eq!((loaded[0].names.len(), loaded[0].layers.len()), (2, 3));
        assert_eq!(test.store.layers().unwrap().len(), 2);
        let image = test.store.image("redis:7").unwrap();
        assert_eq!(image.id.0, Digest::of(config.as_bytes()));
        // The manifest was made here: of plain layers, whose digests are their diffIDs.
        let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        assert_eq!(manifest["layers"][1]["digest"], top.diff_id().to_string());
        assert_eq!(manifest["layers"][1]["size"], top.tar.len());
    }
    assert!(
        TestStore::new()
            .try_load(&Source::parse(&format!("docker-archive:{path}:other")).unwrap())
            .unwrap_err()
            .is_not_found()
    );
    assert_eq!(TestStore::new().load(&Source::archive(file.path()))[0].names.len(), 2);
}

#[test]
fn a_new_docker_archive_holds_both_forms() {
    let layout = Layout::of("", &layers());
    let config = config(&layers()).to_string();
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let manifest = json!([{"Config": path(config.as_bytes()), "RepoTags": ["redis:7"],
        "Layers": layers().iter().map(|layer| path(&layer.blob)).collect::<Vec<_>>(), "LayerSources": {}}]);
    let tar = files(layout.path()).into_iter().fold(Tar::new(), |tar, (path, body)| tar.file(&path, &body));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), docker_archive(&manifest, tar)).unwrap();
    let test = TestStore::new();
    let as_docker = test.load(&Source::parse(&format!("docker-archive:{}", file.path().display())).unwrap());
    let as_found = test.load(&Source::archive(file.path()));
    assert_eq!((as_docker[0].names.len(), as_found[0].names.len()), (1, 0));
    assert_eq!(as_docker[0].id, as_found[0].id);
    assert_eq!(test.store.images().unwrap().len(), 1);
}

#[test]
fn layers_inflate_by_their_first_bytes_whatever_their_media_type() {
    let tar = layers()[0].tar.clone();
    let (first, second) = tar.split_at(70_000);
    let skippable = b"\x50\x2a\x4d\x18\x05\0\0\0hello";
    for blob in [
        tar.clone(),
        gzip(&tar),
        [gzip(first), gzip(second)].concat(),
        zstd(&tar),
        [&skippable[..], &zstd(first), skippable, &zstd(second), skippable].concat(),
    ] {
        for media_type in [
            LAYER,
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            let test = TestStore::new();
            let loaded = test.load_layers("x", &[Layer { tar: tar.clone(), blob: blob.clone(), media_type }]);
            assert_eq!(test.tar(&loaded.layers[0].diff_id), tar);
        }
    }
}

#[test]
fn an_index_is_searched_for_the_platform() {
    let mut layout = Layout::new();
    let entry = |name: &str, architecture: &str, variant: Option<&str>| {
        let layer = [Layer::plain(Tar::new().file(name, b"").end())];
        let mut config = config(&layer);
        config["architecture"] = architecture.into();
        let mut descriptor = layout.manifest(&layer, &config);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        if let Some(variant) = variant {
            descriptor["platform"]["variant"] = variant.into();
        }
        descriptor
    };
    let mut attestation = entry("attestation", "unknown", None);
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let mut nameless = entry("riscv", "riscv64", None);
    nameless.as_object_mut().unwrap().remove("platform");
    let missing = json!({"mediaType": MANIFEST, "digest": Digest::of(b"absent").to_string(), "size": 6, "platform": {"os": "linux", "architecture": "s390x"}});
    let inner = json!({"schemaVersion": 2, "manifests": [attestation, {"mediaType": "application/x", "digest": "x", "size": 0}, missing,
        entry("386", "386", None), entry("armv6", "arm", Some("v6")), entry("amd64", "amd64", None), entry("amd64-again", "amd64", None),
        entry("arm64", "arm64", Some("v8")), nameless]});
    let inner = layout.blob(inner.to_string().as_bytes(), INDEX);
    let outer = layout
        .blob(json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]}).to_string().as_bytes(), INDEX);
    layout.list(outer, "multi");
    for (platform, file) in [
        ("linux/amd64", "amd64"),
        ("linux/arm64", "arm64"),
        ("arm/v7", ""),
        ("linux/arm/v7", "armv6"),
        ("linux/riscv64", "riscv"),
        ("linux/386", "386"),
    ] {
        let test = TestStore::new();
        let options = LoadOptions { platform: Platform::parse(platform).ok(), ..LoadOptions::default() };
        let loaded = test.store.load(&layout.source(), &options, &Silent);
        match file {
            "" => assert!(loaded.unwrap_err().to_string().contains("there are: linux/386, linux/arm/v6")),
            _ => {
                loaded.unwrap();
                assert_eq!(root_names(&test, "multi"), [file], "{platform}");
            }
        }
    }
}

#[test]
fn signatures_and_charts_beside_images_are_passed_over() {
    let mut layout = Layout::of("redis", &layers());
    let empty = layout.blob(b"{}", "application/vnd.oci.empty.v1+json");
    let artifact = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x.signature", "config": empty, "layers": []});
    let artifact = layout.blob(artifact.to_string().as_bytes(), MANIFEST);
    layout.list(artifact, "signature");
    let test = TestStore::new();
    assert_eq!(test.load(&layout.source()).len(), 1);
    let asked = Source::parse(&format!("oci:{}:signature", layout.path().display())).unwrap();
    let error = test.try_load(&asked).unwrap_err().to_string();
    assert!(error.contains("artifact (application/x.signature)"), "{error}");
}

#[test]
fn an_embedded_config_and_a_layer_that_the_store_has_need_no_blob() {
    let test = TestStore::new();
    let stack = layers();
    test.load_layers("first", &stack);
    let mut layout = Layout::new();
    let mut config = config(&stack);
    config["author"] = "somebody else".into();
    let config = config.to_string();
    // "data" in base64, made with no encoder at hand: three bytes at a time.
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let data: String = config
        .as_bytes()
        .chunks(3)
        .map(|three| {
            let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            (0..4)
                .map(|n| if n <= three.len() { DIGITS[(bits >> (18 - 6 * n) & 63) as usize] as char } else { '=' })
                .collect::<String>()
        })
        .collect();
    let descriptor = |bytes: &[u8], media_type: &str| json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let mut config_descriptor = descriptor(config.as_bytes(), CONFIG);
    config_descriptor["data"] = data.into();
    let layers: Vec<_> = stack.iter().map(|layer| descriptor(&layer.blob, layer.media_type)).collect();
    let manifest = json!({"schemaVersion": 2, "config": config_descriptor, "layers": layers});
    let listed = layout.blob(manifest.to_string().as_bytes(), MANIFEST);
    layout.list(listed, "second");
    assert_eq!(test.load(&layout.source())[0].layers.len(), 2);
    let error = TestStore::new().try_load(&layout.source()).unwrap_err().to_string();
    assert!(error.contains("the source does not hold it"), "{error}");
}

#[test]
fn content_above_the_threshold_is_stored_once_for_all_images() {
    let body = noise(7, 3_000_000);
    let test = TestStore::new();
    test.load_layers("a", &[Layer::gzip(Tar::new().file("one", &body).file("same/again", &body).end())]);
    let before = test.files();
    test.load_layers("b", &[Layer::plain(Tar::new().dir("d/").file("d/other-name", &body).end())]);
    let objects = |files: &std::collections::BTreeMap<String, u64>| {
        files.keys().filter(|path| path.starts_with("objects/")).count()
    };
    assert_eq!((objects(&before), objects(&test.files())), (1, 1));
    let hex = Digest::of(&body).hex();
    assert_eq!(before[&format!("objects/{}/{}", &hex[..2], &hex[2..])], 3_000_000);
    let image = test.store.image("b").unwrap();
    let index = Index::open(std::fs::read(test.store.lower(&image).unwrap().index).unwrap()).unwrap();
    let dir = index.lookup(Slot(0), Name::new(b"d").unwrap()).unwrap();
    let file = index.lookup(dir, Name::new(b"other-name").unwrap()).unwrap();
    assert_eq!(index.row(file).unwrap().stat().size, 3_000_000);
}

#[test]
fn standard_input_is_copied_first() {
    let layout = Layout::of("redis", &layers());
    let archive = gzip(&layout.archive());
    let test = TestStore::new();
    // The test runs itself as the process whose input it is.
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "load_from_stdin", "--nocapture"])
        .env("STORE", test.root())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for part in archive.chunks(1000) {
        std::io::Write::write_all(&mut stdin, part).unwrap();
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(root_names(&test, "redis"), ["again", "big", "etc", "new"]);
    assert!(test.files().keys().all(|path| !path.starts_with("ingest/")));
}

/// The child of `standard_input_is_copied_first`.
#[test]
fn load_from_stdin() {
    let Some(root) = std::env::var_os("STORE") else { return };
    let store = store::Store::open(root.as_ref()).unwrap();
    store.load(&Source::stdin(), &LoadOptions::default(), &Silent).unwrap();
}
