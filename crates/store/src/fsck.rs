//! Checking a store: everything that is to be read again is hashed, everything that lies there has to belong to something.
//!
//! From the bottom up: objects, layers (each put together and hashed to its diffID), folded indexes (folded again), documents, names,
//! containers. A repair moves away what is damaged, so that what is above it is told too and the next load brings it again; only
//! caches are made anew. What a killed command left is no damage: it is counted, and the next removal takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use layer::index::{Index, IndexKind};
use layer::{ChainId, DiffId, Digest};
use sha2::{Digest as _, Sha256};

use crate::containers::read_container;
use crate::disk;
use crate::error::{Error, Result};
use crate::gc;
use crate::images::{Leads, read_ref};
use crate::layout::{BODIES, INDEX, SKELETON};
use crate::lock::Lock;
use crate::manifest::{self, Document};
use crate::snapshots::read_snapshot;
use crate::store::Store;

/// Whether what is found is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It is told only.
    No,
    /// What is damaged is moved away or made again.
    Yes,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Manifests that are whole.
    pub images: u64,
    /// Layers that gave their diffID.
    pub layers: u64,
    /// Objects that gave their digest.
    pub objects: u64,
    /// Containers whose records are whole.
    pub containers: u64,
    /// Snapshots whose records are whole.
    pub snapshots: u64,
    /// How many bytes were read, in all.
    pub bytes: u64,
    /// All that is wrong.
    pub findings: Vec<Finding>,
}

/// Something that is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// With what.
    pub what: String,
    /// What, and what to do.
    pub why: String,
    /// What was done about it; `None` if nothing.
    pub repaired: Option<String>,
}

struct Check<'a> {
    store: &'a Store,
    repair: Repair,
    report: Report,
    layers: BTreeSet<DiffId>,
    /// Manifests that are whole, and their configs.
    manifests: BTreeMap<Digest, Digest>,
    condemned: u64,
}

impl Store {
    /// Checks everything in the store; nobody else adds or removes meanwhile. What is mounted stays mounted.
    ///
    /// # Errors
    /// The disk. What is wrong with the store is no error, but in the report.
    pub fn fsck(&self, repair: Repair) -> Result<Report> {
        let _store = Lock::exclusive(&self.layout().lock())?;
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let mut check = Check {
            store: self,
            repair,
            report: Report::default(),
            layers: BTreeSet::new(),
            manifests: BTreeMap::new(),
            condemned: 0,
        };
        check.root()?;
        check.objects()?;
        check.blobs()?;
        check.layers()?;
        check.folded()?;
        check.manifests()?;
        check.configs()?;
        check.refs()?;
        check.containers()?;
        check.snapshots()?;
        check.mounts()?;
        if repair == Repair::Yes {
            for name in disk::names(&self.layout().trash())? {
                disk::remove_tree(&self.layout().trash().join(name))?;
            }
            // Objects whose layers were moved away.
            match gc::collect_orphans(self) {
                Err(Error::Corrupt { .. }) => {} // It is among the findings.
                collected => collected?,
            }
        }
        Ok(check.report)
    }
}

impl Check<'_> {
    /// The store's directory holds nothing that is not the store's, and nobody else may look into it.
    fn root(&mut self) -> Result<()> {
        let root = self.store.root().to_owned();
        let mode = fs::metadata(&root).map_err(Error::at("look at", &root))?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            self.found(&root, format!("its mode is {mode:04o}: others can look into it"), Remedy::Close)?;
        }
        let ours: BTreeSet<PathBuf> = self.store.layout().directories().collect();
        for name in all_names(&root)? {
            let path = root.join(&name);
            let is_file = ["version", "lock", "records.lock", "mounts.log"].iter().any(|known| name == *known);
            if !is_file && !ours.contains(&path) {
                self.stray(&path)?;
            }
        }
        for name in all_names(&root.join("images"))? {
            let path = root.join("images").join(&name);
            if !ours.contains(&path) {
                self.stray(&path)?;
            }
        }
        Ok(())
    }

    fn objects(&mut self) -> Result<()> {
        let dir = self.store.layout().objects();
        for first in all_names(&dir)? {
            let shelf = dir.join(&first);
            let rests = match shelf.is_dir() {
                true => all_names(&shelf)?,
                false => {
                    self.stray(&shelf)?;
                    continue;
                }
            };
            for rest in rests {
                let path = shelf.join(&rest);
                let name = [first.as_encoded_bytes(), rest.as_encoded_bytes()].concat();
                let digest = std::str::from_utf8(&name).ok().and_then(|hex| Digest::from_hex(hex).ok());
                match digest.filter(|digest| path == self.store.layout().object(digest)) {
                    None => self.stray(&path)?,
                    Some(digest) if self.hash(&path)? == Some(digest) => self.report.objects += 1,
                    Some(_) => self.damaged(&path, "its content is not what its name says")?,
                }
            }
        }
        Ok(())
    }

    fn blobs(&mut self) -> Result<()> {
        let dir = self.store.layout().blobs();
        for name in all_names(&dir)? {
            let path = dir.join(&name);
            match name.to_str().and_then(|hex| Digest::from_hex(hex).ok()) {
                None => self.stray(&path)?,
                Some(digest) if self.hash(&path)? == Some(digest) => {}
                Some(_) => self.damaged(&path, "its content is not what its name says")?,
            }
        }
        Ok(())
    }

    fn layers(&mut self) -> Result<()> {
        let dir = self.store.layout().layers();
        for name in all_names(&dir)? {
            let path = dir.join(&name);
            let Some(layer) = name.to_str().and_then(|hex| Digest::from_hex(hex).ok()).map(DiffId) else {
                self.stray(&path)?;
                continue;
            };
            match self.layer(layer, &path) {
                Ok(()) => {
                    self.report.layers += 1;
                    self.layers.insert(layer);
                }
                Err(error @ Error::Io { .. }) if !is_missing(&error) => return Err(error),
                Err(error) => self.damaged(&path, &format!("{error}"))?,
            }
        }
        Ok(())
    }

    fn layer(&mut self, layer: DiffId, path: &Path) -> Result<()> {
        for name in all_names(path)? {
            if ![INDEX, BODIES, SKELETON].iter().any(|known| name == *known) {
                self.stray(&path.join(name))?;
            }
        }
        let index = self.store.layer_index(&layer)?;
        if index.kind() != IndexKind::Layer || !index.layers().eq([layer]) {
            return Err(Error::corrupt(path.join(INDEX).display(), "it is the index of something else"));
        }
        let mut sink = Counter(0);
        self.store.layer_tar(&layer, &mut sink)?;
        self.report.bytes += sink.0;
        Ok(())
    }

    fn folded(&mut self) -> Result<()> {
        let dir = self.store.layout().all_folded();
        for name in all_names(&dir)? {
            let path = dir.join(&name);
            let Some(chain) = name.to_str().and_then(|hex| Digest::from_hex(hex).ok()).map(ChainId) else {
                self.stray(&path)?;
                continue;
            };
            let bytes = fs::read(&path).map_err(Error::at("read", &path))?;
            self.report.bytes += bytes.len() as u64;
            let good = match Index::open(&bytes[..]) {
                Ok(index) => self.is_fold(&index, chain, &bytes)?,
                Err(_) => false,
            };
            if !good {
                self.damaged(&path, "it is not the fold of its layers; it is made again when it is needed")?;
            }
        }
        Ok(())
    }

    /// Folds the layers again, if they are there, and compares.
    fn is_fold(&self, index: &Index<&[u8]>, chain: ChainId, bytes: &[u8]) -> Result<bool> {
        let layers: Vec<DiffId> = index.layers().collect();
        if index.kind() != IndexKind::Folded || ChainId::of(&layers) != Some(chain) {
            return Ok(false);
        }
        if !layers.iter().all(|layer| self.layers.contains(layer)) {
            return Ok(true); // What is missing is told of the image.
        }
        let indexes = layers.iter().map(|layer| self.store.layer_index(layer)).collect::<Result<Vec<_>>>()?;
        let indexes: Vec<&Index<Vec<u8>>> = indexes.iter().collect();
        Ok(overlay::fold::fold(&indexes).is_ok_and(|folded| folded == bytes))
    }

    fn manifests(&mut self) -> Result<()> {
        let dir = self.store.layout().manifests();
        for name in all_names(&dir)? {
            let path = dir.join(&name);
            let Some(digest) = name.to_str().and_then(|hex| Digest::from_hex(hex).ok()) else {
                self.stray(&path)?;
                continue;
            };
            let bytes = fs::read(&path).map_err(Error::at("read", &path))?;
            let read = manifest::read_document(&bytes, "manifest", None);
            let (true, Ok(Document::Manifest(read))) = (Digest::of(&bytes) == digest, read) else {
                self.damaged(&path, "its content has changed; load the image again")?;
                continue;
            };
            let config = disk::read_if_there(&self.store.layout().configs().join(read.config.digest.hex()))?;
            let config = config.filter(|bytes| Digest::of(bytes) == read.config.digest);
            let Some(config) = config.and_then(|bytes| manifest::read_config(&bytes, "config").ok()) else {
                let why = format!("its config {} is missing or has changed; load the image again", read.config.digest);
                self.damaged(&path, &why)?;
                continue;
            };
            self.manifests.insert(digest, read.config.digest);
            match config.diff_ids.iter().find(|layer| !self.layers.contains(layer)) {
                None => self.report.images += 1,
                Some(layer) => {
                    let id = &read.config.digest.hex()[..12];
                    let why = format!("its layer {layer} is missing or damaged; load the image again, or remove it");
                    self.found(&PathBuf::from(format!("image {id}")), why, Remedy::None)?;
                }
            }
        }
        Ok(())
    }

    fn configs(&mut self) -> Result<()> {
        let dir = self.store.layout().configs();
        for name in all_names(&dir)? {
            let path = dir.join(&name);
            match name.to_str().and_then(|hex| Digest::from_hex(hex).ok()) {
                None => self.stray(&path)?,
                Some(digest) if self.hash(&path)? == Some(digest) => {}
                Some(_) => self.damaged(&path, "its content has changed; load the image again")?,
            }
        }
        Ok(())
    }

    fn refs(&mut self) -> Result<()> {
        let dir = self.store.layout().refs();
        for name in all_names(&dir)? {
            let path = dir.join(&name);
            let Some((reference, Leads { manifest, .. })) = read_ref(&path).ok().flatten() else {
                self.damaged(&path, "it is no name of an image")?;
                continue;
            };
            if path != self.store.ref_path(&reference) {
                self.damaged(&path, &format!("it is the name {reference} in the wrong place"))?;
            } else if !self.manifests.contains_key(&manifest) {
                self.damaged(&path, &format!("the name {reference} leads to manifest {manifest}, which is not here"))?;
            }
        }
        Ok(())
    }

    fn containers(&mut self) -> Result<()> {
        let dir = self.store.layout().containers();
        for name in all_names(&dir)? {
            let path = dir.join(&name);
            let container = match read_container(&path) {
                Ok(Some(container)) => container,
                Ok(None) => {
                    self.stray(&path)?;
                    continue;
                }
                Err(error) => {
                    self.found(&path, format!("{error}; what it wrote is in upper/"), Remedy::None)?;
                    continue;
                }
            };
            for inner in all_names(&path)? {
                if !["meta.json", "upper", "work", "log"].iter().any(|known| inner == *known) {
                    self.stray(&path.join(inner))?;
                }
            }
            let missing = container.diff_ids.iter().find(|layer| !self.layers.contains(layer));
            match missing {
                None => self.report.containers += 1,
                Some(layer) => {
                    let why = format!(
                        "layer {layer} of its image is missing or damaged; load {} again",
                        container.image_name
                    );
                    self.found(&PathBuf::from(format!("container {}", container.name)), why, Remedy::None)?;
                }
            }
        }
        Ok(())
    }

    /// Each snapshot has its record, its layers, what it stands on, and nothing else.
    fn snapshots(&mut self) -> Result<()> {
        let dir = self.store.layout().snapshots();
        let mut whole = Vec::new();
        for name in all_names(&dir)? {
            let path = dir.join(&name);
            match read_snapshot(&path) {
                Ok(Some(snapshot)) => whole.push((path, snapshot)),
                Ok(None) => self.stray(&path)?,
                Err(error) => self.found(&path, format!("{error}; what it wrote is in fs/"), Remedy::None)?,
            }
        }
        let known: BTreeSet<String> = whole.iter().map(|(_, snapshot)| snapshot.name.clone()).collect();
        for (path, snapshot) in whole {
            for inner in all_names(&path)? {
                if !["meta.json", "fs", "work", "mnt", "log"].iter().any(|known| inner == *known) {
                    self.stray(&path.join(inner))?;
                }
            }
            let missing = snapshot.layers.iter().find(|layer| !self.layers.contains(layer));
            let parent = snapshot.parent.as_ref().filter(|parent| !known.contains(*parent));
            let why = match (missing, parent) {
                (Some(layer), _) => format!("its layer {layer} is missing or damaged; remove it in containerd"),
                (None, Some(parent)) => format!("it stands on {parent}, which is not here; remove it in containerd"),
                (None, None) => {
                    self.report.snapshots += 1;
                    continue;
                }
            };
            self.found(&PathBuf::from(format!("snapshot {}", snapshot.name)), why, Remedy::None)?;
        }
        Ok(())
    }

    /// Records of mounts and leases; those whose holders are gone go with the next removal.
    fn mounts(&mut self) -> Result<()> {
        for dir in [self.store.layout().mounts(), self.store.layout().leases(), self.store.layout().lent()] {
            for name in all_names(&dir)? {
                let path = dir.join(&name);
                let bytes = disk::read_if_there(&path)?.unwrap_or_default();
                if serde_json::from_slice::<serde_json::Value>(&bytes).is_err() {
                    self.damaged(&path, "it is no record")?;
                }
            }
        }
        Ok(())
    }

    fn hash(&mut self, path: &Path) -> Result<Option<Digest>> {
        if !fs::symlink_metadata(path).map_err(Error::at("look at", path))?.is_file() {
            return Ok(None);
        }
        let mut file = File::open(path).map_err(Error::at("open", path))?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
        loop {
            match file.read(&mut buffer).map_err(Error::at("read", path))? {
                0 => return Ok(Some(Digest::from_bytes(hash.finalize().into()))),
                len => {
                    hash.update(&buffer[..len]);
                    self.report.bytes += len as u64;
                }
            }
        }
    }

    /// What belongs to nothing may be somebody's: it is told, and left.
    fn stray(&mut self, path: &Path) -> Result<()> {
        self.found(path, "it belongs to nothing in the store; move it away".into(), Remedy::None)
    }

    fn damaged(&mut self, path: &Path, why: &str) -> Result<()> {
        self.found(path, why.to_owned(), Remedy::Remove)
    }

    fn found(&mut self, what: &Path, why: String, remedy: Remedy) -> Result<()> {
        let repaired = match (self.repair, remedy) {
            (Repair::No, _) | (_, Remedy::None) => None,
            (Repair::Yes, Remedy::Remove) => {
                self.condemned += 1;
                let trash = self.store.layout().trash().join(format!("fsck-{}-{}", std::process::id(), self.condemned));
                fs::rename(what, &trash).map_err(Error::at("delete", what))?;
                Some("removed".to_owned())
            }
            (Repair::Yes, Remedy::Close) => {
                let closed = fs::set_permissions(what, fs::Permissions::from_mode(0o700));
                closed.map_err(Error::at("close", what))?;
                Some("closed".to_owned())
            }
        };
        self.report.findings.push(Finding { what: what.display().to_string(), why, repaired });
        Ok(())
    }
}

/// What can be done about a finding.
#[derive(Clone, Copy)]
enum Remedy {
    /// Nothing here.
    None,
    Remove,
    /// Take the rights of others away.
    Close,
}

/// Tells whether a part is not there: that is damage, not a fault of the disk.
fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound)
}

/// Returns all names in a directory, whatever bytes they are of, sorted.
fn all_names(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::at("list", dir))? {
        names.push(entry.map_err(Error::at("list", dir))?.file_name());
    }
    names.sort_unstable();
    Ok(names)
}

struct Counter(u64);

impl std::io::Write for Counter {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0 += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
