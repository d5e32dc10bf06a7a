//! A check finds every kind of damage, names it, and a repair lets the next load mend it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::*;
use layer::ChainId;
use store::{NewSnapshot, Repair, Report, SnapshotKind};

struct Damaged {
    test: TestStore,
    layout: Layout,
}

impl Damaged {
    fn new() -> Self {
        let test = TestStore::new();
        let base = Layer::gzip(Tar::new().dir("d/").file("d/small", b"small").file("large", &noise(1, 200_000)).end());
        let top = Layer::gzip(Tar::new().file("d/other", b"other").file("large2", &noise(2, 100_000)).end());
        let layout = Layout::of("app", &[base, top]);
        test.load(&layout.source());
        test.store.create_container(&test.store.image("app").unwrap(), Some("box")).unwrap();
        Damaged { test, layout }
    }

    /// The only or first file below a directory of the store.
    fn one(&self, dir: &str) -> PathBuf {
        let mut pending = vec![self.test.root().join(dir)];
        while let Some(path) = pending.pop() {
            if path.is_file() {
                return path;
            }
            let mut inner: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inner.sort();
            pending.extend(inner.into_iter().rev());
        }
        unreachable!("{dir} is empty")
    }

    fn check(&self, repair: Repair) -> Report {
        self.test.store.fsck(repair).unwrap()
    }

    fn findings(&self) -> Vec<String> {
        self.check(Repair::No).findings.iter().map(|finding| format!("{}: {}", finding.what, finding.why)).collect()
    }
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_sound_store_has_no_findings() {
    let store = Damaged::new();
    let report = store.check(Repair::No);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!((report.images, report.layers, report.objects, report.containers), (1, 2, 2, 1));
    assert!(report.bytes > 600_000, "objects are read for themselves and for their layers");
}

#[test]
fn damage_anywhere_is_found_and_repaired_as_far_as_the_next_load_mends_it() {
    for dir in ["objects", "layers", "folded", "images/manifests", "images/configs", "images/refs"] {
        let store = Damaged::new();
        let path = store.one(dir);
        damage(&path);
        let told = store.findings();
        assert!(told.iter().any(|line| line.contains(path.parent().unwrap().to_str().unwrap())), "{dir}: {told:?}");
        assert!(path.exists(), "a check without repair changes nothing");
        let repaired = store.check(Repair::Yes);
        assert!(repaired.findings.iter().any(|finding| finding.repaired.is_some()), "{dir}: {repaired:?}");
        store.test.load(&store.layout.source());
        let image = store.test.store.image("app").unwrap();
        store.test.store.lower(&image).unwrap();
        assert_eq!(store.findings(), Vec::<String>::new(), "{dir}");
    }
}

#[test]
fn every_file_of_a_layer_counts() {
    for name in ["index", "bodies", "skeleton"] {
        for act in [damage as fn(&Path), |path| fs::remove_file(path).unwrap()] {
            let store = Damaged::new();
            act(&store.one("layers").with_file_name(name));
            let told = store.findings();
            assert!(told.iter().any(|line| line.contains("/layers/")), "{name}: {told:?}");
            assert!(
                told.iter().any(|line| line.starts_with("image ") && line.contains("load the image again")),
                "{told:?}"
            );
            store.check(Repair::Yes);
            // The image can still be listed, and is whole after it was loaded again.
            assert_eq!(store.test.store.images().unwrap().len(), 1);
            store.test.load(&store.layout.source());
            assert_eq!(store.findings(), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn what_belongs_to_nothing_is_told_and_left() {
    let store = Damaged::new();
    let root = store.test.root();
    let container = store.one("containers").parent().unwrap().to_owned();
    let strays = [
        root.join("notes"),
        root.join("images/x"),
        root.join("objects/zz"),
        root.join("objects").join("ab"),
        root.join("layers/not-a-digest"),
        root.join("folded/x"),
        container.join("stray"),
        store.one("layers").with_file_name("more"),
    ];
    for path in &strays {
        match path.ends_with("ab") {
            true => fs::create_dir_all(path).and_then(|()| fs::write(path.join("x"), "x")).unwrap(),
            false => fs::write(path, "x").unwrap(),
        }
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let report = store.check(Repair::No);
    for path in &strays {
        let told = report.findings.iter().any(|finding| finding.what.starts_with(path.to_str().unwrap()));
        assert!(told, "{}: {report:?}", path.display());
    }
    assert_eq!(report.findings.len(), strays.len() + 1);
    fs::write(root.join("lasting"), "x").unwrap();
    let report = store.check(Repair::Yes);
    assert!(report.findings.iter().any(|finding| finding.why.contains("0755") && finding.repaired.is_some()));
    assert!(root.join("lasting").exists());
}

#[test]
fn a_shared_damaged_object_is_told_of_every_layer_that_has_it() {
    let test = TestStore::new();
    let body = noise(7, 300_000);
    let one = Layer::plain(Tar::new().file("one", &body).end());
    let two = Layer::plain(Tar::new().file("two", &body).end());
    test.load_layers("one", &[one]);
    test.load_layers("two", &[two]);
    let objects = files(&test.root().join("objects"));
    let path = test.root().join("objects").join(objects.keys().next().unwrap());
    damage(&path);
    let report = test.store.fsck(Repair::No).unwrap();
    let of = |word: &str| report.findings.iter().filter(|finding| finding.what.contains(word)).count();
    assert_eq!((of("/objects/"), of("/layers/"), of("image ")), (1, 2, 2), "{report:?}");
}

#[test]
fn snapshots_without_their_layers_or_parents_are_told() {
    let test = TestStore::new();
    let layer = Layer::plain(Tar::new().file("a", b"a").end());
    test.load_layers("app", std::slice::from_ref(&layer));
    let labels = BTreeMap::new();
    let chain = ChainId::of(&[layer.diff_id()]).unwrap();
    let base = NewSnapshot { kind: SnapshotKind::Committed, key: "base", parent: None, labels: &labels };
    let base = test.store.adopt_snapshot(&chain, &base).unwrap().unwrap();
    let active = NewSnapshot { kind: SnapshotKind::Active, key: "active", parent: Some("base"), labels: &labels };
    let active = test.store.prepare_snapshot(&active).unwrap();
    let findings = || -> Vec<String> {
        let report = test.store.fsck(Repair::No).unwrap();
        report.findings.into_iter().map(|finding| format!("{}: {}", finding.what, finding.why)).collect()
    };
    assert_eq!(findings(), Vec::<String>::new());
    assert_eq!(test.store.fsck(Repair::No).unwrap().snapshots, 2);

    let dir = active.upper.parent().unwrap();
    fs::write(dir.join("stray"), "x").unwrap();
    fs::create_dir(dir.with_file_name("nobodys")).unwrap();
    fs::rename(test.root().join("snapshots").join(&base.id), test.root().join("base")).unwrap();
    let told = findings();
    for part in
        ["/stray: it belongs to nothing", "/nobodys: it belongs", "snapshot active: it stands on base", "/base: "]
    {
        assert!(told.iter().any(|line| line.contains(part)), "{part}: {told:?}");
    }
    fs::rename(test.root().join("base"), test.root().join("snapshots").join(&base.id)).unwrap();
    fs::remove_file(dir.join("stray")).unwrap();
    fs::remove_dir(dir.with_file_name("nobodys")).unwrap();
    fs::remove_dir_all(test.root().join("layers").join(layer.diff_id().0.hex())).unwrap();
    let told = findings();
    for part in ["snapshot active: its layer sha256:", "snapshot base: its layer sha256:"] {
        assert!(told.iter().any(|line| line.contains(part)), "{part}: {told:?}");
    }
    fs::write(dir.join("meta.json"), "{").unwrap();
    assert!(findings().iter().any(|line| line.contains("what it wrote is in fs/")), "{:?}", findings());
}
