//! Named volumes: directories that outlive the containers that have them.
//!
//! `volumes/<name>` is the volume's content and nothing else. A volume that is there is whole: it is made in `ingest/`, filled with what
//! the image has at that place, and renamed. Containers name the volumes that they were run with; until the last of them is removed, the
//! volume stays.

mod copy;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use crate::containers::check_name;
use crate::disk;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::store::Store;

/// A named volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name, unique in the store.
    pub name: String,
    /// Its content.
    pub path: PathBuf,
    /// The names of the containers that were run with it.
    pub containers: Vec<String>,
}

/// Where in a mounted image a volume's first content comes from.
#[derive(Clone, Copy, Debug)]
pub struct Seed<'a> {
    /// The image's root.
    pub root: &'a Path,
    /// The directory; links in it lead nowhere but into the image.
    pub directory: &'a str,
}

impl Store {
    /// Returns all volumes, sorted by name.
    ///
    /// # Errors
    /// The disk; a container's record that cannot be read.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        let containers = self.containers()?;
        let users = |name: &String| {
            let mut users: Vec<String> =
                containers.iter().filter(|c| c.volumes.contains(name)).map(|c| c.name.clone()).collect();
            users.sort();
            users
        };
        let names =
            disk::names(&self.layout().volumes())?.into_iter().filter(|name| check_name("volume", name).is_ok());
        Ok(names.map(|name| Volume { path: self.layout().volume(&name), containers: users(&name), name }).collect())
    }

    /// Returns the directory of a volume. One that is not there is made: with owner, mode and content of the image's directory where that
    /// is one, else empty.
    ///
    /// The container that has it names it already: from then on nobody removes it.
    /// # Errors
    /// [`Error::Invalid`] for a name that is none; the disk, the image.
    pub fn make_volume(&self, name: &str, seed: Option<Seed<'_>>) -> Result<PathBuf> {
        let path = self.layout().volume(&check_name("volume", name)?);
        if path.is_dir() {
            return Ok(path);
        }
        let _store = Lock::shared(&self.layout().lock())?;
        let unfinished = disk::unfinished(self.layout());
        let made = fill(&unfinished, seed).and_then(|()| {
            match rustix::fs::renameat_with(CWD, &unfinished, CWD, &path, RenameFlags::NOREPLACE) {
                // Another container was faster: that one's counts.
                Err(Errno::EXIST) => disk::remove_tree(&unfinished),
                renamed => renamed.map_err(Error::at("make volume", &path)),
            }
        });
        if let Err(error) = made {
            disk::remove_tree(&unfinished).ok(); // already failing; else swept at the next start
            return Err(error.within(format!("volume {name}")));
        }
        disk::sync_dir(&self.layout().volumes())?;
        Ok(path)
    }

    /// Removes a volume with all that it holds; returns how many bytes that took on the disk.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InUse`] while there is a container that was run with it.
    pub fn remove_volume(&self, name: &str) -> Result<u64> {
        let _store = Lock::shared(&self.layout().lock())?;
        let records = Lock::exclusive(&self.layout().records_lock())?;
        let Some(volume) = self.volumes()?.into_iter().find(|volume| volume.name == name) else {
            return Err(Error::NotFound(format!("no such volume: {name}; 'plyfs volume ls' lists what is here")));
        };
        if let Some(user) = volume.containers.first() {
            let why = format!("volume {name} is in use by container {user}; remove that one first: plyfs rm {user}");
            return Err(Error::InUse(why));
        }
        let trash = self.layout().trash().join(disk::random_id()?);
        fs::rename(&volume.path, &trash).map_err(Error::at("remove", &volume.path))?;
        disk::sync_dir(&self.layout().volumes())?;
        drop(records);
        let bytes = disk::allocated(&trash)?;
        disk::remove_tree(&trash)?;
        Ok(bytes)
    }
}

/// Makes the directory of a volume.
fn fill(dir: &Path, seed: Option<Seed<'_>>) -> Result<()> {
    disk::make_dir(dir)?;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let to = rustix::fs::open(dir, directory, Mode::empty()).map_err(Error::at("open", dir))?;
    match seed.map(|seed| open_seed(&seed)).transpose()?.flatten() {
        Some(from) => copy::content(&from, &to)?,
        None => rustix::fs::fchmod(&to, Mode::from_raw_mode(0o755)).map_err(Error::at("change the mode of", dir))?,
    }
    rustix::fs::syncfs(&to).map_err(Error::at("sync", dir))
}

/// Opens the image's directory; `None` if it has none at that path.
fn open_seed(seed: &Seed<'_>) -> Result<Option<OwnedFd>> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(seed.root, OFlags::PATH | directory, Mode::empty()).map_err(Error::at("open", seed.root))?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root, seed.directory, OFlags::RDONLY | directory, Mode::empty(), inside) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(Error::io(format!("open {} of the image", seed.directory), errno)),
    }
}
