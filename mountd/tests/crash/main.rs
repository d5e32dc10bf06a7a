//! Crash storms: programs change a mount from several threads, the daemon is killed or the power of the upper's disk is cut, and
//! what is there afterwards must be what was promised.
//!
//! A few rounds by default; `PLYFS_CRASH_ROUNDS=N` runs N of each, `PLYFS_NIGHTLY=1` a hundred. `PLYFS_CRASH_SEED` repeats the
//! round that a failure names. Needs root, and skips by name without it (a failure under `PLYFS_TEST_NO_SKIPS`).

// Without #[test] on the helpers clippy does not know these for tests.
#![allow(clippy::unwrap_used)]
mod check;
mod model;
mod random;
mod stage;
mod stories;
mod storm;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use check::{End, Identity, Seen};
use model::{Id, Kind, Model, ROOT};
use random::Random;
use stage::Stage;
use storm::Weather;

const THREADS: [&str; 4] = ["a", "b", "c", "d"];
/// Crashes in a row on one upper.
const CRASHES: u64 = 3;

#[test]
fn killed_daemon_loses_nothing_that_was_acknowledged() {
    storms("killed", End::Killed, None, 4);
}

/// In a user namespace: marks in `user.*`, which links and pipes cannot bear.
#[test]
fn killed_daemon_without_privilege_loses_nothing_that_was_acknowledged() {
    const NAME: &str = "killed_daemon_without_privilege_loses_nothing_that_was_acknowledged";
    if in_user_namespace() {
        return storms("killed-rootless", End::Killed, None, 4);
    }
    if let Err(why) = can_run(None) {
        return skip(NAME, &why);
    }
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["-Urm", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    let output = unshare.args(["--exact", NAME, "--nocapture"]).output().unwrap();
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{failed}");
    assert!(said.contains("1 passed") && !said.contains("skipped"), "{said}");
    print!("{said}");
}

#[test]
fn power_cut_on_ext4_keeps_what_was_synced_and_no_partial_copy() {
    storms("cut-ext4", End::Cut, Some("ext4"), 3);
}

#[test]
fn power_cut_on_xfs_keeps_what_was_synced_and_no_partial_copy() {
    storms("cut-xfs", End::Cut, Some("xfs"), 2);
}

fn storms(name: &str, end: End, disk: Option<&'static str>, few: u64) {
    if let Err(why) = can_run(disk) {
        return skip(name, &why);
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let nightly = std::env::var_os("PLYFS_NIGHTLY").map(|_| 100);
    let rounds = number("PLYFS_CRASH_ROUNDS").or(nightly).unwrap_or(few);
    let first = number("PLYFS_CRASH_SEED").unwrap_or(1);
    let mut stage = Stage::new(disk);
    let lower = stage.lower();
    for thread in THREADS {
        build_lower(&lower, thread);
    }
    rustix::fs::syncfs(std::fs::File::open(&lower).unwrap()).unwrap();
    let before = hash(&lower);
    let (mut total, mut operations, start) = (Seen::default(), 0, Instant::now());
    for seed in first..first + rounds {
        let (seen, done) = round(&mut stage, end, seed)
            .unwrap_or_else(|why| panic!("{name}: PLYFS_CRASH_SEED={seed}: {why}\n{}", stage.log()));
        (total, operations) = (total + seen, operations + done);
    }
    assert_eq!(hash(&lower), before, "{name}: the lower changed");
    println!("{name}: {rounds} rounds of {CRASHES} crashes, {operations} operations, {:?}: {total:?}", start.elapsed());
}

impl std::ops::Add for Seen {
    type Output = Seen;
    fn add(mut self, other: Seen) -> Seen {
        self += other;
        self
    }
}

/// Says that a test cannot run here.
fn skip(name: &str, why: &str) {
    assert!(std::env::var_os("PLYFS_TEST_NO_SKIPS").is_none(), "{name}: skipped: {why}");
    println!("{name}: skipped: {why}");
    if let Some(file) = std::env::var_os("PLYFS_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        writeln!(file, "plyfs-mountd {name}: {why}").unwrap();
    }
}

/// Tells whether this process has no privilege over the filesystem that it writes to.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn can_run(disk: Option<&str>) -> Result<(), String> {
    if !rustix::process::getuid().is_root() {
        return Err("needs root".to_owned());
    }
    if !Path::new("/dev/fuse").exists() {
        return Err("there is no /dev/fuse (modprobe fuse)".to_owned());
    }
    let programs: &[&str] = match disk {
        Some("ext4") => &["mkfs.ext4", "python3", "losetup", "mount"],
        Some("xfs") => &["mkfs.xfs", "xfs_io", "losetup", "mount"],
        _ => &["mount"],
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    match programs.iter().find(|name| !there(name)) {
        Some(name) => Err(format!("there is no {name} (install it)")),
        None => Ok(()),
    }
}

/// Several crashes on one upper, each checked, then an end in peace.
fn round(stage: &mut Stage, end: End, seed: u64) -> Result<(Seen, u64), String> {
    let mut random = Random::new(seed);
    let options = if seed.is_multiple_of(2) { ",plyfs.disable=passthrough" } else { "" };
    let syncs = end == End::Cut && !seed.is_multiple_of(3);
    stage.fresh_upper();
    let models: Vec<_> = THREADS.iter().map(|thread| Mutex::new(known_lower(thread))).collect();
    let (mut total, mut operations) = (Seen::default(), 0);
    stage.mount(options);
    for crash in 0..CRASHES {
        let often = if random.one_in(2) { 1 } else { 30 };
        operations += rage(stage, &models, end, (syncs, often), &mut random)?;
        stage.kill();
        stage.clear();
        if end == End::Cut {
            stage.power_on();
        }
        stage.mount(options);
        total += check_all(&stage.path("mount"), &models, end, Identity::Checked)
            .map_err(|why| format!("crash {crash}: {why}"))?;
    }
    if random.one_in(2) {
        // Once more, while the upper is brought to rest.
        crash_at_rest(stage, end, &mut random);
        stage.mount(options);
        check_all(&stage.path("mount"), &models, End::Killed, Identity::Checked)
            .map_err(|why| format!("crash at rest: {why}"))?;
    }
    end_in_peace(stage, &models, options)?;
    Ok((total, operations))
}

/// Lets all threads work for a moment, and crashes.
fn rage(
    stage: &mut Stage,
    models: &[Mutex<Model>],
    end: End,
    (disk_syncs, syncs): (bool, usize),
    random: &mut Random,
) -> Result<u64, String> {
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let weather = Weather { mount: stage.path("mount"), over, done, syncs };
    let length = Duration::from_millis(60 + random.below(400) as u64);
    std::thread::scope(|scope| {
        let threads: Vec<_> = THREADS
            .iter()
            .zip(models)
            .map(|(name, model)| {
                let (weather, random) = (&weather, Random::new(random.next()));
                scope.spawn(move || storm::rage(weather, model, name, random))
            })
            .collect();
        let start = Instant::now();
        while start.elapsed() < length {
            std::thread::sleep(length.min(Duration::from_millis(40)));
            if disk_syncs && random.one_in(3) {
                sync_disk(&stage.path("disk"), models)?;
            }
        }
        weather.over.store(true, Ordering::SeqCst);
        match end {
            End::Killed => stage.kill(),
            End::Cut => stage.cut(),
        }
        // An operation may have been let in before the cut and wait for its end.
        for thread in threads {
            thread.join().map_err(|_| "a thread of the storm panicked".to_owned())??;
        }
        Ok(weather.done.load(Ordering::Relaxed))
    })
}

/// Unmounts, and crashes while the daemon settles. Everything is on disk by then but for what is settled.
fn crash_at_rest(stage: &mut Stage, end: End, random: &mut Random) {
    stage.unmount_only();
    std::thread::sleep(Duration::from_micros(random.below(40_000) as u64));
    if end == End::Cut {
        stage.cut();
    }
    stage.kill();
    if end == End::Cut {
        stage.power_on();
    }
}

/// syncfs(2) of the upper's filesystem: the daemon never hears of it.
fn sync_disk(disk: &Path, models: &[Mutex<Model>]) -> Result<(), String> {
    let snapshots: Vec<_> = models.iter().map(|model| model.lock().snapshot()).collect();
    let fd = std::fs::File::open(disk).map_err(|error| error.to_string())?;
    rustix::fs::syncfs(&fd).map_err(|error| format!("syncfs: {error}"))?;
    for (model, snapshot) in models.iter().zip(snapshots) {
        model.lock().all_synced(snapshot);
    }
    Ok(())
}

fn check_all(mount: &Path, models: &[Mutex<Model>], end: End, identity: Identity) -> Result<Seen, String> {
    let found = check::walk(mount)?;
    let mut total = Seen::default();
    let mut known = 0;
    for (thread, model) in THREADS.iter().zip(models) {
        let mut model = model.lock();
        let its = check::belonging(&found, thread);
        known += its.len() - 1;
        let (tree, contents, seen) = check::find_state(&model, &its, end, identity)
            .map_err(|why| format!("thread {thread}: {why}\n{}", check::story(&model)))?;
        model.resume(tree, contents, end == End::Cut);
        total += seen;
    }
    // The shared directory was counted by no thread.
    if known + 1 != found.len() {
        return Err(format!("{} names that belong to nobody", found.len() - known - 1));
    }
    Ok(total)
}

/// A clean end leaves a plain upper: no stray file, equal for the kernel's overlayfs and for the next mount.
fn end_in_peace(stage: &mut Stage, models: &[Mutex<Model>], options: &str) -> Result<(), String> {
    stage.unmount();
    check::check_work(&stage.path("disk/work"))?;
    if in_user_namespace() {
        // What the kernel's overlayfs shows without privilege.
        stage.settle_plain();
        check::check_work(&stage.path("disk/work"))?;
    }
    stage.mount_by_kernel();
    let by_kernel = check_all(&stage.path("kernel"), models, End::Killed, Identity::Ignored);
    let upper =
        check::walk(&stage.path("kernel")).and_then(|shown| check::check_upper(&stage.path("disk/upper"), &shown));
    stage.unmount_kernel();
    by_kernel.map_err(|why| format!("by kernel overlayfs: {why}"))?;
    upper?;
    stage.mount(options);
    let again = check_all(&stage.path("mount"), models, End::Killed, Identity::Checked);
    stage.unmount();
    again.map(drop).map_err(|why| format!("mounted again: {why}"))
}

/// What the lower holds for one thread, as the model knows it.
fn known_lower(thread: &str) -> Model {
    let mut model = Model::new();
    fill_lower(thread, &mut |entry| entry.add_to(&mut model));
    model
}

/// The same on disk.
fn build_lower(lower: &Path, thread: &str) {
    let mut paths: BTreeMap<Id, String> = BTreeMap::from([(ROOT, String::new())]);
    let mut number = ROOT;
    fill_lower(thread, &mut |entry| {
        let path = format!("{}/{}", paths[&entry.dir], entry.name);
        let at = lower.join(&path[1..]);
        match &entry.what {
            What::Link(old) => std::fs::hard_link(lower.join(&paths[old][1..]), &at).unwrap(),
            What::New(Kind::Dir, _) if at.exists() => {}
            What::New(Kind::Dir, _) => std::fs::create_dir(&at).unwrap(),
            What::New(Kind::Fifo, _) => {
                let mode = rustix::fs::Mode::from_raw_mode(storm::MODE);
                rustix::fs::mknodat(rustix::fs::CWD, &at, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            }
            What::New(Kind::Symlink(target), _) => std::os::unix::fs::symlink(target, &at).unwrap(),
            What::New(Kind::File, content) => write_sparse(&at, content),
        }
        if let What::Link(old) = entry.what {
            return old;
        }
        number += 1;
        paths.insert(number, path);
        number
    });
}

/// Zeros of the content become holes.
fn write_sparse(at: &Path, content: &[u8]) {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let file = std::fs::File::create(at).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(storm::MODE)).unwrap();
    file.set_len(content.len() as u64).unwrap();
    for (number, block) in content.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, number as u64 * 4096).unwrap();
        }
    }
}

struct Entry {
    dir: Id,
    name: String,
    what: What,
}

enum What {
    New(Kind, Vec<u8>),
    Link(Id),
}

impl Entry {
    fn add_to(self, model: &mut Model) -> Id {
        let at = (self.dir, self.name);
        match self.what {
            What::New(kind, content) => model.add(&at, kind, content, storm::MODE),
            What::Link(id) => {
                model.add_link(&at, id);
                id
            }
        }
    }
}

/// Tells of everything that the lower holds for one thread; the answer is the number of the inode.
fn fill_lower(thread: &str, tell: &mut dyn FnMut(Entry) -> Id) {
    let mut random = Random::new(u64::from(thread.as_bytes()[0]));
    let own = tell(Entry { dir: ROOT, name: thread.to_owned(), what: What::New(Kind::Dir, Vec::new()) });
    let shared = tell(Entry { dir: ROOT, name: "shared".to_owned(), what: What::New(Kind::Dir, Vec::new()) });
    let mut add = |dir: Id, name: &str, kind: Kind, content: Vec<u8>| {
        tell(Entry { dir, name: format!("{thread}{name}"), what: What::New(kind, content) })
    };
    let mut dirs = vec![own, shared];
    for name in ["n0", "n1", "n2"] {
        let dir = add(own, name, Kind::Dir, Vec::new());
        dirs.push(dir);
        dirs.push(add(dir, "n3", Kind::Dir, Vec::new()));
    }
    let sizes = [0, 1, 100, 4096, 5000, 20_000, 66_000, 150_000, 400_000, 1_100_000];
    let (mut files, mut others) = (Vec::new(), Vec::new());
    for (number, dir) in dirs.iter().enumerate() {
        for at in 0..3 {
            let size = sizes[(number * 3 + at) % sizes.len()];
            files.push(add(*dir, &format!("n{}", 4 + at), Kind::File, random.bytes(size)));
        }
        others.push(("n22", add(*dir, "n8", Kind::Symlink("somewhere".to_owned()), Vec::new())));
        others.push(("n23", add(*dir, "n21", Kind::Fifo, Vec::new())));
    }
    add(own, "large", Kind::File, random.bytes((8 << 20) + 777));
    add(dirs[2], "large", Kind::File, random.bytes((4 << 20) + 4095));
    let mut sparse = random.bytes(1_500_000);
    sparse[8192..700_000].fill(0);
    add(own, "sparse", Kind::File, sparse);
    for (number, file) in files.iter().step_by(5).enumerate() {
        tell(Entry {
            dir: dirs[number % dirs.len()],
            name: format!("{thread}n{}", 9 + number),
            what: What::Link(*file),
        });
        tell(Entry { dir: own, name: format!("{thread}n{}", 16 + number), what: What::Link(*file) });
    }
    // Links and pipes with a second name, in the directory after the next.
    for (number, (name, id)) in others.iter().enumerate().filter(|(number, _)| number % 4 < 2) {
        let dir = dirs[(number / 2 + 2) % dirs.len()];
        tell(Entry { dir, name: format!("{thread}{name}"), what: What::Link(*id) });
    }
}

/// Sums up a tree: names, attributes, content.
fn hash(root: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0u64;
    for path in check::walk(root).unwrap().into_keys() {
        let at = root.join(&path);
        let stat = std::fs::symlink_metadata(&at).unwrap();
        let mut hasher = DefaultHasher::new();
        (path, stat.ino(), stat.mode(), stat.nlink(), stat.uid(), stat.size()).hash(&mut hasher);
        (stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()).hash(&mut hasher);
        if stat.is_file() {
            std::fs::read(&at).unwrap().hash(&mut hasher);
        }
        sum = sum.wrapping_add(hasher.finish());
    }
    sum
}
