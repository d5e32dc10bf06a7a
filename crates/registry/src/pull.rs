//! Pulling: what a name leads to comes into the store; what is there is not fetched again.

use std::sync::Arc;

use layer::Digest;
use store::{Arrival, Blobs, ImageId, LoadOptions, Loaded, Platform, Progress, Reference, Store, manifest};

use crate::blob::RemoteBlobs;
use crate::error::{Error, Result};
use crate::manifests::Chosen;
use crate::registries::Registries;
use crate::repository::Repository;

/// How many layers come at once unless told: as docker has it.
const PARALLEL: usize = 3;

/// What to pull, and how.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// For which platform; this host's unless told.
    pub platform: Option<Platform>,
    /// How many layers come at once; three unless told.
    pub parallel: Option<usize>,
    /// Whether the blobs of layers that are fetched are kept as they came, too.
    pub keep_blobs: bool,
}

/// An image that was pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The name that leads to it now.
    pub name: Reference,
    /// The digest of what the name leads to at the registry: of an index, if it is one.
    pub digest: Digest,
    /// Whether the name led to this image before, with all its layers here.
    pub up_to_date: bool,
    /// What came.
    pub loaded: Loaded,
}

impl Registries {
    /// Pulls an image by tag or by digest.
    ///
    /// # Errors
    /// The registry's and the store's. Nothing half-done stays; whole layers do, and the next pull goes on with them.
    pub fn pull(
        &self,
        store: &Store,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled> {
        self.pull_from(&self.repository(reference)?, store, reference, options, progress)
    }

    /// Lists the tags of a repository.
    ///
    /// # Errors
    /// The registry's.
    pub fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        let repository = self.repository(reference)?;
        self.runtime.block_on(repository.tags())
    }

    fn pull_from(
        &self,
        repository: &Arc<Repository>,
        store: &Store,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled> {
        let chosen = self.runtime.block_on(repository.choose(reference, options.platform.as_ref()))?;
        let name = match reference.digest() {
            Some(digest) => reference.pinned(digest),
            None => reference.tagged(),
        };
        let id = ImageId(chosen.manifest.config.digest);
        let before = store.image(&name.to_string()).ok();
        let was_there = before.is_some_and(|image| image.id == id);
        let config = match store.image_by_id(id) {
            Ok(image) => image.config,
            Err(_) => {
                let what = format!("config {} of {}", chosen.manifest.config.digest, reference.familiar());
                self.runtime.block_on(repository.document(&chosen.manifest.config, &what))?
            }
        };
        check_platform(&chosen, &config, options.platform.as_ref(), reference)?;
        let index = (!chosen.alone).then_some(chosen.top);
        let blobs: Arc<dyn Blobs> = Arc::new(RemoteBlobs::new(Arc::clone(repository)));
        let arrival = Arrival { names: vec![name.clone()], manifest: chosen.bytes, config, index };
        let load = LoadOptions {
            platform: None,
            parallel: Some(options.parallel.unwrap_or(PARALLEL)),
            keep_blobs: options.keep_blobs,
        };
        let label = reference.familiar();
        let loaded = store.receive(vec![arrival], &blobs, &label, &load, progress)?;
        let loaded = loaded.into_iter().next().ok_or_else(|| Error::invalid(label, "nothing came"))?;
        let fetched = loaded.layers.iter().any(|layer| layer.origin == store::Origin::Fetched);
        Ok(Pulled { name, digest: chosen.top, up_to_date: was_there && !fetched, loaded })
    }
}

/// A manifest that stands alone tells only in its config what it is for.
fn check_platform(chosen: &Chosen, config: &[u8], wanted: Option<&Platform>, reference: &Reference) -> Result<()> {
    let what = format!("config of {}", reference.familiar());
    let Some(platform) = manifest::read_config(config, &what)?.platform.filter(|_| chosen.alone) else { return Ok(()) };
    let host = wanted.cloned().unwrap_or_else(Platform::host);
    if host.runs().contains(&platform) {
        return Ok(());
    }
    match wanted {
        Some(wanted) => {
            let why = format!("{}: no image for {wanted}; it is for {platform}", reference.familiar());
            Err(Error::NotFound(why))
        }
        None => {
            log::warn!("{} is for {platform}, this host is {host}", reference.familiar());
            Ok(())
        }
    }
}
