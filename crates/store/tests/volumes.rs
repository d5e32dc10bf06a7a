//! Named volumes: what they begin with, how long they stay, and what is left of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::*;
use store::{Error, Repair, Seed};

/// A tree as a mounted image shows it: every kind that an ordinary user can make.
fn image(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    let data = root.join("srv/data");
    fs::create_dir_all(data.join("sub/empty")).unwrap();
    fs::write(data.join("file"), noise(1, 100_000)).unwrap();
    fs::hard_link(data.join("file"), data.join("sub/link")).unwrap();
    symlink("../../../outside", data.join("out")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, data.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
    fs::set_permissions(data.join("file"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1770)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(data.join("sub"), "user.note", b"kept", flags).ok(); // Where the filesystem has them.
    let time = rustix::fs::Timespec { tv_sec: 1_234_567_890, tv_nsec: 5 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    for path in [data.join("sub"), data.clone()] {
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
    }
    fs::write(dir.join("outside"), b"the host's").unwrap();
    symlink("/srv/data", root.join("way")).unwrap();
    symlink(dir, root.join("away")).unwrap();
    root
}

/// A line for each path.
fn seen(top: &Path) -> Vec<String> {
    let (mut all, mut todo) = (Vec::new(), vec![top.to_owned()]);
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = match meta.file_type() {
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
            kind if kind.is_file() => fs::read(&path).unwrap(),
            _ => Vec::new(),
        };
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let mut note = [0u8; 16];
        let note = rustix::fs::lgetxattr(&path, "user.note", &mut note[..]).ok();
        let of =
            (meta.mode(), meta.uid(), meta.gid(), meta.rdev(), meta.nlink(), meta.mtime(), meta.mtime_nsec(), note);
        all.push(format!("{:?} {of:?} {:?}", path.strip_prefix(top).unwrap(), layer::Digest::of(&content)));
    }
    all.sort();
    all
}

#[test]
fn a_volume_begins_with_what_the_image_has_and_keeps_what_is_written() {
    let test = TestStore::new();
    let scratch = tempfile::tempdir().unwrap();
    let root = image(scratch.path());
    let before = seen(&root);
    let seed = |directory| Some(Seed { root: &root, directory });
    let path = test.store.make_volume("data", seed("/srv/data")).unwrap();
    assert_eq!(seen(&path), seen(&root.join("srv/data")));
    assert_eq!(test.store.volumes().unwrap()[0].path, path);
    // Only the first use brings the image's content.
    fs::remove_file(path.join("file")).unwrap();
    fs::write(path.join("new"), b"new").unwrap();
    assert_eq!(test.store.make_volume("data", seed("/srv/data")).unwrap(), path);
    assert!(path.join("new").exists() && !path.join("file").exists());
    // Links lead to the image's directories and never out of it.
    assert_eq!(seen(&test.store.make_volume("by-link", seed("/way")).unwrap()), seen(&root.join("srv/data")));
    for (name, directory) in
        [("a", "/away"), ("b", "/srv/data/out"), ("c", "/none"), ("d", "/srv/data/file"), ("e", "/../..")]
    {
        let path = test.store.make_volume(name, seed(directory)).unwrap();
        let is_root = directory == "/../..";
        assert_eq!(fs::read_dir(&path).unwrap().count(), if is_root { 3 } else { 0 }, "{directory}");
        assert!(is_root || fs::metadata(&path).unwrap().mode() & 0o7777 == 0o755);
    }
    assert_eq!(seen(&root), before, "the image is as it was");
    for bad in ["", "-x", "a/b", "..", ".", &"n".repeat(200)] {
        assert!(matches!(test.store.make_volume(bad, None), Err(Error::Invalid { .. })), "{bad}");
    }
    assert!(test.store.fsck(Repair::No).unwrap().findings.is_empty());
    for volume in test.store.volumes().unwrap() {
        test.store.remove_volume(&volume.name).unwrap();
    }
    assert_eq!(test.files().into_keys().collect::<Vec<_>>(), ["version"], "nothing is left");
}

#[test]
fn a_volume_stays_while_a_container_names_it() {
    let test = TestStore::new();
    test.load_layers("app", &[Layer::plain(Tar::new().file("f", b"x").end())]);
    let image = test.store.image("app").unwrap();
    let volumes = ["one".to_owned(), "two".to_owned()];
    let container = test.store.create_container_with(&image, Some("box"), &volumes).unwrap();
    assert_eq!(test.store.container("box").unwrap().volumes, volumes);
    let bad = ["no/name".to_owned()];
    assert!(matches!(test.store.create_container_with(&image, None, &bad), Err(Error::Invalid { .. })));
    for name in ["one", "two", "three"] {
        test.store.make_volume(name, None).unwrap();
    }
    let error = test.store.remove_volume("one").unwrap_err();
    assert!(error.is_in_use() && error.to_string().contains("container box"), "{error}");
    assert!(test.store.remove_volume("three").is_ok());
    assert!(test.store.remove_volume("three").unwrap_err().is_not_found());
    let listed = test.store.volumes().unwrap();
    assert_eq!(listed.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), volumes);
    assert!(listed.iter().all(|volume| volume.containers == ["box"]));
    test.store.remove_container(&container.id).unwrap();
    assert!(test.store.remove_volume("one").is_ok());
}

#[test]
fn of_several_who_make_a_volume_one_does_and_all_get_it() {
    let test = TestStore::new();
    let scratch = tempfile::tempdir().unwrap();
    let root = image(scratch.path());
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (store, root) = (test.store.clone(), &root);
            scope.spawn(move || {
                let path = store.make_volume("data", Some(Seed { root, directory: "/srv/data" })).unwrap();
                assert!(path.join("sub/link").exists());
                fs::write(path.join(format!("by-{number}")), b"").unwrap();
            });
        }
    });
    let path = &test.store.volumes().unwrap()[0].path;
    assert!((0..8).all(|number| path.join(format!("by-{number}")).exists()));
    assert_eq!(fs::read_dir(test.root().join("ingest")).unwrap().count(), 0);
}
