//! What is measured: scenes, each played by every contestant in every round, and the rows that they fill.

mod cow;
mod data;
mod depth;
mod meta;
mod parallel;
mod programs;
mod sharing;
mod start;
mod tree;
mod write;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;

use crate::contestants::{Contestant, Mounted, Place};
use crate::interrupt;
use crate::machine::{self, Caches};
use crate::plan::{Group, Sizes};
use crate::scratch::Scratch;
use crate::stack::{self, Stack};
use crate::units::Unit;

pub(crate) use tree::{Survey, survey};

/// A sequence of measurements that belong together, on one stack.
pub(crate) struct Scene {
    pub(crate) group: Group,
    /// What progress and complaints call it.
    pub(crate) name: String,
    pub(crate) stack: stack::Kind,
    pub(crate) rows: Vec<RowSpec>,
    /// About how long a round of all contestants takes in a standard run, in seconds: shares out the time.
    pub(crate) weight: f64,
    /// Who can play it at all.
    pub(crate) fits: fn(&Contestant) -> bool,
    /// Whether these layers have what it needs; else why not.
    pub(crate) possible: fn(&Survey) -> Result<(), &'static str>,
    pub(crate) play: Play,
}

/// What a contestant does in a scene.
pub(crate) type Play = Box<dyn Fn(&mut Stage<'_>) -> Result<()>>;

/// A row of the report.
#[derive(Clone, Debug)]
pub(crate) struct RowSpec {
    /// What programs call it.
    pub(crate) key: String,
    pub(crate) title: String,
    pub(crate) unit: Unit,
    /// Whether the kernel's caches have to be emptied for it.
    pub(crate) cold: bool,
}

/// Begins the list of a scene's rows.
fn row(key: &str, title: impl Into<String>) -> RowSpec {
    RowSpec { key: key.into(), title: title.into(), unit: Unit::Seconds, cold: false }
}

impl RowSpec {
    fn cold(self) -> Self {
        RowSpec { cold: true, ..self }
    }

    fn bytes(self) -> Self {
        RowSpec { unit: Unit::Bytes, ..self }
    }
}

/// Returns the scenes of the groups, in their order.
pub(crate) fn scenes(groups: &[Group], sizes: &Sizes) -> Vec<Scene> {
    groups
        .iter()
        .flat_map(|group| match group {
            Group::Meta => meta::scenes(sizes),
            Group::Data => data::scenes(sizes),
            Group::Write => write::scenes(sizes),
            Group::Cow => cow::scenes(sizes),
            Group::Programs => programs::scenes(sizes),
            Group::Sharing => sharing::scenes(sizes),
            Group::Start => start::scenes(sizes),
            Group::Depth => depth::scenes(sizes),
            Group::Parallel => parallel::scenes(sizes),
            // It has contestants of its own.
            Group::Store => Vec::new(),
        })
        .collect()
}

fn always(_: &Survey) -> Result<(), &'static str> {
    Ok(())
}

fn everybody(_: &Contestant) -> bool {
    true
}

fn whoever_mounts(contestant: &Contestant) -> bool {
    !contestant.is_plain()
}

/// One contestant's turn in one round of a scene.
pub(crate) struct Stage<'a> {
    pub(crate) scratch: &'a Scratch,
    pub(crate) contestant: &'a Contestant,
    pub(crate) stack: &'a Stack,
    pub(crate) survey: &'a Survey,
    pub(crate) sizes: &'a Sizes,
    pub(crate) caches: Caches,
    /// Row keys and what was measured.
    pub(crate) samples: Vec<(String, f64)>,
}

impl Stage<'_> {
    /// Mounts the stack anew, with an empty upper.
    fn mount(&self) -> Result<Mounted> {
        self.contestant.mount(self.stack, self.place()?)
    }

    fn place(&self) -> Result<Place> {
        Place::make(self.scratch)
    }

    /// Has the disk written all, so that nobody pays for what came before.
    fn settle(&self) -> Result<()> {
        self.scratch.sync()
    }

    /// Empties the caches; `false` where that is not allowed: then the cold part is not played.
    fn chill(&self) -> Result<bool> {
        let may = self.caches == Caches::Drop;
        if may {
            self.settle()?;
            machine::drop_caches()?;
        }
        Ok(may)
    }

    /// Measures how long `work` takes.
    fn time<T>(&mut self, row: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        interrupt::check()?;
        let began = Instant::now();
        let done = work()?;
        self.record(row, began.elapsed().as_secs_f64());
        Ok(done)
    }

    /// Mounts with empty caches, and measures how long `work` takes then; `None` where caches cannot be emptied.
    fn time_cold<T>(&mut self, row: &str, work: impl FnOnce(&Path) -> Result<T>) -> Result<Option<Mounted>> {
        if !self.chill()? {
            return Ok(None);
        }
        let mounted = self.mount()?;
        self.time(row, || work(mounted.root()))?;
        Ok(Some(mounted))
    }

    fn record(&mut self, row: &str, value: f64) {
        self.samples.push((row.to_string(), value));
    }
}

/// Spells paths below `root` as the kernel takes them, so that a measurement need not.
fn spelled<'p>(root: &Path, paths: impl IntoIterator<Item = &'p PathBuf>) -> Result<Vec<CString>> {
    paths.into_iter().map(|path| spell(root, path)).collect()
}

fn spell(root: &Path, path: impl AsRef<Path>) -> Result<CString> {
    Ok(CString::new(root.join(path).as_os_str().as_bytes())?)
}

/// Says an amount in a row's title: `20,000`.
fn amount(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rows_have_names_of_their_own() {
        let mut keys = HashSet::new();
        for scene in scenes(&Group::ALL, &crate::Length::Standard.sizes()) {
            assert!(!scene.rows.is_empty() && scene.weight > 0.0, "{}", scene.name);
            for row in scene.rows {
                assert!(keys.insert(row.key.clone()), "{} twice", row.key);
            }
        }
    }

    #[test]
    fn amounts_are_grouped() {
        assert_eq!([1, 999, 1000, 20_000, 1_234_567].map(amount), ["1", "999", "1,000", "20,000", "1,234,567"]);
    }
}
