//! Saving: images as one archive, layers put together again bit for bit.
//!
//! An OCI archive is a tar of an OCI layout. A docker archive is the same with docker's `manifest.json` beside it, as docker writes it
//! since v25: old and new docker, podman, skopeo and containerd all find what they look for.

use std::collections::BTreeSet;
use std::io::Write;

use layer::{DiffId, Digest};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::images::Image;
use crate::manifest::{self, Document, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::Store;
use crate::tar_writer::{Head, TarWriter};

/// How an archive is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveForm {
    /// What `docker save` writes; an OCI layout too.
    #[default]
    Docker,
    /// An OCI layout alone.
    Oci,
}

/// An image to be saved, and the names that it has in the archive.
struct Saved {
    image: Image,
    names: Vec<Reference>,
}

/// The parts of an archive that are known before anything is written.
struct Plan {
    /// Configs and manifests, by digest.
    documents: Vec<(Digest, Vec<u8>)>,
    index: Value,
    docker: Value,
    layers: BTreeSet<DiffId>,
}

impl Store {
    /// Writes images as one archive, each layer once. A text is a name, an ID (then the image has no name in the archive), or a
    /// repository without a tag, which means all its tags.
    ///
    /// # Errors
    /// [`Error::NotFound`] before anything is written; the disk, the writer: then what was written is no archive.
    pub fn save(&self, texts: &[String], form: ArchiveForm, out: &mut dyn Write) -> Result<()> {
        let saved = self.to_save(texts)?;
        let layers: Vec<DiffId> = saved.iter().flat_map(|saved| saved.image.diff_ids.iter().copied()).collect();
        let _lease = self.lease(&layers, "save")?;
        let plan = self.plan(&saved)?;
        let mut tar = TarWriter::new(out);
        tar.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        for (digest, bytes) in &plan.documents {
            tar.bytes(&blob(digest), bytes)?;
        }
        for layer in &plan.layers {
            let mut stream = self.open_layer(layer)?;
            tar.file(&Head::plain(&blob(&layer.0), stream.size()), &mut stream)?;
        }
        tar.bytes("index.json", plan.index.to_string().as_bytes())?;
        if form == ArchiveForm::Docker {
            tar.bytes("manifest.json", plan.docker.to_string().as_bytes())?;
        }
        tar.end()
    }

    /// Finds what is meant, each image once.
    fn to_save(&self, texts: &[String]) -> Result<Vec<Saved>> {
        let all = self.images()?;
        let mut saved: Vec<Saved> = Vec::new();
        for text in texts {
            for (image, names) in self.meant(text, &all)? {
                match saved.iter_mut().find(|saved| saved.image.id == image.id) {
                    Some(known) => known.names.extend(names),
                    None => saved.push(Saved { image, names }),
                }
            }
        }
        for image in &mut saved {
            image.names.sort();
            image.names.dedup();
        }
        Ok(saved)
    }

    fn meant(&self, text: &str, all: &[Image]) -> Result<Vec<(Image, Vec<Reference>)>> {
        let last = text.rsplit('/').next().unwrap_or(text);
        if let Some(name) = Reference::parse(text).ok().filter(|_| !last.contains([':', '@'])) {
            let same = |other: &&Reference| other.repository() == name.repository();
            let with_names = all.iter().map(|image| {
                let names: Vec<Reference> = image.names.iter().filter(same).cloned().collect();
                (image.clone(), names)
            });
            let meant: Vec<_> = with_names.filter(|(_, names)| !names.is_empty()).collect();
            if !meant.is_empty() {
                return Ok(meant);
            }
        }
        let image = self.image(text)?;
        let named = Reference::parse(text).ok().filter(|name| image.names.contains(name));
        Ok(vec![(image, named.into_iter().collect())])
    }

    fn plan(&self, saved: &[Saved]) -> Result<Plan> {
        let (mut documents, mut descriptors, mut docker) = (Vec::new(), Vec::new(), Vec::new());
        let mut layers = BTreeSet::new();
        for Saved { image, names } in saved {
            let manifest = self.plain_manifest(image)?;
            let digest = Digest::of(&manifest);
            let mut descriptor =
                json!({ "mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": manifest.len() });
            if let Some(platform) = image.read_config()?.platform {
                descriptor["platform"] = json!({ "os": platform.os, "architecture": platform.architecture });
                if let Some(variant) = platform.variant {
                    descriptor["platform"]["variant"] = variant.into();
                }
            }
            descriptors.extend(names.is_empty().then(|| descriptor.clone()));
            descriptors.extend(names.iter().map(|name| {
                let mut named = descriptor.clone();
                named["annotations"] = json!({
                    "io.containerd.image.name": name.to_string(),
                    "org.opencontainers.image.ref.name": name.to_string(),
                });
                named
            }));
            docker.push(json!({
                "Config": blob(&image.id.0),
                "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "Layers": image.diff_ids.iter().map(|layer| blob(&layer.0)).collect::<Vec<_>>(),
            }));
            documents.push((image.id.0, image.config.clone()));
            documents.push((digest, manifest));
            layers.extend(image.diff_ids.iter().copied());
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors });
        Ok(Plan { documents, index, docker: Value::Array(docker), layers })
    }

    /// Returns the manifest of an image whose layers travel as plain tars: its own, if that says so.
    fn plain_manifest(&self, image: &Image) -> Result<Vec<u8>> {
        let what = format!("manifest {}", image.digest);
        if let Document::Manifest(own) = manifest::read_document(&image.manifest, &what, None)?
            && own.config.media_type.as_deref() == Some(OCI_CONFIG)
            && own.layers.iter().map(|layer| DiffId(layer.digest)).eq(image.diff_ids.iter().copied())
        {
            return Ok(image.manifest.clone());
        }
        let layers = image.diff_ids.iter().map(|layer| {
            Ok(json!({ "mediaType": OCI_LAYER, "digest": layer.to_string(), "size": self.layer_size(layer)? }))
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": image.id.to_string(), "size": image.config.len() },
            "layers": layers.collect::<Result<Vec<_>>>()?,
        });
        serde_json::to_vec(&manifest).map_err(|cause| Error::io("write a manifest", cause))
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
