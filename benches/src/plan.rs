//! What is to be measured, and how long it may take.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};

/// A group of workloads that can be run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Mounting, walking the tree, names that are missing, opening.
    Meta,
    /// Reading: every file, and one large one.
    Data,
    /// Writing and making new files.
    Write,
    /// Changing what lies in the image.
    Cow,
    /// tar, dpkg, git, a compiler, rm.
    Programs,
    /// Starting containers, and what their daemons take.
    Start,
    /// What containers of one image share.
    Sharing,
    /// Stacks of 1, 32 and 128 layers.
    Depth,
    /// One to eight clients at once.
    Parallel,
    /// Loading images into a store.
    Store,
}

impl Group {
    /// Every group, in the order in which they run.
    pub const ALL: [Group; 10] = [
        Group::Meta,
        Group::Data,
        Group::Write,
        Group::Cow,
        Group::Programs,
        Group::Start,
        Group::Sharing,
        Group::Depth,
        Group::Parallel,
        Group::Store,
    ];

    /// Returns the word that is typed.
    pub fn name(self) -> &'static str {
        match self {
            Group::Meta => "meta",
            Group::Data => "data",
            Group::Write => "write",
            Group::Cow => "cow",
            Group::Programs => "programs",
            Group::Start => "start",
            Group::Sharing => "sharing",
            Group::Depth => "depth",
            Group::Parallel => "parallel",
            Group::Store => "store",
        }
    }

    /// Returns what the group is about.
    pub fn title(self) -> &'static str {
        match self {
            Group::Meta => "metadata",
            Group::Data => "reading",
            Group::Write => "writing",
            Group::Cow => "copy-on-write",
            Group::Programs => "real programs",
            Group::Start => "starting containers",
            Group::Sharing => "containers of one image",
            Group::Depth => "many layers",
            Group::Parallel => "several clients",
            Group::Store => "loading images",
        }
    }
}

impl FromStr for Group {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Group::ALL.into_iter().find(|group| group.name() == text) {
            Some(group) => Ok(group),
            None => bail!("no such group; there are {}", Group::ALL.map(Group::name).join(", ")),
        }
    }
}

/// How much time there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Length {
    /// About two minutes, small amounts: to see that it works.
    Quick,
    /// Ten minutes at most.
    #[default]
    Standard,
    /// The amounts of the published figures, five rounds, however long it takes.
    Full,
}

impl Length {
    /// Returns the word that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Length::Quick => "quick",
            Length::Standard => "standard",
            Length::Full => "full",
        }
    }

    /// Returns how long a run may take; `None` for as long as it needs.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Length::Quick => Some(Duration::from_secs(120)),
            Length::Standard => Some(Duration::from_secs(580)),
            Length::Full => None,
        }
    }

    /// Returns how often every scene is played if there is time.
    pub(crate) fn rounds(self) -> u32 {
        match self {
            Length::Quick => 3,
            Length::Standard | Length::Full => 5,
        }
    }

    pub(crate) fn sizes(self) -> Sizes {
        let pick = |quick, standard, full| match self {
            Length::Quick => quick,
            Length::Standard => standard,
            Length::Full => full,
        };
        Sizes {
            sample: pick(2_000, 10_000, 10_000) as u32,
            missing: pick(5_000, 20_000, 100_000) as u32,
            creates: pick(1_000, 5_000, 20_000) as u32,
            renames: pick(500, 2_000, 5_000) as u32,
            mkdirs: pick(500, 2_000, 2_000) as u32,
            big: pick(64 << 20, 1 << 30, 1 << 30),
            stream: pick(32 << 20, 512 << 20, 512 << 20),
            reads: pick(5_000, 50_000, 100_000) as u32,
            writes: pick(2_000, 20_000, 50_000) as u32,
            synced: pick(50, 300, 1_000) as u32,
            saves: pick(50, 200, 500) as u32,
            sources: pick(250, 2_000, 4_000) as u32,
            small: pick(1_000, 5_000, 20_000) as u32,
            branch: pick(1_000, 10_000, 100_000) as u32,
            deep: pick(2_000, 8_000, 8_000) as u32,
            deep_missing: pick(2_000, 20_000, 20_000) as u32,
            mounts: pick(10, 100, 100) as u32,
            containers: pick(5, 50, 50) as u32,
        }
    }
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Files of the generated image that stands in for a real one.
    pub(crate) sample: u32,
    /// Names looked up that are missing.
    pub(crate) missing: u32,
    /// Files made.
    pub(crate) creates: u32,
    /// Files renamed.
    pub(crate) renames: u32,
    /// Directories made.
    pub(crate) mkdirs: u32,
    /// The large lower file, in bytes.
    pub(crate) big: u64,
    /// What is read or written in one go, in bytes.
    pub(crate) stream: u64,
    /// Random reads.
    pub(crate) reads: u32,
    /// Random writes.
    pub(crate) writes: u32,
    /// Writes that are synced one by one.
    pub(crate) synced: u32,
    /// Files that are saved safely.
    pub(crate) saves: u32,
    /// Files of a source tree that programs unpack.
    pub(crate) sources: u32,
    /// Small lower files that are appended to.
    pub(crate) small: u32,
    /// Entries of the lower directory that is renamed.
    pub(crate) branch: u32,
    /// Files of the stacks of many layers.
    pub(crate) deep: u32,
    /// Names missing in those.
    pub(crate) deep_missing: u32,
    /// Mounts of one image.
    pub(crate) mounts: u32,
    /// Containers of one image that do something.
    pub(crate) containers: u32,
}

/// What the layers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A generated image of four layers.
    Generated,
    /// An image of the store, by name or ID.
    Loaded(String),
    /// An image elsewhere, in skopeo's spelling.
    Source(String),
    /// Directories in overlay format, topmost first.
    Dirs(Vec<PathBuf>),
}

impl Input {
    /// Returns what reports call it.
    pub(crate) fn label(&self) -> String {
        match self {
            Input::Generated => "a generated image".into(),
            Input::Loaded(name) => name.clone(),
            // The directory is the reader's business no more than ours.
            Input::Source(text) => text.rsplit_once('/').map_or(&text[..], |(_, last)| last).to_string(),
            Input::Dirs(dirs) => format!("{} directories", dirs.len()),
        }
    }
}

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which groups, in this order.
    pub groups: Vec<Group>,
    /// How long it may take.
    pub length: Length,
    /// The most rounds; the length's if not given.
    pub rounds: Option<u32>,
    /// The images; all groups use the first, `store` loads all. Never empty.
    pub inputs: Vec<Input>,
    /// Where the scratch directory is made.
    pub dir: PathBuf,
    /// The user's store, for images that are named.
    pub store: PathBuf,
    /// The `plyfs` program.
    pub program: PathBuf,
    /// Other fuse-overlayfs programs than the one in `PATH`.
    pub fuse_overlayfs: Vec<PathBuf>,
    /// Command templates of further contestants.
    pub mounters: Vec<String>,
    /// Options of further plyfs contestants.
    pub plyfs_options: Vec<String>,
    /// Options of further kernel overlayfs contestants.
    pub overlayfs_options: Vec<String>,
    /// Names of those contestants that take part; all if empty.
    pub only: Vec<String>,
    /// Names of contestants that do not take part.
    pub without: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_by_their_names() {
        for group in Group::ALL {
            assert_eq!(group.name().parse::<Group>().unwrap(), group);
        }
        let error = "fast".parse::<Group>().unwrap_err().to_string();
        assert!(error.contains("meta, data"), "{error}");
    }
}
