//! `plyfs run`: a container of its own, a bundle, a runtime, and nothing left of them but what the container wrote.

use std::ffi::OsString;
use std::fs;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use store::{Container, Seed, Store};

use super::spec::{Ground, Wanted};
use super::{Cgroups, ROOTFS, write_config};
use crate::cli::{IdMap, Network, RunArgs};
use crate::{complain, mounts, namespace};

/// Runtimes that are looked for, the first one found is taken.
fn runtimes() -> [&'static str; 2] {
    match Cgroups::here() {
        Cgroups::Both => ["runc", "crun"], // crun refuses both versions side by side.
        _ => ["crun", "runc"],
    }
}

/// Where they may lie beyond `PATH`: an ordinary user's often has no `sbin`.
const FURTHER: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// What docker ends with when the container could not be run at all.
const NOT_RUN: u8 = 125;
/// When its command is no program, or not this user's.
const NOT_EXECUTABLE: u8 = 126;
/// When its command is not there.
const NOT_FOUND: u8 = 127;

/// `plyfs run`; its exit status is the command's, or as docker has it where there was none.
pub(crate) fn run(root: &Path, args: &RunArgs) -> ExitCode {
    run_container(root, args).unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::from(NOT_RUN)
    })
}

fn run_container(root: &Path, args: &RunArgs) -> Result<ExitCode> {
    let runtime = find_runtime(args.runtime.as_deref())?;
    if args.tty && !std::io::stdin().is_terminal() {
        bail!("-t: standard input is no terminal; leave -t out");
    }
    // Before there is a second thread: it could not be entered with one.
    if !rustix::process::geteuid().is_root() {
        namespace::enter(IdMap::Auto)?;
    }
    let signals = Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2]).context("signals")?;
    let mut wanted = wanted(args)?;
    let volumes = args.volumes.iter().map(|text| Volume::read(text)).collect::<Result<Vec<_>>>()?;
    let store = Store::open(root)?;
    let image = store.image(&args.image)?;
    let bundle = tempfile::Builder::new().prefix("plyfs-run.").tempdir().context("a temporary directory")?;
    let named = volumes.iter().filter_map(|volume| match &volume.source {
        Source::Named(name) => Some(name.clone()),
        Source::Host(_) => None,
    });
    let container = store.create_container_with(&image, args.name.as_deref(), &named.collect::<Vec<_>>())?;
    let runtime = Runtime { program: runtime, bundle: bundle.path().to_path_buf(), id: container.id.clone() };

    let started =
        prepare(&store, &container, &runtime, &mut wanted, &volumes, args).and_then(|()| runtime.start(args, signals));
    let ran = match started {
        Ok(mut child) => child.wait().context("wait for the runtime").map_err(|error| (error, Keep::AsAsked)),
        // It has written nothing yet.
        Err(error) => Err((error, Keep::Nothing)),
    };
    let keep = if args.rm || matches!(ran, Err((_, Keep::Nothing))) { Keep::Nothing } else { Keep::AsAsked };
    let refused = ran.as_ref().ok().and_then(|status| runtime.refusal(*status));
    let cleaned = clean_up(&store, &container, &runtime, keep);
    drop(bundle);
    match (ran, cleaned) {
        (Ok(status), Ok(())) => match refused {
            Some(code) => Ok(ExitCode::from(code)),
            None => Ok(mounts::code_of(status)),
        },
        (Ok(_), Err(error)) => Err(error),
        (Err((error, _)), cleaned) => {
            if let Err(second) = cleaned {
                complain(&format!("{second:#}"));
            }
            Err(error)
        }
    }
}

/// What stays of a container that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// The container with what it wrote, unless `--rm` was given.
    AsAsked,
    Nothing,
}

/// Mounts the container and writes `config.json`.
fn prepare(
    store: &Store,
    container: &Container,
    runtime: &Runtime,
    wanted: &mut Wanted,
    volumes: &[Volume],
    args: &RunArgs,
) -> Result<()> {
    let image = store.image_by_id(container.image)?;
    let rootfs = runtime.bundle.join(ROOTFS);
    fs::create_dir(&rootfs).with_context(|| rootfs.display().to_string())?;
    mounts::mount_container(store, container, &rootfs, &[])?;
    wanted.hostname = container.short_id().to_owned();
    wanted.mounts = name_files(&runtime.bundle, &wanted.hostname, args.network)?;
    // Volumes come last: they may lie on these.
    for volume in volumes {
        wanted.mounts.push(volume.to_mount(store, &rootfs)?);
    }
    write_config(&image, wanted, &Ground::here()?, &runtime.bundle)
}

/// Ends what is left of the process, unmounts, and removes what is not to stay. Goes on after a failure; tells the first.
fn clean_up(store: &Store, container: &Container, runtime: &Runtime, keep: Keep) -> Result<()> {
    let ended = runtime.delete();
    let unmounted = store.container(&container.id).map_err(Into::into).and_then(|now| mounts::end(store, &now));
    let removed = match keep {
        Keep::Nothing if unmounted.is_ok() => store.remove_container(&container.id).map(drop).map_err(Into::into),
        _ => Ok(()),
    };
    ended.and(unmounted).and(removed)
}

fn wanted(args: &RunArgs) -> Result<Wanted> {
    let env = args.env.iter().map(|given| match given.contains('=') {
        true => given.clone(),
        false => std::env::var(given).map_or_else(|_| given.clone(), |value| format!("{given}={value}")),
    });
    Ok(Wanted {
        command: args.command.clone(),
        entrypoint: args.entrypoint.clone(),
        env: env.collect(),
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        read_only: args.read_only,
        host_network: args.network == Network::Host,
        terminal: args.tty,
        hostname: String::new(),
        mounts: Vec::new(),
    })
}

/// A volume that was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Volume {
    source: Source,
    target: String,
    mode: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// A directory or file of the host.
    Host(String),
    /// A named volume of the store.
    Named(String),
}

impl Volume {
    /// Reads `SOURCE:TARGET[:ro|rw]`.
    fn read(text: &str) -> Result<Self> {
        let usage = "write -v SOURCE:TARGET or SOURCE:TARGET:ro";
        let mut parts = text.split(':');
        let (Some(source), Some(target)) = (parts.next(), parts.next()) else { bail!("-v {text}: {usage}") };
        let mut mode = "rw";
        for option in parts.flat_map(|options| options.split(',')) {
            match option {
                "ro" => mode = "ro",
                "rw" => mode = "rw",
                other => bail!("-v {text}: '{other}' is not known; {usage}"),
            }
        }
        if !target.starts_with('/') {
            bail!("-v {text}: {target} is not absolute; {usage}");
        }
        let target = target.to_owned();
        if !source.is_empty() && !source.contains('/') && source != "." && source != ".." {
            return Ok(Volume { source: Source::Named(source.to_owned()), target, mode });
        }
        let found =
            fs::canonicalize(source).map_err(|error| anyhow!("-v {text}: {source}: {}", crate::reason(&error)))?;
        let Some(found) = found.to_str() else { bail!("-v {text}: config.json can name paths in UTF-8 only") };
        Ok(Volume { source: Source::Host(found.to_owned()), target, mode })
    }

    /// The mount as `config.json` has it; a named volume that is not there is made, with what the image has at its place.
    fn to_mount(&self, store: &Store, rootfs: &Path) -> Result<Value> {
        match &self.source {
            Source::Host(path) => Ok(bind(path, &self.target, self.mode)),
            Source::Named(name) => {
                let path = store.make_volume(name, Some(Seed { root: rootfs, directory: &self.target }))?;
                let Some(path) = path.to_str() else {
                    bail!("{}: config.json can name paths in UTF-8 only", path.display())
                };
                Ok(bind(path, &self.target, self.mode))
            }
        }
    }
}

fn bind(source: &str, target: &str, mode: &str) -> Value {
    json!({ "destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", mode] })
}

/// The files by which programs find names: the container's own, or with `--net=host` the host's.
fn name_files(dir: &Path, hostname: &str, network: Network) -> Result<Vec<Value>> {
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        let source = path.to_str().ok_or_else(|| anyhow!("{}: not UTF-8", path.display()))?;
        Ok::<Value, anyhow::Error>(bind(source, &format!("/etc/{name}"), "rw"))
    };
    let mut files = vec![write("hostname", format!("{hostname}\n"))?];
    match network {
        Network::None => {
            files.push(write("hosts", format!("127.0.0.1 localhost {hostname}\n::1 localhost {hostname}\n"))?);
        }
        Network::Host => {
            let there = ["/etc/hosts", "/etc/resolv.conf"].into_iter().filter(|path| Path::new(path).is_file());
            files.extend(there.map(|path| bind(path, path, "ro")));
        }
    }
    Ok(files)
}

/// An OCI runtime that runs one bundle.
struct Runtime {
    program: PathBuf,
    bundle: PathBuf,
    id: String,
}

impl Runtime {
    /// The program with the options that come before its verb. Its notes of containers lie in the bundle, so that they end with it.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.state());
        command.arg("--log").arg(self.log()).args(["--log-format", "json"]);
        let is_crun = self.program.file_name().is_some_and(|name| name == "crun");
        let may_manage = rustix::process::geteuid().is_root() && !Ground::here().is_ok_and(|here| here.in_namespace);
        if is_crun && (!may_manage || Cgroups::here() == Cgroups::Both) {
            command.arg("--cgroup-manager=disabled");
        }
        command
    }

    fn state(&self) -> PathBuf {
        self.bundle.join("state")
    }

    /// Where the runtime says once more what it says on standard error.
    fn log(&self) -> PathBuf {
        self.bundle.join("runtime.log")
    }

    /// Where the runtime notes the container's process, once that is set up and its command was found.
    fn pid_file(&self) -> PathBuf {
        self.bundle.join("pid")
    }

    /// Docker's number, if the command was not run: the runtime ends with 1 then, as many a command does.
    fn refusal(&self, status: ExitStatus) -> Option<u8> {
        // Once there is a process, what it ends with counts, whatever the runtime complains of.
        if status.code().is_none_or(|code| code == 0) || self.pid_file().exists() {
            return None;
        }
        let log = fs::read_to_string(self.log()).unwrap_or_default(); // It may have had nothing to say.
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut errors = lines.filter(|line| matches!(line["level"].as_str(), Some("error" | "fatal")));
        let last = errors.next_back();
        Some(last.and_then(|line| line["msg"].as_str().map(code_of_refusal)).unwrap_or(NOT_RUN))
    }

    /// Starts the bundle; from now on, signals that we get are passed on.
    fn start(&self, args: &RunArgs, mut signals: Signals) -> Result<Child> {
        let wants_input = args.interactive || args.tty;
        // With the terminal the runtime gets the terminal's signals by itself; it would stop if it read from another group.
        let shares_terminal = wants_input && std::io::stdin().is_terminal();
        let mut command = self.command();
        command.arg("run").arg("--bundle").arg(&self.bundle).arg("--pid-file").arg(self.pid_file()).arg(&self.id);
        command.stdin(if wants_input { Stdio::inherit() } else { Stdio::null() });
        if !shares_terminal {
            command.process_group(0);
        }
        let child = command.spawn().with_context(|| self.program.display().to_string())?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        std::thread::spawn(move || {
            for number in signals.forever() {
                let from_terminal = shares_terminal && matches!(number, SIGINT | SIGQUIT);
                if let (Some(pid), Some(signal), false) = (pid, Signal::from_named_raw(number), from_terminal) {
                    kill_process(pid, signal).ok(); // It may have ended just now.
                }
            }
        });
        Ok(child)
    }

    /// Removes what the runtime still knows of the container, and kills what runs of it.
    fn delete(&self) -> Result<()> {
        if !self.state().join(&self.id).exists() {
            return Ok(());
        }
        let mut command = self.command();
        command.args([OsString::from("delete"), "--force".into(), self.id.clone().into()]);
        let output = command.stdin(Stdio::null()).output().with_context(|| self.program.display().to_string())?;
        match output.status.success() || !self.state().join(&self.id).exists() {
            true => Ok(()),
            false => bail!("{}: {}", self.program.display(), told(&output.stderr, output.status)),
        }
    }
}

/// Docker tells by the runtime's words as well (daemon/start_unix.go, in its translation of start errors).
fn code_of_refusal(why: &str) -> u8 {
    let why = why.to_ascii_lowercase();
    if why.contains("no such file or directory") || why.contains("not found in $path") {
        NOT_FOUND
    } else if ["permission denied", "exec format error", "open executable"].iter().any(|words| why.contains(words)) {
        NOT_EXECUTABLE
    } else {
        NOT_RUN
    }
}

fn told(stderr: &[u8], status: ExitStatus) -> String {
    let text = String::from_utf8_lossy(stderr);
    match text.trim().lines().last() {
        Some(line) => line.to_owned(),
        None => status.to_string(),
    }
}

fn find_runtime(given: Option<&str>) -> Result<PathBuf> {
    let further = |name: &str| FURTHER.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
    let find = |name: &str| namespace::on_path(name).or_else(|| further(name));
    match given {
        Some(path) if path.contains('/') => Ok(PathBuf::from(path)),
        Some(name) => find(name).ok_or_else(|| anyhow!("{name}: not found in PATH; install it, or name its path")),
        None => runtimes()
            .into_iter()
            .find_map(find)
            .ok_or_else(|| anyhow!("no OCI runtime found in PATH; install crun or runc, or name one with --runtime")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_refuses_has_dockers_numbers() {
        for (code, why) in [
            // crun 1.8.1, runc 1.1.5
            (127, "executable file `nosuchcmd` not found in $PATH: No such file or directory"),
            (
                127,
                "runc run failed: unable to start container process: exec: \"nosuchcmd\": executable file not found in $PATH",
            ),
            (
                127,
                "runc run failed: unable to start container process: exec: \"/no/such\": stat /no/such: no such file or directory",
            ),
            (126, "open executable: Permission denied"),
            (126, "open executable: Operation not permitted"),
            (126, "runc run failed: unable to start container process: exec: \"/etc\": permission denied"),
            (125, "cgroups in hybrid mode not supported, drop all controllers from cgroupv2"),
        ] {
            assert_eq!(code_of_refusal(why), code, "{why}");
        }
    }

    #[test]
    fn volumes_are_read_as_docker_reads_them() {
        let made = Volume::read("/tmp:/data:ro").unwrap();
        let host = Source::Host("/tmp".into());
        assert_eq!(made, Volume { source: host, target: "/data".into(), mode: "ro" });
        assert_eq!(Volume::read("/tmp:/data").unwrap().mode, "rw");
        assert_eq!(Volume::read("named:/data").unwrap().source, Source::Named("named".into()));
        assert!(matches!(Volume::read("./:/data").unwrap().source, Source::Host(_)));
        for wrong in ["/tmp", "/tmp:data", "/tmp:/data:z", "named", "named:data", "/not/there:/data", "", ":/data"] {
            let said = Volume::read(wrong).unwrap_err().to_string();
            assert!(said.starts_with(&format!("-v {wrong}: ")), "{said}");
        }
    }
}
