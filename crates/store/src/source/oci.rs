//! OCI image layouts (OCI image-spec, image-layout.md).

use layer::Digest;
use serde::Deserialize;

use super::files::Files;
use super::{FoundImage, FoundLayer, LayerContent, Wanted, check_layers, read_names};
use crate::error::{Error, Result, shown};
use crate::json;
use crate::manifest::{self, DOCUMENT_MAX, Descriptor, Document, Manifest};
use crate::platform::Platform;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// How deep indexes may lie in each other.
const DEPTH_MAX: usize = 8;
/// How many documents are read in search of one image.
const DOCUMENTS_MAX: usize = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: Option<String>,
}

/// A manifest that could be chosen.
struct Candidate {
    /// Where the manifest came from.
    digest: Digest,
    bytes: Vec<u8>,
    manifest: Manifest,
    platform: Option<Platform>,
}

pub(super) fn find(files: &Files, wanted: &Wanted<'_>) -> Result<Vec<FoundImage>> {
    check_version(files)?;
    let index =
        files.read("index.json", DOCUMENT_MAX)?.ok_or_else(|| Error::invalid("OCI layout", "it has no index.json"))?;
    let Document::Index(index) = manifest::read_document(&index, "index.json", None)? else {
        return Err(Error::invalid("index.json", "it is a manifest, not an index"));
    };
    let mut found = Vec::new();
    let mut passed_over = None;
    for (position, group) in groups(index.manifests).iter().enumerate() {
        let annotated: Vec<&str> = [CONTAINERD_NAME, REF_NAME]
            .iter()
            .filter_map(|key| Some(group[0].annotations.get(*key)?.as_str()))
            .collect();
        let digests: Vec<String> = group.iter().map(|descriptor| descriptor.digest.to_string()).collect();
        let names = annotated.iter().copied().chain(digests.iter().map(String::as_str)).collect::<Vec<_>>();
        if !wanted.is_meant(position, &names) {
            continue;
        }
        // containerd's name is whole; where it is, the other is but the tag.
        match image(files, group, wanted.platform, annotated.first().copied()) {
            Ok(image) => found.push(image),
            // Signatures and charts lie beside images; they are only in the way when one is asked for.
            Err(error @ Error::Unsupported { .. }) if wanted.reference.is_none() => {
                log::warn!("passed over: {error}");
                passed_over = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match passed_over {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

fn check_version(files: &Files) -> Result<()> {
    let text = files
        .read("oci-layout", DOCUMENT_MAX)?
        .ok_or_else(|| Error::invalid("OCI layout", "it has no file oci-layout"))?;
    let layout: LayoutFile = json::parse_as(&text).map_err(|why| Error::invalid("oci-layout", why))?;
    match layout.image_layout_version {
        Some(version) if version.starts_with("1.") => Ok(()),
        version => {
            let version = version.unwrap_or_default();
            Err(Error::unsupported("oci-layout", format!("version '{}'; 1.0.0 is known", shown(version.as_bytes()))))
        }
    }
}

/// Puts entries together that are one image for several platforms: those of one name, and nameless ones with a platform.
fn groups(entries: Vec<Descriptor>) -> Vec<Vec<Descriptor>> {
    let key = |entry: &Descriptor| {
        let name = entry.annotations.get(CONTAINERD_NAME).or_else(|| entry.annotations.get(REF_NAME));
        name.cloned().or_else(|| entry.platform.as_ref().map(|_| String::new()))
    };
    let mut groups: Vec<Vec<Descriptor>> = Vec::new();
    for entry in entries.into_iter().filter(|entry| !entry.is_attestation()) {
        let same = groups.iter_mut().find(|group| key(&entry).is_some() && key(&group[0]) == key(&entry));
        match same {
            Some(group) => group.push(entry),
            None => groups.push(vec![entry]),
        }
    }
    groups
}

fn image(files: &Files, group: &[Descriptor], platform: Option<&Platform>, name: Option<&str>) -> Result<FoundImage> {
    let label =
        name.map_or_else(|| format!("image {}", group[0].digest), |name| format!("image {}", shown(name.as_bytes())));
    let within = |error: Error| error.within(&label);
    let mut candidates = Vec::new();
    let mut left = DOCUMENTS_MAX;
    for descriptor in group {
        gather(files, descriptor, 0, &mut left, &mut candidates).map_err(within)?;
    }
    // A manifest that stands alone is meant whatever it is for, unless a platform was asked for.
    let choice = group.len() > 1 || is_index(&group[0]) || platform.is_some();
    let chosen = if choice { choose(files, candidates, platform) } else { candidates.pop().ok_or_else(nothing) };
    found(files, chosen.map_err(within)?, name).map_err(within)
}

fn is_index(descriptor: &Descriptor) -> bool {
    matches!(descriptor.media_type.as_deref(), Some(manifest::OCI_INDEX | manifest::DOCKER_LIST))
}

fn nothing() -> Error {
    Error::invalid("index", "it names no image")
}

/// Reads the manifests that a descriptor leads to, through indexes.
fn gather(
    files: &Files,
    descriptor: &Descriptor,
    depth: usize,
    left: &mut usize,
    all: &mut Vec<Candidate>,
) -> Result<()> {
    if depth > DEPTH_MAX || *left == 0 {
        return Err(Error::invalid(
            "index",
            format!("more than {DEPTH_MAX} levels of indexes, or {DOCUMENTS_MAX} entries"),
        ));
    }
    *left -= 1;
    let what = format!("manifest {}", descriptor.digest);
    let Some(bytes) = document(files, descriptor, &what)? else {
        // An index may name platforms that the layout does not hold (image-layout.md, Index Example).
        return if depth > 0 { Ok(()) } else { Err(Error::invalid(what, "the layout does not hold it")) };
    };
    match manifest::read_document(&bytes, &what, descriptor.media_type.as_deref()) {
        Ok(Document::Manifest(manifest)) => {
            all.push(Candidate { digest: descriptor.digest, bytes, manifest, platform: descriptor.platform.clone() });
            Ok(())
        }
        Ok(Document::Index(index)) => index
            .manifests
            .iter()
            .filter(|entry| !entry.is_attestation())
            .try_for_each(|entry| gather(files, entry, depth + 1, left, all)),
        // In an index an artifact is another entry's signature or the like.
        Err(Error::Unsupported { .. }) if depth > 0 => Ok(()),
        Err(error) => Err(error),
    }
}

fn choose(files: &Files, mut candidates: Vec<Candidate>, platform: Option<&Platform>) -> Result<Candidate> {
    for candidate in &mut candidates {
        if candidate.platform.is_none() {
            let config = &candidate.manifest.config;
            let what = format!("config {}", config.digest);
            if let Some(bytes) = document(files, config, &what)? {
                candidate.platform = manifest::read_config(&bytes, &what)?.platform;
            }
        }
    }
    let wanted = platform.cloned().unwrap_or_else(Platform::host);
    for runs in wanted.runs() {
        if let Some(at) = candidates.iter().position(|candidate| candidate.platform.as_ref() == Some(&runs)) {
            return Ok(candidates.swap_remove(at));
        }
    }
    let there: Vec<String> =
        candidates.iter().flat_map(|candidate| &candidate.platform).map(Platform::to_string).collect();
    let why = format!("no image for {wanted}; there are: {}; choose one with --platform", there.join(", "));
    Err(Error::NotFound(why))
}

fn found(files: &Files, chosen: Candidate, name: Option<&str>) -> Result<FoundImage> {
    let Candidate { digest, bytes, manifest, .. } = chosen;
    let what = format!("config {}", manifest.config.digest);
    let config = document(files, &manifest.config, &what)?
        .ok_or_else(|| Error::invalid(&what, "the layout does not hold it"))?;
    let read = manifest::read_config(&config, &what)?;
    check_layers(&read, manifest.layers.len(), &format!("manifest {digest}"))?;
    let layers = read.diff_ids.iter().zip(&manifest.layers).map(|(diff_id, descriptor)| {
        Ok(FoundLayer {
            diff_id: *diff_id,
            what: format!("layer blob {}", descriptor.digest),
            expected: Some((descriptor.digest, descriptor.size)),
            content: files.open(&blob_path(&descriptor.digest))?.map(LayerContent::Here),
        })
    });
    let layers = layers.collect::<Result<_>>()?;
    Ok(FoundImage { names: read_names(name), manifest: Some(bytes), layers, config, index: None })
}

/// Reads a small blob, embedded or from the layout, and checks it; `None` if the layout does not hold it.
fn document(files: &Files, descriptor: &Descriptor, what: &str) -> Result<Option<Vec<u8>>> {
    if descriptor.size > DOCUMENT_MAX {
        return Err(Error::invalid(what, format!("it has {} bytes; at most {DOCUMENT_MAX} are read", descriptor.size)));
    }
    let check = |bytes: &[u8]| {
        if bytes.len() as u64 != descriptor.size {
            return Err(Error::invalid(
                what,
                format!("it should have {} bytes, but has {}", descriptor.size, bytes.len()),
            ));
        }
        match Digest::of(bytes) {
            digest if digest == descriptor.digest => Ok(()),
            digest => Err(Error::invalid(what, format!("its content has the digest {digest}"))),
        }
    };
    if let Some(data) = &descriptor.data {
        check(data)?;
        return Ok(Some(data.clone()));
    }
    let Some(content) = files.open(&blob_path(&descriptor.digest))? else { return Ok(None) };
    if content.len() != descriptor.size {
        return Err(Error::invalid(
            what,
            format!("it should have {} bytes, but has {}", descriptor.size, content.len()),
        ));
    }
    let bytes = content.read(what, DOCUMENT_MAX)?;
    check(&bytes)?;
    Ok(Some(bytes))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
