//! What `docker save` writes: `manifest.json` with the paths of configs and layers, classic and since v25.

use layer::Digest;
use serde::Deserialize;

use super::files::Files;
use super::{FoundImage, FoundLayer, LayerContent, Wanted, check_layers, read_names};
use crate::error::{Error, Result, shown};
use crate::json;
use crate::manifest::{self, DOCUMENT_MAX};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

pub(super) fn find(files: &Files, wanted: &Wanted<'_>) -> Result<Vec<FoundImage>> {
    let Some(text) = files.read("manifest.json", DOCUMENT_MAX)? else {
        return Err(match files.has("repositories") {
            true => Error::unsupported(
                "docker archive",
                "it has no manifest.json: docker before 1.10 wrote it; save it again",
            ),
            false => Error::invalid("docker archive", "it has no manifest.json"),
        });
    };
    let value = json::parse(&text).map_err(|why| Error::invalid("manifest.json", why))?;
    let entries: Vec<Entry> = serde_json::from_value(value).map_err(|why| Error::invalid("manifest.json", why))?;
    let mut found = Vec::new();
    for (position, entry) in entries.into_iter().enumerate() {
        let tags: Vec<&str> = entry.repo_tags.iter().flatten().map(String::as_str).collect();
        if wanted.is_meant(position, &tags) {
            let label = tags.first().copied().unwrap_or(&entry.config);
            found.push(
                image(files, &entry, wanted)
                    .map_err(|error| error.within(format!("image {}", shown(label.as_bytes()))))?,
            );
        }
    }
    Ok(found)
}

fn image(files: &Files, entry: &Entry, wanted: &Wanted<'_>) -> Result<FoundImage> {
    let what = format!("config '{}'", shown(entry.config.as_bytes()));
    let missing = || Error::invalid(&what, "the archive does not hold it");
    let config = files.read(&entry.config, DOCUMENT_MAX)?.ok_or_else(missing)?;
    check_name(&entry.config, &config, &what)?;
    let read = manifest::read_config(&config, &what)?;
    if let (Some(wanted), Some(platform)) = (wanted.platform, &read.platform)
        && !wanted.runs().contains(platform)
    {
        return Err(Error::NotFound(format!("no image for {wanted}; it is for {platform}")));
    }
    let layers = entry.layers.as_deref().unwrap_or_default();
    check_layers(&read, layers.len(), &what)?;
    let layers = read.diff_ids.iter().zip(layers).map(|(diff_id, path)| {
        let content = files.open(path)?;
        let expected = named_digest(path).zip(content.as_ref().map(super::Content::len));
        let content = content.map(LayerContent::Here);
        Ok(FoundLayer { diff_id: *diff_id, what: format!("layer '{}'", shown(path.as_bytes())), expected, content })
    });
    let layers = layers.collect::<Result<_>>()?;
    Ok(FoundImage {
        names: read_names(entry.repo_tags.iter().flatten().map(String::as_str)),
        manifest: None,
        config,
        index: None,
        layers,
    })
}

/// A config named by a hash must have it.
fn check_name(path: &str, config: &[u8], what: &str) -> Result<()> {
    let stem = path.strip_suffix(".json").unwrap_or(path);
    let named = stem.rsplit('/').next().and_then(|hex| Digest::from_hex(hex).ok());
    match named {
        Some(named) if named != Digest::of(config) => {
            Err(Error::invalid(what, format!("its content has the digest {}", Digest::of(config))))
        }
        _ => Ok(()),
    }
}

/// Since v25 layers lie under their blob's hash.
fn named_digest(path: &str) -> Option<Digest> {
    Digest::from_hex(path.strip_prefix("blobs/sha256/")?).ok()
}
