//! Manifests and indexes at a registry: fetching, choosing by platform, inspecting.

use layer::Digest;
use serde_json::Value;
use store::manifest::{self, Descriptor, Document, Manifest};
use store::{Platform, Reference};

use crate::error::{Error, Result};
use crate::registries::Registries;
use crate::repository::Repository;

/// How deep indexes may lie in each other.
const DEPTH_MAX: usize = 8;
/// How many documents are read in search of one image.
const DOCUMENTS_MAX: usize = 100;

/// A manifest or an index as received, verified by its digest.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// As received.
    pub bytes: Vec<u8>,
    /// What the registry says that it is, if that is something that is known.
    pub media_type: Option<String>,
    /// Its hash.
    pub digest: Digest,
}

/// What [`Registries::inspect`] found.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// What the name leads to.
    pub top: Fetched,
    /// The manifests of an index, in its order, if they were asked for: what the index says of each, and the document.
    pub manifests: Vec<(Value, Fetched)>,
}

/// An image's manifest, chosen from what a name leads to.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    /// What the name leads to: of an index, the index.
    pub(crate) top: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) manifest: Manifest,
    /// Whether it stands alone, not in an index.
    pub(crate) alone: bool,
}

/// Which manifests of an image are inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Top,
    All,
}

impl Registries {
    /// Fetches what a name leads to, without pulling it.
    ///
    /// # Errors
    /// The registry's.
    pub fn inspect(&self, reference: &Reference) -> Result<Inspected> {
        self.inspect_to(reference, Extent::Top)
    }

    /// As [`Registries::inspect`], with the manifests of an index.
    ///
    /// # Errors
    /// The registry's.
    pub fn inspect_all(&self, reference: &Reference) -> Result<Inspected> {
        self.inspect_to(reference, Extent::All)
    }

    fn inspect_to(&self, reference: &Reference, extent: Extent) -> Result<Inspected> {
        let repository = self.repository(reference)?;
        self.runtime.block_on(async {
            let top = repository.named(reference).await?;
            let document: Value = serde_json::from_slice(&top.bytes)
                .map_err(|why| Error::invalid(reference.familiar(), format!("no valid JSON: {why}")))?;
            let mut manifests = Vec::new();
            let entries = document.get("manifests").and_then(Value::as_array).filter(|_| extent == Extent::All);
            for entry in entries.into_iter().flatten().take(DOCUMENTS_MAX) {
                let digest = entry.get("digest").and_then(Value::as_str).unwrap_or_default();
                let digest: Digest = digest.parse().map_err(|why| Error::invalid(reference.familiar(), why))?;
                manifests.push((entry.clone(), repository.manifest(&digest.to_string(), Some(digest)).await?));
            }
            Ok(Inspected { top, manifests })
        })
    }
}

impl Repository {
    /// Fetches what a reference leads to; where it has a tag and a digest, the digest wins.
    pub(crate) async fn named(&self, reference: &Reference) -> Result<Fetched> {
        match reference.digest() {
            Some(digest) => self.manifest(&digest.to_string(), Some(digest)).await,
            None => self.manifest(reference.tag().unwrap_or("latest"), None).await,
        }
    }

    /// Fetches the manifest for a platform.
    pub(crate) async fn choose(&self, reference: &Reference, platform: Option<&Platform>) -> Result<Chosen> {
        let what = reference.familiar();
        let top = self.named(reference).await?;
        let wanted = platform.cloned().unwrap_or_else(Platform::host);
        let mut there = Vec::new();
        let mut left = DOCUMENTS_MAX;
        let digest = top.digest;
        match self.search(top, &wanted, &what, 0, &mut left, &mut there).await? {
            Some(chosen) => Ok(Chosen { top: digest, ..chosen }),
            None => {
                there.dedup();
                let there: Vec<String> = there.iter().map(Platform::to_string).collect();
                let why = format!("{what}: no image for {wanted}; there are: {}", there.join(", "));
                Err(Error::NotFound(why + "; choose one with --platform"))
            }
        }
    }

    /// Looks for the best manifest in a document, and in the indexes in it. `there` gathers what it met.
    async fn search(
        &self,
        fetched: Fetched,
        wanted: &Platform,
        what: &str,
        depth: usize,
        left: &mut usize,
        there: &mut Vec<Platform>,
    ) -> Result<Option<Chosen>> {
        let document = manifest::read_document(&fetched.bytes, what, fetched.media_type.as_deref())?;
        let index = match document {
            Document::Manifest(manifest) => {
                return Ok(Some(Chosen { top: fetched.digest, bytes: fetched.bytes, manifest, alone: depth == 0 }));
            }
            Document::Index(index) => index,
        };
        if depth >= DEPTH_MAX {
            return Err(Error::invalid(what, format!("more than {DEPTH_MAX} levels of indexes")));
        }
        let entries: Vec<Descriptor> = index.manifests.into_iter().filter(|entry| !entry.is_attestation()).collect();
        there.extend(entries.iter().filter_map(|entry| entry.platform.clone()));
        for runs in wanted.runs() {
            if let Some(entry) = entries.iter().find(|entry| entry.platform.as_ref() == Some(&runs)) {
                let fetched = self.entry(entry, left, what).await?;
                return Box::pin(self.search(fetched, wanted, what, depth + 1, left, there)).await;
            }
        }
        // Entries that do not say what they are for: indexes again, or manifests whose configs tell.
        for entry in entries.iter().filter(|entry| entry.platform.is_none()) {
            let fetched = self.entry(entry, left, what).await?;
            let found = match Box::pin(self.search(fetched, wanted, what, depth + 1, left, there)).await {
                // In an index an artifact is another entry's signature or the like.
                Err(Error::Store(store::Error::Unsupported { .. })) => None,
                found => found?,
            };
            if let Some(chosen) = found {
                // An index has chosen by what it says; a manifest says nothing itself.
                if chosen.top != entry.digest {
                    return Ok(Some(chosen));
                }
                let config = self.document(&chosen.manifest.config, &format!("config of {what}")).await?;
                let platform = manifest::read_config(&config, &format!("config of {what}"))?.platform;
                if platform.as_ref().is_none_or(|platform| wanted.runs().contains(platform)) {
                    return Ok(Some(chosen));
                }
                there.extend(platform);
            }
        }
        Ok(None)
    }

    async fn entry(&self, entry: &Descriptor, left: &mut usize, what: &str) -> Result<Fetched> {
        *left = left
            .checked_sub(1)
            .ok_or_else(|| Error::invalid(what, format!("its index leads to more than {DOCUMENTS_MAX} documents")))?;
        let fetched = self.manifest(&entry.digest.to_string(), Some(entry.digest)).await?;
        if fetched.bytes.len() as u64 != entry.size {
            let why = format!(
                "manifest {} has {} bytes, not {} as the index says",
                entry.digest,
                fetched.bytes.len(),
                entry.size
            );
            return Err(Error::invalid(what, why));
        }
        // What the index says that it is, it must be.
        Ok(Fetched { media_type: entry.media_type.clone().or(fetched.media_type), ..fetched })
    }
}
