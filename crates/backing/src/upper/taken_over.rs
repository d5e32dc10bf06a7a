//! Uppers that fuse-overlayfs wrote: its spellings become ours, once, before such an upper is first used.
//!
//! It hides names by empty files `.wh.NAME` where it cannot make devices, and marks opaque directories by an empty `.wh..wh..opq`
//! and by attributes of several names (seen with 1.10 and 2.0.0). In a mount of ours such names are ordinary, so they are understood
//! only in an upper that was never ours. An upper of ours bears a mark on its root, whatever work directory it is used with; it is set
//! when nothing is to be taken over any more, and until then a note in the work directory says that this is under way.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use layer::whiteout::{PREFIX, Spelling, spelling};
use layer::{FileType, Name, NameBuf};
use overlay::{Error, Result, Upper};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir};
use rustix::io::Errno as Raw;

use super::{DirFd, Found, UpperDir, error, marks};
use crate::override_stat::{self, Override};

/// Lies in the work directory until an upper is taken over.
pub(super) const NOTE: &str = "plyfs.taking-over";

/// Notes that the upper is to be taken over, if it holds something and was never ours; tells whether it is. `own` is ours alone by
/// now: of two who open an upper at once the second decides when the first is done, or not at all.
pub(super) fn begin(root: &OwnedFd, work: &OwnedFd, own: &OwnedFd) -> rustix::io::Result<bool> {
    if is_ours(root) {
        // A crash came before the note was dropped.
        return match rustix::fs::unlinkat(work, NOTE, AtFlags::empty()) {
            Ok(()) | Err(Raw::NOENT) => Ok(false),
            Err(raw) => Err(raw),
        };
    }
    if there(work, NOTE)? {
        return Ok(true);
    }
    // Folders there are those of an upper of ours that bears no mark: it is older, or could bear none.
    if there(own, "tmp")? || is_empty(root)? || is_the_kernels(root) {
        return Ok(false);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let note = rustix::fs::openat(work, NOTE, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::fsync(&note)?;
    rustix::fs::fsync(work)?;
    Ok(true)
}

fn there(dir: &OwnedFd, name: &str) -> rustix::io::Result<bool> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Raw::NOENT) => Ok(false),
        Err(raw) => Err(raw),
    }
}

/// Tells whether the root bears our mark, as root or an ordinary user set it.
fn is_ours(root: &OwnedFd) -> bool {
    ["trusted.", "user."]
        .iter()
        .any(|space| rustix::fs::fgetxattr(root, [space, marks::OURS].concat(), &mut [0u8; 0][..]).is_ok())
}

/// Tells whether the kernel's overlayfs wrote this upper: there too names that begin with `.wh.` are ordinary. It notes its own UUID on
/// the root when that is new, and else that something was copied up into it (kernel overlayfs.rst); fuse-overlayfs notes neither.
fn is_the_kernels(root: &OwnedFd) -> bool {
    let names = ["trusted.overlay.uuid", "user.overlay.uuid", "trusted.overlay.impure", "user.overlay.impure"];
    names.iter().any(|name| rustix::fs::fgetxattr(root, *name, &mut [0u8; 0][..]).is_ok())
}

fn is_empty(dir: &OwnedFd) -> rustix::io::Result<bool> {
    let own = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buf = Vec::with_capacity(1024);
    let mut entries = RawDir::new(&own, buf.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

impl UpperDir {
    /// Takes the upper over. A crash on the way leaves the note, and what is still in the other spelling is found again.
    pub(super) fn take_over(&self, work: &OwnedFd) -> Result<()> {
        // Each directory is opened from its parent's descriptor, which is kept for as long as it has children to come.
        let mut pending: Vec<(DirFd, NameBuf)> = self.take_over_dir(&self.root)?;
        while let Some((parent, name)) = pending.pop() {
            let dir = self.open_dir(&parent, name.as_name())?;
            pending.extend(self.take_over_dir(&dir)?);
        }
        let failed = |raw| error(|| "take over an upper of fuse-overlayfs".into(), raw);
        rustix::fs::syncfs(work).map_err(failed)?;
        self.mark_ours()?;
        rustix::fs::unlinkat(work, NOTE, AtFlags::empty()).map_err(failed)
    }

    /// Marks the root of an upper as ours. One that cannot bear the mark is known by its work directory alone.
    pub(super) fn mark_ours(&self) -> Result<()> {
        if is_ours(&self.root) {
            return Ok(());
        }
        match self.space.set(&Found::Open(self.root.as_fd()), marks::OURS, b"y") {
            Err(Error::Answer(errno)) => {
                log::info!(
                    "the upper's root bears no mark of ours ({errno}): keep it together with its work directory"
                );
                Ok(())
            }
            done => done,
        }
    }

    /// Takes one directory over; returns those in it.
    fn take_over_dir(&self, dir: &DirFd) -> Result<Vec<(DirFd, NameBuf)>> {
        let found = Found::Open(dir.as_fd());
        let before = self.raw_stat(&found)?;
        let mut opaque = marks::opaque_elsewhere(&found)?;
        let (mut dirs, mut spelled) = (Vec::new(), Vec::new());
        let listed = self.list(dir)?;
        self.take_record_over(&found)?;
        for entry in &listed {
            if matches!(entry.kind, Some(kind) if kind != FileType::Dir) {
                self.take_record_over(&Found::At(dir.as_fd(), entry.name.clone()))?;
            }
            if entry.kind == Some(FileType::Dir) {
                dirs.push((Arc::clone(dir), entry.name.clone()));
            } else if entry.kind == Some(FileType::File)
                && entry.name.as_bytes().starts_with(PREFIX)
                && self.is_empty_file(dir, entry.name.as_name())?
            {
                spelled.push(entry.name.clone());
            }
        }
        for name in &spelled {
            match spelling(name.as_name()) {
                Ok(Spelling::Opaque) => opaque = true,
                // A sibling of that name is not hidden by it.
                Ok(Spelling::Whiteout(hidden)) if !listed.iter().any(|entry| entry.name.as_name() == hidden) => {
                    self.whiteout(dir, hidden)?;
                }
                _ => {}
            }
        }
        if opaque {
            self.set_opaque(dir)?;
        }
        for name in &spelled {
            rustix::fs::unlinkat(dir, name.as_bytes(), AtFlags::empty())
                .map_err(|raw| error(|| format!("take over {} in the upper", name.as_name()), raw))?;
        }
        if !spelled.is_empty() {
            self.give_times_back(&found, &before)?;
        }
        Ok(dirs)
    }

    /// Brings what fuse-overlayfs 1.x recorded of owner and mode to the name that podman has for it, as fuse-overlayfs 2.0 does.
    fn take_record_over(&self, of: &Found<'_>) -> Result<()> {
        if !self.space.overrides() {
            return Ok(());
        }
        let Some(value) = marks::get(of, override_stat::FUSE_OVERLAYFS)? else { return Ok(()) };
        if let Some(record) = Override::parse(&value)
            && self.space.recorded(of)?.is_none()
        {
            self.space.record(of, &record)?;
        }
        marks::remove(of, override_stat::FUSE_OVERLAYFS)
    }

    /// Tells whether it is a file as fuse-overlayfs makes them for this: empty, and of mode 0700.
    fn is_empty_file(&self, dir: &DirFd, name: Name<'_>) -> Result<bool> {
        let stat = self.raw_stat(&Found::At(dir.as_fd(), name.to_buf()))?;
        Ok(stat.kind == FileType::File && stat.size == 0 && stat.perm == 0o700)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::upper::{Durability, Settings};

    fn settings() -> Settings {
        Settings { durability: Durability::Synced, always_override: false, user_marks: true }
    }

    fn private(path: &Path) {
        fs::write(path, b"").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }

    /// The names of a directory, whiteouts with a dash before them.
    fn listed(upper: &UpperDir, dir: &DirFd) -> Vec<String> {
        let shown = |entry: &overlay::upper::Listed| match entry.kind {
            None => format!("-{}", entry.name.as_name()),
            Some(_) => entry.name.as_name().to_string(),
        };
        let mut names: Vec<_> = upper.list(dir).unwrap().iter().map(shown).collect();
        names.sort();
        names
    }

    fn is_opaque(upper: &UpperDir, dir: &DirFd) -> bool {
        upper.find(overlay::upper::Target::Dir(dir)).unwrap().1.opaque
    }

    #[test]
    fn what_fuse_overlayfs_wrote_is_taken_over_once() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir_all(upper.join("dir/anew")).unwrap();
        fs::create_dir_all(upper.join("marked")).unwrap();
        fs::create_dir(&work).unwrap();
        private(&upper.join("dir/.wh.gone"));
        private(&upper.join("dir/anew/.wh..wh..opq"));
        fs::write(upper.join("dir/anew/new"), b"new").unwrap();
        // It has come back beside its whiteout.
        private(&upper.join(".wh.back"));
        fs::write(upper.join("back"), b"back").unwrap();
        // A program's own.
        fs::write(upper.join(".wh.own"), b"content").unwrap();
        fs::write(upper.join(".wh.public"), b"").unwrap();
        fs::set_permissions(upper.join(".wh.public"), fs::Permissions::from_mode(0o644)).unwrap();
        rustix::fs::setxattr(upper.join("marked"), "user.fuseoverlayfs.opaque", b"y", rustix::fs::XattrFlags::empty())
            .unwrap();

        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        let root = open.root();
        let name = |name: &'static str| Name::new(name.as_bytes()).unwrap();
        let dir = open.open_dir(&root, name("dir")).unwrap();
        let anew = open.open_dir(&dir, name("anew")).unwrap();
        assert_eq!(listed(&open, &root), [".wh.own", ".wh.public", "back", "dir", "marked"]);
        assert_eq!(listed(&open, &dir), ["-gone", "anew"]);
        assert_eq!(listed(&open, &anew), ["new"]);
        assert!(is_opaque(&open, &anew) && is_opaque(&open, &open.open_dir(&root, name("marked")).unwrap()));
        assert!(!is_opaque(&open, &root) && !is_opaque(&open, &dir));
        drop((open, root, dir, anew));

        // From now on such a name is whatever a program means by it.
        private(&upper.join("dir/.wh.later"));
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        let dir = open.open_dir(&open.root(), name("dir")).unwrap();
        assert_eq!(listed(&open, &dir), ["-gone", ".wh.later", "anew"]);
    }

    #[test]
    fn an_upper_of_ours_with_a_new_work_directory_is_never_taken_over() {
        let scratch = tempfile::tempdir().unwrap();
        let upper = scratch.path().join("upper");
        fs::create_dir(&upper).unwrap();
        for user_marks in [true, false] {
            let work = scratch.path().join(format!("work-{user_marks}"));
            fs::create_dir(&work).unwrap();
            let open = UpperDir::open(&upper, &work, Settings { user_marks, ..settings() }).unwrap();
            let expected: &[&str] = if user_marks { &[] } else { &[".wh.name"] };
            assert_eq!(listed(&open, &open.root()), expected);
            assert!(!work.join(NOTE).exists());
            // The mark is the union's own.
            let root = open.root();
            assert_eq!(open.xattr_names(overlay::upper::Target::Dir(&root)).unwrap(), Vec::<Vec<u8>>::new());
            drop(open);
            private(&upper.join(".wh.name"));
        }
    }

    #[test]
    fn an_upper_of_ours_from_before_the_mark_is_known_by_its_work_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir_all(work.join("plyfs/tmp")).unwrap();
        private(&upper.join(".wh.name"));
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        assert_eq!(listed(&open, &open.root()), [".wh.name"]);
        assert!(is_ours(&open.root) && !work.join(NOTE).exists());
    }

    #[test]
    fn of_two_who_open_a_foreign_upper_at_once_only_one_takes_it_over() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        private(&upper.join(".wh.gone"));
        let start = std::sync::Barrier::new(2);
        let open = || {
            start.wait();
            // Whoever is refused had to wait until the other was done.
            UpperDir::open(&upper, &work, settings()).ok().map(|open| listed(&open, &open.root()))
        };
        let seen = std::thread::scope(|scope| [scope.spawn(open), scope.spawn(open)].map(|one| one.join().unwrap()));
        assert!(seen.iter().flatten().all(|listed| listed == &["-gone"]), "{seen:?}");
        assert!(seen.iter().any(Option::is_some), "{seen:?}");
        assert!(!work.join(NOTE).exists());
    }

    #[test]
    fn who_is_refused_an_upper_leaves_no_note() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir_all(work.join("plyfs")).unwrap();
        private(&upper.join(".wh.name"));
        // The other has the lock, and has not got further.
        let lock = fs::File::create(work.join("plyfs/lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        assert!(UpperDir::open(&upper, &work, settings()).is_err());
        assert!(!work.join(NOTE).exists());
    }

    #[test]
    fn a_note_that_outlived_the_take_over_is_dropped() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        drop(UpperDir::open(&upper, &work, settings()).unwrap());
        fs::write(work.join(NOTE), b"").unwrap();
        private(&upper.join(".wh.name"));
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        assert_eq!(listed(&open, &open.root()), [".wh.name"]);
        assert!(!work.join(NOTE).exists());
    }

    #[test]
    fn records_of_fuse_overlayfs_1_are_taken_over() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir_all(upper.join("dir")).unwrap();
        fs::create_dir(&work).unwrap();
        fs::write(upper.join("dir/file"), b"x").unwrap();
        let old = std::str::from_utf8(override_stat::FUSE_OVERLAYFS).unwrap();
        for (path, value) in [("", "0:0:40755"), ("dir", "5:6:41777"), ("dir/file", "33:42:104711")] {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(upper.join(path), old, value.as_bytes(), flags).unwrap();
        }
        let records = Settings { always_override: true, ..settings() };
        let open = UpperDir::open(&upper, &work, records).unwrap();
        let dir = open.open_dir(&open.root(), Name::new(b"dir").unwrap()).unwrap();
        let shown = open.stat(overlay::upper::Target::Dir(&dir)).unwrap();
        assert_eq!((shown.uid, shown.gid, shown.perm), (5, 6, 0o1777));
        let shown = open.stat(overlay::upper::Target::At(&dir, Name::new(b"file").unwrap())).unwrap();
        assert_eq!((shown.uid, shown.gid, shown.perm), (33, 42, 0o4711));
        for path in ["", "dir", "dir/file"] {
            let left = rustix::fs::getxattr(upper.join(path), old, &mut [0u8; 64][..]);
            assert_eq!(left, Err(Raw::NODATA), "{path}");
        }
    }

    #[test]
    fn an_upper_of_the_kernels_overlayfs_is_never_taken_over() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        private(&upper.join(".wh.name"));
        rustix::fs::setxattr(&upper, "user.overlay.uuid", b"0123456789abcdef", rustix::fs::XattrFlags::empty())
            .unwrap();
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        assert_eq!(listed(&open, &open.root()), [".wh.name"]);
        assert!(!work.join(NOTE).exists());
    }

    #[test]
    fn an_upper_that_was_empty_at_first_is_never_taken_over() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        drop(UpperDir::open(&upper, &work, settings()).unwrap());
        private(&upper.join(".wh.name"));
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        assert_eq!(listed(&open, &open.root()), [".wh.name"]);
    }

    #[test]
    fn a_take_over_that_was_cut_off_goes_on() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, work) = (scratch.path().join("upper"), scratch.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir_all(work.join("plyfs")).unwrap();
        fs::write(work.join(NOTE), b"").unwrap();
        private(&upper.join(".wh.gone"));
        let open = UpperDir::open(&upper, &work, settings()).unwrap();
        assert_eq!(listed(&open, &open.root()), ["-gone"]);
        assert!(!work.join(NOTE).exists());
    }
}
