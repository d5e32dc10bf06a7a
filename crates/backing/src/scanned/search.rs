//! Where a directory or a file goes on further down: usually under its own name, after a rename where a redirect says.
//!
//! These are the kernel's rules (fs/overlayfs/namei.c). A search only ever goes down, layer by layer, so that redirects can make no
//! loop; it goes by names from the layers' own roots, so that they cannot lead out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use layer::{FileType, Name, NameBuf, Slot, TreePath};
use overlay::Result;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::listing::Source;
use super::marks::{Marks, Redirect};
use super::merge::{is_empty_file, is_whiteout_device, marks_at, marks_of};
use super::{Scanned, Whiteouts};
use crate::sys;

/// A way down through the layers.
pub(super) struct Search<'a> {
    scanned: &'a Scanned,
    /// The directory that holds the name; `None` for the root.
    parent: Option<Slot>,
    wanted: Wanted,
    next: Next<'a>,
}

/// What is looked for; anything else ends the search.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Directories, to be merged.
    Dirs,
    /// A regular file, for the content of a metadata-only copy.
    Content,
}

/// Where to look next.
enum Next<'a> {
    /// In these layers, at the parent's place, under the own name: it is known to be there.
    Known(std::slice::Iter<'a, u16>),
    /// At the parent's places in the layers below `after`, under `name`.
    Beside {
        name: NameBuf,
        after: u16,
    },
    /// At `path` in the layers below `after`.
    From {
        path: TreePath,
        after: u16,
    },
    Nowhere,
}

/// What a layer has under a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    Whiteout,
    Something(FileType),
}

/// What a layer has under a name, and whether a whiteout beside it hides all below.
struct Probe {
    there: There,
    ends: bool,
}

const WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

impl<'a> Search<'a> {
    /// Goes through the directories that a merged directory is made of; `candidates` as in [`super::listing::Dir`].
    pub(super) fn dirs(scanned: &'a Scanned, parent: Option<Slot>, candidates: &'a [u16]) -> Self {
        Search { scanned, parent, wanted: Wanted::Dirs, next: Next::Known(candidates.iter()) }
    }

    /// Goes through the files below a metadata-only copy `name` in layer `after`.
    pub(super) fn content(scanned: &'a Scanned, parent: Slot, name: Name<'_>, after: u16) -> Self {
        let next = Next::Beside { name: name.to_buf(), after };
        Search { scanned, parent: Some(parent), wanted: Wanted::Content, next }
    }

    /// Returns the next place.
    pub(super) fn next(&mut self) -> Result<Option<Source>> {
        loop {
            let found = match std::mem::replace(&mut self.next, Next::Nowhere) {
                Next::Nowhere => return Ok(None),
                Next::Known(mut layers) => {
                    let Some(&layer) = layers.next() else { return Ok(None) };
                    self.next = Next::Known(layers);
                    Some(Source { layer, path: None })
                }
                Next::Beside { name, after } => self.beside(name, after)?,
                Next::From { path, after } if after + 1 < self.scanned.layers.len() => self.from(path, after + 1)?,
                Next::From { .. } => return Ok(None),
            };
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Takes note of what the place that was just found in `layer` says about those below.
    ///
    /// # Errors
    /// A fault for a redirect that names no place.
    pub(super) fn heed(&mut self, layer: u16, marks: &Marks, shown: impl FnOnce() -> String) -> Result<()> {
        if marks.opaque || layer + 1 == self.scanned.layers.len() {
            self.next = Next::Nowhere;
            return Ok(());
        }
        self.next = match (marks.redirect.clone(), std::mem::replace(&mut self.next, Next::Nowhere)) {
            (None, next) => next,
            (Some(Redirect::Bad), _) => return Err(bad_redirect(shown())),
            (Some(Redirect::From(path)), _) => Next::From { path, after: layer },
            (Some(Redirect::Beside(_)), Next::Nowhere) => Next::Nowhere,
            (Some(Redirect::Beside(name)), Next::From { path, .. }) => {
                let mut path = path.split_last().map(|(above, _)| above).unwrap_or_default();
                path.push(name.as_name());
                Next::From { path, after: layer }
            }
            (Some(Redirect::Beside(name)), _) => Next::Beside { name, after: layer },
        };
        Ok(())
    }

    /// Looks for `name` at the parent's next place below layer `after`.
    fn beside(&mut self, name: NameBuf, after: u16) -> Result<Option<Source>> {
        let Some(parent) = self.parent else { return Ok(None) };
        let Some(listing) = self.scanned.listing(parent)? else { return Ok(None) };
        let Some(layer) = listing.layers.iter().copied().find(|&layer| layer > after) else { return Ok(None) };
        let above = self.scanned.dir_path(parent, layer)?;
        let probe =
            self.probe(&self.open(layer, &above)?, name.as_name(), || self.scanned.layers.shown(layer, &above))?;
        let path = above.join(name.as_name());
        self.settle(&probe, Next::Beside { name, after: layer }, Source { layer, path: Some(path) })
    }

    /// Looks for `path` from the root of `layer`.
    fn from(&mut self, path: TreePath, layer: u16) -> Result<Option<Source>> {
        let names: Vec<_> = path.names().collect();
        let (mut at, mut below, mut ended) = (TreePath::root(), TreePath::root(), false);
        for (index, name) in names.iter().copied().enumerate() {
            let dir = self.open(layer, &at)?;
            let probe = self.probe(&dir, name, || self.scanned.layers.shown(layer, &at))?;
            let last = index + 1 == names.len();
            ended |= probe.ends || probe.there == There::Whiteout;
            at.push(name);
            if last {
                below.push(name);
                let next = if ended { Next::Nowhere } else { Next::From { path: below, after: layer } };
                return self.settle(&Probe { ends: ended, ..probe }, next, Source { layer, path: Some(at) });
            }
            match probe.there {
                There::Something(FileType::Dir) => {}
                There::Nothing => {
                    names[index..].iter().for_each(|name| below.push(*name));
                    if !ended {
                        self.next = Next::From { path: below, after: layer };
                    }
                    return Ok(None);
                }
                There::Whiteout | There::Something(_) => return Ok(None),
            }
            if layer + 1 == self.scanned.layers.len() {
                continue;
            }
            let marks = self.marks_on_the_way(layer, &at)?;
            match marks.redirect.filter(|_| !marks.opaque) {
                None => below.push(name),
                Some(Redirect::Beside(other)) => below.push(other.as_name()),
                // As in the kernel: where an absolute redirect leads does not depend on what was opaque on the way to it.
                Some(Redirect::From(other)) => (below, ended) = (other, false),
                Some(Redirect::Bad) => return Err(bad_redirect(self.scanned.layers.shown(layer, &at))),
            }
            ended |= marks.opaque;
        }
        Ok(None)
    }

    /// Goes on as a probe tells.
    fn settle(&mut self, probe: &Probe, next: Next<'a>, source: Source) -> Result<Option<Source>> {
        let wanted = match self.wanted {
            Wanted::Dirs => FileType::Dir,
            Wanted::Content => FileType::File,
        };
        let fits = probe.there == There::Something(wanted);
        if !probe.ends && (fits || probe.there == There::Nothing) {
            self.next = next;
        }
        Ok(fits.then_some(source))
    }

    /// Reads what a directory on the way of a redirect says about those below.
    fn marks_on_the_way(&self, layer: u16, path: &TreePath) -> Result<Marks> {
        let dir = self.open(layer, path)?;
        let failed = |failed| sys::fault("read the marks of", self.scanned.layers.shown(layer, path), failed);
        let mut marks = marks_of(dir.as_fd()).map_err(failed)?;
        if self.scanned.options.whiteouts == Whiteouts::All {
            marks.opaque |= exists(dir.as_fd(), layer::whiteout::OPAQUE).map_err(failed)?;
        }
        Ok(marks)
    }

    fn probe(&self, dir: &OwnedFd, name: Name<'_>, shown: impl FnOnce() -> String) -> Result<Probe> {
        let look = || -> rustix::io::Result<Probe> {
            let there = match sys::stat_at(dir, name.as_bytes()) {
                Err(Errno::NOENT | Errno::NAMETOOLONG) => There::Nothing,
                Err(failed) => return Err(failed),
                Ok(found) if is_whiteout_device(&found) => There::Whiteout,
                Ok(found) if is_empty_file(&found) && is_marked_whiteout(dir.as_fd(), name)? => There::Whiteout,
                Ok(found) => There::Something(found.stat.kind),
            };
            let hidden = [layer::whiteout::PREFIX, name.as_bytes()].concat();
            let ends = self.scanned.options.whiteouts == Whiteouts::All && exists(dir.as_fd(), &hidden)?;
            Ok(Probe { there, ends })
        };
        look().map_err(|failed| sys::fault("look up", format!("{name} in {}", shown()), failed))
    }

    fn open(&self, layer: u16, path: &TreePath) -> Result<OwnedFd> {
        let layers = &self.scanned.layers;
        layers.open_at(layer, path, WAY).map_err(|failed| sys::fault("open", layers.shown(layer, path), failed))
    }
}

fn is_marked_whiteout(dir: BorrowedFd<'_>, name: Name<'_>) -> rustix::io::Result<bool> {
    Ok(marks_of(dir)?.has_whiteouts && marks_at(dir, name.as_bytes())?.whiteout)
}

fn exists(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    match sys::stat_at(dir, name) {
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
        found => found.map(|_| true),
    }
}

fn bad_redirect(shown: String) -> overlay::Error {
    let doing = format!("follow the redirect of {shown}");
    overlay::Error::fault(doing, overlay::Errno::EIO, "it names no place inside the layers")
}
