//! Pushing: layers that the registry has are left alone, others are made again from the store, bit by bit, and compressed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use layer::{DiffId, Digest};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use store::manifest::{self, Descriptor, Document};
use store::{Image, Reference, Store};

use crate::client::Ask;
use crate::error::{Error, Result};
use crate::hosts::Host;
use crate::registries::Registries;
use crate::repository::Repository;
use crate::upload::Begun;

const PARALLEL: usize = 3;
/// How many repositories are asked for a blob before it is sent.
const MOUNTS_MAX: usize = 3;

/// How layers are compressed that have to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// At a level of 0 to 9.
    Gzip(u32),
    /// At a level of 1 to 22.
    Zstd(u32),
}

impl Default for Compression {
    fn default() -> Self {
        Compression::Gzip(6)
    }
}

/// How to push.
#[derive(Clone, Copy, Debug, Default)]
pub struct PushOptions {
    /// For layers that have to be made again.
    pub compression: Compression,
}

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerPushed {
    /// So much of its tar was read so far, in bytes, of that many.
    Sending {
        /// From its start.
        done: u64,
        /// The whole length.
        total: u64,
    },
    /// It was sent.
    Sent,
    /// The registry had it.
    Exists,
    /// The registry took it from that repository.
    Mounted(String),
}

/// Hears how a push gets on; called from several threads.
pub trait PushProgress: Send + Sync {
    /// A layer got on.
    fn layer(&self, layer: DiffId, event: LayerPushed);
}

/// An image that was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Under which name.
    pub name: Reference,
    /// Its manifest's digest.
    pub digest: Digest,
    /// Its manifest's length, in bytes.
    pub size: u64,
}

/// What every layer of a push needs.
struct Push<'a> {
    store: &'a Store,
    repository: &'a Repository,
    host: &'a Host,
    options: &'a PushOptions,
    progress: &'a dyn PushProgress,
    /// Repositories of the same registry that hold a blob, by what the store knows.
    elsewhere: HashMap<Digest, BTreeSet<String>>,
    scopes: Vec<String>,
}

/// A layer as the manifest names it.
#[derive(Clone, Debug)]
struct Blob {
    digest: Digest,
    size: u64,
    media_type: Option<String>,
}

impl Registries {
    /// Pushes an image under a name, which leads to its manifest in the store, too, from then on.
    ///
    /// # Errors
    /// The registry's and the store's. What was sent before a failure stays at the registry, and is not sent again.
    pub fn push(
        &self,
        store: &Store,
        image: &Image,
        name: &Reference,
        options: &PushOptions,
        progress: &dyn PushProgress,
    ) -> Result<Pushed> {
        let name = name.tagged();
        let repository = self.repository(&name)?;
        let host = repository.origin()?;
        let _lease = store.lease(&image.diff_ids, &format!("push {}", name.familiar()))?;
        let document = manifest::read_document(&image.manifest, &format!("manifest of {}", image.label()), None)?;
        let Document::Manifest(own) = document else {
            return Err(Error::invalid(image.label(), "its manifest is an index"));
        };
        let push = Push {
            store,
            repository: &repository,
            host,
            options,
            progress,
            elsewhere: elsewhere(store, &name)?,
            scopes: vec![format!("repository:{}:pull,push", host.repository)],
        };
        let blobs = push.layers(image, &own.layers)?;
        push.config(image)?;
        let bytes = match own.layers.iter().zip(&blobs).all(|(own, blob)| own.digest == blob.digest) {
            true => image.manifest.clone(),
            false => rewrite(image, &blobs, options.compression)?,
        };
        let digest = push.manifest(&name, &bytes)?;
        store.note_manifest(image, &bytes, std::slice::from_ref(&name))?;
        Ok(Pushed { name, digest, size: bytes.len() as u64 })
    }
}

/// Returns which repositories of the same registry hold which blobs.
fn elsewhere(store: &Store, target: &Reference) -> Result<HashMap<Digest, BTreeSet<String>>> {
    let mut found: HashMap<Digest, BTreeSet<String>> = HashMap::new();
    for image in store.images()? {
        let same = |name: &&Reference| name.domain() == target.domain() && name.path() != target.path();
        let repositories: Vec<String> = image.names.iter().filter(same).map(|name| name.path().to_owned()).collect();
        if repositories.is_empty() {
            continue;
        }
        if let Document::Manifest(read) = manifest::read_document(&image.manifest, "manifest", None)? {
            for layer in read.layers {
                found.entry(layer.digest).or_default().extend(repositories.iter().cloned());
            }
        }
    }
    Ok(found)
}

impl Push<'_> {
    /// Brings all layers to the registry, several at once; returns how each is named there, base first.
    fn layers(&self, image: &Image, own: &[Descriptor]) -> Result<Vec<Blob>> {
        let mut queue: VecDeque<(DiffId, Option<Descriptor>)> = VecDeque::new();
        for (at, diff_id) in image.diff_ids.iter().enumerate() {
            if !queue.iter().any(|(known, _)| known == diff_id) {
                queue.push_back((*diff_id, own.get(at).cloned()));
            }
        }
        let workers = PARALLEL.min(queue.len());
        let queue = Mutex::new(queue);
        let done: Mutex<HashMap<DiffId, Blob>> = Mutex::default();
        let failure: Mutex<Option<Error>> = Mutex::default();
        let locked = |lock: &Mutex<Option<Error>>, error: Error| {
            lock.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        };
        let work = || {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some((diff_id, own)) = next else { return };
                match self.layer(&diff_id, own) {
                    Ok(blob) => drop(done.lock().unwrap_or_else(PoisonError::into_inner).insert(diff_id, blob)),
                    Err(error) => {
                        queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        locked(&failure, error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let missing = || Error::invalid(image.label(), "a layer was not pushed");
        image.diff_ids.iter().map(|diff_id| done.get(diff_id).cloned().ok_or_else(missing)).collect()
    }

    /// Brings one layer to the registry.
    fn layer(&self, diff_id: &DiffId, own: Option<Descriptor>) -> Result<Blob> {
        let mut known: Vec<Blob> = own.iter().map(Blob::of).collect();
        known.extend(self.store.blobs_of(diff_id)?.iter().map(Blob::of));
        let runtime = &self.repository.runtime;
        for blob in &known {
            if runtime.block_on(self.repository.has_blob(self.host, &blob.digest, &self.scopes))?.is_some() {
                self.progress.layer(*diff_id, LayerPushed::Exists);
                return Ok(blob.clone());
            }
        }
        for blob in &known {
            for from in self.elsewhere.get(&blob.digest).into_iter().flatten().take(MOUNTS_MAX) {
                let mut scopes = self.scopes.clone();
                scopes.push(format!("repository:{from}:pull"));
                let begun = runtime.block_on(self.repository.begin(self.host, Some((&blob.digest, from)), &scopes));
                // What is not mounted is sent; the upload that was begun instead runs out by itself.
                if let Ok(Begun::Mounted) = begun {
                    self.progress.layer(*diff_id, LayerPushed::Mounted(from.clone()));
                    return Ok(blob.clone());
                }
            }
        }
        for blob in &known {
            if self.store.kept_blob(&blob.digest)?.is_some() {
                return self.send(diff_id, Some(blob));
            }
        }
        self.send(diff_id, None)
    }

    /// Sends a layer: the blob that was kept, or one that is made now. A broken connection begins it anew.
    fn send(&self, diff_id: &DiffId, kept: Option<&Blob>) -> Result<Blob> {
        let patience = self.repository.patience;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.send_once(diff_id, kept) {
                Err(Error::Unreachable(why)) if attempt < patience.attempts => {
                    log::info!("layer {diff_id}: {why}; trying again");
                    std::thread::sleep(patience.pause(attempt));
                }
                sent => return sent,
            }
        }
    }

    fn send_once(&self, diff_id: &DiffId, kept: Option<&Blob>) -> Result<Blob> {
        let begun = self.repository.runtime.block_on(self.repository.begin(self.host, None, &self.scopes))?;
        let Begun::At(at) = begun else { return Err(Error::invalid("push", "mounted unasked")) };
        let file = kept.map(|blob| self.store.kept_blob(&blob.digest)).transpose()?.flatten();
        let (mut reader, total, compression): (Box<dyn std::io::Read + Send>, u64, _) = match (file, kept) {
            (Some(file), Some(blob)) => (Box::new(file), blob.size, None),
            _ => {
                let tar = self.store.open_layer(diff_id)?;
                let total = tar.size();
                (Box::new(tar), total, Some(self.options.compression))
            }
        };
        let told = |done| self.progress.layer(*diff_id, LayerPushed::Sending { done, total });
        let sent = self.repository.send_stream(self.host, &at, &mut *reader, compression, &self.scopes, &told)?;
        if let Some(kept) = kept.filter(|kept| kept.digest != sent.digest && compression.is_none()) {
            return Err(Error::invalid(format!("kept blob {}", kept.digest), "its content has changed"));
        }
        self.progress.layer(*diff_id, LayerPushed::Sent);
        let media_type = kept.filter(|_| compression.is_none()).and_then(|kept| kept.media_type.clone());
        Ok(Blob { digest: sent.digest, size: sent.size, media_type })
    }

    fn config(&self, image: &Image) -> Result<()> {
        self.repository.runtime.block_on(async {
            if self.repository.has_blob(self.host, &image.id.0, &self.scopes).await?.is_none() {
                self.repository.send_bytes(self.host, &image.config, &self.scopes).await?;
            }
            Ok(())
        })
    }

    fn manifest(&self, name: &Reference, bytes: &[u8]) -> Result<Digest> {
        let what = format!("push {}", name.familiar());
        let document: Value = serde_json::from_slice(bytes).map_err(|why| Error::invalid(&what, why))?;
        let media_type = document.get("mediaType").and_then(Value::as_str).unwrap_or(manifest::OCI_MANIFEST);
        let path = self.host.path(&format!("manifests/{}", name.tag().unwrap_or("latest")));
        let ask = Ask::get(&path, &self.scopes, &what).method(Method::PUT).header("content-type", media_type);
        let ask = Ask { body: Some(bytes.to_vec()), ..ask };
        self.repository.runtime.block_on(async {
            let response = self.host.client.ask(&ask).await?;
            if !matches!(response.status(), StatusCode::CREATED | StatusCode::OK) {
                return Err(self.host.client.complaint(response, &what).await);
            }
            let digest = Digest::of(bytes);
            let stated = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
            match stated.and_then(|stated| stated.parse::<Digest>().ok()).filter(|stated| *stated != digest) {
                Some(stated) => {
                    Err(Error::invalid(&what, format!("the registry took it as {stated}, but it is {digest}")))
                }
                None => Ok(digest),
            }
        })
    }
}

impl Blob {
    fn of(descriptor: &Descriptor) -> Self {
        Blob { digest: descriptor.digest, size: descriptor.size, media_type: descriptor.media_type.clone() }
    }
}

/// Writes the image's manifest anew, with its layers as they were sent. What else it says stays.
fn rewrite(image: &Image, blobs: &[Blob], compression: Compression) -> Result<Vec<u8>> {
    let broken = |why: &str| Error::invalid(format!("manifest of {}", image.label()), why);
    let mut document: Value = serde_json::from_slice(&image.manifest).map_err(|why| broken(&why.to_string()))?;
    let fields = document.as_object_mut().ok_or_else(|| broken("it is no object"))?;
    // Docker's own form knows gzip only.
    let docker = fields.get("mediaType").and_then(Value::as_str) == Some(manifest::DOCKER_MANIFEST)
        && matches!(compression, Compression::Gzip(_))
        && blobs.iter().all(|blob| blob.media_type.as_deref().is_none_or(|known| known.contains("docker")));
    let suffix = if matches!(compression, Compression::Zstd(_)) { "zstd" } else { "gzip" };
    let made = if docker {
        format!("{}.{suffix}", manifest::DOCKER_LAYER)
    } else {
        format!("application/vnd.oci.image.layer.v1.tar+{suffix}")
    };
    if !docker {
        fields.insert("mediaType".into(), manifest::OCI_MANIFEST.into());
        fields["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    }
    let layers = blobs.iter().map(|blob| {
        let media_type = blob.media_type.as_ref().map(|known| if docker { known.clone() } else { as_oci(known) });
        json!({
            "mediaType": media_type.unwrap_or_else(|| made.clone()),
            "digest": blob.digest.to_string(),
            "size": blob.size,
        })
    });
    fields.insert("layers".into(), layers.collect());
    serde_json::to_vec(&document).map_err(|why| broken(&why.to_string()))
}

/// OCI's name for what docker calls a layer.
fn as_oci(media_type: &str) -> String {
    let plain = "application/vnd.oci.image.layer.v1.tar";
    match media_type {
        docker if !docker.contains("docker") => docker.to_owned(),
        gzip if gzip.ends_with("gzip") => format!("{plain}+gzip"),
        zstd if zstd.ends_with("zstd") => format!("{plain}+zstd"),
        _ => plain.to_owned(),
    }
}
