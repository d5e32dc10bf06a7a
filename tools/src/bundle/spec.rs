//! The runtime's `config.json`, made of an image's config and what was asked for. Pure: it looks at nothing on the host.
//!
//! The defaults are docker's: capabilities, masked and read-only paths, mounts. A seccomp profile is left out: it names system
//! calls by number and kernel, and belongs to whoever runs the host.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::Account;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The parts of an image's config that a process is made of.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ImageConfig {
    os: Option<String>,
    architecture: Option<String>,
    author: Option<String>,
    created: Option<String>,
    config: Option<Settings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, Value>>,
}

/// What was asked for beyond what the image says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Takes the place of the image's Cmd.
    pub(crate) command: Vec<String>,
    /// Takes the place of the image's Entrypoint, and of its Cmd.
    pub(crate) entrypoint: Option<String>,
    /// `NAME=VALUE`, or `NAME` to take none of it over.
    pub(crate) env: Vec<String>,
    pub(crate) workdir: Option<String>,
    pub(crate) user: Option<String>,
    /// Whether the root is shown read-only.
    pub(crate) read_only: bool,
    /// Whether the process shares the host's network.
    pub(crate) host_network: bool,
    pub(crate) terminal: bool,
    pub(crate) hostname: String,
    /// Further mounts, as `config.json` has them.
    pub(crate) mounts: Vec<Value>,
}

/// What the host lets a container have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ground {
    /// The user and group outside, of a user namespace that the runtime shall make.
    pub(crate) own_namespace: Option<(u32, u32)>,
    /// Whether all this happens in a user namespace already.
    pub(crate) in_namespace: bool,
    /// Whether the group of terminals (5) exists there.
    pub(crate) terminal_group: bool,
    /// Whether `/sys/fs/cgroup` can be mounted for the container.
    pub(crate) cgroup_mount: bool,
    /// Whether it is version 2 alone: then the container gets a cgroup namespace.
    pub(crate) cgroup_namespace: bool,
}

impl ImageConfig {
    /// # Errors
    /// A config that is not one; the store has none such.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|why| anyhow!("config of the image: {why}"))
    }

    /// Returns the `USER[:GROUP]` that the process runs as.
    pub(crate) fn user<'a>(&'a self, wanted: &'a Wanted) -> &'a str {
        let own = self.config.as_ref().and_then(|config| config.user.as_deref());
        wanted.user.as_deref().or(own).unwrap_or_default()
    }

    /// Returns `config.json`.
    ///
    /// # Errors
    /// No command; a variable without a name; a directory that is not absolute.
    pub(crate) fn to_runtime(&self, wanted: &Wanted, account: &Account, ground: &Ground) -> Result<Value> {
        let default = Settings::default();
        let settings = self.config.as_ref().unwrap_or(&default);
        let rootless = ground.in_namespace || ground.own_namespace.is_some();
        let mut namespaces: Vec<Value> =
            ["pid", "ipc", "uts", "mount"].iter().map(|kind| json!({ "type": kind })).collect();
        if !wanted.host_network {
            namespaces.push(json!({ "type": "network" }));
        }
        if ground.cgroup_namespace {
            namespaces.push(json!({ "type": "cgroup" }));
        }
        let mut linux = json!({ "maskedPaths": MASKED, "readonlyPaths": READ_ONLY });
        if !rootless {
            linux["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
        }
        if let Some((uid, gid)) = ground.own_namespace {
            namespaces.push(json!({ "type": "user" }));
            linux["uidMappings"] = json!([{ "containerID": 0, "hostID": uid, "size": 1 }]);
            linux["gidMappings"] = json!([{ "containerID": 0, "hostID": gid, "size": 1 }]);
        }
        linux["namespaces"] = Value::Array(namespaces);
        let mut mounts = default_mounts(wanted, ground, rootless);
        mounts.extend(wanted.mounts.iter().cloned());
        Ok(json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs", "readonly": wanted.read_only },
            "hostname": wanted.hostname,
            "process": {
                "terminal": wanted.terminal,
                "user": {
                    "uid": account.uid, "gid": account.gid, "additionalGids": account.groups, "umask": 0o022,
                },
                "args": arguments(settings, wanted)?,
                "env": environment(settings, wanted, account)?,
                "cwd": directory(settings, wanted)?,
                "capabilities": {
                    "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
                },
                "noNewPrivileges": false,
            },
            "mounts": mounts,
            "annotations": self.annotations(settings),
            "linux": linux,
        }))
    }

    /// Labels, and what else the image-spec's conversion page carries over (conversion.md); labels win.
    fn annotations(&self, settings: &Settings) -> BTreeMap<String, String> {
        let ports = settings.exposed_ports.as_ref().map(|ports| ports.keys().cloned().collect::<Vec<_>>().join(","));
        let derived = [
            ("os", &self.os),
            ("architecture", &self.architecture),
            ("author", &self.author),
            ("created", &self.created),
            ("stopSignal", &settings.stop_signal),
            ("exposedPorts", &ports),
        ];
        let derived = derived.into_iter().filter_map(|(name, value)| {
            let value = value.as_ref().filter(|value| !value.is_empty())?;
            Some((format!("org.opencontainers.image.{name}"), value.clone()))
        });
        derived.chain(settings.labels.clone().unwrap_or_default()).collect()
    }
}

fn arguments(settings: &Settings, wanted: &Wanted) -> Result<Vec<String>> {
    let own = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut words = match &wanted.entrypoint {
        Some(program) if program.is_empty() => Vec::new(),
        Some(program) => vec![program.clone()],
        None => own(&settings.entrypoint),
    };
    match wanted.command.is_empty() && wanted.entrypoint.is_none() {
        true => words.extend(own(&settings.cmd)),
        false => words.extend(wanted.command.iter().cloned()),
    }
    match words.first().is_none_or(String::is_empty) {
        true => bail!("the image names no command; give one after its name"),
        false => Ok(words),
    }
}

fn environment(settings: &Settings, wanted: &Wanted, account: &Account) -> Result<Vec<String>> {
    let mut variables = vec![PATH.to_owned(), format!("HOSTNAME={}", wanted.hostname)];
    if wanted.terminal {
        variables.push("TERM=xterm".into());
    }
    let mut set = |variable: &str| {
        let name = variable.split('=').next().unwrap_or_default();
        variables.retain(|old| old.split('=').next() != Some(name));
        if variable.contains('=') {
            variables.push(variable.to_owned());
        }
    };
    settings.env.iter().flatten().for_each(|variable| set(variable));
    for variable in &wanted.env {
        match variable.starts_with('=') || variable.is_empty() {
            true => bail!("-e '{variable}': no name; write NAME=VALUE, or NAME to pass your own value on"),
            false => set(variable),
        }
    }
    if !variables.iter().any(|variable| variable.starts_with("HOME=")) {
        variables.push(format!("HOME={}", account.home));
    }
    Ok(variables)
}

fn directory(settings: &Settings, wanted: &Wanted) -> Result<String> {
    match (&wanted.workdir, &settings.working_dir) {
        (Some(given), _) if given.starts_with('/') => Ok(given.clone()),
        (Some(given), _) => bail!("-w {given}: not absolute; begin it with /"),
        (None, Some(own)) if own.starts_with('/') => Ok(own.clone()),
        (None, Some(own)) => Ok(format!("/{own}")),
        (None, None) => Ok("/".into()),
    }
}

fn default_mounts(wanted: &Wanted, ground: &Ground, rootless: bool) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if ground.terminal_group {
        terminals.push("gid=5");
    }
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &terminals),
        match rootless && wanted.host_network {
            // The kernel lets only who owns the network namespace mount its sysfs.
            true => mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]),
            false => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        },
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ];
    if ground.cgroup_mount && !(rootless && wanted.host_network) {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]));
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = r#"{"os":"linux","architecture":"amd64","created":"2026-01-02T03:04:05Z","rootfs":{},
        "config":{"User":"redis","Env":["A=1","PATH=/own","B="],"Entrypoint":["/start"],"Cmd":["serve","--now"],
        "WorkingDir":"/data","Labels":{"org.opencontainers.image.os":"label","x":"y"},"StopSignal":"SIGINT",
        "ExposedPorts":{"80/tcp":{},"53/udp":{}}}}"#;

    fn account() -> Account {
        Account { uid: 999, gid: 998, groups: vec![6], home: "/home/redis".into() }
    }

    fn made(image: &str, wanted: &Wanted, ground: &Ground) -> Result<Value> {
        ImageConfig::parse(image.as_bytes()).unwrap().to_runtime(wanted, &account(), ground)
    }

    #[test]
    fn image_config_becomes_a_process() {
        let wanted = Wanted { hostname: "box".into(), env: vec!["A=2".into(), "C=3=4".into()], ..Wanted::default() };
        let config = made(IMAGE, &wanted, &Ground::default()).unwrap();
        let process = &config["process"];
        assert_eq!(process["args"], json!(["/start", "serve", "--now"]));
        assert_eq!(process["env"], json!(["HOSTNAME=box", "PATH=/own", "B=", "A=2", "C=3=4", "HOME=/home/redis"]));
        assert_eq!(process["cwd"], "/data");
        assert_eq!(process["user"], json!({"uid": 999, "gid": 998, "additionalGids": [6], "umask": 0o022}));
        assert_eq!(config["hostname"], "box");
        let annotations = json!({
            "org.opencontainers.image.os": "label",
            "org.opencontainers.image.architecture": "amd64",
            "org.opencontainers.image.created": "2026-01-02T03:04:05Z",
            "org.opencontainers.image.stopSignal": "SIGINT",
            "org.opencontainers.image.exposedPorts": "53/udp,80/tcp",
            "x": "y",
        });
        assert_eq!(config["annotations"], annotations);
        assert_eq!(config["root"], json!({"path": "rootfs", "readonly": false}));
    }

    #[test]
    fn empty_config_gets_defaults() {
        for image in ["{}", r#"{"config":null}"#, r#"{"config":{"Env":null,"Cmd":null,"WorkingDir":null}}"#] {
            let wanted = Wanted { command: vec!["sh".into()], ..Wanted::default() };
            let config = made(image, &wanted, &Ground::default()).unwrap();
            assert_eq!(config["process"]["env"][0], PATH);
            assert_eq!(config["process"]["cwd"], "/");
            let said = made(image, &Wanted::default(), &Ground::default()).unwrap_err().to_string();
            assert!(said.contains("no command"), "{said}");
        }
    }

    #[test]
    fn command_and_entrypoint_of_the_caller_win() {
        let args = |command: &[&str], entrypoint: Option<&str>| {
            let command = command.iter().map(|word| word.to_string()).collect();
            let wanted = Wanted { command, entrypoint: entrypoint.map(str::to_owned), ..Wanted::default() };
            made(IMAGE, &wanted, &Ground::default()).unwrap()["process"]["args"].clone()
        };
        assert_eq!(args(&["ls"], None), json!(["/start", "ls"]));
        assert_eq!(args(&["-l"], Some("ls")), json!(["ls", "-l"]));
        assert_eq!(args(&[], Some("ls")), json!(["ls"]));
        assert_eq!(args(&["ls"], Some("")), json!(["ls"]));
    }

    #[test]
    fn wrong_wishes_are_refused() {
        let env = Wanted { env: vec!["=x".into()], ..Wanted::default() };
        assert!(made(IMAGE, &env, &Ground::default()).is_err());
        let workdir = Wanted { workdir: Some("data".into()), ..Wanted::default() };
        assert!(made(IMAGE, &workdir, &Ground::default()).is_err());
    }

    #[test]
    fn user_namespace_gets_what_it_may_have() {
        let kinds = |config: &Value| -> Vec<String> {
            let list = config["linux"]["namespaces"].as_array().unwrap().iter();
            list.map(|namespace| namespace["type"].as_str().unwrap().to_owned()).collect()
        };
        let options = |config: &Value, at: &str| {
            let mounts = config["mounts"].as_array().unwrap();
            mounts.iter().find(|mount| mount["destination"] == at).map(|mount| mount["options"].to_string())
        };
        let host = Wanted { host_network: true, ..Wanted::default() };
        let root = Ground { terminal_group: true, cgroup_mount: true, cgroup_namespace: true, ..Ground::default() };
        let config = made(IMAGE, &Wanted::default(), &root).unwrap();
        assert_eq!(kinds(&config), ["pid", "ipc", "uts", "mount", "network", "cgroup"]);
        assert!(options(&config, "/dev/pts").unwrap().contains("gid=5"));
        assert!(options(&config, "/sys/fs/cgroup").is_some());
        assert!(config["linux"]["resources"].is_object());
        let config = made(IMAGE, &host, &Ground { own_namespace: Some((1000, 100)), ..Ground::default() }).unwrap();
        assert_eq!(kinds(&config), ["pid", "ipc", "uts", "mount", "user"]);
        assert_eq!(config["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": 1000, "size": 1}]));
        assert!(!options(&config, "/dev/pts").unwrap().contains("gid=5"));
        assert!(options(&config, "/sys").unwrap().contains("rbind"));
        assert!(config["linux"]["resources"].is_null());
    }
}
