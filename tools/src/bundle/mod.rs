//! Bundles for OCI runtimes: a mounted `rootfs` with a `config.json` beside it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{getegid, geteuid};
use serde_json::Value;
use store::{Image, Store};

use crate::cli::BundleArgs;
use crate::mounts::{self, Subject};

pub(crate) mod account;
pub(crate) mod run;
pub(crate) mod spec;

use account::Account;
use spec::{Ground, ImageConfig, Wanted};

pub(crate) const ROOTFS: &str = "rootfs";
const CONFIG: &str = "config.json";

/// `plyfs bundle`
pub(crate) fn bundle(store: &Store, args: &BundleArgs, out: &mut dyn Write) -> Result<()> {
    let subject = mounts::find(store, &args.name, None)?;
    let (rootfs, config) = (args.dir.join(ROOTFS), args.dir.join(CONFIG));
    if config.symlink_metadata().is_ok() {
        bail!("{}: there already; choose an empty directory", config.display());
    }
    fs::create_dir_all(&rootfs).map_err(|error| anyhow!("{}: {}", rootfs.display(), crate::reason(&error)))?;
    let mut wanted = Wanted { command: args.command.clone(), ..Wanted::default() };
    let (image, target) = match subject {
        Subject::Container(container) => {
            wanted.hostname = container.short_id().to_owned();
            let image = store.image_by_id(container.image)?;
            (image, mounts::mount_container(store, &container, &rootfs, &args.options)?)
        }
        Subject::Image(image) => {
            wanted.hostname = image.id.short();
            wanted.read_only = true;
            let target = mounts::mount_image(store, &image, &rootfs, &args.options)?;
            (image, target)
        }
    };
    let ground = Ground::here()?;
    if let Err(error) = write_config(&image, &wanted, &ground, &args.dir) {
        mounts::leave_target(store, &target)?;
        return Err(error);
    }
    writeln!(out, "{}", args.dir.display())?;
    Ok(())
}

/// Writes `config.json` for the image that is mounted on `dir/rootfs`.
pub(crate) fn write_config(image: &Image, wanted: &Wanted, ground: &Ground, dir: &Path) -> Result<()> {
    let parsed = ImageConfig::parse(&image.config)?;
    let account = account::find(&dir.join(ROOTFS), parsed.user(wanted))?;
    let account = ground.admit(account)?;
    let config = parsed.to_runtime(wanted, &account, ground)?;
    let path = dir.join(CONFIG);
    write_new(&path, &config).map_err(|error| anyhow!("{}: {}", path.display(), crate::reason(&error)))
}

fn write_new(path: &Path, config: &Value) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    serde_json::to_writer_pretty(&mut file, config)?;
    file.write_all(b"\n")
}

impl Ground {
    /// Looks at what this process is and what the host has.
    ///
    /// # Errors
    /// `/proc` that cannot be read.
    pub(crate) fn here() -> Result<Self> {
        let own_namespace = match geteuid().is_root() {
            true => None,
            false => Some((geteuid().as_raw(), getegid().as_raw())),
        };
        let in_namespace = !mapping("uid_map")?.iter().any(|map| map.first == 0 && map.count == u32::MAX);
        let cgroups = Cgroups::here();
        let rootless = in_namespace || own_namespace.is_some();
        Ok(Ground {
            own_namespace,
            in_namespace,
            terminal_group: own_namespace.is_none() && is_mapped("gid_map", 5)?,
            cgroup_mount: cgroups == Cgroups::Second || cgroups == Cgroups::First && !rootless,
            cgroup_namespace: cgroups == Cgroups::Second,
        })
    }

    /// Leaves out groups that do not exist here.
    ///
    /// # Errors
    /// A user or group that does not exist here.
    fn admit(&self, mut account: Account) -> Result<Account> {
        let exists = |file: &str, id: u32| match self.own_namespace {
            Some(_) => Ok(id == 0),
            None => is_mapped(file, id),
        };
        if !exists("uid_map", account.uid)? || !exists("gid_map", account.gid)? {
            bail!(
                "user {}:{} does not exist in this user namespace; run as root of the image with -u 0, or get a range of IDs \
                 (package uidmap, and a line in /etc/subuid and /etc/subgid)",
                account.uid,
                account.gid
            );
        }
        let mut groups = Vec::new();
        for gid in account.groups {
            if exists("gid_map", gid)? {
                groups.push(gid);
            }
        }
        account.groups = groups;
        Ok(account)
    }
}

/// A line of `/proc/self/uid_map`.
struct Mapping {
    first: u32,
    count: u32,
}

fn mapping(file: &str) -> Result<Vec<Mapping>> {
    let path = format!("/proc/self/{file}");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let read = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let (Some(Ok(first)), Some(Ok(count))) = (numbers.next(), numbers.nth(1)) else {
            return Err(anyhow!("{path}: '{line}' is not understood"));
        };
        Ok(Mapping { first, count })
    };
    text.lines().map(read).collect()
}

fn is_mapped(file: &str, id: u32) -> Result<bool> {
    Ok(mapping(file)?.iter().any(|map| id >= map.first && id - map.first < map.count))
}

/// Which control groups the host has at `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cgroups {
    None,
    First,
    Second,
    /// Both: no runtime mounts that for a container, and crun wants nothing to do with it.
    Both,
}

impl Cgroups {
    pub(crate) fn here() -> Self {
        const SECOND: i128 = 0x6367_7270; // CGROUP2_SUPER_MAGIC
        let kind = |path: &str| rustix::fs::statfs(path).ok().map(|found| i128::from(found.f_type));
        match kind("/sys/fs/cgroup") {
            None => Cgroups::None,
            Some(SECOND) => Cgroups::Second,
            Some(_) if kind("/sys/fs/cgroup/unified") == Some(SECOND) => Cgroups::Both,
            Some(_) if Path::new("/sys/fs/cgroup/devices").is_dir() => Cgroups::First,
            Some(_) => Cgroups::None,
        }
    }
}
