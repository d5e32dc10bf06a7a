//! Images leave as archives and come back bit by bit.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use serde_json::Value;
use store::{ArchiveForm, Source};

fn layer(seed: u64) -> Layer {
    Layer::gzip(Tar::new().dir("d/").file("d/small", &noise(seed, 9)).file("d/large", &noise(seed, 200_000)).end())
}

fn save(test: &TestStore, texts: &[&str], form: ArchiveForm) -> Vec<u8> {
    let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
    let mut out = Vec::new();
    test.store.save(&texts, form, &mut out).unwrap();
    out
}

fn members(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut tar = tar::Archive::new(archive);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let mut body = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut body).unwrap();
        (String::from_utf8(entry.path_bytes().into_owned()).unwrap(), body)
    };
    tar.entries().unwrap().map(read).collect()
}

#[test]
fn several_images_are_saved_in_either_form_and_load_as_they_were() {
    let from = TestStore::new();
    let (base, one, two) = (layer(1), layer(2), layer(3));
    from.load_layers("one:1", &[base.clone(), one]);
    from.load_layers("quay.io/a/two", &[base, two]);
    from.store.tag("one:1", "one:latest").unwrap();
    for form in [ArchiveForm::Docker, ArchiveForm::Oci] {
        let archive = save(&from, &["one:1", "quay.io/a/two", "one:latest"], form);
        let layers =
            members(&archive).iter().filter(|(path, body)| path.starts_with("blobs/") && body.len() > 100_000).count();
        assert_eq!(layers, 3, "the shared layer is there once");
        let to = TestStore::new();
        std::fs::write(to.dir.path().join("archive"), &archive).unwrap();
        to.load(&Source::archive(to.dir.path().join("archive")));
        let known = |test: &TestStore| {
            let images = test.store.images().unwrap();
            let mut known: Vec<_> = images.into_iter().map(|image| (image.id, image.names, image.diff_ids)).collect();
            known.sort();
            known
        };
        assert_eq!(known(&from), known(&to));
        // What came plain is saved as it came.
        assert_eq!(save(&to, &["one:1", "quay.io/a/two", "one:latest"], form), archive);
    }
}

#[test]
fn each_form_has_what_its_readers_look_for() {
    let test = TestStore::new();
    let loaded = test.load_layers("app", &[layer(1), layer(1), layer(2)]);
    let archive = members(&save(&test, &["app"], ArchiveForm::Docker));
    let find = |path: &str| archive.iter().find(|(name, _)| name == path).map(|(_, body)| body.clone());
    let docker: Value = serde_json::from_slice(&find("manifest.json").unwrap()).unwrap();
    assert_eq!(docker[0]["RepoTags"][0], "app:latest");
    assert_eq!(docker[0]["Config"], format!("blobs/sha256/{}", loaded.id.0.hex()));
    assert_eq!(docker[0]["Layers"].as_array().unwrap().len(), 3);
    assert_eq!(docker[0]["Layers"][0], docker[0]["Layers"][1]);
    let index: Value = serde_json::from_slice(&find("index.json").unwrap()).unwrap();
    let named = &index["manifests"][0];
    assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "docker.io/library/app:latest");
    assert_eq!(named["platform"]["os"], "linux");
    assert!(find(&format!("blobs/{}", named["digest"].as_str().unwrap().replace(':', "/"))).is_some());
    let oci = members(&save(&test, &["app"], ArchiveForm::Oci));
    assert!(!oci.iter().any(|(path, _)| path == "manifest.json"));
}

#[test]
fn a_repository_is_all_its_tags_and_an_id_is_no_name() {
    let test = TestStore::new();
    let loaded = test.load_layers("app:7", &[layer(1)]);
    test.load_layers("app:8", &[layer(2)]);
    let tags = |texts: &[&str]| {
        let archive = members(&save(&test, texts, ArchiveForm::Docker));
        let docker: Value = serde_json::from_slice(&archive.last().unwrap().1).unwrap();
        let images = docker.as_array().unwrap().iter().map(|image| image["RepoTags"].to_string());
        let mut all: Vec<String> = images.collect();
        all.sort();
        all
    };
    assert_eq!(tags(&["app"]), [r#"["app:7"]"#, r#"["app:8"]"#]);
    assert_eq!(tags(&["app:7"]), [r#"["app:7"]"#]);
    assert_eq!(tags(&[&loaded.id.to_string()]), ["[]"]);
    let error = test.store.save(&["app:7".into(), "none".into()], ArchiveForm::Docker, &mut Vec::new()).unwrap_err();
    assert!(error.is_not_found(), "{error}");
}
