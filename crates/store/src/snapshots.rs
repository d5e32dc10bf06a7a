//! Snapshots, as containerd has them: layers that are being written, views, and layers that are committed.
//!
//! `snapshots/<id>/meta.json` is the record; `fs` and `work` beside it are the upper of what is being written, `mnt` is where it may
//! be mounted. A committed snapshot is a stack of the store's layers and nothing else. One server writes here; the
//! locks of the store keep it apart from gc.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use layer::{ChainId, DiffId, Digest, Time};
use serde::{Deserialize, Serialize};

use crate::containers::{Container, Mount, dress_upper, read_ids, to_json};
use crate::diff::Reserved;
use crate::disk;
use crate::error::{Error, Result};
use crate::images::{Catalogue, ImageId};
use crate::lock::Lock;
use crate::store::Store;
use crate::time;

const RECORD: &str = "meta.json";

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Something to look at.
    View,
    /// Something to write to.
    Active,
    /// Something to stand on.
    Committed,
}

/// What a snapshot takes on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// In bytes.
    pub size: u64,
    /// How many inodes.
    pub inodes: u64,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The directory's name.
    pub id: String,
    /// The key that it was made with, or the name that it was committed by.
    pub name: String,
    /// The name of the snapshot that it stands on.
    pub parent: Option<String>,
    /// What it is.
    pub kind: SnapshotKind,
    /// What its maker noted.
    pub labels: BTreeMap<String, String>,
    /// When it was made or committed.
    pub created: Time,
    /// When its labels were changed.
    pub updated: Time,
    /// The layers that it shows, base first: without what is being written.
    pub layers: Vec<DiffId>,
    /// What it took when it was committed.
    pub usage: Usage,
    /// What is being written, in kernel overlayfs format.
    pub upper: PathBuf,
    /// The overlay's work directory.
    pub work: PathBuf,
    /// Where it may be mounted.
    pub target: PathBuf,
    /// Where its daemon writes its log.
    pub log: PathBuf,
    /// Where it is mounted, or was when its daemon died.
    pub mount: Option<Mount>,
}

/// What a snapshot is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewSnapshot<'a> {
    /// A view, or active.
    pub kind: SnapshotKind,
    /// Its key: no other snapshot has it.
    pub key: &'a str,
    /// What it stands on: a committed one.
    pub parent: Option<&'a str>,
    /// What its maker notes.
    pub labels: &'a BTreeMap<String, String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Record {
    name: String,
    parent: Option<String>,
    kind: SnapshotKind,
    labels: BTreeMap<String, String>,
    created: String,
    updated: String,
    layers: Vec<String>,
    usage: Usage,
    mount: Option<Mount>,
}

impl Store {
    /// Returns all snapshots, in no order.
    ///
    /// # Errors
    /// The disk; [`Error::Corrupt`] naming a record that is not as it was written.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let dir = self.layout().snapshots();
        let read = |id: String| read_snapshot(&dir.join(id)).transpose();
        disk::names(&dir)?.into_iter().filter_map(read).collect()
    }

    /// Finds a snapshot by its key or name.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of [`Store::snapshots`].
    pub fn snapshot(&self, name: &str) -> Result<Snapshot> {
        self.snapshots()?.into_iter().find(|snapshot| snapshot.name == name).ok_or_else(|| no_snapshot(name))
    }

    /// Makes a view, or a layer to be written.
    ///
    /// # Errors
    /// [`Error::Exists`] for a key that is taken, [`Error::NotFound`] for a parent that is not there, [`Error::Invalid`] for one that
    /// is not committed.
    pub fn prepare_snapshot(&self, new: &NewSnapshot<'_>) -> Result<Snapshot> {
        let _store = Lock::shared(&self.layout().lock())?;
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let all = self.snapshots()?;
        let parent = parent(&all, new)?;
        let layers = parent.map(|parent| parent.layers.clone()).unwrap_or_default();
        let index = match layers.is_empty() {
            true => None,
            false => Some(self.lower_of(&layers)?.index),
        };
        let now = time::rfc3339(time::now());
        let record = Record {
            name: new.key.to_owned(),
            parent: new.parent.map(str::to_owned),
            kind: new.kind,
            labels: new.labels.clone(),
            created: now.clone(),
            updated: now,
            layers: layers.iter().map(DiffId::to_string).collect(),
            usage: Usage::default(),
            mount: None,
        };
        self.place_snapshot(&record, |dir| {
            let upper = dir.join("fs");
            for path in [&upper, &dir.join("work"), &dir.join("mnt")] {
                disk::make_dir(path)?;
            }
            fs::set_permissions(&upper, fs::Permissions::from_mode(0o755))
                .map_err(Error::at("change the mode of", &upper))?;
            index.as_ref().map_or(Ok(()), |index| dress_upper(&upper, index))
        })
    }

    /// Makes of what was written a layer of the store, and of the active snapshot `key` the committed one `name`, with these labels and no
    /// others. What is mounted still is taken as it is at that moment.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Exists`] for a name that is taken, [`Error::InUse`] for a snapshot that is not active;
    /// [`Error::Unsupported`] for a file that a layer cannot hold.
    pub fn commit_snapshot(&self, key: &str, name: &str, labels: &BTreeMap<String, String>) -> Result<Snapshot> {
        let active = self.to_be_committed(key, name)?;
        let what = format!("commit {key}");
        let _store = Lock::shared(&self.layout().lock())?;
        let usage = measure(&active.upper).map_err(|error| error.within(&what))?;
        let changed = active.as_container();
        let layer = self
            .changes(&changed)
            .and_then(|changes| self.take_in(&changes, Reserved::Refuse))
            .map_err(|error| error.within(&what))?;
        let layers: Vec<DiffId> = active.layers.iter().copied().chain([layer]).collect();
        self.fold(&layers).map_err(|error| error.within(&what))?;

        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let active = self.to_be_committed(key, name)?;
        let now = time::rfc3339(time::now());
        let record = Record {
            name: name.to_owned(),
            parent: active.parent.clone(),
            kind: SnapshotKind::Committed,
            labels: labels.clone(),
            created: now.clone(),
            updated: now,
            layers: layers.iter().map(DiffId::to_string).collect(),
            usage,
            mount: None,
        };
        let committed = self.write_snapshot(&active.id, &record)?;
        for path in [&active.upper, &active.work] {
            disk::remove_tree(path)?;
        }
        fs::remove_dir(&active.target).ok(); // It stays where it is mounted on, and goes with the snapshot.
        Ok(committed)
    }

    /// Makes a committed snapshot of layers that the store has: of the stack that the chain ID `chain` stands for.
    /// `None` if no image of the store has that stack.
    ///
    /// # Errors
    /// As [`Store::prepare_snapshot`]; `new.key` is the name.
    pub fn adopt_snapshot(&self, chain: &ChainId, new: &NewSnapshot<'_>) -> Result<Option<Snapshot>> {
        let _store = Lock::shared(&self.layout().lock())?;
        let Some(layers) = self.stack_of(chain)? else { return Ok(None) };
        let Some(last) = layers.last() else { return Ok(None) };
        self.fold(&layers)?;
        let usage = Usage { size: self.layer_size(last)?, inodes: self.layer_index(last)?.len().into() };
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        parent(&self.snapshots()?, new)?;
        let now = time::rfc3339(time::now());
        let record = Record {
            name: new.key.to_owned(),
            parent: new.parent.map(str::to_owned),
            kind: SnapshotKind::Committed,
            labels: new.labels.clone(),
            created: now.clone(),
            updated: now,
            layers: layers.iter().map(DiffId::to_string).collect(),
            usage,
            mount: None,
        };
        self.place_snapshot(&record, |_| Ok(())).map(Some)
    }

    /// Returns the layers behind a chain ID, if an image has them as its lowest ones.
    fn stack_of(&self, chain: &ChainId) -> Result<Option<Vec<DiffId>>> {
        let catalogue = Catalogue::read(self)?;
        for id in catalogue.ids() {
            let layers = catalogue.layers(self, id)?;
            let found = (1..=layers.len()).find(|len| ChainId::of(&layers[..*len]).as_ref() == Some(chain));
            if let Some(len) = found {
                return Ok(Some(layers[..len].to_vec()));
            }
        }
        Ok(None)
    }

    /// Gives a snapshot other labels.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn label_snapshot(&self, name: &str, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Result<Snapshot> {
        let _store = Lock::shared(&self.layout().lock())?;
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let mut snapshot = self.snapshot(name)?;
        change(&mut snapshot.labels);
        snapshot.updated = time::now();
        self.write_snapshot(&snapshot.id, &snapshot.to_record())
    }

    /// Records where a snapshot is mounted and by whom, or that it is mounted no more.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn set_snapshot_mount(&self, name: &str, mount: Option<Mount>) -> Result<Snapshot> {
        let _store = Lock::shared(&self.layout().lock())?;
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let snapshot = Snapshot { mount, ..self.snapshot(name)? };
        self.write_snapshot(&snapshot.id, &snapshot.to_record())
    }

    /// Removes a snapshot with what was written. It must not be mounted any more.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InUse`] if another stands on it, or it is mounted.
    pub fn remove_snapshot(&self, name: &str) -> Result<Snapshot> {
        let _store = Lock::shared(&self.layout().lock())?;
        let records = Lock::exclusive(&self.layout().records_lock())?;
        let all = self.snapshots()?;
        let found = all.iter().find(|snapshot| snapshot.name == name).ok_or_else(|| no_snapshot(name))?;
        if let Some(child) = all.iter().find(|snapshot| snapshot.parent.as_deref() == Some(name)) {
            let why = format!("cannot remove snapshot {name}: {} stands on it; remove that first", child.name);
            return Err(Error::InUse(why));
        }
        if found.mount.as_ref().is_some_and(Mount::is_live) {
            return Err(Error::InUse(format!("cannot remove snapshot {name}: it is mounted")));
        }
        let dir = self.layout().snapshots().join(&found.id);
        let trash = self.layout().trash().join(format!("snapshot-{}", found.id));
        fs::rename(&dir, &trash).map_err(Error::at("remove", &dir))?;
        disk::sync_dir(&self.layout().snapshots())?;
        drop(records);
        disk::remove_tree(&trash)?;
        Ok(found.clone())
    }

    /// Returns what a snapshot takes: what was written, or was when it was committed; a view takes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`]; the disk.
    pub fn snapshot_usage(&self, name: &str) -> Result<Usage> {
        let snapshot = self.snapshot(name)?;
        match snapshot.kind {
            SnapshotKind::Active => measure(&snapshot.upper),
            SnapshotKind::View | SnapshotKind::Committed => Ok(snapshot.usage),
        }
    }

    fn to_be_committed(&self, key: &str, name: &str) -> Result<Snapshot> {
        let all = self.snapshots()?;
        if all.iter().any(|snapshot| snapshot.name == name) {
            return Err(Error::Exists(format!("snapshot {name}: there already")));
        }
        let active = all.into_iter().find(|snapshot| snapshot.name == key).ok_or_else(|| no_snapshot(key))?;
        match active.kind {
            SnapshotKind::Active => Ok(active),
            _ => Err(Error::InUse(format!("snapshot {key}: it is not active; only what can be written is committed"))),
        }
    }

    /// Makes a snapshot's directory and fills it, whole or not at all. The caller holds both locks.
    fn place_snapshot(&self, record: &Record, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Snapshot> {
        let unfinished = disk::unfinished(self.layout());
        let dir = self.layout().snapshots().join(disk::random_id()?);
        let make = || {
            disk::make_dir(&unfinished)?;
            fill(&unfinished)?;
            let meta = unfinished.join(RECORD);
            fs::write(&meta, to_json(record)?).map_err(Error::at("write", &meta))?;
            fs::rename(&unfinished, &dir).map_err(Error::at("make", &dir))
        };
        if let Err(error) = make() {
            disk::remove_tree(&unfinished).ok(); // already failing; else swept at the next start
            return Err(error);
        }
        read_snapshot(&dir)?.ok_or_else(|| no_snapshot(&record.name))
    }

    fn write_snapshot(&self, id: &str, record: &Record) -> Result<Snapshot> {
        let dir = self.layout().snapshots().join(id);
        disk::publish(self.layout(), &dir.join(RECORD), &to_json(record)?)?;
        read_snapshot(&dir)?.ok_or_else(|| no_snapshot(&record.name))
    }
}

impl Snapshot {
    /// Its layer that is being written, as one of a container: how the store compares and mounts them.
    fn as_container(&self) -> Container {
        Container {
            id: self.id.clone(),
            name: self.name.clone(),
            image: ImageId(Digest::of(b"")),
            image_name: String::new(),
            diff_ids: self.layers.clone(),
            created: self.created,
            upper: self.upper.clone(),
            work: self.work.clone(),
            log: self.log.clone(),
            volumes: Vec::new(),
            mount: self.mount.clone(),
        }
    }

    fn to_record(&self) -> Record {
        Record {
            name: self.name.clone(),
            parent: self.parent.clone(),
            kind: self.kind,
            labels: self.labels.clone(),
            created: time::rfc3339(self.created),
            updated: time::rfc3339(self.updated),
            layers: self.layers.iter().map(DiffId::to_string).collect(),
            usage: self.usage,
            mount: self.mount.clone(),
        }
    }
}

fn parent<'a>(all: &'a [Snapshot], new: &NewSnapshot<'_>) -> Result<Option<&'a Snapshot>> {
    if all.iter().any(|snapshot| snapshot.name == new.key) {
        return Err(Error::Exists(format!("snapshot {}: there already", new.key)));
    }
    let Some(name) = new.parent else { return Ok(None) };
    let found = all.iter().find(|snapshot| snapshot.name == name).ok_or_else(|| no_snapshot(name))?;
    match found.kind {
        SnapshotKind::Committed => Ok(Some(found)),
        _ => Err(Error::invalid(format!("parent {name}"), "it is not committed")),
    }
}

/// Reads the snapshot in a directory; `None` if it holds no record.
pub(crate) fn read_snapshot(dir: &Path) -> Result<Option<Snapshot>> {
    let path = dir.join(RECORD);
    let Some(bytes) = disk::read_if_there(&path)? else { return Ok(None) };
    let corrupt = |why: String| Error::corrupt(path.display(), why);
    let record: Record = serde_json::from_slice(&bytes).map_err(|why| corrupt(why.to_string()))?;
    let time = |text: &str| time::parse_rfc3339(text).ok_or_else(|| corrupt(format!("'{text}' is no time")));
    Ok(Some(Snapshot {
        id: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        created: time(&record.created)?,
        updated: time(&record.updated)?,
        layers: read_ids(&record.layers).map_err(corrupt)?,
        name: record.name,
        parent: record.parent,
        kind: record.kind,
        labels: record.labels,
        usage: record.usage,
        mount: record.mount,
        upper: dir.join("fs"),
        work: dir.join("work"),
        target: dir.join("mnt"),
        log: dir.join("log"),
    }))
}

/// Counts what lies in a directory, with the directory: allocated bytes, and inodes, each once.
fn measure(top: &Path) -> Result<Usage> {
    let mut seen = HashSet::new();
    let mut usage = Usage::default();
    let mut pending = vec![top.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).map_err(Error::at("look at", &path))?;
        if seen.insert((metadata.dev(), metadata.ino())) {
            usage.size += metadata.blocks() * 512;
            usage.inodes += 1;
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).map_err(Error::at("list", &path))? {
                pending.push(entry.map_err(Error::at("list", &path))?.path());
            }
        }
    }
    Ok(usage)
}

fn no_snapshot(name: &str) -> Error {
    Error::NotFound(format!("snapshot {name}: not found"))
}
