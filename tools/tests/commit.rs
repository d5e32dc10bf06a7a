//! `plyfs commit` and `plyfs export` of containers that programs really changed, mounted and at rest.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, llistxattr, lsetxattr, makedev, mknodat};
use support::{Stage, can_mount};

/// All that is to be seen of a path.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    rdev: u64,
    content: String,
    xattrs: Vec<(String, Vec<u8>)>,
    /// The first path of the same inode.
    first_name: PathBuf,
}

fn tree(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut paths = Vec::new();
    let mut pending = vec![top.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                pending.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let seen = paths.into_iter().map(|path| {
        let metadata = path.symlink_metadata().unwrap();
        let short = path.strip_prefix(top).unwrap().to_path_buf();
        let kind = metadata.file_type();
        let content = match kind {
            kind if kind.is_file() => sha256(&path),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
            _ => String::new(),
        };
        let seen = Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            rdev: if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 },
            content,
            xattrs: xattrs(&path),
            first_name: inodes.entry(metadata.ino()).or_insert_with(|| short.clone()).clone(),
        };
        (short, seen)
    });
    seen.collect()
}

fn sha256(path: &Path) -> String {
    let out = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap().split(' ').next().unwrap().trim_start_matches('\\').to_string()
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let len = llistxattr(path, &mut names[..]).unwrap();
    let names = String::from_utf8(names[..len].to_vec()).unwrap();
    let value = |name: &str| {
        let mut value = vec![0; 65536];
        let len = lgetxattr(path, name, &mut value[..]).unwrap();
        (name.to_string(), value[..len].to_vec())
    };
    let mut all: Vec<_> = names.split('\0').filter(|name| !name.is_empty()).map(value).collect();
    all.sort();
    all
}

/// An image with large files, hard links and directories to be moved.
fn base(stage: &Stage) {
    let root = stage.make_dir("root");
    for dir in ["etc", "lib/deep/er", "old/sub", "empty"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let noise = |seed: u32, len: usize| -> Vec<u8> {
        let mut state = seed | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as u8
            })
            .collect()
    };
    for (path, len) in [
        ("etc/hosts", 20),
        ("etc/passwd", 100),
        ("etc/gone", 5),
        ("lib/large", 9_000_000),
        ("lib/medium", 300_000),
        ("lib/deep/er/f", 10),
        ("old/one", 70_000),
        ("old/sub/two", 5),
        ("lib/untouched", 50),
        ("lib/linked", 5_000_000),
    ] {
        fs::write(root.join(path), noise(len as u32, len)).unwrap();
    }
    fs::hard_link(root.join("lib/linked"), root.join("old/linked-too")).unwrap();
    fs::hard_link(root.join("etc/passwd"), root.join("lib/deep/passwd")).unwrap();
    symlink("hosts", root.join("etc/link")).unwrap();
    for path in walk(&root) {
        let time = rustix::fs::Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let layer = stage.path("layer.tar");
    assert!(
        Command::new("tar")
            .args(["--sort=name", "--numeric-owner", "-C"])
            .arg(&root)
            .arg("-cf")
            .arg(&layer)
            .arg(".")
            .status()
            .unwrap()
            .success()
    );
    let digest = sha256(&layer);
    let config = format!(
        r#"{{"os":"linux","architecture":"{}","config":{{"Cmd":["/x"],"Env":["A=1"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}},"history":[{{"created_by":"tar"}}]}}"#,
        std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64")
    );
    fs::write(stage.path("config.json"), config).unwrap();
    fs::write(
        stage.path("manifest.json"),
        r#"[{"Config":"config.json","RepoTags":["base:latest"],"Layers":["layer.tar"]}]"#,
    )
    .unwrap();
    let archive = stage.path("base.tar");
    assert!(
        Command::new("tar")
            .arg("-C")
            .arg(stage.path(""))
            .arg("-cf")
            .arg(&archive)
            .args(["config.json", "layer.tar", "manifest.json"])
            .status()
            .unwrap()
            .success()
    );
    stage.ok(["load", "-q", "-i", archive.to_str().unwrap()]);
}

fn walk(top: &Path) -> Vec<PathBuf> {
    let mut all = vec![];
    let mut pending = vec![top.to_path_buf()];
    while let Some(path) = pending.pop() {
        if path.symlink_metadata().unwrap().is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.push(path);
    }
    all
}

/// Does to a mounted container what programs do.
fn change(top: &Path) {
    fs::write(top.join("etc/hosts"), "changed").unwrap();
    fs::remove_file(top.join("etc/gone")).unwrap();
    // One block of a large file: the rest stays below while the mount lives.
    let mut large = fs::File::options().write(true).open(top.join("lib/large")).unwrap();
    large.seek(SeekFrom::Start(4_500_001)).unwrap();
    large.write_all(b"in the middle").unwrap();
    drop(large);
    // Hard links of which programs touch one name only.
    let mut linked = fs::File::options().write(true).open(top.join("lib/linked")).unwrap();
    linked.write_all(b"both names see this").unwrap();
    drop(linked);
    fs::hard_link(top.join("etc/hosts"), top.join("lib/hosts")).unwrap();
    // A new name for what is not changed otherwise: both names are told.
    fs::hard_link(top.join("lib/medium"), top.join("empty/medium")).unwrap();
    fs::set_permissions(top.join("lib/deep/passwd"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(top.join("old"), top.join("new")).unwrap();
    fs::remove_dir_all(top.join("lib/deep/er")).unwrap();
    fs::create_dir(top.join("lib/deep/er")).unwrap();
    fs::write(top.join("lib/deep/er/other"), "o").unwrap();
    fs::remove_dir(top.join("empty")).err();
    fs::remove_file(top.join("etc/link")).unwrap();
    fs::create_dir(top.join("etc/link")).unwrap();
    let long = "n".repeat(255);
    fs::write(top.join("etc/link").join(&long), "long").unwrap();
    symlink("/a target", top.join("symlink")).unwrap();
    mknodat(CWD, top.join("device"), FileType::CharacterDevice, Mode::from_raw_mode(0o640), makedev(1, 3)).unwrap();
    mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    std::os::unix::fs::chown(top.join("fifo"), Some(70_000), Some(80_000)).unwrap();
    lsetxattr(top.join("etc/hosts"), "user.note", b"a\0b", XattrFlags::empty()).unwrap();
    lsetxattr(
        top.join("lib/hosts"),
        "security.capability",
        b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        XattrFlags::empty(),
    )
    .unwrap();
    let sparse = fs::File::create(top.join("sparse")).unwrap();
    sparse.set_len(3_000_000).unwrap();
    // An old file of the image in another directory, by a copy that keeps its time.
    fs::rename(top.join("lib/untouched"), top.join("moved")).unwrap();
}

#[test]
fn a_committed_image_is_what_the_container_was_mounted_and_at_rest() {
    if !can_mount("a_committed_image_is_what_the_container_was_mounted_and_at_rest") {
        return;
    }
    let stage = Stage::new();
    base(&stage);
    stage.ok(["create", "base", "--name", "box"]);
    let (live, image) = (stage.make_dir("live"), stage.make_dir("image"));
    stage.ok(["mount", "box", live.to_str().unwrap()]);
    change(&live);
    let id = stage.ok([
        "commit",
        "box",
        "changed:1",
        "-m",
        "while mounted",
        "-a",
        "me",
        "--change",
        "ENV B=2",
        "--pause=false",
    ]);
    stage.ok(["mount", "changed:1", image.to_str().unwrap()]);
    let (was, is) = (tree(&live), tree(&image));
    for (path, seen) in &was {
        assert_eq!(Some(seen), is.get(path), "{}", path.display());
    }
    assert_eq!(was.len(), is.len());
    stage.ok(["umount", image.to_str().unwrap(), live.to_str().unwrap()]);
    stage.ok(["container", "commit", "box", "changed:2"]);
    let layers = |name: &str| stage.ok(["inspect", "--format", "{{json .RootFS.Layers}}", name]);
    assert_eq!(layers("changed:1"), layers("changed:2"), "at rest it is the same layer");
    let config: serde_json::Value = serde_json::from_str(&stage.ok(["inspect", "changed:1"])).unwrap();
    assert_eq!(config[0]["Config"]["Env"], serde_json::json!(["A=1", "B=2"]));
    assert_eq!((&config[0]["Author"], config[0]["Id"].as_str()), (&"me".into(), Some(id.trim())));
    let history = stage.ok(["history", "changed:1", "--format", "{{.CreatedBy}}|{{.Comment}}"]);
    assert_eq!(history.lines().next(), Some("plyfs commit ENV B=2|while mounted"));

    // The whole tree as a tar is the same tree.
    let file = stage.path("export.tar");
    stage.ok(["export", "-o", file.to_str().unwrap(), "box"]);
    let unpacked = stage.make_dir("unpacked");
    let untar = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(&file)
        .arg("-C")
        .arg(&unpacked)
        .status();
    assert!(untar.unwrap().success());
    stage.ok(["mount", "changed:2", image.to_str().unwrap()]);
    let (out, is) = (tree(&unpacked), tree(&image));
    for (path, seen) in &is {
        assert_eq!(out.get(path), Some(seen), "{}", path.display());
    }
    assert_eq!(out.len(), is.len());
    stage.ok(["umount", image.to_str().unwrap()]);
}

#[test]
fn a_container_that_changed_nothing_gives_an_image_without_a_layer() {
    let stage = Stage::with_sample();
    stage.ok(["create", "plyfs/sample", "--name", "box"]);
    stage.ok(["commit", "box", "same", "--change", "LABEL a=b"]);
    let layers = |name: &str| stage.ok(["inspect", "--format", "{{json .RootFS.Layers}}", name]);
    assert_eq!(layers("same"), layers("plyfs/sample"));
    assert_eq!(stage.ok(["inspect", "--format", "{{.Config.Labels.a}}", "same"]).trim(), "b");
    assert!(stage.fails(["commit", "box", "x", "--change", "RUN ls"]).contains("an instruction is one of"));
    assert!(stage.fails(["commit", "none", "x"]).contains("no such container"));
}

#[test]
fn names_that_a_layer_cannot_hold_are_refused_by_name_or_left_out() {
    let stage = Stage::with_sample();
    stage.ok(["create", "plyfs/sample", "--name", "box"]);
    let upper = PathBuf::from(stage.ok(["inspect", "--format", "{{.Upper}}", "box"]).trim());
    fs::create_dir(upper.join("dir")).unwrap();
    fs::write(upper.join("dir/.wh.etc"), "x").unwrap();
    fs::write(upper.join("dir/kept"), "x").unwrap();
    assert!(stage.fails(["commit", "box", "x"]).contains("/dir/.wh.etc"));
    assert_eq!(stage.run(["images", "-q", "x"]).out, "");
    let ran = stage.run(["commit", "box", "x", "--skip-reserved"]);
    assert!(ran.code == 0 && ran.err.contains("/dir/.wh.etc: left out"), "{ran:?}");
    let file = stage.path("x.tar");
    stage.ok(["create", "x", "--name", "other"]);
    stage.ok(["export", "other", "-o", file.to_str().unwrap()]);
    let list = String::from_utf8(Command::new("tar").arg("-tf").arg(&file).output().unwrap().stdout).unwrap();
    assert!(list.contains("dir/kept") && !list.contains(".wh."), "{list}");
}
