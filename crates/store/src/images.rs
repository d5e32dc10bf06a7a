//! Images: manifests and configs as received, and the names that lead to them.
//!
//! An image is its config; its ID is the config's hash. A manifest leads to the config and the layers, a reference to a
//! manifest. An image without references is dangling. Everything is content-addressed or published by rename, so that
//! reading needs no lock.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use layer::{ChainId, DiffId, Digest, Time};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::disk;
use crate::error::{Error, Result};
use crate::gc;
use crate::lock::Lock;
use crate::manifest::{self, Config, Descriptor, Document, Manifest};
use crate::reference::Reference;
use crate::store::Store;
use crate::time;

/// An image's ID: the hash of its config as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub Digest);

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The hash of its config.
    pub id: ImageId,
    /// The names that lead to it, sorted; none if it is dangling.
    pub names: Vec<Reference>,
    /// What those names lead to at their registries that came by an index: the index's digest.
    pub indexes: BTreeMap<Reference, Digest>,
    /// The hash of its manifest; of several manifests with this config, one that a name leads to, else the newest.
    pub digest: Digest,
    /// The manifest as received.
    pub manifest: Vec<u8>,
    /// The config as received.
    pub config: Vec<u8>,
    /// Its layers, base first; at least one.
    pub diff_ids: Vec<DiffId>,
    /// When its maker says that it was made.
    pub created: Option<Time>,
    /// The length of its layers' tar streams, in bytes.
    pub size: u64,
}

/// One step of an image's history.
#[derive(Clone, Debug)]
pub struct HistoryEntry {
    /// When.
    pub created: Option<Time>,
    /// By which command.
    pub created_by: String,
    /// The maker's comment.
    pub comment: String,
    /// The layer that the step made; `None` if it made none, or it is not known which.
    pub layer: Option<DiffId>,
    /// The length of that layer's tar stream, in bytes.
    pub size: u64,
}

/// What a removal did.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    /// Names that lead nowhere any more.
    pub untagged: Vec<Reference>,
    /// The image, if it is gone.
    pub image: Option<ImageId>,
    /// Layers that no other image used.
    pub deleted: Vec<DiffId>,
}

/// What a removal of several images did.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// What was removed, image by image; the layers that went with them are told of the last.
    pub removed: Vec<Removed>,
    /// What that took on the disk, in bytes.
    pub bytes: u64,
}

/// What to do with an image that has further names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Refuse to remove by ID what several names lead to.
    Ask,
    /// Remove all names.
    Force,
}

/// `images/refs/<hash of the name>`.
#[derive(Serialize, Deserialize)]
struct RefRecord {
    name: String,
    manifest: String,
    /// The index that the name leads to at the registry, if it came by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<String>,
}

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leads {
    pub(crate) manifest: Digest,
    /// The index that the registry has under the name, if it came by one.
    pub(crate) index: Option<Digest>,
}

/// Everything that is recorded of images, read once.
pub(crate) struct Catalogue {
    /// By config: the manifests, newest first.
    images: BTreeMap<Digest, Vec<(Digest, Vec<u8>, Manifest)>>,
    refs: BTreeMap<Reference, Leads>,
}

impl ImageId {
    /// Returns the first 12 hex digits.
    pub fn short(&self) -> String {
        self.0.hex()[..12].to_owned()
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Image {
    /// What a name of this image leads to at its registry, as far as is known: the index that it came by, else the manifest.
    pub fn digest_of(&self, name: &Reference) -> Digest {
        name.digest().or_else(|| self.indexes.get(name).copied()).unwrap_or(self.digest)
    }

    /// Returns the name of the stack of its layers.
    pub fn chain(&self) -> Option<ChainId> {
        ChainId::of(&self.diff_ids)
    }

    /// Returns what messages call it: its first name, else its short ID.
    pub fn label(&self) -> String {
        self.names.first().map_or_else(|| self.id.short(), Reference::familiar)
    }

    /// Returns its labels, sorted; none if its config cannot be read.
    pub fn labels(&self) -> Vec<(String, String)> {
        let settings = self.read_config().map(|config| config.settings).unwrap_or_default();
        let labels = settings.get("Labels").and_then(Value::as_object).cloned().unwrap_or_default();
        labels.into_iter().map(|(key, value)| (key, value.as_str().unwrap_or_default().to_owned())).collect()
    }

    pub(crate) fn read_config(&self) -> Result<Config> {
        manifest::read_config(&self.config, &format!("config of image {}", self.label()))
    }
}

impl Store {
    /// Returns all images, the newest first.
    ///
    /// # Errors
    /// The disk; [`Error::Corrupt`] naming a record that is not as it was written.
    pub fn images(&self) -> Result<Vec<Image>> {
        let catalogue = Catalogue::read(self)?;
        let mut images = catalogue.images.keys().map(|id| catalogue.image(self, *id)).collect::<Result<Vec<_>>>()?;
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.names.cmp(&b.names)));
        Ok(images)
    }

    /// Finds an image by reference (completed), by ID or a unique prefix of it, or by its manifest's digest.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], and those of [`Store::images`].
    pub fn image(&self, text: &str) -> Result<Image> {
        let catalogue = Catalogue::read(self)?;
        let found = catalogue.find(text)?;
        catalogue.image(self, found.id)
    }

    /// Finds an image by its whole ID.
    ///
    /// # Errors
    /// As [`Store::image`].
    pub fn image_by_id(&self, id: ImageId) -> Result<Image> {
        Catalogue::read(self)?.image(self, id.0)
    }

    /// Gives the image `source` the further name `target`, which leads nowhere else from now on.
    ///
    /// # Errors
    /// As [`Store::image`]; a `target` that is no reference or has a digest.
    pub fn tag(&self, source: &str, target: &str) -> Result<Reference> {
        let target = parse_name(target)?;
        let _store = Lock::shared(&self.layout().lock())?;
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let catalogue = Catalogue::read(self)?;
        let found = catalogue.find(source)?;
        let manifest = found.manifest.map_or_else(|| catalogue.manifest_of(found.id), Ok)?;
        // An index is one of a repository, whatever the tag.
        let known = catalogue.refs.iter().find(|(name, leads)| {
            name.repository() == target.repository() && leads.manifest == manifest && leads.index.is_some()
        });
        self.write_ref(&target, Leads { manifest, index: known.and_then(|(_, leads)| leads.index) })?;
        Ok(target)
    }

    /// Removes a name, and with its last name the image, its manifests, and the layers that nothing else uses.
    ///
    /// Layers go at once unless another process works in the store; then they go with the next removal. By ID, an image with several names is removed only with [`Removal::Force`].
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InUse`] naming the container or mount that uses it.
    pub fn remove_image(&self, text: &str, removal: Removal) -> Result<Removed> {
        let store = Lock::shared(&self.layout().lock())?;
        let records = Lock::exclusive(&self.layout().records_lock())?;
        let catalogue = Catalogue::read(self)?;
        let found = catalogue.find(text)?;
        let names = catalogue.names(found.id);
        let mut removed = Removed::default();
        if let Some(name) = found.name.filter(|_| names.len() > 1) {
            self.remove_ref(&name)?;
            removed.untagged.push(name);
            return Ok(removed);
        }
        let id = ImageId(found.id);
        if names.len() > 1 && removal == Removal::Ask {
            let all: Vec<String> = names.iter().map(Reference::familiar).collect();
            let why = format!(
                "image {} has several names ({}); remove them, or all of them with -f",
                id.short(),
                all.join(", ")
            );
            return Err(Error::InUse(why));
        }
        self.refuse_used(id, &catalogue.image(self, found.id)?.label())?;
        removed = self.remove_records(&catalogue, id)?;
        drop((records, store));
        // A load that is under way must find what it reuses; a removal does not wait for it.
        if let Some(_store) = Lock::try_exclusive(&self.layout().lock())? {
            removed.deleted = gc::collect(self, gc::Scope::All)?.layers;
        }
        Ok(removed)
    }

    /// Removes every image for which `is_meant` and which nothing uses.
    ///
    /// # Errors
    /// The disk.
    pub fn prune_images(&self, is_meant: &dyn Fn(&Image) -> bool) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        {
            let _store = Lock::shared(&self.layout().lock())?;
            let _records = Lock::exclusive(&self.layout().records_lock())?;
            let catalogue = Catalogue::read(self)?;
            for id in catalogue.ids() {
                let image = catalogue.image(self, id.0)?;
                let used = match self.refuse_used(id, "") {
                    Err(error) if error.is_in_use() => true,
                    unused => unused.map(|()| false)?,
                };
                if is_meant(&image) && !used {
                    for path in catalogue.documents(self, id) {
                        pruned.bytes += disk::allocated(&path)?;
                    }
                    pruned.removed.push(self.remove_records(&catalogue, id)?);
                }
            }
        }
        if let Some(last) = pruned.removed.last_mut()
            && let Some(_store) = Lock::try_exclusive(&self.layout().lock())?
        {
            let collected = gc::collect(self, gc::Scope::All)?;
            (last.deleted, pruned.bytes) = (collected.layers, pruned.bytes + collected.bytes);
        }
        Ok(pruned)
    }

    /// Removes an image's names and manifests. The caller holds both locks.
    fn remove_records(&self, catalogue: &Catalogue, id: ImageId) -> Result<Removed> {
        let mut removed = Removed { image: Some(id), ..Removed::default() };
        for name in catalogue.names(id.0) {
            self.remove_ref(&name)?;
            removed.untagged.push(name);
        }
        for (manifest, ..) in catalogue.images.get(&id.0).into_iter().flatten() {
            let path = self.layout().manifests().join(manifest.hex());
            fs::remove_file(&path).map_err(Error::at("delete", &path))?;
        }
        disk::sync_dir(&self.layout().manifests())?;
        Ok(removed)
    }

    /// Returns how an image was made, the newest step first.
    ///
    /// # Errors
    /// The disk, or a config that cannot be read.
    pub fn history(&self, image: &Image) -> Result<Vec<HistoryEntry>> {
        let config = image.read_config()?;
        let filled = config.history.iter().filter(|past| past.empty_layer != Some(true)).count();
        // The history may be absent or partial: then no step can be given its layer.
        let mut layers = (filled == config.diff_ids.len()).then(|| config.diff_ids.iter().copied());
        let mut history = Vec::with_capacity(config.history.len());
        for past in config.history {
            let empty = past.empty_layer == Some(true);
            let layer = layers.as_mut().filter(|_| !empty).and_then(Iterator::next);
            history.push(HistoryEntry {
                created: past.created.as_deref().and_then(time::parse_rfc3339),
                created_by: past.created_by.unwrap_or_default(),
                comment: past.comment.unwrap_or_default(),
                size: layer.map_or(Ok(0), |layer| self.layer_size(&layer))?,
                layer,
            });
        }
        history.reverse();
        Ok(history)
    }

    /// Writes an image's documents and names; returns the names that led to another image before. The caller holds the
    /// store's lock, and the layers are there.
    pub(crate) fn record_image(&self, image: NewImage<'_>) -> Result<Vec<Reference>> {
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let before = Catalogue::read(self)?;
        self.write_document(&self.layout().configs(), image.config)?;
        let manifest = self.write_document(&self.layout().manifests(), image.manifest)?;
        let id = Digest::of(image.config);
        let mut moved = Vec::new();
        for name in image.names {
            let old = before.refs.get(name).copied();
            if old.is_some_and(|old| before.config_of(old.manifest).is_some_and(|config| config != id)) {
                moved.push(name.clone());
            }
            let leads = Leads { manifest, index: image.index };
            if old != Some(leads) {
                self.write_ref(name, leads)?;
            }
        }
        Ok(moved)
    }

    fn write_document(&self, dir: &Path, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = dir.join(digest.hex());
        if disk::read_if_there(&path)?.as_deref() != Some(bytes) {
            disk::publish(self.layout(), &path, bytes)?;
        }
        Ok(digest)
    }

    fn write_ref(&self, name: &Reference, leads: Leads) -> Result<()> {
        let index = leads.index.map(|index| index.to_string());
        let record = RefRecord { name: name.to_string(), manifest: leads.manifest.to_string(), index };
        let text = serde_json::to_vec(&record).map_err(|cause| Error::io("write a reference", cause))?;
        disk::publish(self.layout(), &self.ref_path(name), &text)
    }

    fn remove_ref(&self, name: &Reference) -> Result<()> {
        let path = self.ref_path(name);
        fs::remove_file(&path).map_err(Error::at("delete", &path))?;
        disk::sync_dir(&self.layout().refs())
    }

    pub(crate) fn ref_path(&self, name: &Reference) -> PathBuf {
        self.layout().refs().join(Digest::of(name.to_string().as_bytes()).hex())
    }

    fn refuse_used(&self, id: ImageId, label: &str) -> Result<()> {
        if let Some(container) = self.containers()?.into_iter().find(|container| container.image == id) {
            let why = format!("image {label} is used by container {0}; remove it first: plyfs rm {0}", container.name);
            return Err(Error::InUse(why));
        }
        if let Some(mount) = self.image_mounts()?.into_iter().find(|mount| mount.image == id) {
            let target = mount.mount.target.display().to_string();
            return Err(Error::InUse(format!(
                "image {label} is mounted at {target}; unmount it first: plyfs umount {target}"
            )));
        }
        Ok(())
    }
}

/// An image to be recorded.
pub(crate) struct NewImage<'a> {
    pub(crate) names: &'a [Reference],
    pub(crate) manifest: &'a [u8],
    pub(crate) config: &'a [u8],
    /// The index that it was chosen from.
    pub(crate) index: Option<Digest>,
}

/// What a text that names an image leads to.
struct Found {
    /// The config's hash.
    id: Digest,
    /// The name, if it was given by name and not by ID or digest.
    name: Option<Reference>,
    manifest: Option<Digest>,
}

impl Catalogue {
    pub(crate) fn read(store: &Store) -> Result<Self> {
        let mut images: BTreeMap<Digest, Vec<_>> = BTreeMap::new();
        for (digest, bytes, modified) in documents(&store.layout().manifests())? {
            let what = format!("manifest {digest}");
            let Document::Manifest(read) = manifest::read_document(&bytes, &what, None)? else {
                return Err(Error::corrupt(what, "it is no image manifest"));
            };
            images.entry(read.config.digest).or_default().push((modified, digest, bytes, read));
        }
        let newest_first = |mut all: Vec<(_, Digest, Vec<u8>, Manifest)>| {
            all.sort_by_key(|(modified, digest, ..)| (std::cmp::Reverse(*modified), *digest));
            all.into_iter().map(|(_, digest, bytes, read)| (digest, bytes, read)).collect()
        };
        let images = images.into_iter().map(|(config, all)| (config, newest_first(all))).collect();
        Ok(Catalogue { images, refs: read_refs(&store.layout().refs())? })
    }

    /// The IDs of all images.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ImageId> + '_ {
        self.images.keys().map(|id| ImageId(*id))
    }

    /// The blobs of layers that manifests name.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> + '_ {
        let manifests = self.images.values().flatten();
        manifests.flat_map(|(_, _, manifest)| manifest.layers.iter().map(|layer| layer.digest))
    }

    /// Every blob that a layer is known to have travelled as.
    pub(crate) fn travelled(&self, store: &Store, wanted: &DiffId) -> Result<Vec<Descriptor>> {
        let mut found: Vec<Descriptor> = Vec::new();
        for (id, manifests) in &self.images {
            let diff_ids = self.layers(store, ImageId(*id))?;
            for (_, _, manifest) in manifests {
                for (diff_id, layer) in diff_ids.iter().zip(&manifest.layers) {
                    if diff_id == wanted && !found.iter().any(|known| known.digest == layer.digest) {
                        found.push(layer.clone());
                    }
                }
            }
        }
        Ok(found)
    }

    /// The layer that some manifest names by `digest`, and how it does.
    pub(crate) fn arrived_as(&self, store: &Store, digest: &Digest) -> Result<Option<(DiffId, Descriptor)>> {
        for (id, manifests) in &self.images {
            let named = |(_, _, manifest): &(Digest, Vec<u8>, Manifest)| {
                manifest
                    .layers
                    .iter()
                    .position(|layer| layer.digest == *digest)
                    .map(|at| (at, manifest.layers[at].clone()))
            };
            if let Some((at, blob)) = manifests.iter().find_map(named)
                && let Some(layer) = self.layers(store, ImageId(*id))?.get(at)
            {
                return Ok(Some((*layer, blob)));
            }
        }
        Ok(None)
    }

    pub(crate) fn image(&self, store: &Store, id: Digest) -> Result<Image> {
        let names = self.names(id);
        let index = |name: &Reference| self.refs.get(name)?.index.map(|index| (name.clone(), index));
        let indexes = names.iter().filter_map(index).collect();
        let digest = self.manifest_of(id)?;
        let manifests = self.images.get(&id).map(Vec::as_slice).unwrap_or_default();
        let (_, manifest, _) =
            manifests.iter().find(|(d, ..)| *d == digest).ok_or_else(|| no_image(&id.to_string()))?;
        let config = read_config(store, id)?;
        let mut image = Image {
            id: ImageId(id),
            names,
            indexes,
            digest,
            manifest: manifest.clone(),
            config,
            diff_ids: Vec::new(),
            created: None,
            size: 0,
        };
        let read = image.read_config()?;
        (image.diff_ids, image.created) = (read.diff_ids, read.created);
        for layer in &image.diff_ids {
            image.size += match store.layer_size(layer) {
                // It can still be listed and removed, and loaded again.
                Err(error) if error.is_not_found() => 0,
                size => size?,
            };
        }
        Ok(image)
    }

    /// Returns an image's layers, base first.
    pub(crate) fn layers(&self, store: &Store, id: ImageId) -> Result<Vec<DiffId>> {
        let config = read_config(store, id.0)?;
        Ok(manifest::read_config(&config, &format!("config of image {}", id.short()))?.diff_ids)
    }

    /// Returns the paths of an image's manifests, config and references.
    pub(crate) fn documents(&self, store: &Store, id: ImageId) -> Vec<PathBuf> {
        let manifests = self.images.get(&id.0).into_iter().flatten();
        let mut paths: Vec<PathBuf> =
            manifests.map(|(digest, ..)| store.layout().manifests().join(digest.hex())).collect();
        paths.push(store.layout().configs().join(id.0.hex()));
        paths.extend(self.names(id.0).iter().map(|name| store.ref_path(name)));
        paths
    }

    fn names(&self, id: Digest) -> Vec<Reference> {
        let leads_here = |leads: &Leads| self.config_of(leads.manifest) == Some(id);
        self.refs.iter().filter(|(_, leads)| leads_here(leads)).map(|(name, _)| name.clone()).collect()
    }

    fn config_of(&self, manifest: Digest) -> Option<Digest> {
        let has = |all: &[(Digest, Vec<u8>, Manifest)]| all.iter().any(|(digest, ..)| *digest == manifest);
        self.images.iter().find(|(_, all)| has(all)).map(|(id, _)| *id)
    }

    fn manifest_of(&self, id: Digest) -> Result<Digest> {
        let named = self.names(id).first().and_then(|name| self.refs.get(name)).map(|leads| leads.manifest);
        let newest = self.images.get(&id).and_then(|all| all.first()).map(|(digest, ..)| *digest);
        named.or(newest).ok_or_else(|| no_image(&id.to_string()))
    }

    fn find(&self, text: &str) -> Result<Found> {
        if let Some(found) = Reference::parse(text).ok().and_then(|name| self.find_name(&name)) {
            return Ok(found);
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.is_empty() || hex.len() > 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(no_image(text));
        }
        let with_manifest = self.images.iter().find_map(|(id, all)| {
            all.iter().find(|(digest, ..)| digest.hex() == hex).map(|(digest, ..)| (*id, *digest))
        });
        if let Some((id, manifest)) = with_manifest {
            return Ok(Found { id, name: None, manifest: Some(manifest) });
        }
        let mut with_prefix = self.images.keys().filter(|id| id.hex().starts_with(hex));
        match (with_prefix.next(), with_prefix.next()) {
            (Some(id), None) => Ok(Found { id: *id, name: None, manifest: None }),
            (Some(_), Some(_)) => {
                Err(Error::Ambiguous(format!("{text}: several images have IDs that begin so; give more digits")))
            }
            (None, _) => Err(no_image(text)),
        }
    }

    fn find_name(&self, name: &Reference) -> Option<Found> {
        // A name with a digest is recorded as such where the image was pulled by it.
        if let Some(Leads { manifest, .. }) = self.refs.get(name) {
            return Some(Found { id: self.config_of(*manifest)?, name: Some(name.clone()), manifest: Some(*manifest) });
        }
        if let Some(digest) = name.digest() {
            let by_index = |(known, leads): &(&Reference, &Leads)| {
                known.repository() == name.repository() && leads.index == Some(digest)
            };
            if let Some((_, leads)) = self.refs.iter().find(by_index) {
                return Some(Found { id: self.config_of(leads.manifest)?, name: None, manifest: Some(leads.manifest) });
            }
            let id = self.config_of(digest)?;
            let same_repository = |known: &&Reference| known.repository() == name.repository();
            let names = self.names(id);
            names.iter().find(same_repository)?;
            return Some(Found { id, name: None, manifest: Some(digest) });
        }
        None
    }
}

fn read_config(store: &Store, id: Digest) -> Result<Vec<u8>> {
    let path = store.layout().configs().join(id.hex());
    let config = disk::read_if_there(&path)?.filter(|bytes| Digest::of(bytes) == id);
    config.ok_or_else(|| Error::corrupt(path.display(), "it is missing or has changed; load the image again"))
}

type Modified = std::time::SystemTime;

/// Reads the content-addressed files of a directory and checks each against its name.
fn documents(dir: &Path) -> Result<Vec<(Digest, Vec<u8>, Modified)>> {
    let mut all = Vec::new();
    for name in disk::names(dir)? {
        let path = dir.join(&name);
        let Ok(digest) = Digest::from_hex(&name) else {
            return Err(Error::corrupt(path.display(), "not a file of the store; move it away"));
        };
        // Another process may remove an image between the listing and here.
        let Some(bytes) = disk::read_if_there(&path)? else { continue };
        if Digest::of(&bytes) != digest {
            return Err(Error::corrupt(path.display(), "its content has changed; delete it and load the image again"));
        }
        let Ok(modified) = fs::metadata(&path).and_then(|metadata| metadata.modified()) else { continue };
        all.push((digest, bytes, modified));
    }
    Ok(all)
}

fn read_refs(dir: &Path) -> Result<BTreeMap<Reference, Leads>> {
    let mut refs = BTreeMap::new();
    for file in disk::names(dir)? {
        refs.extend(read_ref(&dir.join(&file))?);
    }
    Ok(refs)
}

/// Reads a name and what it leads to; `None` if it is not there any more.
pub(crate) fn read_ref(path: &Path) -> Result<Option<(Reference, Leads)>> {
    let Some(bytes) = disk::read_if_there(path)? else { return Ok(None) };
    let corrupt = |why: String| {
        Error::corrupt(path.display(), format!("{why}; 'plyfs fsck --repair' removes it, then tag the image again"))
    };
    let record: RefRecord = serde_json::from_slice(&bytes).map_err(|why| corrupt(why.to_string()))?;
    let name = Reference::parse(&record.name).map_err(|why| corrupt(why.to_string()))?;
    let digest = |text: String| text.parse::<Digest>().map_err(|why| corrupt(format!("{why}")));
    let leads = Leads { manifest: digest(record.manifest)?, index: record.index.map(digest).transpose()? };
    Ok(Some((name, leads)))
}

fn parse_name(text: &str) -> Result<Reference> {
    let name = Reference::parse(text).map_err(|why| Error::invalid("tag", why))?;
    match name.digest() {
        None => Ok(name),
        Some(_) => Err(Error::invalid("tag", format!("'{text}' has a digest; a tag is a name without one"))),
    }
}

pub(crate) fn no_image(text: &str) -> Error {
    Error::NotFound(format!("no such image: {text}; 'plyfs images' lists what is here, 'plyfs load' brings more"))
}
