//! What a container changed, told from its upper alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr, utimensat};

fn image() -> Vec<u8> {
    Tar::new()
        .dir("etc/")
        .file("etc/hosts", b"127.0.0.1")
        .file("etc/passwd", b"root")
        .dir("etc/sub/")
        .file("etc/sub/conf", b"c")
        .dir("opt/")
        .dir("opt/a/")
        .file("opt/a/x", b"x")
        .file("opt/a/y", b"y")
        .symlink("link", "etc")
        .file("big", &noise(1, 100_000))
        .file("kind", b"file")
        .end()
}

struct Upper {
    test: TestStore,
    container: store::Container,
}

impl Upper {
    fn new() -> Self {
        let test = TestStore::new();
        test.load_layers("app", &[Layer::gzip(image())]);
        let container = test.store.create_container(&test.store.image("app").unwrap(), None).unwrap();
        Upper { test, container }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.container.upper.join(path)
    }

    /// A directory as copy-up makes it: like the image's.
    fn dir(&self, path: &str) {
        fs::create_dir(self.path(path)).unwrap();
        fs::set_permissions(self.path(path), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// A file as copy-up makes it.
    fn file(&self, path: &str, body: &[u8]) {
        fs::write(self.path(path), body).unwrap();
        fs::set_permissions(self.path(path), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        self.time(path, 0o14000000000);
    }

    fn time(&self, path: &str, sec: i64) {
        let time = rustix::fs::Timespec { tv_sec: sec, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, self.path(path), &times, rustix::fs::AtFlags::empty()).unwrap();
    }

    fn whiteout(&self, path: &str) {
        mknodat(CWD, self.path(path), FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).unwrap();
    }

    fn mark(&self, path: &str, mark: &str, value: &str) {
        // As without privilege: both spellings count.
        setxattr(self.path(path), format!("user.overlay.{mark}").as_str(), value.as_bytes(), XattrFlags::empty())
            .unwrap();
    }

    /// The image's owner is root; without privilege that is recorded.
    fn own(&self, path: &Path, mode: u32) {
        if !rustix::process::geteuid().is_root() {
            setxattr(path, "user.containers.override_stat", format!("0:0:{mode:o}").as_bytes(), XattrFlags::empty())
                .unwrap();
        }
    }

    fn diff(&self) -> Vec<String> {
        let mut pending = vec![self.container.upper.clone()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                if metadata.is_dir() {
                    pending.push(entry.path());
                }
                if metadata.is_dir() || metadata.is_file() {
                    self.own(&entry.path(), std::os::unix::fs::MetadataExt::mode(&metadata) & 0o7777);
                }
            }
        }
        self.test.store.diff(&self.container).unwrap().iter().map(|(kind, path)| format!("{kind} /{path}")).collect()
    }
}

#[test]
fn an_untouched_container_has_no_changes() {
    assert!(Upper::new().diff().is_empty());
}

#[test]
fn additions_changes_and_deletions_are_told_with_their_directories() {
    let upper = Upper::new();
    upper.dir("etc");
    upper.file("etc/hosts", b"changed");
    upper.whiteout("etc/passwd");
    upper.file("etc/new", b"");
    upper.dir("srv");
    upper.dir("srv/www");
    upper.file("srv/www/index", b"");
    upper.dir("kind");
    upper.file("kind/inside", b"");
    upper.whiteout("link");
    assert_eq!(
        upper.diff(),
        [
            "C /etc",
            "C /etc/hosts",
            "A /etc/new",
            "D /etc/passwd",
            "C /kind",
            "A /kind/inside",
            "D /link",
            "A /srv",
            "A /srv/www",
            "A /srv/www/index"
        ]
    );
}

#[test]
fn what_was_copied_up_and_is_as_it_was_is_no_change() {
    let upper = Upper::new();
    upper.dir("etc");
    upper.dir("etc/sub");
    upper.file("etc/sub/conf", b"c");
    upper.file("big", &noise(1, 100_000));
    upper.time("etc", 5);
    assert!(upper.diff().is_empty());
    // The same length and time, another content.
    upper.file("big", &noise(2, 100_000));
    upper.file("etc/sub/conf", b"d");
    assert_eq!(upper.diff(), ["C /big", "C /etc", "C /etc/sub", "C /etc/sub/conf"]);
}

#[test]
fn attributes_count() {
    let upper = Upper::new();
    upper.dir("opt");
    fs::set_permissions(upper.path("opt"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    upper.file("kind", b"file");
    upper.mark("kind", "metacopy", "");
    upper.file("big", b"");
    fs::File::options().write(true).open(upper.path("big")).unwrap().set_len(100_000).unwrap();
    upper.time("big", 0o14000000000);
    upper.mark("big", "metacopy", "");
    assert_eq!(upper.diff(), ["C /opt"]);
    setxattr(upper.path("kind"), "user.note", b"x", XattrFlags::empty()).unwrap();
    upper.time("big", 1);
    assert_eq!(upper.diff(), ["C /big", "C /kind", "C /opt"]);
}

#[test]
fn an_opaque_directory_deletes_what_it_does_not_hold() {
    let upper = Upper::new();
    upper.dir("etc");
    upper.mark("etc", "opaque", "y");
    upper.file("etc/hosts", b"127.0.0.1");
    upper.dir("etc/fresh");
    assert_eq!(upper.diff(), ["C /etc", "A /etc/fresh", "D /etc/passwd", "D /etc/sub"]);
}

#[test]
fn a_moved_directory_is_gone_there_and_whole_here() {
    let upper = Upper::new();
    upper.whiteout("opt");
    upper.dir("moved");
    upper.mark("moved", "redirect", "/opt");
    upper.dir("moved/a");
    upper.whiteout("moved/a/y");
    upper.file("moved/a/z", b"");
    assert_eq!(upper.diff(), ["A /moved", "A /moved/a", "A /moved/a/x", "A /moved/a/z", "D /opt"]);

    let upper = Upper::new();
    upper.dir("opt");
    upper.whiteout("opt/a");
    upper.dir("opt/b");
    upper.mark("opt/b", "redirect", "a");
    assert_eq!(upper.diff(), ["C /opt", "D /opt/a", "A /opt/b", "A /opt/b/x", "A /opt/b/y"]);
}

#[test]
fn a_whiteout_by_attribute_counts_and_odd_redirects_lead_nowhere() {
    let upper = Upper::new();
    upper.file("kind", b"");
    upper.mark("kind", "whiteout", "");
    upper.dir("a");
    upper.mark("a", "redirect", "/../../etc");
    upper.dir("b");
    upper.mark("b", "redirect", "/kind");
    assert_eq!(upper.diff(), ["A /a", "A /b", "D /kind"]);
}
