//! Images, names, containers and mounts from load to removal, and what they take on the disk.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::*;
use serde_json::json;
use store::{Error, Mount, Origin, Process, Removal};

fn stack(seed: u64) -> [Layer; 2] {
    let base = Layer::gzip(Tar::new().file("base", &noise(1, 300_000)).end());
    [base, Layer::gzip(Tar::new().file("own", &noise(seed, 200_000)).file("small", b"x").end())]
}

#[test]
fn images_are_found_by_name_id_prefix_and_digest() {
    let test = TestStore::new();
    test.load_layers("redis", &stack(2));
    test.load_layers("quay.io/a/nginx:1", &stack(3));
    let id = test.store.image("redis").unwrap().id;
    let digest = test.store.image("redis").unwrap().digest;
    for text in [
        "redis",
        "redis:latest",
        "library/redis",
        "docker.io/library/redis:latest",
        &id.to_string(),
        &id.0.hex(),
        &id.short(),
        &digest.to_string(),
        &format!("redis@{digest}"),
        &format!("redis:other@{digest}"),
    ] {
        assert_eq!(test.store.image(text).unwrap().id, id, "{text}");
    }
    for text in
        ["absent", "redis:7", "a/nginx:1", "Redis", "", "sha256:", &format!("absent@{digest}"), "zz", "redis@sha256:00"]
    {
        assert!(test.store.image(text).unwrap_err().is_not_found(), "{text}");
    }
    let other = test.store.image("quay.io/a/nginx:1").unwrap().id;
    let common = id.0.hex().bytes().zip(other.0.hex().bytes()).take_while(|(a, b)| a == b).count();
    if common > 0 {
        assert!(matches!(test.store.image(&id.0.hex()[..common]), Err(Error::Ambiguous(_))));
    }
    assert_eq!(test.store.images().unwrap().len(), 2);
}

#[test]
fn a_name_moves_to_the_image_that_is_loaded_last() {
    let test = TestStore::new();
    let first = test.load_layers("app", &stack(2));
    let second = test.load_layers("app", &stack(3));
    assert_eq!(second.moved.len(), 1);
    assert_eq!(test.store.image("app").unwrap().id, second.id);
    assert!(test.store.image_by_id(first.id).unwrap().names.is_empty(), "dangling");
    assert!(test.load_layers("app", &stack(3)).moved.is_empty());
}

#[test]
fn tags_and_removal_follow_dockers_rules() {
    let test = TestStore::new();
    let loaded = test.load_layers("app", &stack(2));
    test.load_layers("other", &stack(3));
    assert_eq!(test.store.tag("app", "mine/app:1").unwrap().to_string(), "docker.io/mine/app:1");
    assert!(test.store.tag("app", "Bad").is_err());
    assert!(test.store.tag("app", &format!("x@{}", loaded.digest)).is_err());
    assert!(test.store.tag("absent", "x").unwrap_err().is_not_found());
    assert_eq!(test.store.image("app").unwrap().names.len(), 2);

    let by_id = test.store.remove_image(&loaded.id.short(), Removal::Ask).unwrap_err();
    assert!(by_id.to_string().contains("several names (app:latest, mine/app:1)"), "{by_id}");
    let removed = test.store.remove_image("app", Removal::Ask).unwrap();
    assert_eq!((removed.untagged.len(), removed.image, removed.deleted.len()), (1, None, 0));

    let container = test.store.create_container(&test.store.image("mine/app:1").unwrap(), Some("box")).unwrap();
    let used = test.store.remove_image("mine/app:1", Removal::Force).unwrap_err();
    assert!(used.is_in_use() && used.to_string().contains("container box"), "{used}");
    test.store.remove_container(&container.id).unwrap();

    let removed = test.store.remove_image("mine/app:1", Removal::Ask).unwrap();
    assert_eq!((removed.untagged.len(), removed.image), (1, Some(loaded.id)));
    assert_eq!(removed.deleted, [loaded.layers[1].diff_id], "the base is the other image's too");
    assert!(test.store.remove_image("mine/app:1", Removal::Ask).unwrap_err().is_not_found());

    test.store.remove_image("other", Removal::Ask).unwrap();
    let left: Vec<String> = test.files().into_keys().collect();
    assert_eq!(left, ["version"], "nothing else is left");
    assert_eq!(std::fs::read_dir(test.root().join("objects")).unwrap().count(), 0);
}

#[test]
fn an_image_that_is_mounted_stays() {
    let test = TestStore::new();
    test.load_layers("app", &stack(2));
    let image = test.store.image("app").unwrap();
    let mount = |process| Mount { target: "/mnt/x".into(), process, log: "/tmp/log".into() };
    let own = Process::own().unwrap();
    let mounted = test.store.add_image_mount(&image, mount(own.clone())).unwrap();
    let error = test.store.remove_image("app", Removal::Force).unwrap_err();
    assert!(error.is_in_use() && error.to_string().contains("/mnt/x"), "{error}");
    assert_eq!(test.store.image_mounts().unwrap().len(), 1);
    let dead = store::ImageMount { mount: mount(Process { started: 0, ..own }), ..mounted };
    test.store.set_image_mount(&dead).unwrap();
    assert!(test.store.image_mounts().unwrap().is_empty());
    test.store.remove_image("app", Removal::Ask).unwrap();
    assert!(test.files().keys().all(|path| path == "version"));
    test.store.remove_image_mount(&dead.id).unwrap();
}

#[test]
fn containers_have_names_ids_and_an_upper_like_the_images_root() {
    let mut root = header(b"./", b'5', b"", 0);
    root[100..107].copy_from_slice(b"0000711");
    let tar = Tar::new().pax(&[("mtime", b"1234567890.5")]).raw(&seal(root)).file("f", b"").end();
    let test = TestStore::new();
    test.load_layers("app", &[Layer::plain(tar)]);
    let image = test.store.image("app").unwrap();
    let one = test.store.create_container(&image, Some("one")).unwrap();
    let two = test.store.create_container(&image, None).unwrap();
    assert_eq!((one.id.len(), one.image_name.as_str(), one.mount.is_none()), (64, "app:latest", true));
    assert!(matches!(test.store.create_container(&image, Some("one")), Err(Error::Exists(_))));
    for bad in ["", "-x", "a/b", "ä", &"n".repeat(200)] {
        assert!(matches!(test.store.create_container(&image, Some(bad)), Err(Error::Invalid { .. })), "{bad}");
    }
    assert_eq!(test.store.containers().unwrap().len(), 2);
    for text in ["one", &one.id, &one.id[..20]] {
        assert_eq!(test.store.container(text).unwrap().id, one.id);
    }
    for text in ["", "absent", "zz"] {
        assert!(test.store.container(text).unwrap_err().is_not_found());
    }
    let upper = std::fs::metadata(&two.upper).unwrap();
    assert_eq!(
        (upper.permissions().mode() & 0o7777, upper.mtime(), upper.mtime_nsec()),
        (0o711, 1_234_567_890, 500_000_000)
    );
    assert!(two.work.is_dir());
    assert_eq!(test.store.inspect_container(&one)["Name"], "one");
}

#[test]
fn a_mounted_container_is_told_and_kept() {
    let test = TestStore::new();
    test.load_layers("app", &stack(2));
    let container = test.store.create_container(&test.store.image("app").unwrap(), Some("box")).unwrap();
    let mount = |target: &str| {
        Some(Mount { target: target.into(), process: Process::own().unwrap(), log: container.log.clone() })
    };
    let mounted = test.store.set_mount(&container, mount("/mnt/a")).unwrap();
    assert!(mounted.is_mounted());
    assert!(test.store.set_mount(&container, mount("/mnt/b")).unwrap_err().is_in_use());
    assert!(test.store.remove_container("box").unwrap_err().to_string().contains("/mnt/a"));
    test.store.set_mount(&container, None).unwrap();
    std::fs::create_dir_all(container.upper.join("deep/er")).unwrap();
    std::fs::write(container.upper.join("deep/er/file"), b"x").unwrap();
    assert_eq!(test.store.remove_container("box").unwrap().id, container.id);
    assert!(test.store.containers().unwrap().is_empty());
    assert!(test.store.set_mount(&container, None).unwrap_err().is_not_found());
    assert!(test.files().keys().all(|path| !path.starts_with("containers") && !path.starts_with("trash")));
}

#[test]
fn history_and_inspect_tell_what_the_config_says() {
    let layers = stack(2);
    let mut layout = Layout::new();
    let mut with = |history: serde_json::Value, name: &str| {
        let mut config = config(&layers);
        config["history"] = history;
        let descriptor = layout.manifest(&layers, &config);
        layout.list(descriptor, name);
    };
    with(
        json!([{"created_by": "add base"}, {"created_by": "ENV", "empty_layer": true, "comment": "c"}, {"created_by": "add own", "created": "2026-01-01T00:00:00Z"}]),
        "full",
    );
    with(json!([{"created_by": "squashed"}]), "partial");
    with(json!(null), "absent");
    let test = TestStore::new();
    test.load(&layout.source());
    let history = |name: &str| test.store.history(&test.store.image(name).unwrap()).unwrap();
    let full = history("full");
    assert_eq!(full.iter().map(|entry| entry.created_by.as_str()).collect::<Vec<_>>(), ["add own", "ENV", "add base"]);
    assert_eq!(
        full.iter().map(|entry| entry.layer).collect::<Vec<_>>(),
        [Some(layers[1].diff_id()), None, Some(layers[0].diff_id())]
    );
    assert_eq!(full[0].size, layers[1].tar.len() as u64);
    assert_eq!((history("partial")[0].layer, history("absent").len()), (None, 0));
    let inspected = test.store.inspect(&test.store.image("full").unwrap()).unwrap();
    assert_eq!(inspected["RepoTags"], json!(["full:latest"]));
    assert_eq!(inspected["Config"]["Cmd"], json!(["/bin/sh"]));
    assert_eq!(inspected["RootFS"]["Layers"][1], layers[1].diff_id().to_string());
}

#[test]
fn df_adds_up_to_du() {
    let test = TestStore::new();
    test.load_layers("a", &stack(2));
    test.load_layers("b", &stack(3));
    let image = test.store.image("a").unwrap();
    let container = test.store.create_container(&image, None).unwrap();
    std::fs::write(container.upper.join("file"), noise(5, 1_000_000)).unwrap();
    std::fs::hard_link(container.upper.join("file"), container.upper.join("again")).unwrap();
    let df = test.store.df().unwrap();
    let du = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(test.root()).output().unwrap();
    let du: u64 = String::from_utf8(du.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(df.total, du);
    assert_eq!(df.image_bytes + df.container_bytes + df.other_bytes, df.total);
    let [a, b] = [&df.images[0], &df.images[1]];
    assert_eq!((a.shared, a.shared >= 300_000), (b.shared, true));
    assert!(a.unique > 200_000 && b.unique > 200_000);
    assert_eq!(a.unique + b.unique + a.shared, df.image_bytes);
    assert_eq!(df.images.iter().map(|image| image.users).sum::<usize>(), 1);
    assert!((1_000_000..1_100_000).contains(&df.containers[0].bytes));
    assert_eq!(df.container_reclaimable, df.container_bytes);
    let unused = df.images.iter().find(|image| image.users == 0).unwrap();
    assert_eq!(df.image_reclaimable, unused.unique);
    assert_eq!(df.layers.iter().map(|layer| layer.images.len()).sum::<usize>(), 4);
    // What is unique to an image is what its removal frees; shelves and lists of names are the store's own.
    let before = df.total;
    let id = test.store.images().unwrap().into_iter().find(|image| image.id == unused.id).unwrap().id;
    test.store.remove_image(&id.to_string(), Removal::Ask).unwrap();
    let freed = before - test.store.df().unwrap().total;
    assert!((unused.unique..unused.unique + 64 * 1024).contains(&freed), "{freed} {}", unused.unique);
}

#[test]
fn a_store_is_told_from_other_directories() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter"), b"dear").unwrap();
    let error = store::Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("holds 'letter'"), "{error}");
    let root = dir.path().join("a/b/store");
    store::Store::open(&root).unwrap();
    assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(root.join("layers")).unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::remove_dir(root.join("trash")).unwrap();
    store::Store::open(&root).unwrap();
    std::fs::write(root.join("version"), "plyfs store 9\n").unwrap();
    let error = store::Store::open(&root).unwrap_err().to_string();
    assert!(error.contains("'plyfs store 9'"), "{error}");
}

#[test]
fn damage_is_told_and_what_can_be_made_again_is() {
    let test = TestStore::new();
    let loaded = test.load_layers("app", &stack(2));
    let image = test.store.image("app").unwrap();
    let index = test.store.lower(&image).unwrap().index;
    let good = std::fs::read(&index).unwrap();
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(&index, bad).unwrap();
        test.store.lower(&image).unwrap();
        assert_eq!(std::fs::read(&index).unwrap(), good);
    }
    std::fs::remove_file(&index).unwrap();
    test.store.lower(&image).unwrap();
    assert_eq!(std::fs::read(&index).unwrap(), good);

    let layer = test.root().join("layers").join(loaded.layers[1].diff_id.0.hex());
    let damage = |name: &str| {
        let path = layer.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, bytes).unwrap();
    };
    damage("bodies");
    let error = test.store.layer_tar(&loaded.layers[1].diff_id, &mut std::io::sink()).unwrap_err().to_string();
    assert!(error.contains("its content has changed"), "{error}");
    damage("index");
    std::fs::remove_file(&index).unwrap();
    let error = test.store.lower(&image).unwrap_err().to_string();
    assert!(error.contains("load an image that has this layer again"), "{error}");
    assert!(test.store.gc().is_err(), "what cannot be read is not deleted");
    assert_eq!(test.load_layers("app", &stack(2)).layers[1].origin, Origin::Fetched);
    assert_eq!(test.tar(&loaded.layers[1].diff_id), stack(2)[1].tar);
    test.store.gc().unwrap();
    std::fs::write(test.root().join("images/configs").join(image.id.0.hex()), b"{}").unwrap();
    assert!(test.store.image("app").unwrap_err().to_string().contains("has changed"));
}

#[test]
fn a_prune_takes_what_is_meant_and_not_in_use() {
    let test = TestStore::new();
    let layer = |seed| Layer::plain(Tar::new().file("f", &noise(seed, 100_000)).end());
    for (seed, name) in [(1, "used"), (2, "named"), (3, "other")] {
        test.load_layers(name, &[layer(seed)]);
    }
    test.store.create_container(&test.store.image("used").unwrap(), None).unwrap();
    // Another image takes the name: the old one has none now.
    test.load_layers("other", &[layer(4)]);
    let pruned = test.store.prune_images(&|image| image.names.is_empty()).unwrap();
    assert_eq!((pruned.removed.len(), pruned.removed[0].deleted.len()), (1, 1));
    assert!(pruned.bytes >= 100_000, "{pruned:?}");
    let pruned = test.store.prune_images(&|_| true).unwrap();
    assert_eq!((pruned.removed.len(), pruned.removed[1].deleted.len()), (2, 2));
    assert_eq!(test.store.images().unwrap().len(), 1);
    assert!(test.store.prune_images(&|_| true).unwrap().removed.is_empty());
}
