//! Who is measured: one way to mount a stack each, told apart by name.

mod command;
mod daemon;
mod mounted;
mod overlayfs;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use mountd::options::{spell, spell_list};

use crate::plan::Plan;
use crate::report::{ContestantNote, LeftOut};
use crate::scratch::Scratch;
use crate::stack::Stack;

use command::Template;
use daemon::Daemon;
pub(crate) use mounted::Mounted;

/// What everybody is compared with, where it can run.
pub(crate) const OVERLAYFS: &str = "overlayfs";
/// The floor.
pub(crate) const PLAIN: &str = "plain";

/// One way to see a stack as one directory.
#[derive(Debug)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    /// What it is, with its version or options.
    pub(crate) about: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The merged tree as it lies on the disk.
    Plain,
    /// The kernel's, with these options beside the directories.
    Overlayfs(String),
    /// Ours.
    Plyfs { program: PathBuf, lower: PlyfsLower, options: Option<String> },
    /// A program.
    Command(Template),
}

/// What ours is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PlyfsLower {
    /// The folded index of a store.
    Folded,
    /// The layers' directories.
    Dirs,
}

/// Where a contestant mounts.
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    pub(crate) mnt: PathBuf,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

impl Place {
    pub(crate) fn make(scratch: &Scratch) -> Result<Self> {
        let dir = scratch.fresh("m")?;
        let make = |name: &str| {
            let path = dir.join(name);
            std::fs::create_dir(&path).map(|()| path)
        };
        Ok(Place { mnt: make("mnt")?, upper: make("upper")?, work: make("work")?, dir })
    }

    /// Where a program's messages go.
    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Contestant {
    /// Returns the contestants of a plan, and who of those asked for cannot take part, with the reason.
    pub(crate) fn of_plan(plan: &Plan) -> Result<(Vec<Self>, Vec<LeftOut>)> {
        let mut all = vec![Self::overlayfs("")];
        let mut left_out = Vec::new();
        all.extend(plan.overlayfs_options.iter().map(|options| Self::overlayfs(options)));
        for options in std::iter::once(None).chain(plan.plyfs_options.iter().map(Some)) {
            all.push(Self::plyfs(&plan.program, PlyfsLower::Folded, options));
            all.push(Self::plyfs(&plan.program, PlyfsLower::Dirs, options));
        }
        let found = on_path("fuse-overlayfs");
        if found.is_none() && plan.fuse_overlayfs.is_empty() {
            let why = "not found in PATH; install it, or name it with --fuse-overlayfs";
            left_out.push(LeftOut::new("fuse-overlayfs", why));
        }
        for program in plan.fuse_overlayfs.iter().chain(&found) {
            match Self::fuse_overlayfs(program) {
                Ok(one) if all.iter().any(|other: &Self| other.name == one.name) => {}
                Ok(one) => all.push(one),
                Err(error) => left_out.push(LeftOut::new(program.display(), format_args!("{error:#}"))),
            }
        }
        for text in &plan.mounters {
            all.push(Self::mounter(text)?);
        }
        all.push(Contestant {
            name: PLAIN.into(),
            about: "the merged tree as a plain directory: the floor".into(),
            kind: Kind::Plain,
        });
        for name in plan.only.iter().chain(&plan.without) {
            if !all.iter().any(|one| one.name == *name) {
                let names: Vec<&str> = all.iter().map(|one| &one.name[..]).collect();
                bail!("{name}: no such contestant; there are {}", names.join(", "));
            }
        }
        let is_wanted =
            |one: &Self| (plan.only.is_empty() || plan.only.contains(&one.name)) && !plan.without.contains(&one.name);
        let (with, without): (Vec<_>, Vec<_>) = all.into_iter().partition(is_wanted);
        left_out.extend(without.iter().map(|one| LeftOut::new(&one.name, "not wanted")));
        Ok((with, left_out))
    }

    fn overlayfs(options: &str) -> Self {
        let (name, about) = match options {
            "" => (OVERLAYFS.to_string(), "the kernel's overlayfs".to_string()),
            options => (format!("{OVERLAYFS} {options}"), format!("the kernel's overlayfs with {options}")),
        };
        Contestant { name, about, kind: Kind::Overlayfs(options.to_string()) }
    }

    fn plyfs(program: &Path, lower: PlyfsLower, options: Option<&String>) -> Self {
        let (name, on) = match lower {
            PlyfsLower::Folded => ("plyfs", "the folded image of a store"),
            PlyfsLower::Dirs => ("plyfs dirs", "the layers' plain directories"),
        };
        let (suffix, with) = match options {
            Some(options) => (format!(" {options}"), format!(" with {options}")),
            None => Default::default(),
        };
        Contestant {
            name: format!("{name}{suffix}"),
            about: format!("plyfs {} on {on}{with}", env!("CARGO_PKG_VERSION")),
            kind: Kind::Plyfs { program: program.to_path_buf(), lower, options: options.cloned() },
        }
    }

    fn fuse_overlayfs(program: &Path) -> Result<Self> {
        let output = Command::new(program).arg("--version").output().context("cannot be started")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if text.contains("plyfs") {
            bail!("it is plyfs under another name");
        }
        let digits = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
        let mut first = text.lines().find(|line| line.contains("fuse-overlayfs")).unwrap_or(&text).split_whitespace();
        let version = first.find(digits).context("it does not say its version")?;
        let template = format!("{} -o lowerdir={{lower}},upperdir={{upper}},workdir={{work}} {{mnt}}", "PROGRAM");
        let template = Template::parse(&template)?.with_program(program);
        let name = format!("fuse-overlayfs {version}");
        Ok(Contestant { about: name.clone(), name, kind: Kind::Command(template) })
    }

    fn mounter(text: &str) -> Result<Self> {
        let template = Template::parse(text).with_context(|| format!("--mounter '{text}'"))?;
        let name = template.program().file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Contestant { name, about: text.to_string(), kind: Kind::Command(template) })
    }

    pub(crate) fn note(&self) -> ContestantNote {
        ContestantNote { name: self.name.clone(), about: self.about.clone() }
    }

    /// Tells whether there is nothing to mount.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Plain)
    }

    /// Tells whether it wants the layers' directories.
    pub(crate) fn wants_layers(&self) -> bool {
        match self.kind {
            Kind::Plain => false,
            Kind::Overlayfs(_) | Kind::Command(_) => true,
            Kind::Plyfs { lower, .. } => lower == PlyfsLower::Dirs,
        }
    }

    /// Returns the program whose `mount` command people type, if it is ours on an image, without options.
    pub(crate) fn command(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Plyfs { program, lower: PlyfsLower::Folded, options: None } => Some(program),
            _ => None,
        }
    }

    /// Mounts a stack, with an empty upper; returns when the mount answers.
    ///
    /// # Errors
    /// What the contestant said.
    pub(crate) fn mount(&self, stack: &Stack, place: Place) -> Result<Mounted> {
        let daemon = match &self.kind {
            Kind::Plain => {
                let merged = stack.merged.clone().context("there is no merged directory of these layers")?;
                return Ok(Mounted::plain(merged, place));
            }
            Kind::Overlayfs(options) => {
                overlayfs::mount_stack(&stack.layers, &place, options)?;
                Daemon::None
            }
            Kind::Plyfs { program, lower, options } => {
                let words = plyfs_words(stack, *lower, options.as_deref(), &place)?;
                Daemon::Ours(mountd::spawn(&daemon_of(program), &words)?)
            }
            Kind::Command(template) => template.mount(&stack.layers, &place)?,
        };
        let mounted = Mounted::new(place, daemon);
        rustix::fs::stat(mounted.root()).with_context(|| format!("stat {}", mounted.root().display()))?;
        Ok(mounted)
    }
}

fn plyfs_words(stack: &Stack, lower: PlyfsLower, options: Option<&str>, place: &Place) -> Result<Vec<OsString>> {
    let mut all = Vec::new();
    match lower {
        PlyfsLower::Folded => {
            let stored = stack.stored.as_ref().context("these layers are not an image")?;
            all.push(spell("plyfs.index", &stored.lower.index));
            all.push(spell("plyfs.objects", &stored.lower.objects));
            all.push(spell("plyfs.layers", &stored.lower.layers));
        }
        PlyfsLower::Dirs => all.push(spell_list("lowerdir", &stack.layers)),
    }
    all.push(spell("upperdir", &place.upper));
    all.push(spell("workdir", &place.work));
    all.push(spell("plyfs.log", place.log()));
    all.extend(options.map(OsString::from));
    let mut words: Vec<OsString> = all.into_iter().flat_map(|option| ["-o".into(), option]).collect();
    words.push(place.mnt.clone().into());
    Ok(words)
}

/// Returns the daemon that runtimes start, if it lies beside `plyfs`; else `plyfs` is the daemon, as for `plyfs mount`.
fn daemon_of(program: &Path) -> PathBuf {
    let beside = program.with_file_name("plyfs-mountd");
    if beside.is_file() { beside } else { program.to_path_buf() }
}

/// Finds a program as a shell does.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}
