//! The changes of a container as a tar: a layer (with OCI whiteouts), or its whole tree.

use std::collections::HashMap;
use std::io::Write;

use layer::index::RowData;
use layer::{FileType, Slot, Stat, TreePath};
use rustix::fs::OFlags;

use super::body::Content;
use super::{Change, ChangeKind, Changes, Comparison, Now, Place};
use crate::error::{Error, Result};
use crate::tar_writer::{Head, Kind, TarWriter};

/// What to do with names that a layer cannot hold: `.wh.` is how it spells a deletion (OCI image-spec, layer.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reserved {
    /// Fail, and name the first.
    #[default]
    Refuse,
    /// Leave them out.
    Skip,
    /// Write them as any other: the tar is no layer.
    Keep,
}

/// What an inode is known by: of the upper by its number, of the lower by its row.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Inode {
    Upper(u64),
    Lower(Slot),
}

impl Changes<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Writes the changes as a tar, sorted by path.
    pub(crate) fn write_tar(&self, reserved: Reserved, out: &mut dyn Write) -> Result<()> {
        let mut tar = TarWriter::new(out);
        let mut written: HashMap<Inode, &TreePath> = HashMap::new();
        for (path, change) in &self.changes {
            if reserved != Reserved::Keep && is_reserved(path) {
                match reserved {
                    Reserved::Skip | Reserved::Keep => {
                        log::warn!("/{path}: left out; a layer cannot hold a name that begins with .wh.")
                    }
                    Reserved::Refuse => {
                        let why = "a layer cannot hold a name that begins with '.wh.', which would delete a file; \
                                   rename it, or leave such names out with --skip-reserved";
                        return Err(Error::unsupported(format!("/{path}"), why));
                    }
                }
                continue;
            }
            match change.kind {
                ChangeKind::Deleted => tar.bare(&Head { path: &whiteout(path), ..Head::plain("", 0) })?,
                _ => self
                    .walk
                    .member(&mut tar, path, change, &mut written)
                    .map_err(|error| error.within(format!("/{path}")))?,
            }
        }
        tar.end()
    }
}

impl Comparison<'_> {
    fn member<'p>(
        &self,
        tar: &mut TarWriter<'_>,
        path: &'p TreePath,
        change: &Change,
        written: &mut HashMap<Inode, &'p TreePath>,
    ) -> Result<()> {
        let (stat, inode, xattrs) = match &change.now {
            Now::Nothing => return Ok(()),
            Now::Upper(found, _) => (found.stat, Inode::Upper(found.stat.ino.0), found.xattrs.clone()),
            Now::Lower(slot) => {
                let Some(row) = self.index.row(*slot) else { return Ok(()) };
                let own = |(name, value): (&[u8], &[u8])| (name.to_vec(), value.to_vec());
                (row.stat(), Inode::Lower(*slot), self.index.xattrs(*slot).map(own).collect())
            }
        };
        let linked = stat.kind != FileType::Dir && (stat.nlink > 1 || change.now.is_indexed());
        if let Some(first) = written.get(&inode).filter(|_| linked) {
            return tar.bare(&head(path, &stat, Kind::Hardlink(first.as_bytes()), &[]));
        }
        let target;
        let kind = match stat.kind {
            FileType::Socket => {
                log::warn!("/{path}: left out; a socket is nothing without the program that made it");
                return Ok(());
            }
            FileType::File => {
                let mut content = self.content(path, &change.now)?;
                tar.file(&head(path, &stat, Kind::File(content.size), &xattrs), &mut content)?;
                written.extend(linked.then_some((inode, path)));
                return Ok(());
            }
            FileType::Symlink => {
                target = self.target(path, &change.now)?;
                Kind::Symlink(&target)
            }
            FileType::Dir => Kind::Dir,
            FileType::Char => Kind::Char(stat.rdev),
            FileType::Block => Kind::Block(stat.rdev),
            FileType::Fifo => Kind::Fifo,
        };
        tar.bare(&head(path, &stat, kind, &xattrs))?;
        written.extend(linked.then_some((inode, path)));
        Ok(())
    }

    /// Opens the content of a file.
    fn content(&self, path: &TreePath, now: &Now) -> Result<Content> {
        let reading = |cause: std::io::Error| Error::io("read its content", cause);
        let (found, place) = match now {
            Now::Upper(found, place) => (found, place),
            Now::Lower(slot) => return self.lower_content(*slot),
            Now::Nothing => return Err(Error::corrupt(format!("/{path}"), "it is gone")),
        };
        let open = || self.open_file(path, place).map_err(|errno| reading(errno.into()));
        match (found.metacopy, found.partial, found.body_below) {
            (false, ..) => {
                let content = Content::upper(open()?).map_err(reading)?;
                match self.lost_body(found, &open()?).map_err(reading)? {
                    Some(slot) => self.lower_content(slot),
                    None => Ok(content),
                }
            }
            (true, Some(limit), Some(slot)) => Content::partial(open()?, self.below(slot)?, limit).map_err(reading),
            (true, None, Some(slot)) => self.lower_content(slot),
            (true, _, None) => {
                Err(Error::corrupt(format!("/{path}"), "it is a copy of a lower file that is not there"))
            }
        }
    }

    fn lower_content(&self, slot: Slot) -> Result<Content> {
        let size = self.index.row(slot).map_or(0, |row| row.size());
        Ok(Content::lower(self.below(slot)?, size))
    }

    fn target(&self, path: &TreePath, now: &Now) -> Result<Vec<u8>> {
        match now {
            Now::Lower(slot) => match self.index.row(*slot).map(|row| row.data()) {
                Some(RowData::Symlink(target)) => Ok(target.to_vec()),
                _ => Err(Error::corrupt(format!("/{path}"), "a link without a target")),
            },
            Now::Upper(found, Place::Here) => {
                let Some((parent, name)) = path.split_last() else { return Ok(Vec::new()) };
                self.link_target(&self.open(&parent)?, name, found)
            }
            Now::Upper(found, Place::Index(dir, name)) => self.link_target(dir, name.as_name(), found),
            Now::Nothing => Ok(Vec::new()),
        }
    }

    fn open_file(
        &self,
        path: &TreePath,
        place: &Place,
    ) -> std::result::Result<std::os::fd::OwnedFd, rustix::io::Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        match place {
            Place::Here => backing::sys::open_beneath(&self.upper, path.as_bytes(), flags),
            Place::Index(dir, name) => backing::sys::open_beneath(dir, name.as_bytes(), flags),
        }
    }
}

fn head<'a>(path: &'a TreePath, stat: &Stat, kind: Kind<'a>, xattrs: &'a [(Vec<u8>, Vec<u8>)]) -> Head<'a> {
    Head { path: path.as_bytes(), kind, perm: stat.perm, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs }
}

fn is_reserved(path: &TreePath) -> bool {
    path.names().any(|name| name.as_bytes().starts_with(b".wh."))
}

/// Spells what is gone: the name of an empty file.
fn whiteout(path: &TreePath) -> Vec<u8> {
    let mut spelt = Vec::new();
    if let Some((parent, name)) = path.split_last() {
        spelt.extend_from_slice(parent.as_bytes());
        if !parent.is_root() {
            spelt.push(b'/');
        }
        spelt.extend_from_slice(b".wh.");
        spelt.extend_from_slice(name.as_bytes());
    }
    spelt
}
