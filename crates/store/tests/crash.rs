//! Kills, full disks and races: what is visible is whole, what is not is swept.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use layer::DiffId;
use store::{LayerEvent, LoadOptions, Origin, Progress, Removal, Silent, Source, Store};

fn stack(count: u64) -> Vec<Layer> {
    let layer = |n: u64| {
        let tar =
            (0..40).fold(Tar::new(), |tar, file| tar.file(&format!("{n}/{file}"), &noise(n * 100 + file, 70_000)));
        Layer::gzip(tar.file("shared", &noise(1, 500_000)).end())
    };
    (0..count).map(layer).collect()
}

/// Every layer that is visible gives its tar back, and every object has its name's hash.
fn assert_whole(test: &TestStore) {
    for layer in test.store.layers().unwrap() {
        test.store.layer_tar(&layer, &mut std::io::sink()).unwrap();
    }
    for (path, body) in files(&test.root().join("objects")) {
        assert_eq!(layer::Digest::of(&body).hex(), path.replace('/', ""));
    }
}

#[test]
fn a_killed_load_leaves_whole_layers_and_goes_on_from_there() {
    let layout = Layout::of("app", &stack(8));
    let clean = TestStore::new();
    clean.load(&layout.source());
    let mut resumed = 0;
    for round in 0..12 {
        let test = TestStore::new();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "load_in_a_child", "--nocapture"])
            .env("STORE", test.root())
            .env("LAYOUT", layout.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + round * 25));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&test.root()).unwrap();
        assert!(test.files().keys().all(|path| !path.starts_with("ingest/") && !path.starts_with("trash/")));
        assert_whole(&test);
        let loaded = store.load(&layout.source(), &LoadOptions::default(), &Silent).unwrap();
        resumed += loaded[0].layers.iter().filter(|layer| layer.origin == Origin::Existing).count();
        assert_eq!(test.files(), clean.files(), "as if nothing had happened");
    }
    println!("{resumed} layers were not unpacked again");
}

/// The child of `a_killed_load_leaves_whole_layers_and_goes_on_from_there`.
#[test]
fn load_in_a_child() {
    let (Some(root), Some(layout)) = (std::env::var_os("STORE"), std::env::var("LAYOUT").ok()) else { return };
    let store = Store::open(root.as_ref()).unwrap();
    let options = LoadOptions { parallel: Some(1), ..LoadOptions::default() };
    store.load(&Source::parse(&format!("oci:{layout}")).unwrap(), &options, &Silent).unwrap();
}

#[test]
fn what_was_left_behind_is_swept_only_when_nobody_works() {
    let test = TestStore::new();
    test.load_layers("app", &stack(1));
    let before = test.files();
    let leave = || {
        std::fs::create_dir_all(test.root().join("ingest/old/layer")).unwrap();
        std::fs::write(test.root().join("ingest/old/layer/bodies"), b"half").unwrap();
        std::fs::create_dir_all(test.root().join("objects/ff")).unwrap();
        std::fs::write(test.root().join("objects/ff").join("0".repeat(62)), b"orphan").unwrap();
        std::fs::write(test.root().join("trash/old"), b"").unwrap();
    };
    leave();
    /// Opens the store once more in the middle of a load.
    struct Meanwhile(std::path::PathBuf);
    impl Progress for Meanwhile {
        fn layer(&self, _: DiffId, event: LayerEvent) {
            if let LayerEvent::Started { .. } = event {
                Store::open(&self.0).unwrap();
                assert!(self.0.join("ingest/old").exists());
            }
        }
    }
    let extra = Layout::of("extra", &[Layer::plain(Tar::new().file("x", b"").end())]);
    test.store.load(&extra.source(), &LoadOptions::default(), &Meanwhile(test.root())).unwrap();
    test.store.remove_image("extra", Removal::Ask).unwrap();
    leave();
    Store::open(&test.root()).unwrap();
    assert_eq!(test.files(), before);
}

#[test]
fn loads_removals_and_collections_at_once_end_well() {
    let layouts: Vec<Layout> = (1..=3).map(|count| Layout::of(&format!("app{count}"), &stack(count))).collect();
    let test = TestStore::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loads: Vec<_> = layouts
            .iter()
            .map(|layout| {
                scope.spawn(|| {
                    // Each with its own store, as other processes have.
                    let store = Store::open(&test.root()).unwrap();
                    for _ in 0..4 {
                        let loaded = store.load(&layout.source(), &LoadOptions::default(), &Silent).unwrap();
                        let image = store.image_by_id(loaded[0].id);
                        if let Ok(image) = image
                            && let Ok(container) = store.create_container(&image, None)
                        {
                            assert!(store.lower(&image).unwrap().index.exists());
                            for layer in &image.diff_ids {
                                store.layer_tar(layer, &mut std::io::sink()).unwrap();
                            }
                            store.remove_container(&container.id).unwrap();
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let store = Store::open(&test.root()).unwrap();
            while !done.load(Ordering::Relaxed) {
                store.gc().unwrap();
                store.remove_image("app2", Removal::Force).ok();
                store.df().ok();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        for load in loads {
            load.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_whole(&test);
    for layout in &layouts {
        test.load(&layout.source());
    }
    let clean = TestStore::new();
    layouts.iter().for_each(|layout| drop(clean.load(&layout.source())));
    assert_eq!(test.files(), clean.files());
}

/// A small filesystem in memory, while it is held; `None` where that needs privilege that is not there.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(size: &str) -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), options.as_c_str()).ok()?;
        Some(Small(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half_done() {
    let layout = Layout::of("app", &stack(3));
    let mut whole = 0;
    for kib in [64, 300, 600, 1500, 3000, 3700, 4500, 8000, 9400, 9600, 9800] {
        let Some(small) = Small::mount(&format!("{kib}k")) else {
            println!("skipped: a small filesystem cannot be mounted without privilege");
            return;
        };
        let root = small.0.path().join("store");
        let Ok(store) = Store::open(&root) else { continue };
        let options = LoadOptions { parallel: Some(1), ..LoadOptions::default() };
        match store.load(&layout.source(), &options, &Silent) {
            Ok(_) => whole += 1,
            Err(error) => {
                assert!(error.to_string().contains("No space left"), "{error}");
                assert!(error.to_string().contains("free some space"), "{error}");
                assert!(store.images().unwrap().is_empty());
            }
        }
        assert!(files(&root.join("ingest")).is_empty());
        for layer in store.layers().unwrap() {
            store.layer_tar(&layer, &mut std::io::sink()).unwrap();
        }
    }
    println!("{whole} fitted");
}
