//! Renames within the upper: one step each, with the whiteout that is left, the one that is replaced, or a directory of whiteouts.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use layer::{FileType, Name, NameBuf};
use overlay::upper::{Leave, Onto, Rename, SetAttr};
use overlay::{Result, Upper};
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno as Raw;

use super::{DirFd, Found, UpperDir, error, marks, shown, stage};

impl UpperDir {
    /// Renames, as [`Upper::rename`] says.
    pub(super) fn rename_names(&self, from: (&DirFd, Name<'_>), to: (&DirFd, Name<'_>), how: Rename) -> Result<()> {
        let rename = |flags| rustix::fs::renameat_with(from.0, from.1.as_bytes(), to.0, to.1.as_bytes(), flags);
        let failed = |raw| error(|| shown(from.1, "rename"), raw);
        if how.onto == Onto::Exchange {
            return self.exchange_names(from, to);
        }
        if how.onto == Onto::EmptyDir {
            self.empty_out(to.0, to.1)?;
        }
        let leaves = how.leave == Leave::Whiteout && self.rename_whiteout.load(Ordering::Relaxed);
        let done = match rename(if leaves { RenameFlags::WHITEOUT } else { RenameFlags::empty() }) {
            // A directory cannot replace a whiteout: they change places, and the whiteout is where one is left or removed.
            Err(Raw::NOTDIR) if how.onto == Onto::Whiteout => {
                self.exchange_names(from, to)?;
                if how.leave == Leave::Nothing {
                    rustix::fs::unlinkat(from.0, from.1.as_bytes(), AtFlags::empty()).map_err(failed)?;
                }
                return Ok(());
            }
            Err(Raw::INVAL) if leaves => {
                self.rename_whiteout.store(false, Ordering::Relaxed);
                log::warn!(
                    "the upper's filesystem has no RENAME_WHITEOUT: a crash within a rename may show both names"
                );
                return self.rename_names(from, to, how);
            }
            done => done,
        };
        done.map_err(failed)?;
        if how.leave == Leave::Whiteout && !leaves {
            self.whiteout(from.0, from.1)?;
        }
        Ok(())
    }

    /// Lets what is staged and a name change places.
    pub(super) fn exchange(&self, staged: &NameBuf, dir: &DirFd, name: Name<'_>) -> Result<()> {
        rustix::fs::renameat_with(&self.tmp, staged.as_bytes(), dir, name.as_bytes(), RenameFlags::EXCHANGE)
            .map_err(|raw| error(|| shown(name, "exchange"), raw))
    }

    /// Lets two names change places. xfs gives a directory that comes to another one so the time of the moment: it gets its own back.
    fn exchange_names(&self, one: (&DirFd, Name<'_>), two: (&DirFd, Name<'_>)) -> Result<()> {
        let [one, two] = [one, two].map(|(dir, name)| (dir, name, Found::At(dir.as_fd(), name.to_buf())));
        let before = [self.raw_stat(&one.2)?, self.raw_stat(&two.2)?];
        let (from, to) = (one.1.as_bytes(), two.1.as_bytes());
        rustix::fs::renameat_with(one.0, from, two.0, to, RenameFlags::EXCHANGE)
            .map_err(|raw| error(|| shown(one.1, "exchange"), raw))?;
        for (before, now) in before.iter().zip([&two.2, &one.2]) {
            let kept = || {
                if before.kind != FileType::Dir || self.raw_stat(now)?.mtime == before.mtime {
                    return Ok(());
                }
                let mtime = Some(overlay::upper::SetTime::At(before.mtime));
                self.apply_attr(now, FileType::Dir, &SetAttr { mtime, ..SetAttr::default() })
            };
            // The step is done and must be told.
            if let Err(error) = kept() {
                log::warn!("the time of a directory changed with its rename: {error}");
            }
        }
        Ok(())
    }

    /// Takes the whiteouts out of a directory that holds nothing else, which hides the lower as before.
    fn empty_out(&self, dir: &DirFd, name: Name<'_>) -> Result<()> {
        let emptied = self.open_dir(dir, name)?;
        let found = Found::Open(emptied.as_fd());
        let before = self.raw_stat(&found)?;
        // First, so that nothing of the lower comes up whenever this is cut off.
        self.space.set(&found, marks::OPAQUE, b"y")?;
        stage::empty_dir(&emptied)?;
        let times = SetAttr {
            atime: Some(overlay::upper::SetTime::At(before.atime)),
            mtime: Some(overlay::upper::SetTime::At(before.mtime)),
            ..SetAttr::default()
        };
        self.apply_attr(&found, before.kind, &times)
    }
}
