//! Garbage: what no image, container or mount leads to is deleted.
//!
//! Marked are the layers of all images, containers, live mounts and leases and those that are lent, the objects that those layers' indexes and skeletons name, and
//! the folded indexes of their stacks. What is not marked is renamed into `trash/` under the exclusive lock, and deleted.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use layer::{ChainId, DiffId, Digest};

use crate::disk;
use crate::error::{Error, Result};
use crate::images::Catalogue;
use crate::layout::SKELETON;
use crate::lock::Lock;
use crate::skeleton::{BodySource, Piece, SkeletonReader};
use crate::store::Store;

/// What a collection deleted.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Layers that nothing uses.
    pub layers: Vec<DiffId>,
    /// How many objects that no layer uses.
    pub objects: u64,
    /// How many folded indexes of no image.
    pub folded: u64,
    /// What that took on the disk, in bytes.
    pub bytes: u64,
}

/// What must stay.
struct Marked {
    layers: HashSet<DiffId>,
    chains: HashSet<ChainId>,
    configs: HashSet<Digest>,
    blobs: HashSet<Digest>,
}

impl Store {
    /// Deletes what no image, container or mount leads to.
    ///
    /// Waits for loads that are under way.
    /// # Errors
    /// The disk; a layer or record that cannot be read (then nothing is deleted).
    pub fn gc(&self) -> Result<Collected> {
        let _store = Lock::exclusive(&self.layout().lock())?;
        collect(self, Scope::All)
    }

    /// Returns the objects that a layer's index and skeleton name.
    pub(crate) fn objects_of(&self, layer: &DiffId) -> Result<HashSet<Digest>> {
        let mut objects: HashSet<Digest> = self.layer_index(layer)?.objects().map(|object| object.digest).collect();
        let mut skeleton = SkeletonReader::open(&self.layout().layer(layer).join(SKELETON))?;
        while let Some(piece) = skeleton.next_piece()? {
            if let Piece::Body { source: BodySource::Object { digest, .. }, .. } = piece {
                objects.insert(digest);
            }
        }
        Ok(objects)
    }
}

/// Which unused layers are garbage. Whole layers of an interrupted load are not used by anything yet.
pub(crate) enum Scope<'a> {
    All,
    /// Only these: what else is unused may be what an interrupted load goes on with.
    Only(&'a HashSet<DiffId>),
}

/// Deletes garbage. The caller holds the store's lock exclusively.
pub(crate) fn collect(store: &Store, scope: Scope<'_>) -> Result<Collected> {
    let marked = mark(store)?;
    let is_garbage = |layer: &DiffId| {
        !marked.layers.contains(layer)
            && match scope {
                Scope::All => true,
                Scope::Only(layers) => layers.contains(layer),
            }
    };
    let (garbage, kept): (Vec<DiffId>, Vec<DiffId>) = store.layers()?.into_iter().partition(is_garbage);
    let mut objects = HashSet::new();
    for layer in &kept {
        objects.extend(store.objects_of(layer)?);
    }
    let mut sweep = Sweep { store, collected: Collected::default(), condemned: Vec::new() };
    for layer in garbage {
        sweep.condemn(&store.layout().layer(&layer))?;
        sweep.collected.layers.push(layer);
    }
    for (path, name) in files(&store.layout().all_folded())? {
        if !Digest::from_hex(&name).is_ok_and(|chain| marked.chains.contains(&ChainId(chain))) {
            sweep.condemn(&path)?;
            sweep.collected.folded += 1;
        }
    }
    for (path, name) in files(&store.layout().configs())? {
        if !Digest::from_hex(&name).is_ok_and(|config| marked.configs.contains(&config)) {
            sweep.condemn(&path)?;
        }
    }
    for (path, name) in files(&store.layout().blobs())? {
        if !Digest::from_hex(&name).is_ok_and(|blob| marked.blobs.contains(&blob)) {
            sweep.condemn(&path)?;
        }
    }
    sweep.objects(&objects)?;
    sweep.dead_mounts()?;
    for path in store.dead_leases()? {
        sweep.condemn(&path)?;
    }
    sweep.finish()
}

/// Deletes what a killed load may leave: objects of no layer. The caller holds the store's lock exclusively.
pub(crate) fn collect_orphans(store: &Store) -> Result<()> {
    collect(store, Scope::Only(&HashSet::new())).map(drop)
}

fn mark(store: &Store) -> Result<Marked> {
    let catalogue = Catalogue::read(store)?;
    let mut stacks = Vec::new();
    let mut configs = HashSet::new();
    for id in catalogue.ids() {
        configs.insert(id.0);
        stacks.push(catalogue.layers(store, id)?);
    }
    for container in store.containers()? {
        configs.insert(container.image.0);
        stacks.push(container.diff_ids);
    }
    for mount in store.image_mounts()? {
        configs.insert(mount.image.0);
        stacks.push(mount.diff_ids);
    }
    stacks.extend(store.snapshots()?.into_iter().map(|snapshot| snapshot.layers));
    for lease in store.leases()? {
        let ids = lease.layers.iter().filter_map(|id| id.parse().ok().map(DiffId));
        stacks.push(ids.collect());
    }
    let lent = store.lent()?;
    let chains = stacks.iter().filter_map(|stack| ChainId::of(stack)).collect();
    let blobs = catalogue.blobs().collect();
    Ok(Marked { layers: stacks.into_iter().flatten().chain(lent).collect(), chains, configs, blobs })
}

/// What is being deleted.
struct Sweep<'a> {
    store: &'a Store,
    collected: Collected,
    condemned: Vec<PathBuf>,
}

impl Sweep<'_> {
    /// Makes it invisible.
    fn condemn(&mut self, path: &Path) -> Result<()> {
        self.collected.bytes += disk::allocated(path)?;
        let trash = self.store.layout().trash().join(format!("{}-{}", std::process::id(), self.condemned.len()));
        fs::rename(path, &trash).map_err(Error::at("delete", path))?;
        self.condemned.push(trash);
        Ok(())
    }

    fn objects(&mut self, marked: &HashSet<Digest>) -> Result<()> {
        for (shelf, first) in files(&self.store.layout().objects())? {
            let mut left = 0;
            for (path, rest) in files(&shelf)? {
                if Digest::from_hex(&format!("{first}{rest}")).is_ok_and(|digest| marked.contains(&digest)) {
                    left += 1;
                } else {
                    self.condemn(&path)?;
                    self.collected.objects += 1;
                }
            }
            if left == 0 {
                fs::remove_dir(&shelf).map_err(Error::at("delete", &shelf))?;
            }
        }
        Ok(())
    }

    fn dead_mounts(&mut self) -> Result<()> {
        let live: HashSet<String> = self.store.image_mounts()?.into_iter().map(|mount| mount.id).collect();
        for (path, name) in files(&self.store.layout().mounts())? {
            if !live.contains(&name) {
                self.condemn(&path)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Collected> {
        let layout = self.store.layout();
        if !self.condemned.is_empty() {
            // Names first: after a crash nothing may lead to what is half deleted.
            [layout.layers(), layout.all_folded(), layout.objects()].iter().try_for_each(|dir| disk::sync_dir(dir))?;
        }
        self.condemned.iter().try_for_each(|path| disk::remove_tree(path))?;
        Ok(self.collected)
    }
}

/// Returns the paths and names of what is in a directory.
fn files(dir: &Path) -> Result<Vec<(PathBuf, String)>> {
    Ok(disk::names(dir)?.into_iter().map(|name| (dir.join(&name), name)).collect())
}
