//! Unpacking layers for those who want directories: one for each layer in overlay format, or one for all.
//!
//! The layers come out of a store, which has checked them. What lies on the disk already is not trusted all the same: a link of a
//! lower layer never leads a higher one astray.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use backing::sys;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use crate::interrupt;

/// How whiteouts are spelled in a layer's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Device 0:0 and `trusted.overlay.opaque`.
    Trusted,
    /// Device 0:0 and `user.overlay.opaque`, where root is root of a namespace only.
    User,
    /// `.wh.` files, where no devices can be made.
    Files,
}

/// What an unpacked layer becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A directory of its own, with whiteouts.
    Layer(Spelling),
    /// Changes of what the layers below it have left in the same directory.
    Merged,
}

/// What an ordinary user could not keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) owners: bool,
    pub(crate) devices: bool,
    pub(crate) attributes: bool,
}

/// A directory that layers are unpacked into.
pub(crate) struct Unpacker<'a> {
    root: OwnedFd,
    form: Form,
    /// Directories of the layers below, topmost first: hard links lead there.
    below: &'a [PathBuf],
    pub(crate) lost: Lost,
    /// The directory of the last member, which the next one mostly shares.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Set at the end, as everything made in a directory changes them.
    times: Vec<(Vec<u8>, Timestamps)>,
    hidden: HashSet<Vec<u8>>,
}

impl<'a> Unpacker<'a> {
    pub(crate) fn new(dir: &Path, form: Form, below: &'a [PathBuf]) -> Result<Self> {
        let root = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let (times, hidden) = (Vec::new(), HashSet::new());
        Ok(Unpacker { root, form, below, lost: Lost::default(), parent: None, times, hidden })
    }

    /// Does what a layer's whiteouts say to the layers below; comes before [`Unpacker::add`] in a merged directory, as a layer's
    /// whiteouts do not concern the layer itself.
    pub(crate) fn hide(&mut self, tar: impl Read) -> Result<()> {
        for entry in tar::Archive::new(tar).entries()? {
            interrupt::check()?;
            let path = clean(&entry?.path_bytes());
            let (dir, name) = split(&path);
            let Some(hidden) = name.strip_prefix(b".wh.") else { continue };
            let Some(parent) = self.find_dir(dir)? else { continue };
            match hidden {
                b".wh..opq" => self.empty(&parent)?,
                name => remove(&parent, name)?,
            }
        }
        self.parent = None;
        Ok(())
    }

    /// Adds a layer's members.
    pub(crate) fn add(&mut self, tar: impl Read) -> Result<()> {
        for entry in tar::Archive::new(tar).entries()? {
            interrupt::check()?;
            let mut entry = entry?;
            let path = clean(&entry.path_bytes());
            self.member(&mut entry, &path).with_context(|| String::from_utf8_lossy(&path).into_owned())?;
        }
        let times = std::mem::take(&mut self.times);
        for (path, times) in times.iter().rev() {
            // A later member may have taken its place.
            if let Some(dir) = self.find_dir(path)? {
                rustix::fs::utimensat(&dir, ".", times, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    fn member<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &[u8]) -> Result<()> {
        if path.is_empty() {
            return self.root_attributes(entry);
        }
        let (dir, name) = split(path);
        let parent = self.parent_of(dir)?;
        let done = match name.strip_prefix(b".wh.") {
            Some(hidden) => self.whiteout(&parent, path, hidden),
            None => self.make(entry, &parent, path, name),
        };
        self.parent = Some((dir.to_vec(), parent));
        done
    }

    fn root_attributes<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        let root = self.root.try_clone()?;
        self.attributes(entry, &root, b".")
    }

    fn make<R: Read>(&mut self, entry: &mut Entry<'_, R>, parent: &OwnedFd, path: &[u8], name: &[u8]) -> Result<()> {
        let kind = entry.header().entry_type();
        if kind == EntryType::Directory {
            self.directory(parent, path, name)?;
            self.times.push((path.to_vec(), times_of(entry)?));
            return self.attributes(entry, parent, name);
        }
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        remove(parent, name)?;
        match kind {
            EntryType::Link => return self.hard_link(entry, parent, name),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().context("a symbolic link without a target")?;
                rustix::fs::symlinkat(&*target, parent, name)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => self.node(entry, kind, parent, name)?,
            _ => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::from(0o600))?);
                io::copy(entry, &mut file)?;
            }
        }
        self.attributes(entry, parent, name)
    }

    fn directory(&mut self, parent: &OwnedFd, path: &[u8], name: &[u8]) -> Result<()> {
        match rustix::fs::mkdirat(parent, name, Mode::from(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) if is_dir(parent, name) => return Ok(()),
            Err(Errno::EXIST) => {
                remove(parent, name)?;
                rustix::fs::mkdirat(parent, name, Mode::from(0o755))?;
            }
            Err(errno) => return Err(errno.into()),
        }
        match self.hidden.contains(path) {
            true => self.opaque(&open_dir(parent, name)?),
            false => Ok(()),
        }
    }

    fn node<R: Read>(&mut self, entry: &Entry<'_, R>, kind: EntryType, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        let number = |number: io::Result<Option<u32>>| Ok::<u32, io::Error>(number?.unwrap_or_default());
        let device =
            rustix::fs::makedev(number(entry.header().device_major())?, number(entry.header().device_minor())?);
        let (kind, device) = match kind {
            EntryType::Char => (rustix::fs::FileType::CharacterDevice, device),
            EntryType::Block => (rustix::fs::FileType::BlockDevice, device),
            _ => (rustix::fs::FileType::Fifo, 0),
        };
        match rustix::fs::mknodat(parent, name, kind, Mode::from(0o600), device) {
            Err(Errno::PERM) => {
                self.lost.devices = true;
                rustix::fs::mknodat(parent, name, rustix::fs::FileType::RegularFile, Mode::from(0o600), 0)?;
                Ok(())
            }
            done => Ok(done?),
        }
    }

    /// Links to a member of this layer; what only a layer below has is copied, as an unpacker on an overlay mount does.
    fn hard_link<R: Read>(&mut self, entry: &mut Entry<'_, R>, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        let target = clean(&entry.link_name_bytes().context("a hard link without a target")?);
        let (dir, last) = split(&target);
        if let Some(found) = self.find_dir(dir)? {
            match rustix::fs::linkat(&found, last, parent, name, AtFlags::empty()) {
                Err(Errno::NOENT) => {}
                done => return Ok(done?),
            }
        }
        for layer in self.below {
            let root = File::open(layer)?;
            match sys::open_beneath(&root, &target, OFlags::RDONLY) {
                Ok(source) => return copy_up(&source, &root, &target, parent, name),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        anyhow::bail!("its hard link's target {} is in no layer", String::from_utf8_lossy(&target))
    }

    fn whiteout(&mut self, parent: &OwnedFd, path: &[u8], hidden: &[u8]) -> Result<()> {
        let Form::Layer(spelling) = self.form else { return Ok(()) };
        match (hidden, spelling) {
            (b".wh..opq", Spelling::Trusted | Spelling::User) => self.opaque(parent),
            (_, Spelling::Files) => {
                let (_, name) = split(path);
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
                rustix::fs::openat(parent, name, flags, Mode::from(0o644))?;
                Ok(())
            }
            (hidden, _) => {
                let (dir, _) = split(path);
                self.hidden.insert(join(dir, hidden));
                let made = rustix::fs::mknodat(
                    parent,
                    hidden,
                    rustix::fs::FileType::CharacterDevice,
                    Mode::empty(),
                    rustix::fs::makedev(0, 0),
                );
                match made {
                    // The layer has something of that name itself.
                    Err(Errno::EXIST) if is_dir(parent, hidden) => self.opaque(&open_dir(parent, hidden)?),
                    Err(Errno::EXIST) => Ok(()),
                    done => Ok(done?),
                }
            }
        }
    }

    fn opaque(&self, dir: &OwnedFd) -> Result<()> {
        let attribute: &[u8] = match self.form {
            Form::Layer(Spelling::Trusted) => b"trusted.overlay.opaque",
            Form::Layer(Spelling::User) => b"user.overlay.opaque",
            Form::Layer(Spelling::Files) | Form::Merged => return Ok(()),
        };
        Ok(sys::set_xattr_of(dir, attribute, b"y", XattrFlags::empty())?)
    }

    fn attributes<R: Read>(&mut self, entry: &mut Entry<'_, R>, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        let times = times_of(entry)?;
        let header = entry.header();
        let (uid, gid, mode) = (header.uid()? as u32, header.gid()? as u32, header.mode()?);
        let is_link = header.entry_type() == EntryType::Symlink;
        let owned = rustix::fs::chownat(
            parent,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        match owned {
            Err(Errno::PERM | Errno::INVAL) => self.lost.owners = true,
            done => done?,
        }
        if !is_link {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
        }
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            let Some(attribute) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
            match sys::set_xattr_at(parent, name, attribute, extension.value_bytes(), XattrFlags::empty()) {
                Err(Errno::PERM | Errno::OPNOTSUPP) => self.lost.attributes = true,
                done => done?,
            }
        }
        Ok(rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens a directory for new members; makes it and those above it where they are missing, and in place of anything else.
    fn parent_of(&mut self, path: &[u8]) -> Result<OwnedFd> {
        if let Some((of, parent)) = self.parent.take_if(|(of, _)| of == path) {
            debug_assert_eq!(of, path);
            return Ok(parent);
        }
        if let Some(found) = self.find_dir(path)? {
            return Ok(found);
        }
        let (above, name) = split(path);
        let above = self.parent_of(above)?;
        self.directory(&above, path, name)?;
        open_dir(&above, name)
    }

    /// Opens a directory; `None` where there is none, or something else.
    fn find_dir(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        if path.is_empty() {
            return Ok(Some(self.root.try_clone()?));
        }
        match sys::open_beneath(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn empty(&self, dir: &OwnedFd) -> Result<()> {
        let mut names = Vec::new();
        let dir = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        sys::read_dir(&dir, |entry| {
            names.push(entry.name.to_vec());
            std::ops::ControlFlow::Continue(())
        })?;
        names.iter().try_for_each(|name| remove(&dir, name))
    }
}

/// Copies a file or link that a hard link names in a layer below.
fn copy_up(source: &OwnedFd, root: &File, path: &[u8], parent: &OwnedFd, name: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::from(0o600))?);
    io::copy(&mut File::from(source.try_clone()?), &mut file)?;
    let (dir, last) = split(path);
    let from =
        if dir.is_empty() { OwnedFd::from(root.try_clone()?) } else { sys::open_beneath(root, dir, OFlags::PATH)? };
    let found = sys::stat_at(&from, last)?.stat;
    let (uid, gid) = (Uid::from_raw(found.uid), Gid::from_raw(found.gid));
    match rustix::fs::fchown(&file, Some(uid), Some(gid)) {
        Err(Errno::PERM | Errno::INVAL) => {}
        done => done?,
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(found.perm.into()))?;
    let mtime = Timespec { tv_sec: found.mtime.sec, tv_nsec: found.mtime.nsec.into() };
    Ok(rustix::fs::futimens(&file, &Timestamps { last_access: mtime, last_modification: mtime })?)
}

/// Removes a name with all that is below it; one that is missing is no error.
fn remove(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            use std::os::unix::ffi::OsStrExt;
            let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()));
            Ok(fs::remove_dir_all(path.join(std::ffi::OsStr::from_bytes(name)))?)
        }
        Err(errno) => Err(errno.into()),
    }
}

fn is_dir(dir: &OwnedFd, name: &[u8]) -> bool {
    sys::stat_at(dir, name).is_ok_and(|found| found.stat.kind == layer::FileType::Dir)
}

fn open_dir(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    Ok(sys::open_beneath(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?)
}

fn times_of<R: Read>(entry: &mut Entry<'_, R>) -> Result<Timestamps> {
    let mut mtime = Timespec { tv_sec: entry.header().mtime()? as i64, tv_nsec: 0 };
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if extension.key_bytes() == b"mtime" {
            mtime = parse_time(extension.value().unwrap_or_default()).unwrap_or(mtime);
        }
    }
    Ok(Timestamps { last_access: mtime, last_modification: mtime })
}

/// Reads a time in the spelling of PAX: seconds with decimals, perhaps negative.
fn parse_time(text: &str) -> Option<Timespec> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let nsec: i64 = format!("{:0<9.9}", decimals).parse().ok()?;
    let sec: i64 = whole.parse().ok()?;
    Some(match whole.starts_with('-') && nsec > 0 {
        true => Timespec { tv_sec: sec - 1, tv_nsec: 1_000_000_000 - nsec },
        false => Timespec { tv_sec: sec, tv_nsec: nsec },
    })
}

/// Takes `./`, doubled and trailing slashes out of a member's path.
fn clean(path: &[u8]) -> Vec<u8> {
    let names: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    names.join(&b'/')
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, name].join(&b'/') }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    /// A tar of (path, content or None for a directory, hard link's target).
    fn tar(members: &[(&str, Option<&str>, Option<&str>)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, content, link) in members {
            let mut header = Header::new_gnu();
            header.set_mode(if content.is_none() && link.is_none() { 0o755 } else { 0o644 });
            header.set_uid(rustix::process::geteuid().as_raw().into());
            header.set_gid(rustix::process::getegid().as_raw().into());
            header.set_mtime(1_000_000_000);
            match (content, link) {
                (_, Some(target)) => {
                    header.set_entry_type(EntryType::Link);
                    header.set_size(0);
                    builder.append_link(&mut header, path, target).unwrap();
                }
                (Some(content), None) => {
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content.as_bytes()).unwrap();
                }
                (None, None) => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_size(0);
                    builder.append_data(&mut header, path, io::empty()).unwrap();
                }
            }
        }
        builder.into_inner().unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn layers_are_applied_in_order() {
        let base = tar(&[
            ("etc", None, None),
            ("etc/a", Some("1"), None),
            ("etc/b", Some("2"), None),
            ("opt", None, None),
            ("opt/x", Some("3"), None),
            ("opt/y", Some("4"), None),
            ("var", Some("a file"), None),
        ]);
        let top = tar(&[
            ("etc/.wh.a", Some(""), None),
            ("opt/z", Some("5"), None),
            ("opt/.wh..wh..opq", Some(""), None),
            ("var/log/l", Some("6"), None),
            ("etc/c", None, Some("etc/b")),
        ]);
        let dir = tempfile::tempdir().unwrap();
        for layer in [&base, &top] {
            let mut unpacker = Unpacker::new(dir.path(), Form::Merged, &[]).unwrap();
            unpacker.hide(&layer[..]).unwrap();
            unpacker.add(&layer[..]).unwrap();
        }
        assert_eq!(names(dir.path()), ["etc", "opt", "var"]);
        assert_eq!(names(&dir.path().join("etc")), ["b", "c"]);
        assert_eq!(names(&dir.path().join("opt")), ["z"]);
        assert_eq!(fs::read(dir.path().join("var/log/l")).unwrap(), b"6");
        assert_eq!(fs::read(dir.path().join("etc/c")).unwrap(), b"2");
    }

    #[test]
    fn a_layer_keeps_its_whiteouts() {
        let below = tempfile::tempdir().unwrap();
        fs::create_dir(below.path().join("etc")).unwrap();
        fs::write(below.path().join("etc/b"), b"2").unwrap();
        let top = tar(&[("etc/.wh.a", Some(""), None), ("etc/c", None, Some("etc/b"))]);
        let dir = tempfile::tempdir().unwrap();
        let lower = [below.path().to_path_buf()];
        let mut unpacker = Unpacker::new(dir.path(), Form::Layer(Spelling::Files), &lower).unwrap();
        unpacker.add(&top[..]).unwrap();
        assert_eq!(names(&dir.path().join("etc")), [".wh.a", "c"]);
        assert_eq!(fs::read(dir.path().join("etc/c")).unwrap(), b"2");
    }

    #[test]
    fn links_of_lower_layers_lead_nowhere() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("etc")).unwrap();
        let top = tar(&[("etc/passwd", Some("x"), None)]);
        Unpacker::new(dir.path(), Form::Merged, &[]).unwrap().add(&top[..]).unwrap();
        assert!(names(outside.path()).is_empty());
        assert_eq!(fs::read(dir.path().join("etc/passwd")).unwrap(), b"x");
    }

    #[test]
    fn times_are_read_as_pax_spells_them() {
        let time = |text| parse_time(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(time("12"), Some((12, 0)));
        assert_eq!(time("12.25"), Some((12, 250_000_000)));
        assert_eq!(time("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time("x"), None);
    }
}
