//! What is known of an image, in docker's words, and what the store knows besides.

use std::collections::{BTreeMap, BTreeSet};

use layer::{ChainId, DiffId};
use serde_json::{Map, Value, json};

use crate::disk;
use crate::error::Result;
use crate::images::Image;
use crate::manifest::{self, Descriptor, Document};
use crate::reference::Reference;
use crate::store::Store;
use crate::time;

/// What docker's configs always have; templates rely on it.
const SETTINGS: [(&str, &str); 10] = [
    ("User", "\"\""),
    ("ExposedPorts", "null"),
    ("Env", "null"),
    ("Cmd", "null"),
    ("Entrypoint", "null"),
    ("Volumes", "null"),
    ("WorkingDir", "\"\""),
    ("Labels", "null"),
    ("OnBuild", "null"),
    ("StopSignal", "\"\""),
];

impl Store {
    /// Returns what is known of an image, in docker's words; under `Layers` what is known of each layer.
    ///
    /// # Errors
    /// The disk, or a config that cannot be read.
    pub fn inspect(&self, image: &Image) -> Result<Value> {
        let config = image.read_config()?;
        let digests: BTreeSet<String> = image
            .names
            .iter()
            .map(|name| format!("{}@{}", name.familiar_repository(), image.digest_of(name)))
            .collect();
        let tags: Vec<String> =
            image.names.iter().filter(|name| name.digest().is_none()).map(Reference::familiar).collect();
        let platform = config.platform.as_ref();
        let lower = self.lower(image)?;
        let comment = config.history.last().and_then(|past| past.comment.clone()).unwrap_or_default();
        Ok(json!({
            "Id": image.id.to_string(),
            "RepoTags": tags,
            "RepoDigests": digests,
            "Parent": "",
            "Comment": comment,
            "Digest": image.digest.to_string(),
            "Created": image.created.map(time::rfc3339),
            "Author": config.author,
            "Architecture": platform.map(|p| p.architecture.as_str()).unwrap_or_default(),
            "Variant": platform.and_then(|p| p.variant.as_deref()).unwrap_or_default(),
            "Os": platform.map(|p| p.os.as_str()).unwrap_or_default(),
            "Size": image.size,
            "VirtualSize": image.size,
            "Config": settings(&config.settings),
            "RootFS": {
                "Type": "layers",
                "Layers": image.diff_ids.iter().map(DiffId::to_string).collect::<Vec<_>>(),
            },
            "GraphDriver": { "Name": "plyfs", "Data": null },
            "Metadata": { "LastTagTime": self.last_tag_time(image).map(time::rfc3339) },
            "Layers": self.layer_details(image)?,
            "Store": {
                "ChainId": image.chain().map(|chain| chain.to_string()),
                "Index": lower.index,
            },
        }))
    }

    /// Tells of each layer its digests, sizes and which images share it, base first.
    fn layer_details(&self, image: &Image) -> Result<Vec<Value>> {
        let travelled = match manifest::read_document(&image.manifest, "manifest", None)? {
            Document::Manifest(manifest) if manifest.layers.len() == image.diff_ids.len() => manifest.layers,
            _ => Vec::new(),
        };
        let mut sharers: BTreeMap<DiffId, Vec<String>> = BTreeMap::new();
        for other in self.images()?.iter().filter(|other| other.id != image.id) {
            for layer in &other.diff_ids {
                let names = sharers.entry(*layer).or_default();
                if !names.contains(&other.label()) {
                    names.push(other.label());
                }
            }
        }
        let mut details = Vec::new();
        for (at, layer) in image.diff_ids.iter().enumerate() {
            let blob: Option<&Descriptor> = travelled.get(at);
            let mut objects = 0;
            for object in self.objects_of(layer)? {
                objects += disk::allocated(&self.layout().object(&object))?;
            }
            details.push(json!({
                "DiffID": layer.to_string(),
                "ChainID": ChainId::of(&image.diff_ids[..=at]).map(|chain| chain.to_string()),
                "Digest": blob.map(|blob| blob.digest.to_string()),
                "MediaType": blob.and_then(|blob| blob.media_type.clone()),
                "CompressedSize": blob.map(|blob| blob.size),
                "Size": self.layer_size(layer)?,
                "DiskSize": disk::allocated(&self.layout().layer(layer))? + objects,
                "ObjectsSize": objects,
                "SharedWith": sharers.get(layer).cloned().unwrap_or_default(),
            }));
        }
        Ok(details)
    }

    fn last_tag_time(&self, image: &Image) -> Option<layer::Time> {
        let tagged = |name: &Reference| std::fs::metadata(self.ref_path(name)).ok()?.modified().ok();
        let newest = image.names.iter().filter_map(tagged).max()?;
        let since = newest.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(layer::Time { sec: i64::try_from(since.as_secs()).ok()?, nsec: since.subsec_nanos() })
    }
}

fn settings(config: &Value) -> Value {
    let mut settings: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
    for (key, default) in SETTINGS {
        settings.entry(key).or_insert_with(|| serde_json::from_str(default).unwrap_or_default());
    }
    Value::Object(settings)
}
