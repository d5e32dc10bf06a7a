//! What the kernel takes from a file that is written to, whoever writes: capabilities, the time of change, and set-user-ID bits
//! where the daemon has no privilege over them. It is kept while a body is brought up that no program wrote, and given back.
//!
//! Capabilities and set-user-ID bits are noted on the file first, so that a crash does not take them: whoever finds the file
//! with a note of an earlier mount gives back what it says.

use std::collections::HashMap;
use std::sync::Arc;

use layer::{Stat, Time};
use overlay::upper::{Kept, SetAttr, SetTime, SetXattr, Target};
use overlay::{Errno, Error, Result};
use parking_lot::Mutex;

use super::{CAPABILITY, Found, UpperDir, attr, error, marks};

/// Which files bear a note of this mount, by backing inode number. A file's note is written, followed and dropped under a lock
/// of that file alone.
#[derive(Default)]
pub(super) struct Notes(Mutex<HashMap<u64, Arc<Mutex<bool>>>>);

/// The place of one file among the [`Notes`]; the flag tells whether it bears one. With the last of these goes the place, unless
/// there is a note.
struct Place<'a> {
    notes: &'a Notes,
    ino: u64,
    noted: Arc<Mutex<bool>>,
}

impl Notes {
    fn of(&self, ino: u64) -> Place<'_> {
        let noted = Arc::clone(self.0.lock().entry(ino).or_default());
        Place { notes: self, ino, noted }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut places = self.notes.0.lock();
        // Given up while the map is locked, so that of several who leave at once the last sees that it is.
        drop(std::mem::take(&mut self.noted));
        if places.get(&self.ino).is_some_and(|noted| Arc::strong_count(noted) == 1 && !*noted.lock()) {
            places.remove(&self.ino);
        }
    }
}

impl UpperDir {
    /// Reads what a write would take, and notes what a crash would then have taken for good.
    pub(super) fn keep_noted(&self, of: Target<'_, Self>) -> Result<Kept> {
        let of = self.resolve(of);
        let Stat { ino, perm, atime, mtime, .. } = self.raw_stat(&of)?;
        let bits = (self.space.overrides() && perm & 0o6000 != 0).then_some(perm);
        let kept = Kept { perm: bits, atime, mtime, capability: marks::get(&of, CAPABILITY)? };
        if kept.is_privilege() {
            let place = self.kept.of(ino.0);
            let mut noted = place.noted.lock();
            self.space.set_kept(&of, &kept)?;
            *noted = true;
        }
        Ok(kept)
    }

    /// Gives it back, and drops the note.
    pub(super) fn give_back_noted(&self, of: &Found<'_>, kept: &Kept) -> Result<()> {
        let place = self.kept.of(self.raw_stat(of)?.ino.0);
        let mut noted = place.noted.lock();
        let given = match self.give(of, kept) {
            Err(Error::Answer(Errno::ENOSPC | Errno::EDQUOT)) => {
                // The note has its room.
                self.space.end_kept(of)?;
                self.give(of, kept)
            }
            given => given,
        };
        if kept.is_privilege() {
            self.space.end_kept(of)?;
            *noted = false;
        }
        given
    }

    /// Gives back what a crash took, unless the note is of this mount: then the file is being written.
    pub(super) fn recover_kept(&self, of: &Found<'_>, stat: &Stat) -> Result<()> {
        let place = self.kept.of(stat.ino.0);
        let noted = place.noted.lock();
        if *noted {
            return Ok(());
        }
        // It may have been dropped since it was seen.
        let Some(kept) = self.space.kept(of)? else { return Ok(()) };
        self.give(of, &kept)?;
        self.space.end_kept(of)
    }

    fn give(&self, of: &Found<'_>, kept: &Kept) -> Result<()> {
        if let Some(capability) = &kept.capability {
            marks::set(of, CAPABILITY, capability, SetXattr::Any)?;
        }
        if let Some(perm) = kept.perm {
            attr::chmod(of, perm).map_err(|raw| error(|| of.doing("change mode of"), raw))?;
        }
        let times = SetAttr {
            atime: Some(SetTime::At(kept.atime)),
            mtime: Some(SetTime::At(kept.mtime)),
            ..SetAttr::default()
        };
        self.apply_attr(of, layer::FileType::File, &times)
    }
}

/// Spells a note out: the mode (16 bits set where none is to be given back), the times, the capability.
pub(super) fn spell(kept: &Kept) -> Vec<u8> {
    let mut value = Vec::with_capacity(26 + kept.capability.as_ref().map_or(0, Vec::len));
    value.extend(kept.perm.unwrap_or(NO_PERM).to_le_bytes());
    for time in [kept.atime, kept.mtime] {
        value.extend(time.sec.to_le_bytes());
        value.extend(time.nsec.to_le_bytes());
    }
    value.extend(kept.capability.as_deref().unwrap_or_default());
    value
}

/// Reads a note; `None` for what is none.
pub(super) fn read(value: &[u8]) -> Option<Kept> {
    let (perm, rest) = value.split_first_chunk()?;
    let (atime, rest) = time(rest)?;
    let (mtime, capability) = time(rest)?;
    let perm = Some(u16::from_le_bytes(*perm)).filter(|perm| *perm != NO_PERM);
    let capability = (!capability.is_empty()).then(|| capability.to_vec());
    (perm.is_none_or(|perm| perm <= 0o7777)).then_some(Kept { perm, atime, mtime, capability })
}

const NO_PERM: u16 = u16::MAX;

fn time(value: &[u8]) -> Option<(Time, &[u8])> {
    let (sec, rest) = value.split_first_chunk()?;
    let (nsec, rest) = rest.split_first_chunk()?;
    Some((Time { sec: i64::from_le_bytes(*sec), nsec: u32::from_le_bytes(*nsec) }, rest))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use overlay::Upper;

    use super::*;
    use crate::upper::{DirFd, Durability, Settings, UpperDir};

    const SETTINGS: Settings = Settings { durability: Durability::Synced, always_override: false, user_marks: false };

    /// An upper with a file `tool` that is set-user-ID and, where we may do that, has a capability.
    fn with_tool(scratch: &std::path::Path) -> (UpperDir, Option<Vec<u8>>) {
        for name in ["upper", "work"] {
            fs::create_dir(scratch.join(name)).unwrap();
        }
        let tool = scratch.join("upper/tool");
        fs::write(&tool, b"tool").unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o4755)).unwrap();
        let words: [u32; 5] = [0x0200_0001, 1 << 10, 0, 0, 0];
        let capability: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let flags = rustix::fs::XattrFlags::empty();
        let set = rustix::fs::setxattr(&tool, "security.capability", &capability, flags).is_ok();
        (reopened(scratch), set.then_some(capability))
    }

    fn reopened(scratch: &std::path::Path) -> UpperDir {
        UpperDir::open(&scratch.join("upper"), &scratch.join("work"), SETTINGS).unwrap()
    }

    fn tool<'a>(root: &'a DirFd) -> Target<'a, UpperDir> {
        Target::At(root, layer::Name::new(b"tool").unwrap())
    }

    fn seen(upper: &UpperDir) -> (u16, Option<Vec<u8>>, bool) {
        let root = upper.root();
        let (stat, _) = upper.find(tool(&root)).unwrap();
        let noted = upper.space.kept(&upper.resolve(tool(&root))).unwrap().is_some();
        (stat.perm, upper.xattr(tool(&root), CAPABILITY).ok(), noted)
    }

    #[test]
    fn privileges_that_a_crash_took_are_given_back() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, capability) = with_tool(scratch.path());
        let root = upper.root();
        // Without a privilege to keep there would be no note.
        let mut kept = upper.keep(tool(&root)).unwrap();
        kept.perm = Some(0o4755);
        upper.space.set_kept(&upper.resolve(tool(&root)), &kept).unwrap();
        drop((upper, root));
        fs::write(scratch.path().join("upper/tool"), b"other").unwrap();
        fs::set_permissions(scratch.path().join("upper/tool"), fs::Permissions::from_mode(0o755)).unwrap();

        assert_eq!(seen(&reopened(scratch.path())), (0o4755, capability, false));
    }

    #[test]
    fn a_note_is_left_alone_while_its_mount_writes() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, capability) = with_tool(scratch.path());
        let root = upper.root();
        let kept = upper.keep(tool(&root)).unwrap();
        assert_eq!(kept.capability, capability);
        fs::write(scratch.path().join("upper/tool"), b"other").unwrap();
        assert_eq!(seen(&upper), (seen(&upper).0, None, kept.is_privilege()));
        upper.give_back(tool(&root), &kept).unwrap();
        assert!(upper.kept.0.lock().is_empty());
        assert_eq!(seen(&upper), (0o4755, capability, false));
        let mtime = upper.stat(tool(&root)).unwrap().mtime;
        assert_eq!(mtime, kept.mtime);
    }

    #[test]
    fn a_file_waits_for_no_other_and_keeps_a_place_while_it_is_noted() {
        let notes = Notes::default();
        let one = notes.of(1);
        let mut noted = one.noted.lock();
        assert!(notes.of(1).noted.try_lock().is_none());
        assert!(notes.of(2).noted.try_lock().is_some());
        *noted = true;
        drop(noted);
        drop(one);
        assert_eq!(notes.0.lock().keys().collect::<Vec<_>>(), [&1]);
        assert!(*notes.of(1).noted.lock());
        *notes.of(1).noted.lock() = false;
        assert!(notes.0.lock().is_empty());
    }

    #[test]
    fn a_note_is_read_as_it_was_spelled() {
        let time = |sec| Time { sec, nsec: 5 };
        for (perm, capability) in
            [(None, None), (Some(0o6755), None), (None, Some(vec![1, 2])), (Some(0), Some(vec![3]))]
        {
            let kept = Kept { perm, atime: time(-7), mtime: time(1 << 40), capability };
            let spelled = spell(&kept);
            assert_eq!(read(&spelled), Some(kept));
            for cut in 0..26 {
                assert_eq!(read(&spelled[..cut]), None, "cut to {cut} bytes");
            }
        }
        assert_eq!(read(&[0xff, 0x7f].repeat(13)), None, "a mode that is none");
    }
}
