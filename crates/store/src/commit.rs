//! Committing: what a container changed becomes a layer, and its image with that layer another image.
//!
//! The changes are written as a tar and taken in like any other layer, both at once: nothing is written twice, and the
//! cost is that of the changes. The new image's config is the old one with what was asked for; unknown properties stay.

mod instruction;

use std::io::{BufReader, BufWriter, PipeReader, PipeWriter, Read, Write};

use layer::{DiffId, Digest};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::containers::Container;
use crate::diff::{Changes, Reserved};
use crate::error::{Error, Result};
use crate::images::{Image, ImageId, NewImage};
use crate::ingest::Ingest;
use crate::json;
use crate::lock::Lock;
use crate::manifest::{DOCKER_LAYER, DOCKER_MANIFEST, OCI_LAYER};
use crate::reference::Reference;
use crate::store::Store;
use crate::time;
use instruction::Instruction;

/// What a commit says besides the changes.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// The image's name; without one it is known by its ID alone.
    pub name: Option<Reference>,
    /// Who made it.
    pub author: Option<String>,
    /// A comment for the history.
    pub message: Option<String>,
    /// Dockerfile instructions that change the config: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR.
    pub changes: Vec<String>,
    /// What to do with names that a layer cannot hold.
    pub reserved: Reserved,
}

/// What a commit made.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The new image.
    pub id: ImageId,
    /// Its manifest's digest.
    pub digest: Digest,
    /// The new layer; `None` if the container had changed nothing.
    pub layer: Option<DiffId>,
    /// Its name led to another image before.
    pub moved: bool,
}

impl Store {
    /// Makes an image of a container: its image with one more layer, which holds what the container changed. A mounted one is taken
    /// as it is at that moment; nothing stops its programs.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an instruction that is none; [`Error::Unsupported`] for a file that a layer cannot hold; the disk.
    /// Nothing half-done stays.
    pub fn commit(&self, container: &Container, options: &CommitOptions) -> Result<Committed> {
        let what = format!("commit {}", container.name);
        let instructions = Instruction::parse_all(&options.changes)?;
        let _lease = self.take_lease(&container.diff_ids, Some(&container.id), &what)?;
        let image = self.image_by_id(container.image)?;
        let changes = self.changes(container).map_err(|error| error.within(&what))?;
        let _store = Lock::shared(&self.layout().lock())?;
        let layer = match changes.is_empty() {
            true => None,
            false => Some(self.take_in(&changes, options.reserved).map_err(|error| error.within(&what))?),
        };
        let config = new_config(&image, layer, &instructions, options)?;
        let manifest = self.new_manifest(&image, layer, &config)?;
        let stack: Vec<DiffId> = image.diff_ids.iter().copied().chain(layer).collect();
        self.fold(&stack).map_err(|error| error.within(&what))?;
        let names: Vec<Reference> = options.name.iter().map(Reference::tagged).collect();
        let moved = self.record_image(NewImage { names: &names, manifest: &manifest, config: &config, index: None })?;
        Ok(Committed {
            id: ImageId(Digest::of(&config)),
            digest: Digest::of(&manifest),
            layer,
            moved: !moved.is_empty(),
        })
    }

    /// Writes the changes as a tar and unpacks that. The caller holds the store's lock.
    pub(crate) fn take_in(&self, changes: &Changes<'_>, reserved: Reserved) -> Result<DiffId> {
        let (reader, writer) = std::io::pipe().map_err(|cause| Error::io("make a pipe", cause))?;
        let mut ingest = Ingest::new(self.layout())?;
        let mut stream = BufReader::with_capacity(256 << 10, Hashed { input: reader, hash: Sha256::new() });
        let (written, taken) = std::thread::scope(|scope| {
            let writer = scope.spawn(move || write(changes, reserved, writer));
            let taken = ingest.untar(&mut stream);
            let hash = std::mem::take(&mut stream.get_mut().hash);
            drop(stream); // A writer that is still at it notices.
            let panicked = || Err(Error::io("write a layer", std::io::Error::other("the writer panicked")));
            (writer.join().unwrap_or_else(|_| panicked()), taken.map(|()| hash))
        });
        let hash = match (written, taken) {
            (Ok(()), taken) => taken?,
            // What the reader could not take: the writer then only saw that nobody reads.
            (Err(Error::Io { cause, .. }), Err(error)) if cause.kind() == std::io::ErrorKind::BrokenPipe => {
                return Err(error);
            }
            (Err(error), _) => return Err(error),
        };
        let layer = DiffId(Digest::from_bytes(hash.finalize().into()));
        ingest.publish(self, layer)?;
        Ok(layer)
    }

    /// Makes the manifest: the old one's layers as they travelled, and the new one plain.
    fn new_manifest(&self, image: &Image, layer: Option<DiffId>, config: &[u8]) -> Result<Vec<u8>> {
        let what = format!("manifest {}", image.digest);
        let mut manifest = json::parse(&image.manifest).map_err(|why| Error::invalid(&what, why))?;
        let is_docker = manifest["mediaType"] == DOCKER_MANIFEST;
        manifest["config"]["digest"] = Digest::of(config).to_string().into();
        manifest["config"]["size"] = config.len().into();
        for stale in ["annotations", "subject"] {
            manifest.as_object_mut().map(|object| object.remove(stale));
        }
        manifest["config"].as_object_mut().map(|config| config.remove("data"));
        let layers = manifest["layers"].as_array_mut().ok_or_else(|| Error::corrupt(&what, "it has no layers"))?;
        if let Some(layer) = layer {
            let media_type = if is_docker { DOCKER_LAYER } else { OCI_LAYER };
            let size = self.layer_size(&layer)?;
            layers.push(json!({ "mediaType": media_type, "digest": layer.to_string(), "size": size }));
        }
        serde_json::to_vec(&manifest).map_err(|cause| Error::io("write a manifest", cause))
    }
}

fn write(changes: &Changes<'_>, reserved: Reserved, pipe: PipeWriter) -> Result<()> {
    let mut out = BufWriter::with_capacity(256 << 10, pipe);
    changes.write_tar(reserved, &mut out)?;
    out.flush().map_err(|cause| Error::io("write a layer", cause))
}

/// A stream that is hashed as it is read.
struct Hashed {
    input: PipeReader,
    hash: Sha256,
}

impl Read for Hashed {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = self.input.read(buf)?;
        self.hash.update(&buf[..len]);
        Ok(len)
    }
}

/// The image's config with one more layer, a line of history, and what the instructions say.
fn new_config(
    image: &Image,
    layer: Option<DiffId>,
    instructions: &[Instruction],
    options: &CommitOptions,
) -> Result<Vec<u8>> {
    let what = format!("config of image {}", image.label());
    let mut config = json::parse(&image.config).map_err(|why| Error::invalid(&what, why))?;
    let created = time::rfc3339(time::now());
    config["created"] = created.clone().into();
    if let Some(author) = &options.author {
        config["author"] = author.clone().into();
    }
    if !config["config"].is_object() {
        config["config"] = Value::Object(Map::new());
    }
    if let Some(settings) = config["config"].as_object_mut() {
        instruction::apply(instructions, settings)?;
    }
    if let Some(layer) = layer {
        let ids = config["rootfs"]["diff_ids"].as_array_mut();
        ids.ok_or_else(|| Error::corrupt(&what, "it has no diff_ids"))?.push(layer.to_string().into());
    }
    let said: Vec<&str> = options.changes.iter().map(String::as_str).collect();
    let mut past = json!({ "created": created, "created_by": format!("plyfs commit {}", said.join("; ")).trim_end() });
    for (key, value) in [("author", &options.author), ("comment", &options.message)] {
        if let Some(value) = value {
            past[key] = value.clone().into();
        }
    }
    if layer.is_none() {
        past["empty_layer"] = true.into();
    }
    if !config["history"].is_array() {
        // As many lines as layers, or readers refuse the image.
        config["history"] = image.diff_ids.iter().map(|_| json!({ "created_by": "" })).collect();
    }
    if let Some(history) = config["history"].as_array_mut() {
        history.push(past);
    }
    serde_json::to_vec(&config).map_err(|cause| Error::io("write a config", cause))
}
