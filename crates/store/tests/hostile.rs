//! Hostile and broken inputs: each gives an error that names the thing, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use layer::Digest;
use proptest::prelude::*;
use serde_json::{Value, json};
use store::{Source, Store};

/// Loads into a store that has something already; returns the error, having checked that nothing else changed.
fn refused(source: &Source) -> String {
    let test = TestStore::new();
    test.load_layers("keep", &[Layer::plain(Tar::new().file("kept", &noise(9, 100_000)).end())]);
    let before = test.files();
    let error = test.try_load(source).map(|loaded| loaded.len()).expect_err("it was loaded").to_string();
    assert_eq!(test.files(), before, "{error}");
    // A second store can take every lock: none was left held.
    Store::open(&test.root()).unwrap().gc().unwrap();
    assert_eq!(test.files(), before);
    error
}

/// The bad layer lies on a good one, which must not stay either.
fn refused_layer(layer: Layer) -> String {
    refused(&Layout::of("bad", &[Layer::gzip(Tar::new().file("base", &noise(8, 100_000)).end()), layer]).source())
}

fn refused_tar(tar: Vec<u8>) -> String {
    refused_layer(Layer::gzip(tar))
}

#[test]
fn members_that_no_layer_may_hold() {
    let big = noise(3, 100_000);
    let tar = || Tar::new().file("first", &big);
    let device = |path: &str, major: &[u8; 7], minor: &[u8; 7]| {
        let mut block = header(path.as_bytes(), b'3', b"", 0);
        block[329..336].copy_from_slice(major);
        block[337..344].copy_from_slice(minor);
        Tar::new().raw(&seal(block))
    };
    for (tar, says) in [
        (tar().file("../escape", b""), "member '../escape'"),
        (tar().file("a/../../b", b""), "member 'a/../../b'"),
        (tar().file("..", b""), "member '..'"),
        (tar().hardlink("link", "/first"), "absolute path '/first'"),
        (tar().hardlink("link", "../first"), "member 'link'"),
        (tar().hardlink("link", "link"), "link to itself"),
        (tar().dir("dir").hardlink("link", "dir"), "a directory"),
        (tar().hardlink("a", "b").hardlink("b", "a"), "no such file"),
        (tar().file(".wh.gone", b"").hardlink("link", "gone"), "hides"),
        (tar().file(".wh.", b""), "member '.wh.'"),
        (tar().file("d/.wh.", b""), "member 'd/.wh.'"),
        (tar().file(".wh..", b""), "names nothing"),
        (tar().file(".wh...", b""), "names nothing"),
        (tar().file(".wh.x/y", b""), "below the whiteout"),
        (tar().file("first/below", b""), "no directory"),
        (tar().symlink("/", "x"), "must be a directory"),
        (tar().file("./", b"x"), "must be a directory"),
        (tar().symlink("link", ""), "symbolic link"),
        (tar().raw(&device("dev", b"0000000", b"0000000").open_end()), "device 0:0"),
        (tar().member("odd", b'V', "", b""), "type 'V'"),
        (tar().pax(&[("path", b"a\0b")]).file("x", b""), "NUL"),
        (tar().pax(&[("path", "n".repeat(256).as_bytes())]).file("x", b""), "255 bytes"),
        (tar().pax(&[("path", "p/".repeat(3000).as_bytes())]).file("x", b""), "6000 bytes"),
        (tar().pax(&[("mtime", b"NaN")]).file("x", b""), "no time"),
        (tar().pax(&[("uid", b"4294967296")]).file("x", b""), "owner"),
        (tar().pax(&[("size", b"9223372036854775807")]).file("x", b"abc"), "ends in the middle"),
        (tar().pax(&[("SCHILY.xattr.user.a", &[b'v'; 70_000])]).file("x", b""), "user.a"),
        (tar().pax(&[("GNU.sparse.size", b"99999999999999"), ("GNU.sparse.map", b"0,3")]).file("x", b"abc"), "holes"),
        (tar().pax(&[("GNU.sparse.size", b"2"), ("GNU.sparse.map", b"0,3")]).file("x", b"abc"), "past its end"),
        (tar().member("g", b'g', "", &record("path", b"all")), "global PAX header"),
        (tar().member("x", b'x', "", b"rubbish"), "PAX"),
        (tar().raw(b"rubbish").raw(&[b'r'; 600]), "checksum"),
    ] {
        let error = refused_tar(tar.end());
        assert!(error.contains(says), "should say '{says}': {error}");
        assert!(error.contains("bad:latest") || error.contains("layer blob sha256:"), "{error}");
    }
    let bad_checksum = tar().open_end();
    assert!(refused_tar(bad_checksum[..bad_checksum.len() - 600].to_vec()).contains("ends in the middle"));
}

#[test]
fn what_looks_hostile_but_is_harmless_is_taken() {
    let long: String = "d/".repeat(2000) + "f";
    let tar = Tar::new()
        .dir("/")
        .file("/absolute", b"a")
        .file("./dot//slash/./x", b"b")
        .symlink("out", "../../../etc/passwd")
        .file("newline\n\x01", b"c")
        .hardlink("forward", "later")
        .file("later", b"d")
        .file("later", b"e")
        .file("case", b"")
        .file("CASE", b"")
        .pax(&[("path", long.as_bytes())])
        .file("x", b"deep")
        .pax(&[("path", b"\xff\xfe")])
        .file("x", b"")
        .pax(&[
            ("mtime", b"-5000000000.123"),
            ("SCHILY.xattr.user.n", b"\0\x01"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .file("old", b"")
        .pax(&[("mtime", b"99999999999")])
        .file("far", b"")
        .file(".wh..wh.plnk/1.2", b"")
        .raw(&[0; 1024])
        .raw(b"data behind the end")
        .open_end();
    let test = TestStore::new();
    let loaded = test.load_layers("odd", &[Layer::gzip(tar.clone())]);
    assert_eq!(test.tar(&loaded.layers[0].diff_id), tar);
    assert_eq!(test.store.image("odd").unwrap().size, tar.len() as u64);
}

#[test]
fn many_members_and_long_chains_take_bounded_time() {
    let mut tar = Tar::new();
    for n in 0..20_000 {
        tar = tar.hardlink(&format!("link-{n}"), &format!("link-{}", n + 1));
    }
    tar = tar.file("link-20000", b"end");
    let test = TestStore::new();
    let start = std::time::Instant::now();
    test.load_layers("chain", &[Layer::gzip(tar.end())]);
    assert!(start.elapsed().as_secs() < 30);
}

#[test]
fn blobs_that_are_not_what_their_descriptors_say() {
    let tar = Tar::new().file("a", &noise(1, 300_000)).end();
    let good = Layer::gzip(tar.clone());
    let listed = |layers: &[Layer], change: &dyn Fn(&mut Value)| {
        let mut layout = Layout::new();
        let descriptor = layout.manifest(layers, &config(layers));
        let path = layout.path().join("blobs/sha256").join(&descriptor["digest"].as_str().unwrap()[7..]);
        let mut manifest: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        change(&mut manifest);
        let descriptor = layout.blob(manifest.to_string().as_bytes(), MANIFEST);
        layout.list(descriptor, "bad");
        layout
    };
    let blob = |layout: &Layout| layout.path().join("blobs/sha256").join(Digest::of(&good.blob).hex());
    let layers = [good.clone()];

    for (size, says) in
        [(json!(5), "should have 5 bytes"), (json!(-1), "is -1"), (json!(i64::MAX), "should have 9223372036854775807")]
    {
        let layout = listed(&layers, &|manifest| manifest["layers"][0]["size"] = size.clone());
        assert!(refused(&layout.source()).contains(says));
    }
    let layout = listed(&layers, &|_| ());
    let mut bytes = good.blob.clone();
    bytes[100_000] ^= 1;
    std::fs::write(blob(&layout), &bytes).unwrap();
    assert!(refused(&layout.source()).contains("its content has the digest"));
    std::fs::write(blob(&layout), &good.blob[..50_000]).unwrap();
    assert!(refused(&layout.source()).contains("but has 50000"));
    std::fs::remove_file(blob(&layout)).unwrap();
    assert!(refused(&layout.source()).contains("does not hold it"));

    let other = Layer { tar: b"other".to_vec(), ..good.clone() };
    assert!(refused(&Layout::of("bad", &[other]).source()).contains("not sha256:"));
    let cut = Layer { blob: good.blob[..100_000].to_vec(), ..good.clone() };
    assert!(refused_layer(cut.clone()).contains("does not inflate"), "truncated, with the right digest");
    let text = Layer::plain(b"this is no tar, but a text".repeat(100));
    assert!(refused(&Layout::of("bad", &[text]).source()).contains("no tar archive"));
    let xz = Layer { blob: b"\xfd7zXZ\0\0\0".to_vec(), ..good.clone() };
    assert!(refused(&Layout::of("bad", &[xz]).source()).contains("xz"));
    let trailing = Layer { blob: [&good.blob[..], b"rubbish"].concat(), ..good.clone() };
    assert!(refused(&Layout::of("bad", &[trailing]).source()).contains("does not inflate"));

    for (change, says) in [
        (&(|m: &mut Value| m["layers"] = json!([])) as &dyn Fn(&mut Value), "1 diff_ids in its config, but 0 layers"),
        (&|m| m["layers"][0]["mediaType"] = "application/x".into(), "not known here"),
        (
            &|m| m["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into(),
            "encrypted",
        ),
        (
            &|m| m["layers"][0]["digest"] = good_digest(&good).to_uppercase().replace("SHA256", "sha256").into(),
            "lower-case",
        ),
        (&|m| m["layers"][0]["digest"] = "sha256:../../../../etc/passwd".into(), "hex digits"),
        (&|m| m["layers"][0]["digest"] = format!("sha512:{}", "0".repeat(128)).into(), "only sha256"),
        (&|m| m["manifests"] = json!([]), "parts of a manifest and of an index"),
        (&|m| m["mediaType"] = INDEX.into(), "what names it says"),
        (&|m| m["schemaVersion"] = 1.into(), "schema 1"),
        (&|m| m["config"]["size"] = 1.into(), "should have 1 bytes"),
    ] {
        let error = refused(&listed(&layers, change).source());
        assert!(error.contains(says), "should say '{says}': {error}");
    }
}

fn good_digest(layer: &Layer) -> String {
    Digest::of(&layer.blob).to_string()
}

#[test]
fn documents_that_are_endless_or_ambiguous() {
    let raw = |document: &[u8]| {
        let mut layout = Layout::new();
        let descriptor = layout.blob(document, MANIFEST);
        layout.list(descriptor, "bad");
        layout
    };
    for (document, says) in [
        (br#"{"schemaVersion":2,"schemaVersion":2}"#.to_vec(), "twice"),
        ("[".repeat(10_000).into_bytes(), "recursion"),
        (format!("{{\"x\":{}", "{\"x\":".repeat(10_000)).into_bytes(), "recursion"),
        (vec![b' '; 5 << 20], "at most 4194304"),
        (b"\xff\xfe".to_vec(), "JSON"),
        (b"{}".to_vec(), "neither"),
    ] {
        let error = refused(&raw(&document).source());
        assert!(error.contains(says), "should say '{says}': {error}");
    }
    // An index in an index in an index...
    let mut layout = Layout::new();
    let mut descriptor = layout.manifest(&[], &json!({}));
    for _ in 0..20 {
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        descriptor = layout.blob(index.to_string().as_bytes(), INDEX);
    }
    layout.list(descriptor, "bad");
    assert!(refused(&layout.source()).contains("levels of indexes"));
    // ...and one that is as wide as it may be.
    let mut layout = Layout::new();
    let leaf = layout.blob(json!({"schemaVersion": 2, "manifests": []}).to_string().as_bytes(), INDEX);
    let wide = json!({"schemaVersion": 2, "manifests": vec![leaf; 20_000]});
    let wide = layout.blob(wide.to_string().as_bytes(), INDEX);
    layout.list(wide, "bad");
    assert!(refused(&layout.source()).contains("entries"));
}

#[test]
fn sources_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let at = |kind: &str| Source::parse(&format!("{kind}:{}", file.display())).unwrap();
    assert!(refused(&at("oci-archive")).contains("No such file"));
    assert!(refused(&at("oci")).contains("no such directory"));
    for (content, says) in [
        (b"".to_vec(), "neither index.json"),
        (b"no tar".to_vec(), "no tar archive"),
        (Tar::new().file("etc/passwd", b"").end(), "is it a plain tar of files?"),
        (gzip(b""), "neither index.json"),
        (gzip(b"no tar")[..15].to_vec(), "archive"),
    ] {
        std::fs::write(&file, &content).unwrap();
        let error = refused(&Source::archive(&file));
        assert!(error.contains(says), "should say '{says}': {error}");
    }
    let layout = Layout::of("a", &[Layer::gzip(Tar::new().file("f", &noise(1, 100_000)).end())]);
    let archive = layout.archive();
    std::fs::write(&file, &archive[..archive.len() - 60_000]).unwrap();
    assert!(refused(&at("oci-archive")).contains("ends in the middle"));
    std::fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(refused(&layout.source()).contains("version '2.0.0'"));
    std::fs::remove_file(layout.path().join("oci-layout")).unwrap();
    assert!(refused(&layout.source()).contains("no file oci-layout"));

    let config = config(&[]).to_string();
    let docker = |manifest: Value| {
        let tar = Tar::new()
            .file("c.json", config.as_bytes())
            .symlink("loop", "loop")
            .symlink("out", "../../etc/passwd")
            .dir("dir");
        std::fs::write(&file, docker_archive(&manifest, tar)).unwrap();
        refused(&at("docker-archive"))
    };
    assert!(docker(json!([{"Config": "c.json", "Layers": []}])).contains("no layers"));
    assert!(docker(json!([{"Config": "c.json", "Layers": ["loop"]}])).contains("0 diff_ids"));
    assert!(docker(json!([{"Config": "loop"}])).contains("too many links"));
    for path in ["out", "absent", "dir", "/etc/passwd", "../c.json"] {
        assert!(docker(json!([{"Config": path}])).contains("does not hold it"), "{path}");
    }
    assert!(docker(json!([])).contains("no images"));
    assert!(docker(json!({})).contains("manifest.json"));
    std::fs::write(&file, Tar::new().file("repositories", b"{}").end()).unwrap();
    assert!(refused(&at("docker-archive")).contains("1.10"));
}

#[test]
fn a_bomb_is_noticed_before_it_fills_the_disk() {
    // A sparse file of 64 GiB and some is refused; so is what inflates without end (its bound is tested below the code).
    let tar = Tar::new().pax(&[("GNU.sparse.size", b"70000000000"), ("GNU.sparse.map", b"")]).file("x", b"");
    assert!(refused_tar(tar.end()).contains("at most 68719476736"));
    let dotdot = Layer::gzip(Tar::new().file("a", &vec![0; 40 << 20]).file("../x", b"").end());
    assert!(refused(&Layout::of("bad", &[dotdot]).source()).contains("'../x'"));
}

#[test]
fn ten_thousand_attributes_come_back_whole() {
    let names: Vec<String> = (0..10_000).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"value"[..])).collect();
    let tar = Tar::new().pax(&records).file("f", b"x").end();
    let test = TestStore::new();
    let loaded = test.load_layers("many", &[Layer::gzip(tar.clone())]);
    assert_eq!(test.tar(&loaded.layers[0].diff_id), tar);
    let path = test.root().join("layers").join(loaded.layers[0].diff_id.0.hex()).join("index");
    let index = layer::index::Index::open(std::fs::read(path).unwrap()).unwrap();
    assert_eq!(index.xattrs(layer::Slot(1)).count(), 10_000);
}

#[test]
fn two_blobs_of_one_tar_are_one_layer() {
    let tar = Tar::new().file("f", &noise(4, 100_000)).end();
    let packed =
        [Layer::plain(tar.clone()), Layer::gzip(tar.clone()), Layer { blob: zstd(&tar), ..Layer::plain(tar.clone()) }];
    let test = TestStore::new();
    let mut stored = Vec::new();
    for (at, layer) in packed.iter().enumerate() {
        test.load_layers(&format!("image-{at}"), std::slice::from_ref(layer));
        stored.push(files(&test.root().join("layers")));
    }
    assert!(stored[0].len() == 3 && stored.iter().all(|found| *found == stored[0]), "{:?}", stored[2].keys());
    // One that stands twice in an image is one layer, too.
    let twice = test.load_layers("twice", &packed[..2]);
    assert_eq!(twice.layers[0].diff_id, twice.layers[1].diff_id);
    assert_eq!(files(&test.root().join("layers")), stored[0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn mutated_layers_load_or_are_refused(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8), cut in any::<usize>()) {
        let mut tar = Tar::new()
            .pax(&[("path", b"long"), ("SCHILY.xattr.user.x", b"v")]).file("f", &noise(2, 70_000))
            .hardlink("h", "long").symlink("s", "long").dir("d").file("d/.wh.x", b"")
            .pax(&[("GNU.sparse.size", b"100000"), ("GNU.sparse.map", b"0,3,90000,5")]).file("holes", b"abcdefgh")
            .end();
        for (at, value) in changes {
            let at = at % tar.len();
            tar[at] = value;
            let start = at / 512 * 512;
            let block: [u8; 512] = tar[start..start + 512].try_into().unwrap();
            tar[start..start + 512].copy_from_slice(&seal(block));
        }
        if cut % 3 == 0 {
            tar.truncate(cut % tar.len());
        }
        let test = TestStore::new();
        match test.try_load(&Layout::of("x", &[Layer::plain(tar.clone())]).source()) {
            Ok(loaded) => prop_assert_eq!(test.tar(&loaded[0].layers[0].diff_id), tar),
            Err(_) => prop_assert!(test.files().keys().all(|path| path == "version")),
        }
    }
}
