//! Commands are killed at random points while others run against them; afterwards the store is as if each had either been done
//! or never begun.
//!
//! `PLYFS_STORM_KILLS` says how many kills (40 unless told, 1,000 with PLYFS_NIGHTLY), `PLYFS_STORM_SEED` which ones.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::registry::{Access, Registry, has};
use support::{Ran, Stage};

const WORKERS: u64 = 3;
const ARCHIVES: u64 = 4;
/// So many kills between two checks.
const BATCH: u32 = 50;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..len).map(|_| random.below(256) as u8).collect()
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, body) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, path, &body[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

fn sha256(bytes: &[u8], scratch: &Path) -> String {
    fs::write(scratch, bytes).unwrap();
    let out = Command::new("sha256sum").arg(scratch).output().unwrap();
    String::from_utf8(out.stdout).unwrap()[..64].to_string()
}

/// An archive of an image of three layers: one that all have, one that every second one has, one of its own. Large and small
/// bodies are shared across layers too.
fn archive(stage: &Stage, worker: u64, number: u64) -> PathBuf {
    let path = stage.path(&format!("archive-{worker}-{number}.tar"));
    let layer = |seed: u64, name: &str| {
        let mut files: Vec<(String, Vec<u8>)> =
            (0..30).map(|n| (format!("{name}/small-{n}"), noise(seed + n, 900))).collect();
        files.push((format!("{name}/own"), noise(seed, 150_000)));
        files.push((format!("{name}/common"), noise(1, 200_000)));
        tar_of(&files)
    };
    let layers = [layer(1, "base"), layer(2 + number % 2, "half"), layer(100 * (worker + 1) + number, "own")];
    let scratch = stage.path(&format!("scratch-{worker}-{number}"));
    let ids: Vec<String> = layers.iter().map(|layer| format!("\"sha256:{}\"", sha256(layer, &scratch))).collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"{}","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        arch(),
        ids.join(",")
    );
    let manifest = format!(
        r#"[{{"Config":"config.json","RepoTags":["{}"],"Layers":["0.tar","1.tar","2.tar"]}}]"#,
        name(worker, number)
    );
    let mut files =
        vec![("config.json".to_string(), config.into_bytes()), ("manifest.json".to_string(), manifest.into_bytes())];
    files.extend(layers.into_iter().enumerate().map(|(at, layer)| (format!("{at}.tar"), layer)));
    fs::write(&path, tar_of(&files)).unwrap();
    path
}

fn arch() -> String {
    std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64")
}

fn name(worker: u64, number: u64) -> String {
    format!("w{worker}/image{number}:latest")
}

/// Runs commands of its own names, some of them killed.
struct Worker<'a> {
    stage: &'a Stage,
    number: u64,
    /// The registry's address.
    registry: Option<&'a str>,
    random: Random,
    kills: &'a AtomicU32,
    until: u32,
    /// Names that are there for sure.
    acknowledged: BTreeSet<String>,
}

/// How a command ended.
#[derive(PartialEq)]
enum End {
    Done,
    Refused,
    Killed,
}

impl Worker<'_> {
    /// Runs a command; perhaps kills it.
    fn run(&mut self, args: &[&str]) -> End {
        let mut command = self.stage.command();
        command.args(args).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        if self.random.below(3) > 0 {
            std::thread::sleep(Duration::from_micros(self.random.below(60_000)));
            child.kill().unwrap(); // That one process, which is a child of this one.
        }
        let ran = Ran::from(child.wait_with_output().unwrap());
        match ran.code {
            0 => End::Done,
            -1 => {
                self.kills.fetch_add(1, Ordering::Relaxed);
                End::Killed
            }
            _ => {
                // What another has removed, or still uses, is an answer; anything else is not.
                let known = ["no such image", "no such container", "is used by", "is taken by"];
                assert!(known.iter().any(|words| ran.err.contains(words)), "{args:?}: {ran:?}");
                End::Refused
            }
        }
    }

    fn storm(&mut self) {
        while self.kills.load(Ordering::Relaxed) < self.until {
            self.step();
        }
    }

    fn step(&mut self) {
        let number = self.random.below(ARCHIVES);
        let local = name(self.number, number);
        let remote = self.registry.map(|address| format!("{address}/{local}")).filter(|_| self.random.below(3) == 0);
        let is_remote = remote.is_some();
        let image = remote.unwrap_or(local);
        match self.random.below(12) {
            0..=3 if is_remote => self.acknowledge(&image, &["pull", "-q", "--plain-http", &image]),
            0..=3 => {
                let file = self.stage.path(&format!("archive-{}-{number}.tar", self.number));
                self.acknowledge(&image, &["load", "-q", "-i", file.to_str().unwrap()]);
            }
            4 | 5 => {
                self.acknowledged.remove(&image);
                self.run(&["rmi", &image]);
            }
            6 | 7 => self.commit(&image),
            8 => drop(self.run(&["gc"])),
            9 => drop(self.run(&["image", "prune", "-f"])),
            10 => {
                let whole = self.run(&["save", "-o", "/dev/null", &image]);
                assert!(whole != End::Refused || !self.acknowledged.contains(&image), "{image} cannot be saved");
            }
            _ => drop(self.run(&["images"])),
        }
    }

    fn acknowledge(&mut self, image: &str, args: &[&str]) {
        if self.run(args) == End::Done {
            self.acknowledged.insert(image.to_string());
        }
    }

    /// Makes a container, changes something, commits and removes it; any of these may be killed.
    fn commit(&mut self, image: &str) {
        let container = format!("box{}", self.number);
        let target = format!("w{}/commit{}:latest", self.number, self.random.below(2));
        self.run(&["create", image, "--name", &container]);
        let upper = self.stage.run(["inspect", "--type", "container", "-f", "{{.Upper}}", &container]);
        if upper.code == 0 {
            let upper = PathBuf::from(upper.out.trim());
            let seed = self.random.below(1 << 40);
            fs::write(upper.join("large"), noise(seed, 300_000)).unwrap();
            fs::write(upper.join("small"), noise(seed, 300)).unwrap();
            self.acknowledge(&target, &["commit", &container, &target]);
        }
        self.run(&["rm", &container]);
    }
}

/// Everything that was acknowledged is whole, nothing is wrong, and all bytes are accounted for.
fn check(stage: &Stage, acknowledged: &BTreeSet<String>) {
    stage.ok(["images"]);
    for dir in ["ingest", "trash"] {
        let left: Vec<_> = fs::read_dir(stage.path("store").join(dir)).unwrap().collect();
        assert!(left.is_empty(), "{dir}: {left:?}");
    }
    let ran = stage.run(["fsck"]);
    assert!(ran.code == 0 && ran.out.ends_with("nothing is wrong\n"), "{ran:?}");
    let out = stage.ok(["df", "--format", "{{.Type}} {{.SizeBytes}}"]);
    let total: u64 = out.lines().find_map(|line| line.strip_prefix("Total ")).unwrap().parse().unwrap();
    let du = Command::new("du").args(["-s", "--block-size=1"]).arg(stage.path("store")).output().unwrap();
    let du: u64 = String::from_utf8(du.stdout).unwrap().split('\t').next().unwrap().parse().unwrap();
    assert_eq!(total, du, "df and du");
    for image in acknowledged {
        // Puts every layer together and hashes it.
        stage.ok(["save", "-o", "/dev/null", image]);
        stage.ok(["inspect", image]);
    }
}

#[test]
fn a_storm_of_kills_leaves_a_store_in_which_nothing_is_wrong() {
    let number = |key: &str| std::env::var(key).ok().and_then(|text| text.parse::<u32>().ok());
    let nightly = std::env::var_os("PLYFS_NIGHTLY").map(|_| 1000);
    let kills = number("PLYFS_STORM_KILLS").or(nightly).unwrap_or(40);
    let seed = number("PLYFS_STORM_SEED").unwrap_or_else(std::process::id);
    println!("PLYFS_STORM_SEED={seed} PLYFS_STORM_KILLS={kills}");
    let stage = Stage::new();
    for worker in 0..WORKERS {
        (0..ARCHIVES).for_each(|number| drop(archive(&stage, worker, number)));
    }
    let registry = registry(&stage);
    let done = AtomicU32::new(0);
    let mut acknowledged: Vec<BTreeSet<String>> = vec![BTreeSet::new(); WORKERS as usize];
    let mut random = Random(u64::from(seed) << 8 | 1);
    while done.load(Ordering::Relaxed) < kills {
        let until = (done.load(Ordering::Relaxed) + BATCH).min(kills);
        std::thread::scope(|scope| {
            for (worker, known) in acknowledged.iter_mut().enumerate() {
                let (stage, kills, registry) = (&stage, &done, registry.as_ref().map(|it| it.address.as_str()));
                let random = Random(random.below(u64::MAX >> 12) | 1);
                let own = std::mem::take(known);
                scope.spawn(move || {
                    let number = worker as u64;
                    let mut worker = Worker { stage, number, registry, random, kills, until, acknowledged: own };
                    worker.storm();
                    *known = worker.acknowledged;
                });
            }
        });
        check(&stage, &acknowledged.iter().flatten().cloned().collect());
    }
    println!("{} kills", done.load(Ordering::Relaxed));
    mount_all(&stage, &acknowledged.iter().flatten().cloned().collect());
}

/// A registry that has all images; without the program, images come from archives alone.
fn registry(stage: &Stage) -> Option<Registry> {
    if !has("docker-registry", "a_storm_of_kills_leaves_a_store_in_which_nothing_is_wrong") {
        return None;
    }
    let registry = Registry::start(&stage.path("registry"), Access::Anybody);
    for (worker, number) in (0..WORKERS).flat_map(|worker| (0..ARCHIVES).map(move |number| (worker, number))) {
        let file = stage.path(&format!("archive-{worker}-{number}.tar"));
        let local = name(worker, number);
        let remote = format!("{}/{local}", registry.address);
        stage.ok(["load", "-q", "-i", file.to_str().unwrap()]);
        stage.ok(["tag", &local, &remote]);
        stage.ok(["push", "-q", "--plain-http", &remote]);
        stage.ok(["rmi", &local, &remote]);
    }
    Some(registry)
}

/// What is acknowledged mounts, and its files are there.
fn mount_all(stage: &Stage, acknowledged: &BTreeSet<String>) {
    if !support::can_mount("a_storm_of_kills_leaves_a_store_in_which_nothing_is_wrong") {
        return;
    }
    let target = stage.make_dir("mnt");
    for image in acknowledged {
        stage.ok(["mount", image, target.to_str().unwrap()]);
        assert_eq!(fs::read(target.join("base/common")).unwrap(), noise(1, 200_000));
        stage.ok(["umount", target.to_str().unwrap()]);
    }
}
