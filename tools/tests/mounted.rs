//! The command with mounts: what is mounted where, who sees what, and what is left afterwards.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{PLYFS, Ran, Stage, can_mount, mounts_below, skip};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What `inspect` says of a container.
fn inspect(stage: &Stage, name: &str) -> Value {
    serde_json::from_str::<Value>(&stage.ok(["inspect", name])).unwrap()[0].clone()
}

fn pid_of(stage: &Stage, name: &str) -> Pid {
    Pid::from_raw(inspect(stage, name)["Mount"]["Pid"].as_i64().unwrap() as i32).unwrap()
}

/// A container of the sample, mounted.
fn mounted(stage: &Stage, name: &str) -> PathBuf {
    stage.ok(["create", "--name", name, "plyfs/sample"]);
    let dir = stage.make_dir(name);
    assert_eq!(stage.ok(["mount", name, text(&dir)]), format!("{}\n", dir.display()));
    dir
}

/// A hash of every file of the store but containers, logs and locks: what no container may change.
fn lower(stage: &Stage) -> Vec<(PathBuf, u64, Vec<u8>)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, u64, Vec<u8>)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            match metadata.is_dir() {
                true => walk(&path, found),
                false => found.push((path.clone(), metadata.ino(), fs::read(&path).unwrap())),
            }
        }
    }
    let mut found = Vec::new();
    for part in ["objects", "layers", "folded", "images"] {
        walk(&stage.path("store").join(part), &mut found);
    }
    found.sort();
    assert!(found.len() > 8, "layers, folded index, config, manifest, name: {found:?}");
    found
}

#[test]
fn image_mounts_read_only() {
    if !can_mount("image_mounts_read_only") {
        return;
    }
    let stage = Stage::with_sample();
    let before = lower(&stage);
    let dir = stage.make_dir("image");
    assert_eq!(stage.ok(["image", "mount", "plyfs/sample", text(&dir)]), format!("{}\n", dir.display()));
    assert_eq!(read(dir.join("etc/motd")), "Welcome to the harbour. The tide is high.\n", "the highest layer wins");
    assert!(!dir.join("usr/share/doc/draft.txt").exists(), "a whiteout hides it");
    let names: Vec<_> = fs::read_dir(dir.join("var/cache")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["fresh"], "an opaque directory hides what was below");
    let link = |name: &str| dir.join("usr/bin").join(name).metadata().unwrap();
    assert_eq!((link("harbour").ino(), link("harbour").nlink()), (link("quay").ino(), 3));
    assert_eq!(dir.join("usr/bin/tide").metadata().unwrap().permissions().mode() & 0o7777, 0o4755);
    assert_eq!(
        (dir.join("srv").metadata().unwrap().uid(), dir.join("srv").metadata().unwrap().mode() & 0o7777),
        (1000, 0o2775)
    );
    assert!(dir.join("dev/null").metadata().unwrap().file_type().is_char_device());
    let refused = fs::write(dir.join("etc/motd"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));

    let list = stage.ok(["mount"]);
    assert!(list.contains(text(&dir)) && list.contains("read-only") && list.contains("plyfs/sample:latest"), "{list}");
    let line = stage.fails(["rmi", "plyfs/sample"]);
    assert!(line.contains("mounted at") && line.contains(text(&dir)), "{line}");
    stage.ok(["image", "umount", text(&dir)]);
    assert_eq!(mounts_below(&dir), Vec::<PathBuf>::new());
    assert_eq!(stage.ok(["mount"]).lines().count(), 1, "only the headers");
    assert_eq!(lower(&stage), before);
    stage.ok(["rmi", "plyfs/sample"]);
}

/// Everything that a program sees of a tree, but numbers of inodes and times of access.
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
        let nlink = if meta.is_dir() { 1 } else { meta.nlink() };
        let shown = path.strip_prefix(top).unwrap();
        let of = (meta.mode(), meta.uid(), meta.gid(), meta.rdev(), nlink, meta.mtime(), meta.mtime_nsec());
        all.push(format!("{shown:?} {of:?} {content:?}"));
    }
    all.sort();
    all
}

#[test]
fn settled_container_mounts_by_the_kernels_overlayfs_over_its_image() {
    if !can_mount("settled_container_mounts_by_the_kernels_overlayfs_over_its_image") {
        return;
    }
    let stage = Stage::with_sample();
    let red = mounted(&stage, "red");
    fs::write(red.join("etc/motd"), "Red.\n").unwrap();
    fs::rename(red.join("usr/share"), red.join("srv/share")).unwrap();
    fs::set_permissions(red.join("usr/bin/quay"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_dir_all(red.join("var/cache")).unwrap();
    assert!(stage.fails(["settle", "red"]).contains("is mounted at"));
    let ours = seen(&red);
    stage.ok(["umount", "red"]);
    let (lower, merged) = (stage.make_dir("image"), stage.make_dir("merged"));
    stage.ok(["mount", "plyfs/sample", text(&lower)]);
    let container = inspect(&stage, "red");
    let dir = |name: &str| container[name].as_str().unwrap().to_owned();
    for (plain, how) in [(false, "metacopy=on,redirect_dir=on,index=off"), (true, "metacopy=off,redirect_dir=nofollow")]
    {
        let args = if plain { vec!["settle", "--plain", "red"] } else { vec!["container", "settle", "red"] };
        assert_eq!(stage.ok(args), "red\n");
        let options = format!("ro,lowerdir={},upperdir={},workdir={},{how}", text(&lower), dir("Upper"), dir("Work"));
        let overlay = ["-t", "overlay", "-o", &options, "overlay", text(&merged)];
        let ran = Ran::from(Command::new("mount").args(overlay).output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        let kernels = seen(&merged);
        rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(kernels, ours, "plain: {plain}");
    }
    stage.ok(["umount", text(&lower)]);
    // For who reads AUFS layers; we ourselves do so again when it is mounted.
    let changes = stage.ok(["diff", "red"]);
    assert_eq!(stage.ok(["settle", "--whiteouts", "aufs", "red"]), "red\n");
    let hidden = Path::new(&dir("Upper")).join("var/.wh.cache");
    assert_eq!(fs::metadata(&hidden).unwrap().len(), 0);
    for command in [["diff", "red"], ["commit", "red"], ["export", "red"]] {
        assert!(stage.fails(command).contains("plyfs settle red"), "{command:?}");
    }
    assert!(stage.fails(["explain", "red", "/var"]).contains("plyfs settle red"));
    stage.ok(["settle", "red"]);
    assert!(!hidden.exists());
    assert_eq!(stage.ok(["diff", "red"]), changes);
    stage.ok(["settle", "--whiteouts=aufs", "red"]);
    stage.ok(["mount", "red", text(&red)]);
    assert_eq!(seen(&red), ours);
    stage.ok(["umount", "red"]);
    assert_eq!(stage.ok(["diff", "red"]), changes);
}

#[test]
fn containers_do_not_see_each_other() {
    if !can_mount("containers_do_not_see_each_other") {
        return;
    }
    let stage = Stage::with_sample();
    let before = lower(&stage);
    let (red, blue) = (mounted(&stage, "red"), mounted(&stage, "blue"));
    fs::write(red.join("etc/motd"), "Red.\n").unwrap();
    fs::remove_file(red.join("usr/share/doc/README")).unwrap();
    fs::write(red.join("srv/news"), "new\n").unwrap();
    assert_eq!(read(blue.join("etc/motd")), "Welcome to the harbour. The tide is high.\n");
    assert!(blue.join("usr/share/doc/README").exists() && !blue.join("srv/news").exists());

    let changes =
        "C /etc\nC /etc/motd\nC /srv\nA /srv/news\nC /usr\nC /usr/share\nC /usr/share/doc\nD /usr/share/doc/README\n";
    assert_eq!(stage.ok(["diff", "red"]), changes);
    assert_eq!(stage.ok(["diff", "blue"]), "");
    assert!(stage.ok(["diff", "--format", "{{.Kind}}{{.Path}}", "red"]).contains("D/usr/share/doc/README\n"));

    let list = stage.ok(["ps", "--format", "{{.Names}} {{.Status}} {{.MountPoint}}"]);
    assert_eq!(list, format!("blue Mounted {}\nred Mounted {}\n", blue.display(), red.display()));
    stage.ok(["umount", "red", text(&blue)]);
    assert_eq!(mounts_below(&stage.path("")), Vec::<PathBuf>::new());
    assert_eq!(stage.ok(["diff", "red"]), changes, "the same at rest");
    assert_eq!(lower(&stage), before);

    stage.ok(["container", "mount", "red", text(&red)]);
    assert_eq!(read(red.join("etc/motd")), "Red.\n", "it is there again");
    assert!(!red.join("usr/share/doc/README").exists());
    stage.ok(["container", "umount", "red"]);
    assert_eq!(lower(&stage), before);
}

#[test]
fn a_mount_that_cannot_be_is_refused_in_one_line() {
    if !can_mount("a_mount_that_cannot_be_is_refused_in_one_line") {
        return;
    }
    let stage = Stage::with_sample();
    let red = mounted(&stage, "red");
    let other = stage.make_dir("other");
    fs::write(stage.path("file"), "").unwrap();
    for (name, target, words) in [
        ("red", other.clone(), "is mounted at"),
        ("plyfs/sample", red.clone(), "already a mount point (fuse.plyfs)"),
        ("plyfs/sample", PathBuf::from("/proc"), "already a mount point (proc)"),
        ("plyfs/sample", stage.path("missing"), "mkdir -p"),
        ("plyfs/sample", stage.path("file"), "not a directory"),
        ("plyfs/sample", stage.path("store/images"), "the store is there"),
        ("nothing", other.clone(), "no such container or image: nothing"),
    ] {
        let line = stage.fails(["mount", name, text(&target)]);
        assert!(line.contains(words), "{name} {}: {line}", target.display());
    }
    assert!(stage.fails(["mount", "plyfs/sample", text(&other), "-o", "frobnicate"]).contains("frobnicate"));
    assert_eq!(mounts_below(&stage.path("")).len(), 1);
    assert_eq!(stage.ok(["mount"]).lines().count(), 2, "no record of a mount that is none");
    assert!(stage.fails(["umount", text(&other)]).contains("not a mount point"));
    assert!(stage.fails(["umount", "/proc"]).contains("not a plyfs mount (proc)"));
    assert!(stage.fails(["umount", "nothing"]).contains("nothing"));
    stage.ok(["umount", text(&red)]);
}

#[test]
fn a_mount_in_use_stays_and_names_its_user() {
    if !can_mount("a_mount_in_use_stays_and_names_its_user") {
        return;
    }
    let stage = Stage::with_sample();
    let red = mounted(&stage, "red");
    let mut user = Command::new("sleep").arg("600").current_dir(&red).spawn().unwrap();
    let line = stage.fails(["umount", "red"]);
    assert!(line.contains(&format!("sleep ({})", user.id())) && line.contains("--lazy"), "{line}");
    assert!(stage.fails(["rm", "red"]).contains("is mounted at"));
    stage.ok(["umount", "--lazy", "red"]);
    assert_eq!(mounts_below(&red), Vec::<PathBuf>::new());
    assert!(stage.fails(["rm", "red"]).contains("is mounted at"), "its daemon still writes there");
    user.kill().unwrap();
    user.wait().unwrap();
    let began = Instant::now();
    while !stage.ok(["ps", "-q"]).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "it ends with its last user");
    }
    stage.ok(["rm", "red"]);
}

#[test]
fn a_container_is_removed_by_force_while_it_is_in_use() {
    if !can_mount("a_container_is_removed_by_force_while_it_is_in_use") {
        return;
    }
    let stage = Stage::with_sample();
    let red = mounted(&stage, "red");
    let mut user = Command::new("sleep").arg("600").current_dir(&red).spawn().unwrap();
    assert_eq!(stage.ok(["rm", "-f", "red"]), "red\n");
    assert_eq!(mounts_below(&red), Vec::<PathBuf>::new());
    assert_eq!(stage.ok(["ps", "-aq"]), "");
    user.kill().unwrap();
    user.wait().unwrap();
}

#[test]
fn a_dead_daemon_is_noticed_and_put_right() {
    if !can_mount("a_dead_daemon_is_noticed_and_put_right") {
        return;
    }
    let stage = Stage::with_sample();
    let red = mounted(&stage, "red");
    fs::write(red.join("kept"), "kept\n").unwrap();
    for how in ["mount", "umount", "rm"] {
        kill_process(pid_of(&stage, "red"), Signal::KILL).unwrap();
        let began = Instant::now();
        while !stage.ok(["ps", "--format", "{{.Status}}"]).contains("Daemon died") {
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        match how {
            "mount" => drop(stage.ok(["mount", "red", text(&red)])),
            "umount" => {
                stage.ok(["umount", text(&red)]);
                assert_eq!(mounts_below(&red), Vec::<PathBuf>::new());
                stage.ok(["mount", "red", text(&red)]);
            }
            _ => {
                stage.ok(["rm", "-f", "red"]);
                assert_eq!(mounts_below(&red), Vec::<PathBuf>::new());
                return;
            }
        }
        assert_eq!(read(red.join("kept")), "kept\n");
    }
}

#[test]
fn a_mount_that_somebody_else_took_away_is_forgotten() {
    if !can_mount("a_mount_that_somebody_else_took_away_is_forgotten") {
        return;
    }
    let stage = Stage::with_sample();
    let red = mounted(&stage, "red");
    assert!(Command::new("umount").arg(&red).status().unwrap().success());
    let began = Instant::now();
    while !stage.ok(["ps", "-q"]).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "the daemon leaves with its mount");
    }
    assert!(stage.fails(["umount", "red"]).contains("not mounted"));
    stage.ok(["mount", "red", text(&red)]);
    stage.ok(["umount", "red"]);
}

#[test]
fn two_commands_at_once_mount_a_container_once() {
    if !can_mount("two_commands_at_once_mount_a_container_once") {
        return;
    }
    let stage = Stage::with_sample();
    stage.ok(["create", "--name", "red", "plyfs/sample"]);
    let dirs = [stage.make_dir("a"), stage.make_dir("b")];
    let start = |dir: &PathBuf| {
        let mut command = stage.command();
        command.args(["mount", "red"]).arg(dir).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children = dirs.each_ref().map(start);
    let ran = children.map(|child| Ran::from(child.wait_with_output().unwrap()));
    assert_eq!(ran.iter().filter(|ran| ran.code == 0).count(), 1, "{ran:?}");
    let mounts = mounts_below(&stage.path(""));
    assert_eq!(mounts.len(), 1, "{ran:?}");
    assert_eq!(
        stage.ok(["ps", "--format", "{{.MountPoint}}"]).trim_end(),
        text(&mounts[0]),
        "the record is the winner's"
    );
    stage.ok(["umount", "red"]);
}

/// The directory that a quickstart told of.
fn scene(out: &str) -> PathBuf {
    let at = out.find("/var/tmp/plyfs-quickstart.").unwrap_or_else(|| panic!("{out}"));
    let path: String = out[at..].chars().take_while(|c| !c.is_whitespace()).collect();
    Path::new(&path).parent().unwrap().to_path_buf()
}

fn assert_tells_all(out: &str) {
    for words in [
        "1. Load an image",
        "tools: hard links",
        "2. Mount it",
        "read-only",
        "3. Change files in red",
        "$ rm ",
        "4. Look: only red has changed",
        "Closed for repairs.",
        "5. What each container holds",
        "whiteout",
        "blue: nothing",
        "6. What they share",
        "4 layers",
        "What to type next",
    ] {
        assert!(out.contains(words), "'{words}' is missing:\n{out}");
    }
}

#[test]
fn quickstart_shows_all_and_leaves_nothing() {
    if !can_mount("quickstart_shows_all_and_leaves_nothing") {
        return;
    }
    let stage = Stage::new();
    let out = stage.ok(["quickstart"]);
    assert_tells_all(&out);
    assert!(!scene(&out).exists() && mounts_below(&scene(&out)).is_empty(), "{out}");
    assert!(!stage.path("store").exists(), "the user's store is not touched");
}

#[test]
fn quickstart_keeps_what_it_made_when_asked() {
    if !can_mount("quickstart_keeps_what_it_made_when_asked") {
        return;
    }
    let stage = Stage::new();
    let out = stage.ok(["quickstart", "--keep"]);
    let dir = scene(&out);
    assert_eq!(stage.ok(["ps", "--format", "{{.Names}}"]), "blue\nred\n");
    assert_eq!(read(dir.join("red/srv/news.txt")), "A new file.\n");
    assert!(!dir.join("blue/srv/news.txt").exists());
    // As it says under "What to type next".
    stage.ok(["umount", "red", "blue", text(&dir.join("image"))]);
    stage.ok(["rm", "red", "blue"]);
    stage.ok(["rmi", "plyfs/sample:latest"]);
    assert!(mounts_below(&dir).is_empty());
    assert!(out.contains(&format!("rm -r {}", dir.display())), "{out}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn quickstart_takes_other_images() {
    if !can_mount("quickstart_takes_other_images") {
        return;
    }
    let stage = Stage::with_sample();
    let loaded = stage.ok(["quickstart", "plyfs/sample"]);
    assert!(loaded.contains("4. Look: only red has changed") && !scene(&loaded).exists());
    assert_eq!(stage.ok(["ps", "-aq"]), "", "its containers are gone");
    assert_eq!(stage.ok(["images", "-q"]).lines().count(), 1, "the image is not");
    let source = stage.ok(["quickstart", &format!("oci-archive:{}", stage.sample().display())]);
    assert!(source.contains("4. Look: only red has changed") && !scene(&source).exists());
    assert!(stage.fails(["quickstart", "nothing"]).contains("nothing"));
}

#[test]
fn an_interrupted_quickstart_clears_up() {
    if !can_mount("an_interrupted_quickstart_clears_up") {
        return;
    }
    let stage = Stage::new();
    let mut child = stage.command().arg("quickstart").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut out = String::new();
    while !out.contains("plyfs-quickstart.") {
        assert!(lines.read_line(&mut out).unwrap() > 0, "{out}");
    }
    // It may be done before the signal comes; either way nothing is left.
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).ok();
    lines.read_to_string(&mut out).unwrap();
    let code = child.wait().unwrap().code();
    assert!(code == Some(130) || code == Some(0), "{code:?}");
    assert!(!scene(&out).exists() && mounts_below(&scene(&out)).is_empty(), "{out}");
}

#[test]
fn mounts_of_a_namespace_end_with_it() {
    let name = "mounts_of_a_namespace_end_with_it";
    if !can_mount(name) {
        return;
    }
    let stage = Stage::with_sample();
    if stage.run(["unshare", "--map", "single", "true"]).code != 0 {
        return skip(name, "no user namespaces");
    }
    let before = lower(&stage);
    stage.ok(["create", "--name", "red", "plyfs/sample"]);
    let red = stage.make_dir("red");
    let script = format!(
        "{PLYFS} mount red {0} && echo inside > {0}/etc/motd && cat {0}/etc/motd && {PLYFS} ps -q",
        red.display()
    );
    let out = stage.ok(["unshare", "--map", "single", "sh", "-c", &script]);
    assert!(out.contains("\ninside\n") && out.lines().count() == 3, "{out}");
    assert!(fs::read_dir(&red).unwrap().next().is_none(), "others do not see it");
    assert_eq!(stage.ok(["ps", "-q"]), "", "it has ended");
    assert_eq!(stage.ok(["diff", "red"]), "C /etc\nC /etc/motd\n");

    // From outside, a mount inside is ended by a word to its daemon.
    let script = format!("{PLYFS} mount red {} && read wait", red.display());
    let mut inside = stage.command();
    let mut inside =
        inside.args(["unshare", "sh", "-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(inside.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(stage.ok(["ps", "-q"]).lines().count(), 1);
    stage.ok(["umount", "red"]);
    assert_eq!(stage.ok(["ps", "-q"]), "");
    drop(inside.stdin.take());
    inside.wait().unwrap();
    assert_eq!(lower(&stage), before);
}

/// An ordinary user to be, with a copy of the command where such a user may run it.
struct Ordinary {
    dir: tempfile::TempDir,
    uid: String,
    gid: String,
}

impl Ordinary {
    fn find(test: &str) -> Option<Self> {
        if !can_mount(test) {
            return None;
        }
        let name = std::env::var("PLYFS_TEST_USER").unwrap_or_else(|_| "nobody".into());
        let id = |option: &str| {
            let output = Command::new("id").args([option, &name]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim().to_string()
        };
        let dir = tempfile::Builder::new().prefix("plyfs-user.").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(PLYFS, dir.path().join("plyfs")).unwrap();
        let ordinary = Ordinary { uid: id("-u"), gid: id("-g"), dir };
        let home = ordinary.dir.path().join("home");
        fs::create_dir(&home).unwrap();
        let number = |text: &str| Some(text.parse().unwrap());
        std::os::unix::fs::chown(&home, number(&ordinary.uid), number(&ordinary.gid)).unwrap();
        let info = ordinary.run(&["info", "--format", "{{.FuseDevice}}; {{.UserNamespaces}}"]);
        if info.out != "/dev/fuse can be opened; work\n" {
            skip(test, &format!("as user {name}: {}; chmod 666 /dev/fuse", info.out.trim_end()));
            return None;
        }
        Some(ordinary)
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.run_with_path(&std::env::var("PATH").unwrap(), args)
    }

    fn run_with_path(&self, path: &str, args: &[&str]) -> Ran {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &self.uid, "--regid", &self.gid, "--clear-groups", "env", &format!("PATH={path}")]);
        command.arg(self.dir.path().join("plyfs")).args(args).current_dir("/").stdin(Stdio::null());
        command.env("HOME", self.dir.path().join("home")).env_remove("PLYFS_ROOT").env_remove("XDG_DATA_HOME");
        Ran::from(command.output().unwrap())
    }
}

#[test]
fn quickstart_works_for_an_ordinary_user() {
    let Some(user) = Ordinary::find("quickstart_works_for_an_ordinary_user") else { return };
    let ran = user.run(&["quickstart"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_tells_all(&ran.out);
    assert!(ran.out.contains("in a user namespace"), "{}", ran.out);
    assert!(!scene(&ran.out).exists());
    assert!(!user.dir.path().join("home/.local").exists(), "the user's store is not touched");
}

#[test]
fn an_ordinary_user_loads_mounts_and_removes() {
    let Some(user) = Ordinary::find("an_ordinary_user_loads_mounts_and_removes") else { return };
    let sample = user.dir.path().join("home/sample.tar");
    for args in [
        &["sample", "-o", text(&sample)][..],
        &["load", "-i", text(&sample)],
        &["create", "--name", "red", "plyfs/sample"],
    ] {
        let ran = user.run(args);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let home = user.dir.path().join("home");
    assert!(home.join(".local/share/plyfs/version").exists());
    let plyfs = user.dir.path().join("plyfs");
    let script = format!(
        "set -e; cd {home}; mkdir mnt; {plyfs} mount red mnt; stat -c '%u %a' mnt/srv mnt/usr/bin/tide; \
         chmod 600 mnt/etc/motd; echo more >> mnt/etc/motd; {plyfs} umount red; {plyfs} mount red mnt; \
         stat -c '%u %a' mnt/etc/motd; tail -n 1 mnt/etc/motd",
        home = home.display(),
        plyfs = plyfs.display()
    );
    let ran = user.run(&["unshare", "sh", "-c", &script]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().filter(|line| !line.starts_with('/')).collect();
    assert_eq!(&lines[1..2], ["0 4755"], "{ran:?}");
    assert_eq!(lines[2..], ["0 600", "more"], "{ran:?}");
    let diff = user.run(&["diff", "red"]);
    assert_eq!(diff.out, "C /etc\nC /etc/motd\n", "{diff:?}");
    assert_eq!(user.run(&["rm", "red"]).code, 0);
}

#[test]
fn an_ordinary_user_settles_a_container_for_the_kernels_overlayfs() {
    let Some(user) = Ordinary::find("an_ordinary_user_settles_a_container_for_the_kernels_overlayfs") else { return };
    let (home, plyfs) = (user.dir.path().join("home"), user.dir.path().join("plyfs"));
    let ok = |args: &[&str]| {
        let ran = user.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.out
    };
    // Modes and owners that no ordinary user can set are recorded, and the kernel's overlayfs does not heed records.
    let inside = |script: &str| {
        let look = "look() { (cd $1; find . -printf '%P %y %l\\n' | sort; find . -type f -exec cksum {} + | sort); }";
        let words =
            format!("set -e; plyfs() {{ {} \"$@\"; }}; {look}; cd {}; {script}", plyfs.display(), home.display());
        ok(&["unshare", "--map", "single", "sh", "-c", &words])
    };
    inside(
        "plyfs sample -o s.tar; plyfs load -q -i s.tar; plyfs create --name red plyfs/sample; mkdir mnt image merged work",
    );
    inside(
        "plyfs mount red mnt; echo more >> mnt/etc/motd; mv mnt/usr/share mnt/srv/share; touch mnt/usr/bin/quay; \
         rm -r mnt/var/cache; mkdir mnt/var/cache; echo new > mnt/srv/share/new; look mnt > ours; plyfs umount red",
    );
    assert_eq!(ok(&["settle", "--plain", "red"]), "red\n");
    let upper = ok(&["inspect", "--format", "{{.Upper}}", "red"]);
    inside(&format!(
        "plyfs mount plyfs/sample image; \
         mount -t overlay -o userxattr,lowerdir=image,upperdir={},workdir=work overlay merged; \
         look merged > kernels; diff ours kernels; umount merged; plyfs umount image; \
         plyfs mount red mnt; look mnt > again; diff ours again; plyfs umount red",
        upper.trim_end()
    ));
    let ours = read(home.join("ours"));
    assert!(ours.contains("srv/share/new f") && !ours.contains("usr/share/doc"), "{ours}");
    assert_eq!(ok(&["rm", "red"]), "red\n");
    // Every layer of the image is hashed.
    assert!(ok(&["fsck"]).ends_with("nothing is wrong\n"));
}

#[test]
fn a_namespace_has_the_range_of_its_user() {
    let name = "a_namespace_has_the_range_of_its_user";
    let Some(user) = Ordinary::find(name) else { return };
    let range = user.run(&["info", "--format", "{{.IdRange}}"]).out;
    if !range.contains("users from") {
        return skip(name, &format!("{}; name a user with a range in PLYFS_TEST_USER", range.trim_end()));
    }
    let ran = user.run(&["unshare", "--map", "range", "sh", "-c", "id -u; cat /proc/self/uid_map"]);
    let words: Vec<&str> = ran.out.split_whitespace().collect();
    assert_eq!(words[..5], ["0", "0", &user.uid, "1", "1"], "{ran:?}");
    assert!(words.len() == 7 && range.contains(words[5]) && range.starts_with(words[6]), "{ran:?} {range}");

    let home = user.dir.path().join("home");
    let plyfs = user.dir.path().join("plyfs");
    let script = format!(
        "set -e; cd {home}; {plyfs} sample -o s.tar; {plyfs} load -q -i s.tar; {plyfs} create --name red plyfs/sample; mkdir mnt; \
         {plyfs} mount red mnt; stat -c '%u:%g' mnt/srv; chown 7:8 mnt/etc/motd; {plyfs} umount red; {plyfs} mount red mnt; \
         stat -c '%u:%g' mnt/etc/motd",
        home = home.display(),
        plyfs = plyfs.display()
    );
    let ran = user.run(&["unshare", "--map", "range", "sh", "-c", &script]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let owners: Vec<&str> = ran.out.lines().filter(|line| line.contains(':') && !line.contains(' ')).collect();
    assert_eq!(owners, ["1000:1000", "7:8"], "{ran:?}");
    // What was written as another user can be removed by its owner again.
    let ran = user.run(&["unshare", "--map", "range", text(&plyfs), "rm", "red"]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn an_ordinary_user_mounts_in_the_open_through_fusermount3() {
    let name = "an_ordinary_user_mounts_in_the_open_through_fusermount3";
    let Some(user) = Ordinary::find(name) else { return };
    if !user.run(&["info", "--format", "{{.Fusermount}}"]).out.starts_with('/') {
        return skip(name, "fusermount3 is missing; install the package fuse3");
    }
    let home = user.dir.path().join("home");
    let (sample, mnt) = (home.join("sample.tar"), home.join("mnt"));
    let made = user.run(&["unshare", "--map", "single", "mkdir", text(&mnt)]);
    assert_eq!(made.code, 0, "{made:?}");
    for args in [
        &["sample", "-o", text(&sample)][..],
        &["load", "-i", text(&sample)],
        &["create", "--name", "red", "plyfs/sample"],
        &["mount", "red", text(&mnt)],
    ] {
        let ran = user.run(args);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    assert_eq!(mounts_below(&home).first(), Some(&mnt));
    assert_eq!(user.run(&["ps", "--format", "{{.Names}} {{.Status}}"]).out, "red Mounted\n");
    let ran = user.run(&["umount", text(&mnt)]);
    assert_eq!((ran.code, mounts_below(&home).len()), (0, 0), "{ran:?}");
    let ran = user.run_with_path("/nowhere", &["mount", "red", text(&mnt)]);
    assert!(ran.code == 1 && ran.err.contains("run it inside 'plyfs unshare'"), "{ran:?}");
    assert_eq!(user.run(&["rm", "red"]).code, 0);
}
