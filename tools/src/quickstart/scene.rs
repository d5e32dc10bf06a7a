//! What the quickstart puts on the machine, and takes away again, also when it is interrupted.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use store::{Container, Image, Store};

use crate::{complain, mounts};

/// The directory of everything, the store, and what lies in it because of us.
pub(super) struct Scene {
    dir: PathBuf,
    store: Store,
    /// Held while something is made, so that whoever clears up finds it or comes before it.
    made: Arc<Mutex<Made>>,
    interrupted: Arc<AtomicBool>,
}

/// What there is to take away.
struct Made {
    dir: PathBuf,
    store: Store,
    /// Whether the store goes with the directory.
    own_store: bool,
    containers: Vec<Container>,
    is_cleared: bool,
}

impl Scene {
    /// Makes a new directory, with a store in it unless there is one at `root`.
    pub(super) fn set(root: Option<&PathBuf>) -> Result<Self> {
        // A store wants a disk: /tmp may be memory.
        let parent = Some(PathBuf::from("/var/tmp")).filter(|dir| dir.is_dir()).unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix("plyfs-quickstart.")
            .tempdir_in(&parent)
            .with_context(|| parent.display().to_string())?
            .keep();
        let store_dir = root.cloned().unwrap_or_else(|| dir.join("store"));
        let store = match Store::open(&store_dir) {
            Ok(store) => store,
            Err(error) => {
                remove(&dir)?;
                return Err(error.into());
            }
        };
        let made = Made {
            dir: dir.clone(),
            store: store.clone(),
            own_store: root.is_none(),
            containers: Vec::new(),
            is_cleared: false,
        };
        let scene = Scene { dir, store, made: Arc::new(Mutex::new(made)), interrupted: Arc::default() };
        scene.clear_when_interrupted()?;
        Ok(scene)
    }

    fn clear_when_interrupted(&self) -> Result<()> {
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals")?;
        let (made, interrupted) = (self.made.clone(), self.interrupted.clone());
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                interrupted.store(true, Ordering::SeqCst);
                if let Err(error) = lock(&made).clear() {
                    complain(&format!("{error:#}"));
                }
                std::process::exit(128 + signal);
            }
        });
        Ok(())
    }

    /// Waits for the end of the process if it is being interrupted: what fails then fails because of that.
    pub(super) fn leave_if_interrupted(&self) {
        while self.interrupted.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the image is mounted.
    pub(super) fn image_dir(&self) -> PathBuf {
        self.dir.join("image")
    }

    /// Where a container is mounted.
    pub(super) fn dir_of(&self, container: &Container) -> PathBuf {
        self.dir.join(&container.name)
    }

    /// Makes a container, of another name if that one is taken.
    pub(super) fn container(&self, image: &Image, name: &str) -> Result<Container> {
        let mut made = lock(&self.made);
        let free = self.store.containers()?.iter().all(|other| other.name != name);
        let container = self.store.create_container(image, free.then_some(name))?;
        made.containers.push(container.clone());
        Ok(container)
    }

    pub(super) fn mount_container(&self, container: &Container) -> Result<PathBuf> {
        let _made = lock(&self.made);
        let dir = self.dir_of(container);
        make(&dir)?;
        mounts::mount_container(&self.store, container, &dir, &[])
    }

    pub(super) fn mount_image(&self, image: &Image) -> Result<PathBuf> {
        let _made = lock(&self.made);
        let dir = self.image_dir();
        make(&dir)?;
        mounts::mount_image(&self.store, image, &dir, &[])
    }

    /// Leaves everything where it is; the mounts too, if others can see them.
    pub(super) fn keep(&self, mounts_too: bool) -> Result<()> {
        let mut made = lock(&self.made);
        made.is_cleared = true;
        let archive = self.dir.join("sample.tar");
        if archive.exists() {
            fs::remove_file(&archive).with_context(|| archive.display().to_string())?;
        }
        if mounts_too { Ok(()) } else { made.unmount() }
    }

    /// Takes everything away.
    pub(super) fn clear(&self) -> Result<()> {
        lock(&self.made).clear()
    }
}

impl Made {
    fn clear(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_cleared, true) {
            return Ok(());
        }
        self.unmount()?;
        if !self.own_store {
            for container in self.containers.drain(..) {
                self.store.remove_container(&container.id)?;
            }
        }
        remove(&self.dir)
    }

    fn unmount(&self) -> Result<()> {
        for container in &self.containers {
            mounts::end(&self.store, &self.store.container(&container.id)?)?;
        }
        for mounted in self.store.image_mounts()?.iter().filter(|mounted| mounted.mount.target.starts_with(&self.dir)) {
            mounts::end_image(&self.store, mounted)?;
        }
        Ok(())
    }
}

fn lock(made: &Mutex<Made>) -> MutexGuard<'_, Made> {
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir(dir).with_context(|| dir.display().to_string())
}

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("{}: not removed", dir.display()))
}
