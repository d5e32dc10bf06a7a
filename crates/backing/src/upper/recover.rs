//! Copies that took their names unsynced, and what a crash left of them and of partial copies.
//!
//! The first such copy of a mount is noted in the work directory with an epoch, each copy by its record; an upper that ends in peace is
//! synced, and the note dropped. While there is one, every copy of its epoch is looked at before it is believed.

use std::os::fd::{AsFd, OwnedFd};

use layer::{Ino, Stat};
use overlay::upper::{Marks, Target};
use overlay::{Result, Upper};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno as Raw;

use super::{Found, UpperDir, error, marks, numbers};

/// In `plyfs/`: some copies took their names unsynced; it holds their epoch.
const UNSYNCED: &str = "unsynced";

/// Reads the epoch of copies that an earlier mount left unsynced; a note that is cut off was made before the first of them.
pub(super) fn noted_epoch(own: &OwnedFd) -> rustix::io::Result<Option<u64>> {
    let fd = match rustix::fs::openat(own, UNSYNCED, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(fd) => fd,
        Err(Raw::NOENT) => return Ok(None),
        Err(raw) => return Err(raw),
    };
    let mut epoch = [0; 8];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut epoch[..]))?;
    Ok((read == epoch.len()).then(|| u64::from_le_bytes(epoch)))
}

impl UpperDir {
    /// Reads of whom the inodes in the index are copies that can bear no mark: their names there are the numbers, the layers are
    /// noted on the index itself.
    pub(super) fn read_unmarked(&self) -> Result<()> {
        if self.space.marks_all() {
            return Ok(());
        }
        let Some(index) = self.index.there() else { return Ok(()) };
        let Some(key) = self.space.index_key(&Found::Open(index.as_fd()))? else { return Ok(()) };
        let mut unmarked = self.unmarked.lock();
        for ino in numbers(Some(index))?.into_iter().map(Ino) {
            let stat = self.raw_stat(&self.resolve(Target::Index(ino)))?;
            if !marks::bears_marks(stat.kind) {
                let origin = Some(overlay::upper::Origin { key, ino });
                unmarked.insert(stat.ino.0, marks::OriginRecord { origin, ..marks::OriginRecord::default() });
            }
        }
        Ok(())
    }

    /// Says in the work directory that there are unsynced copies, once, before the first of them takes its name.
    pub(super) fn note_unsynced(&self) -> Result<()> {
        let mut noted = self.noted.lock();
        if *noted {
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let written = rustix::fs::openat(&self.own, UNSYNCED, flags, Mode::RUSR | Mode::WUSR).and_then(|fd| {
            rustix::io::write(&fd, &self.space.epoch.to_le_bytes())?;
            rustix::fs::fsync(&fd)
        });
        written.map_err(|raw| error(|| "note unsynced copies in the work directory".into(), raw))?;
        *noted = true;
        Ok(())
    }

    /// Drops the second link of what is no partial copy any more, or was not yet one when a crash came.
    pub(super) fn sweep_partials(&self) -> Result<()> {
        for backing in numbers(self.partial.there())? {
            let found = self.resolve(Target::Partial(backing));
            if !self.space.is_partial(&found)? {
                self.drop_partial(backing)?;
            }
        }
        Ok(())
    }

    /// Looks at a copy that took its name unsynced. One whose body a power cut took becomes a metadata-only copy again: the
    /// lower's content counts, as before the change that was lost.
    pub(super) fn recover(&self, of: &Found<'_>, stat: &mut Stat, marks: &mut Marks) -> Result<()> {
        let record = self.space.origin(of)?;
        if !marks.metacopy {
            if !self.lost_body(of, stat, record.length)? {
                return Ok(());
            }
            log::warn!("{}: its body was lost with the power; the lower's content counts again", of.doing("look at"));
            // A crash on the way finds a lost body again: the mark comes last.
            let file = self.open_found(of)?;
            overlay::UpperFile::truncate(&file, 0)?;
            overlay::UpperFile::truncate(&file, record.length)?;
            // One that was never moved has its body under its own name below.
            if !record.path.is_empty() {
                self.space.set(of, marks::REDIRECT, &record.path)?;
                marks.redirect = Some(record.path.clone());
            }
            self.space.set(of, marks::METACOPY, b"")?;
            *stat = self.raw_stat(of)?;
        }
        self.space.set_origin(of, &record.synced())?;
        (marks.metacopy, marks.unsynced) = (true, false);
        Ok(())
    }

    fn lost_body(&self, of: &Found<'_>, stat: &Stat, length: u64) -> Result<bool> {
        if stat.size < length {
            return Ok(true);
        }
        // A later part may have been written first: what should be data must not be a hole.
        let file = self.open_found(of)?;
        let hole = overlay::UpperFile::seek(&file, 0, overlay::upper::Seek::Hole)?;
        Ok(hole < length)
    }

    /// Makes all that was copied durable, and drops the note that something was not.
    pub(super) fn settle_copies(&self) -> Result<()> {
        let mut noted = self.noted.lock();
        if !*noted {
            return Ok(());
        }
        rustix::fs::syncfs(&self.root).map_err(|raw| error(|| "sync the upper".into(), raw))?;
        rustix::fs::unlinkat(&self.own, UNSYNCED, AtFlags::empty())
            .map_err(|raw| error(|| "drop the note of unsynced copies".into(), raw))?;
        *noted = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use layer::{Dev, FileType, Name, Time};
    use overlay::upper::{CopyUp, Origin, Source};

    use super::*;
    use crate::upper::{Durability, Settings};

    fn opened(scratch: &std::path::Path) -> UpperDir {
        let settings = Settings { durability: Durability::Synced, always_override: false, user_marks: true };
        UpperDir::open(&scratch.join("upper"), &scratch.join("work"), settings).unwrap()
    }

    fn name(name: &'static str) -> Name<'static> {
        Name::new(name.as_bytes()).unwrap()
    }

    fn copy_up(upper: &UpperDir, to: &'static str) {
        let time = Time { sec: 1, nsec: 2 };
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let stat = Stat {
            ino: Ino(7),
            kind: FileType::File,
            perm: 0o640,
            nlink: 1,
            uid,
            gid,
            rdev: Dev::default(),
            size: 4,
            blocks: 8,
            atime: time,
            mtime: time,
            ctime: time,
        };
        let copy = CopyUp {
            stat: &stat,
            xattrs: &[(b"user.kept".to_vec(), b"yes".to_vec())],
            target: None,
            origin: Origin { key: 3, ino: Ino(7) },
            body: Some(Source::Bytes(b"body")),
            redirect: None,
            lower_names: 0,
            path: None,
        };
        let staged = upper.stage(&copy).unwrap();
        let (made, file) = upper.publish(staged, &upper.root(), name(to)).unwrap();
        assert_eq!((made.size, made.perm, made.mtime, made.nlink), (4, 0o640, time, 1));
        assert!(file.is_some());
    }

    #[test]
    fn a_copy_whose_body_is_lost_leads_to_where_it_came_from() {
        let scratch = tempfile::tempdir().unwrap();
        for dir in ["upper", "work"] {
            std::fs::create_dir(scratch.path().join(dir)).unwrap();
        }
        let upper = opened(scratch.path());
        for to in ["stays", "moves", "is-whole"] {
            copy_up(&upper, to);
        }
        let root = upper.root();
        upper.note_path(Target::At(&root, name("moves")), b"/a/place").unwrap();
        // It was so before.
        upper.note_path(Target::At(&root, name("moves")), b"/another").unwrap();
        drop((upper, root));
        for lost in ["stays", "moves"] {
            std::fs::write(scratch.path().join("upper").join(lost), b"").unwrap();
        }

        let upper = opened(scratch.path());
        let root = upper.root();
        for (of, metacopy, redirect) in
            [("stays", true, None), ("moves", true, Some(b"/a/place".to_vec())), ("is-whole", false, None)]
        {
            let target = Target::At(&root, name(of));
            let (stat, marks) = upper.find(target).unwrap();
            assert_eq!((stat.size, marks.metacopy, marks.redirect), (4, metacopy, redirect), "{of}");
            assert_eq!(marks.origin, Some(Origin { key: 3, ino: Ino(7) }), "{of}");
            assert_eq!(upper.xattr(target, b"user.kept").unwrap(), b"yes");
        }
    }

    /// Where the filesystem knows no files without a name, a copy is made in the work directory.
    #[test]
    fn copies_are_the_same_without_nameless_files() {
        let scratch = tempfile::tempdir().unwrap();
        for dir in ["upper", "work"] {
            std::fs::create_dir(scratch.path().join(dir)).unwrap();
        }
        let upper = opened(scratch.path());
        upper.nameless.store(false, std::sync::atomic::Ordering::Relaxed);
        copy_up(&upper, "copy");
        assert_eq!(std::fs::read(scratch.path().join("upper/copy")).unwrap(), b"body");
        assert_eq!(std::fs::read_dir(scratch.path().join("work/plyfs/tmp")).unwrap().count(), 0);
    }
}
