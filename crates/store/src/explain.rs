//! Why a path is what it is: which layer won, and which whiteouts, opaque directories and redirects were met on the way.

use std::os::fd::OwnedFd;

use layer::index::{Index, Row, RowData, RowKind};
use layer::{DiffId, FileType, Name, Slot, TreePath};
use rustix::fs::{Mode, OFlags};

use crate::containers::Container;
use crate::diff::upper::{self, Redirect};
use crate::error::{Error, Result};
use crate::images::Image;
use crate::store::Store;

/// What is known of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The path that was asked for.
    pub path: TreePath,
    /// What was met, topmost first.
    pub steps: Vec<Step>,
}

/// One thing that was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub place: Place,
    /// The path it has there; differs from the one asked for above what decides, and below a redirect.
    pub path: TreePath,
    /// What it is.
    pub met: Met,
    /// This is what programs see.
    pub wins: bool,
}

/// Where something lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the container's own layer.
    Upper,
    /// In a layer of the image: its position (0 is the base) and its diffID.
    Layer(usize, DiffId),
}

/// What was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met {
    /// An entry: its kind, permissions, owner, group, and size in bytes.
    Entry {
        /// The kind.
        kind: FileType,
        /// Permission bits.
        perm: u16,
        /// The owner.
        uid: u32,
        /// The group.
        gid: u32,
        /// Size in bytes.
        size: u64,
    },
    /// Owner, mode and times of a file whose body is further down.
    Metadata,
    /// A whiteout: hides what is further down.
    Whiteout,
    /// An opaque directory: hides what its lower namesakes hold.
    Opaque,
    /// The directory was moved here: further down it is looked for under this path.
    Redirect(TreePath),
    /// Something that is no directory, where the path needs one: hides what is further down.
    NotADirectory(FileType),
}

impl Explanation {
    /// Returns what programs see at the path; `None` when there is nothing.
    pub fn winner(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.wins)
    }
}

/// What is to be looked for further down.
enum Below {
    At(TreePath),
    Hidden,
}

impl Store {
    /// Explains a path of a container.
    ///
    /// # Errors
    /// The disk; layers that are gone.
    pub fn explain_container(&self, container: &Container, path: &TreePath) -> Result<Explanation> {
        crate::diff::not_aufs(container)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(&container.upper, flags, Mode::empty()).map_err(Error::at("open", &container.upper))?;
        let mut steps = Vec::new();
        let below = look_in_upper(root, path, &mut steps).map_err(Error::at("look in", &container.upper))?;
        if let Below::At(lower) = below {
            self.look_in_layers(&container.diff_ids, lower, &mut steps)?;
        }
        Ok(decided(path, steps))
    }

    /// Explains a path of an image.
    ///
    /// # Errors
    /// The disk; layers that are gone.
    pub fn explain_image(&self, image: &Image, path: &TreePath) -> Result<Explanation> {
        let mut steps = Vec::new();
        self.look_in_layers(&image.diff_ids, path.clone(), &mut steps)?;
        Ok(decided(path, steps))
    }

    fn look_in_layers(&self, layers: &[DiffId], path: TreePath, steps: &mut Vec<Step>) -> Result<()> {
        for (number, diff_id) in layers.iter().enumerate().rev() {
            let index = self.layer_index(diff_id)?;
            let place = Place::Layer(number, *diff_id);
            if let Below::Hidden = look_in_layer(&index, place, &path, steps) {
                break;
            }
        }
        Ok(())
    }
}

fn decided(path: &TreePath, mut steps: Vec<Step>) -> Explanation {
    // The first that says anything of the path itself decides; a metadata-only copy is what programs see, too.
    let decides = |step: &Step| !matches!(step.met, Met::Opaque | Met::Redirect(_));
    if let Some(first) = steps.iter_mut().find(|step| decides(step)) {
        first.wins = matches!(first.met, Met::Entry { .. } | Met::Metadata);
    }
    Explanation { path: path.clone(), steps }
}

fn look_in_upper(
    root: OwnedFd,
    path: &TreePath,
    steps: &mut Vec<Step>,
) -> std::result::Result<Below, rustix::io::Errno> {
    let mut dir = root;
    let mut here = TreePath::root();
    let mut lower = Some(TreePath::root());
    let names: Vec<_> = path.names().collect();
    for (at, name) in names.iter().enumerate() {
        let last = at + 1 == names.len();
        here.push(*name);
        let step = |path: &TreePath, met| Step { place: Place::Upper, path: path.clone(), met, wins: false };
        let beside = lower.clone();
        lower = lower.map(|lower| lower.join(*name));
        let Some(found) = upper::find(&dir, *name)? else {
            return Ok(rest(lower, &names[at + 1..]));
        };
        if found.whiteout {
            steps.push(step(&here, Met::Whiteout));
            return Ok(Below::Hidden);
        }
        if let Some(redirect) = &found.redirect {
            lower = match redirect {
                Redirect::From(path) => Some(path.clone()),
                Redirect::Beside(name) => beside.map(|beside| beside.join(name.as_name())),
                Redirect::Bad => None,
            };
            steps.extend(lower.clone().map(|from| step(&here, Met::Redirect(from))));
        }
        if last {
            let stat = &found.stat;
            let entry = Met::Entry { kind: stat.kind, perm: stat.perm, uid: stat.uid, gid: stat.gid, size: stat.size };
            steps.push(step(&here, if found.metacopy { Met::Metadata } else { entry }));
        } else if !found.is_dir() {
            steps.push(step(&here, Met::NotADirectory(found.stat.kind)));
        }
        if found.opaque {
            steps.push(step(&here, Met::Opaque));
            lower = None;
        }
        if !found.is_dir() {
            return Ok(if found.metacopy && last { rest(lower, &[]) } else { Below::Hidden });
        }
        if last {
            return Ok(rest(lower, &[]));
        }
        dir = backing::sys::open_beneath(&dir, name.as_bytes(), OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
    }
    Ok(rest(lower, &[]))
}

fn rest(lower: Option<TreePath>, names: &[Name<'_>]) -> Below {
    match lower {
        None => Below::Hidden,
        Some(mut path) => {
            names.iter().for_each(|name| path.push(*name));
            Below::At(path)
        }
    }
}

fn look_in_layer(index: &Index<Vec<u8>>, place: Place, path: &TreePath, steps: &mut Vec<Step>) -> Below {
    let mut slot = Slot(0);
    let mut here = TreePath::root();
    let mut opaque = false;
    let names: Vec<_> = path.names().collect();
    let below = |opaque: bool| if opaque { Below::Hidden } else { Below::At(path.clone()) };
    for at in 0..=names.len() {
        let Some(row) = index.row(slot) else { return below(opaque) };
        let last = at == names.len();
        let step = |met| Step { place, path: here.clone(), met, wins: false };
        if row.kind() == RowKind::Whiteout {
            steps.push(step(Met::Whiteout));
            return Below::Hidden;
        }
        let kind = row.resolve().file_type();
        if last && !row.is_implied() {
            steps.push(step(entry(&row)));
        }
        match kind {
            Some(FileType::Dir) => {}
            // A hard link to a file of a lower layer: a file.
            other if !last => {
                steps.push(step(Met::NotADirectory(other.unwrap_or(FileType::File))));
                return Below::Hidden;
            }
            _ => return Below::Hidden,
        }
        if row.is_opaque() {
            steps.push(step(Met::Opaque));
            opaque = true;
        }
        let Some(name) = names.get(at) else { break };
        here.push(*name);
        match index.lookup(slot, *name) {
            Some(next) => slot = next,
            None => return below(opaque),
        }
    }
    below(opaque)
}

fn entry(row: &Row<'_>) -> Met {
    let row = row.resolve();
    let size = match row.data() {
        RowData::Symlink(target) => target.len() as u64,
        _ => row.size(),
    };
    Met::Entry {
        kind: row.file_type().unwrap_or(FileType::File),
        perm: row.perm(),
        uid: row.uid(),
        gid: row.gid(),
        size,
    }
}
