//! The tests.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use mountd::mount::{Unmount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::*;

macro_rules! cases {
    ($($name:ident)*) => {
        /// All of them, in the order they run.
        pub(crate) const ALL: &[(&str, fn(&Area) -> Outcome)] = &[$((stringify!($name), $name)),*];
    };
}
cases! {
    call_returns_when_the_mount_answers
    fuse_overlayfs_by_its_name
    version_and_help_need_no_mount
    source_and_options_in_any_order
    relative_paths_are_seen_from_the_callers_directory
    daemon_stands_on_its_own
    mount_looks_as_asked
    lines_of_the_log
    readiness_is_not_told_before_the_first_answer
    spawn_starts_a_daemon_for_a_program
    foreground_stays_until_interrupted
    signals_take_the_mount_away
    signal_while_in_use_takes_the_mount_away
    signal_before_the_mount_ends_the_daemon
    lazy_unmount_lets_its_users_finish
    busy_target_is_mounted_over
    covered_daemon_leaves_the_other_mount_alone
    dead_mount_is_told_and_can_be_cleared
    failures_are_one_line_and_leave_nothing
    death_before_ready_is_told_and_leaves_nothing
    panic_leaves_no_dead_mount
    caller_that_is_gone_gets_no_mount
    no_device_is_told_with_its_remedy
    in_a_user_namespace
    ordinary_user_by_fusermount
    ordinary_user_without_fusermount
    ordinary_user_may_not_let_others_in
    fifty_mounts_come_and_go
}

const LOWER: &str = "lowerdir=ROOT/lower";

/// linux/capability.h
const CAP_SYS_RESOURCE: u32 = 24;

fn need_root() -> Outcome {
    if is_root() { Ok(()) } else { Err("needs root".to_owned()) }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Unmounts; somebody who looks at all mounts of the machine may have this one open for a moment.
fn umount(area: &Area) {
    for _ in 0..200 {
        match unmount(&area.target(), Unmount::WhenIdle) {
            Err(failure) if failure.line().contains("is busy") => std::thread::sleep(Duration::from_millis(20)),
            done => return done.unwrap(),
        }
    }
    unmount(&area.target(), Unmount::WhenIdle).unwrap();
}

fn make(area: &Area, dir: &str) -> String {
    std::fs::create_dir(area.path(dir)).unwrap();
    make_public(&area.path(dir));
    format!("lowerdir=ROOT/{dir}")
}

fn call_returns_when_the_mount_answers(area: &Area) -> Outcome {
    // `output` also waits until nobody holds our end of stdout and stderr: podman does so too.
    let pid = area.mount(LOWER);
    assert!(is_alive(pid) && pid != std::process::id());
    let names: Vec<_> = std::fs::read_dir(area.target()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["pid"]);
    umount(area);
    area.assert_nothing_left();
    Ok(())
}

fn fuse_overlayfs_by_its_name(area: &Area) -> Outcome {
    let mut program = Command::new(area.bin.join("fuse-overlayfs"));
    let output = program.arg("-o").arg(area.spelled(LOWER)).arg(area.target()).output().unwrap();
    assert_quiet_success(&output);
    let line = mount_line(&area.target()).unwrap();
    assert!(line.contains(" - fuse.fuse-overlayfs fuse-overlayfs "), "{line}");
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", area.served_by())).unwrap();
    assert_eq!(comm, "fuse-overlayfs\n");
    umount(area);
    area.assert_nothing_left();
    Ok(())
}

fn version_and_help_need_no_mount(area: &Area) -> Outcome {
    let said = |name: &str, word: &str| {
        let output = Command::new(area.bin.join(name)).arg(word).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(said("fuse-overlayfs", "--version").starts_with("fuse-overlayfs: version 2."));
    assert!(said("plyfs-mountd", "--version").starts_with("plyfs-mountd 0."));
    assert!(said("plyfs-mountd", "--help").contains("-o upperdir=DIR"));
    Ok(())
}

fn source_and_options_in_any_order(area: &Area) -> Outcome {
    let mut program = Command::new(area.bin.join("plyfs-mountd"));
    program.arg("overlay").arg(area.target()).arg("-o");
    program.arg(area.spelled("workdir=ROOT/work,upperdir=ROOT/upper,lowerdir=ROOT/lower,dev,suid"));
    assert_quiet_success(&program.output().unwrap());
    let line = mount_line(&area.target()).unwrap();
    assert!(line.contains(" - fuse.plyfs overlay rw,"), "{line}");
    umount(area);
    area.assert_nothing_left();
    Ok(())
}

fn relative_paths_are_seen_from_the_callers_directory(area: &Area) -> Outcome {
    std::os::unix::fs::symlink("merged", area.path("link")).unwrap();
    let mut program = Command::new(area.bin.join("plyfs-mountd"));
    program.current_dir(&area.root).args(["-o", "lowerdir=lower:./lower,plyfs.log=log", "link"]);
    assert_quiet_success(&program.output().unwrap());
    assert!(is_alive(area.served_by()) && area.path("log").exists());
    umount(area);
    wait_until("the daemon has left", || mounts_below(&area.root).is_empty());
    Ok(())
}

fn daemon_stands_on_its_own(area: &Area) -> Outcome {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("exec 9>\"$0\" 8<&0; ulimit -S -n 64; umask 077; exec \"$@\"").arg(area.path("lock"));
    let program = area.program(LOWER);
    shell.arg(program.get_program()).args(program.get_args());
    assert_quiet_success(&shell.output().unwrap());

    let pid = area.served_by();
    let proc = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let link = |file: &str| std::fs::read_link(format!("/proc/{pid}/{file}")).unwrap();
    let stat = proc("stat");
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!((fields[2], fields[3]), (&*pid.to_string(), &*pid.to_string()), "process group and session");
    assert_eq!(proc("comm"), "plyfs-mountd\n");
    assert_eq!(link("cwd"), Path::new("/"));
    for fd in 0..3 {
        assert_eq!(link(&format!("fd/{fd}")), Path::new("/dev/null"));
    }
    let others = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|fd| fd.unwrap().path());
    let others: Vec<_> =
        others.filter_map(|fd| std::fs::read_link(fd).ok()).filter(|to| !to.starts_with("/dev")).collect();
    assert!(others.is_empty(), "left open: {others:?}");
    assert!(proc("status").contains("Umask:\t0000"));
    let limits = proc("limits");
    let descriptors: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(descriptors[3], descriptors[4], "the soft limit is the hard one");
    let status = proc("status");
    let resources = |set: &str| {
        let capabilities = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        u64::from_str_radix(capabilities.trim(), 16).unwrap() & (1 << CAP_SYS_RESOURCE) != 0
    };
    assert!(!resources("CapEff:"), "quotas count for what it writes");
    let may_lower_score = resources("CapPrm:");
    assert!(!may_lower_score || proc("oom_score_adj").trim().parse::<i32>().unwrap() <= -500);
    umount(area);
    area.assert_nothing_left();
    Ok(())
}

fn mount_looks_as_asked(area: &Area) -> Outcome {
    need_root()?;
    let rw = "lowerdir=ROOT/lower,upperdir=ROOT/upper,workdir=ROOT/work";
    for (options, flags, table) in [
        (LOWER.to_owned(), " ro,noatime", "fuse.plyfs plyfs ro,user_id=0,group_id=0,default_permissions,allow_other"),
        (format!("{rw},"), " rw,noatime", "fuse.plyfs plyfs rw,user_id=0"),
        (format!("{rw},nodev,nosuid,noexec,relatime"), " rw,nosuid,nodev,noexec,relatime", "fuse.plyfs plyfs rw"),
        (format!("{rw},ro,fsname=my image,subtype=x,max_read=65536"), " ro,", "fuse.x my\\040image ro,"),
        (format!("{rw},max_read=65536"), " rw,", ",max_read=65536"),
    ] {
        let pid = area.mount(&options);
        let line = mount_line(&area.target()).unwrap();
        assert!(line.contains(flags) && line.contains(table), "{options}: {line}");
        umount(area);
        wait_until("the daemon has left", || !is_alive(pid));
    }
    area.mount(&format!("{LOWER},shared"));
    let line = mount_line(&area.target()).unwrap();
    assert!(line.contains(" shared:"), "{line}");
    let device = line.split(' ').nth(2).unwrap();
    let read_ahead = std::fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb"));
    umount(area);
    area.assert_nothing_left();
    match read_ahead {
        Ok(kib) => assert_eq!(kib, "1024\n"),
        Err(error) => return Err(format!("no read-ahead to look at: {error}")),
    }
    Ok(())
}

fn lines_of_the_log(area: &Area) -> Outcome {
    let pid = area.mount(&format!("{LOWER},metacopy=on,plyfs.log=ROOT/log"));
    umount(area);
    wait_until("the daemon has left", || !is_alive(pid));
    let log = std::fs::read_to_string(area.path("log")).unwrap();
    for line in ["info  option 'metacopy=on' has no effect: ", "info  hello", "info  ready", "info  destroyed"] {
        assert!(log.lines().any(|logged| logged.split_once("Z ").unwrap().1.starts_with(line)), "{line}: {log}");
    }
    Ok(())
}

fn readiness_is_not_told_before_the_first_answer(area: &Area) -> Outcome {
    let lower = make(area, "root-fails");
    let line = area.refusal(&lower);
    assert!(line.contains("the mount does not answer: Input/output error"), "{line}");
    Ok(())
}

fn spawn_starts_a_daemon_for_a_program(area: &Area) -> Outcome {
    let lower = mountd::options::spell_list("lowerdir", [area.path("lower")]);
    let words: Vec<OsString> = vec!["-o".into(), lower, area.target().into()];
    let exe = area.bin.join("plyfs-mountd");
    let mounted = mountd::spawn(&exe, &words).unwrap();
    assert_eq!(mounted.pid(), area.served_by());
    umount(area);
    assert!(mounted.wait().unwrap().success());

    let words: Vec<OsString> = vec!["-o".into(), "lowerdir=/nowhere".into(), area.target().into()];
    assert!(mountd::spawn(&exe, &words).unwrap_err().line().starts_with("lowerdir /nowhere: No such file"));
    assert!(mountd::spawn(Path::new("/nowhere"), &words).unwrap_err().line().starts_with("cannot start /nowhere: "));
    area.assert_nothing_left();
    Ok(())
}

fn foreground_stays_until_interrupted(area: &Area) -> Outcome {
    let mut daemon = area.program(&format!("{LOWER},debug")).arg("-f").stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it answers", || area.target().join("pid").exists());
    assert_eq!(area.served_by(), daemon.id());
    signal(daemon.id(), Signal::INT);
    let mut said = String::new();
    std::io::Read::read_to_string(daemon.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert!(daemon.wait().unwrap().success());
    assert!(said.contains(" info  ready") && said.contains(" debug ") && said.contains("SIGINT: unmounting"), "{said}");
    area.assert_nothing_left();
    Ok(())
}

fn signals_take_the_mount_away(area: &Area) -> Outcome {
    for which in [Signal::TERM, Signal::INT, Signal::HUP] {
        let pid = area.mount(LOWER);
        signal(pid, which);
        wait_until("the daemon has left", || !is_alive(pid));
        assert_eq!(area.mount_count(), 0, "{which:?}");
    }
    area.assert_nothing_left();
    Ok(())
}

fn signal_while_in_use_takes_the_mount_away(area: &Area) -> Outcome {
    let pid = area.mount(&format!("{LOWER},plyfs.log=ROOT/log"));
    let file = std::fs::File::open(area.target().join("pid")).unwrap();
    signal(pid, Signal::TERM);
    wait_until("the mount is out of sight", || area.mount_count() == 0);
    wait_until("the daemon has left", || !is_alive(pid));
    // Nobody is left to ask: the open file gives an error instead of waiting.
    assert!(rustix::fs::fstatvfs(&file).is_err());
    area.assert_nothing_left();
    Ok(())
}

fn signal_before_the_mount_ends_the_daemon(area: &Area) -> Outcome {
    let lower = make(area, "slow");
    let call = area.program(&lower).stderr(Stdio::piped()).spawn().unwrap();
    let daemon = || processes_naming(&area.root).into_iter().find(|pid| *pid != call.id());
    wait_until("the daemon has started", || {
        let words = daemon().and_then(|pid| std::fs::read(format!("/proc/{pid}/stat")).ok());
        // Once it leads a session it is near the place where it is slow.
        words.is_some_and(|stat| {
            let stat = String::from_utf8_lossy(&stat).into_owned();
            let pid = stat.split(' ').next().unwrap().to_owned();
            stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.split(' ').nth(3) == Some(&*pid))
        })
    });
    signal(daemon().unwrap(), Signal::TERM);
    let output = call.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "plyfs-mountd: interrupted by SIGTERM\n");
    area.assert_nothing_left();
    Ok(())
}

fn lazy_unmount_lets_its_users_finish(area: &Area) -> Outcome {
    let pid = area.mount(LOWER);
    let file = std::fs::File::open(area.target().join("pid")).unwrap();
    assert!(unmount(&area.target(), Unmount::WhenIdle).unwrap_err().line().contains("is busy"));
    unmount(&area.target(), Unmount::Lazily).unwrap();
    assert_eq!(std::io::read_to_string(&file).unwrap(), format!("{pid}\n"));
    drop(file);
    area.assert_nothing_left();
    assert!(unmount(&area.target(), Unmount::Lazily).unwrap_err().line().contains("is not a mount point"));
    Ok(())
}

fn busy_target_is_mounted_over(area: &Area) -> Outcome {
    need_root()?;
    let first = area.mount(LOWER);
    let second = area.mount(LOWER);
    assert_ne!(first, second);
    assert_eq!(area.mount_count(), 2);
    umount(area);
    wait_until("the second has left", || !is_alive(second));
    assert_eq!(area.served_by(), first);
    umount(area);
    area.assert_nothing_left();
    Ok(())
}

fn covered_daemon_leaves_the_other_mount_alone(area: &Area) -> Outcome {
    need_root()?;
    let first = area.mount(LOWER);
    let second = area.mount(LOWER);
    signal(first, Signal::TERM);
    wait_until("the first has left", || !is_alive(first));
    assert_eq!(area.served_by(), second, "what it cannot reach it leaves alone");
    umount(area);
    wait_until("the second has left", || !is_alive(second));
    unmount(&area.target(), Unmount::Lazily).unwrap();
    area.assert_nothing_left();

    // A mount made quickly after ours has gone is not ours, even where the kernel gives its numbers anew.
    for _ in 0..20 {
        let pid = area.mount(LOWER);
        umount(area);
        let next = area.mount(LOWER);
        wait_until("the daemon has left", || !is_alive(pid));
        assert_eq!(area.served_by(), next);
        umount(area);
    }
    area.assert_nothing_left();
    Ok(())
}

fn dead_mount_is_told_and_can_be_cleared(area: &Area) -> Outcome {
    let pid = area.mount(LOWER);
    signal(pid, Signal::KILL);
    wait_until("it is dead", || std::fs::metadata(area.target()).is_err());
    let output = area.program(LOWER).output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(line.contains("a mount whose daemon is gone is in the way: unmount it"), "{line}");
    unmount(&area.target(), Unmount::Lazily).unwrap();
    area.mount(LOWER);
    umount(area);
    area.assert_nothing_left();
    Ok(())
}

fn failures_are_one_line_and_leave_nothing(area: &Area) -> Outcome {
    let not_built = make(area, "not-built");
    let no_handshake = make(area, "no-handshake");
    for (options, named) in [
        ("lowerdir=ROOT/gone", "lowerdir ROOT/gone: No such file or directory; check the path"),
        ("lowerdir=ROOT/lower,nonsense", "unknown option 'nonsense'"),
        ("lowerdir=ROOT/lower,upperdir=ROOT/upper", "upperdir= needs workdir=DIR"),
        (
            "lowerdir=ROOT/lower,upperdir=ROOT/lower,workdir=ROOT/work",
            "upperdir ROOT/lower: overlaps lowerdir ROOT/lower",
        ),
        ("lowerdir=ROOT/lower,plyfs.log=ROOT/gone/log", "plyfs.log ROOT/gone/log: No such file or directory"),
        (&not_built, "cannot\\nbe built"),
        (&no_handshake, "the kernel and the daemon do not agree: Protocol error"),
    ] {
        let line = area.refusal(options);
        assert!(line.contains(&area.spelled(named)), "{options}: {line}");
    }

    std::fs::remove_dir(area.target()).unwrap();
    assert!(
        area.refusal(LOWER).contains("/merged: cannot mount: No such file or directory; create the directory first")
    );
    std::fs::write(area.target(), "").unwrap();
    assert!(area.refusal(LOWER).contains("/merged: cannot mount: it is no directory"));
    Ok(())
}

fn death_before_ready_is_told_and_leaves_nothing(area: &Area) -> Outcome {
    let lower = make(area, "dies-early");
    let line = area.refusal(&lower);
    assert!(line.contains("the daemon ended before the mount was ready (exit status: 7)"), "{line}");
    let lower = make(area, "root-dies");
    let line = area.refusal(&lower);
    assert!(line.contains("the mount does not answer: "), "{line}");
    Ok(())
}

fn panic_leaves_no_dead_mount(area: &Area) -> Outcome {
    let pid = area.mount(&format!("{LOWER},plyfs.log=ROOT/log"));
    assert!(std::fs::metadata(area.target().join("panic")).is_err());
    wait_until("the daemon has left", || !is_alive(pid));
    assert_eq!(area.mount_count(), 0);
    let log = std::fs::read_to_string(area.path("log")).unwrap();
    assert!(log.contains("error internal error: panicked at ") && log.contains("asked to"), "{log}");
    area.assert_nothing_left();
    Ok(())
}

fn caller_that_is_gone_gets_no_mount(area: &Area) -> Outcome {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut daemon = Command::new(area.bin.join("plyfs-mountd"));
    daemon.args([mountd::DAEMON_WORD, "-o"]).arg(area.spelled(LOWER)).arg(area.target());
    let status = daemon.stdin(Stdio::null()).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(1));
    area.assert_nothing_left();
    Ok(())
}

fn no_device_is_told_with_its_remedy(area: &Area) -> Outcome {
    need_root()?;
    need(&["unshare"])?;
    let script = "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec \"$@\"";
    let program = area.program(LOWER);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(program.get_program()).args(program.get_args());
    let output = command.output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(
        line.contains("cannot open /dev/fuse: No such file or directory; load the module (modprobe fuse)"),
        "{line}"
    );
    area.assert_nothing_left();
    Ok(())
}

fn in_a_user_namespace(area: &Area) -> Outcome {
    need(&["unshare"])?;
    let works = Command::new("unshare").args(["-Urm", "test", "-w", "/dev/fuse"]).output().unwrap();
    if !works.status.success() {
        return Err(format!("no user namespace with /dev/fuse: {}", String::from_utf8_lossy(&works.stderr).trim_end()));
    }
    let script = "set -e; \"$@\"; eval target=\\${$#}; grep -q '[0-9]' $target/pid; grep \" $target \" /proc/self/mountinfo; \
                  umount $target; if test -e $target/pid; then exit 9; fi";
    let program = area.program(LOWER);
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", script, "sh"]).arg(program.get_program()).args(program.get_args());
    let output = command.output().unwrap();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(line.contains(" - fuse.plyfs plyfs ") && line.contains("allow_other"), "{line}");
    area.assert_nothing_left();
    Ok(())
}

/// Makes the command run as an ordinary user.
fn as_user(command: &Command) -> Result<Command, String> {
    if !is_root() {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return Ok(same);
    }
    need(&["setpriv"])?;
    let mut user = Command::new("setpriv");
    user.args(["--reuid=nobody", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]);
    user.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    Ok(user)
}

/// The helper opens the device as its user.
fn need_device_for_users() -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata("/dev/fuse").unwrap().permissions().mode();
    if mode & 0o6 == 0o6 { Ok(()) } else { Err("/dev/fuse is closed to users (chmod 666 /dev/fuse)".to_owned()) }
}

/// fusermount3 wants the target to be its user's own.
fn give_away(area: &Area) {
    if is_root() {
        for dir in ["merged", "upper", "work"] {
            std::os::unix::fs::chown(area.path(dir), Some(65534), Some(65534)).unwrap();
        }
    }
}

fn ordinary_user_by_fusermount(area: &Area) -> Outcome {
    need(&["fusermount3"])?;
    need_device_for_users()?;
    give_away(area);
    let options = "lowerdir=ROOT/lower,upperdir=ROOT/upper,workdir=ROOT/work,fsname=a\\,b,noexec";
    assert_quiet_success(&as_user(&area.program(options))?.output().unwrap());
    let line = mount_line(&area.target()).unwrap();
    assert!(line.contains("nosuid,nodev,noexec") && line.contains(" - fuse.plyfs a,b rw,"), "{line}");
    assert!(line.contains("default_permissions") && !line.contains("allow_other"), "{line}");
    let read = |who: &str| {
        let mut cat = Command::new("cat");
        cat.arg(area.target().join("pid"));
        let output = as_user(&cat).unwrap().output().unwrap();
        assert!(output.status.success(), "{who}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().parse::<u32>().unwrap()
    };
    let pid = read("the user");
    // The daemon has no right to umount(2): it asks the helper.
    signal(pid, Signal::TERM);
    wait_until("the daemon has left", || !is_alive(pid));
    assert_eq!(area.mount_count(), 0);

    assert_quiet_success(&as_user(&area.program(LOWER))?.output().unwrap());
    let pid = read("the user");
    let mut helper = Command::new("fusermount3");
    helper.arg("-u").arg(area.target());
    assert_quiet_success(&as_user(&helper)?.output().unwrap());
    wait_until("the daemon has left", || !is_alive(pid));
    area.assert_nothing_left();
    Ok(())
}

fn ordinary_user_without_fusermount(area: &Area) -> Outcome {
    // Helpers are searched for in the PATH of the daemon: this one has none in it.
    let program = area.program(LOWER);
    let mut without = Command::new("env");
    without.arg("PATH=/nowhere").arg(program.get_program()).args(program.get_args());
    let output = as_user(&without)?.output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(
        line.contains("there is no fusermount3; be root, use a user namespace (unshare -Urm), or install fuse3"),
        "{line}"
    );
    area.assert_nothing_left();
    Ok(())
}

fn ordinary_user_may_not_let_others_in(area: &Area) -> Outcome {
    need(&["fusermount3"])?;
    need_device_for_users()?;
    let conf = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if conf.lines().any(|line| line.trim() == "user_allow_other") {
        return Err("/etc/fuse.conf lets users do so".to_owned());
    }
    give_away(area);
    let output = as_user(&area.program(&format!("{LOWER},allow_other")))?.output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(
        line.contains("user_allow_other") && line.contains("or leave allow_other out") && line.lines().count() == 1,
        "{line}"
    );
    area.assert_nothing_left();
    Ok(())
}

fn fifty_mounts_come_and_go(area: &Area) -> Outcome {
    need_root()?;
    let pids: Vec<_> = (0..50).map(|_| area.mount(LOWER)).collect();
    assert_eq!(area.mount_count(), 50);
    for pid in pids.iter().rev() {
        assert_eq!(area.served_by(), *pid);
        umount(area);
    }
    area.assert_nothing_left();
    Ok(())
}
