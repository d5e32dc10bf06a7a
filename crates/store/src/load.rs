//! Loading: a source's images become layers, records and folded indexes of the store.

use std::collections::{HashSet, VecDeque};
use std::io::Read;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};

use layer::{DiffId, Digest};
use parking_lot::Mutex;
use serde_json::json;

use crate::blobs::Kept;
use crate::claim::Claim;
use crate::error::{Error, Result};
use crate::gc::{self, Scope};
use crate::images::{ImageId, NewImage};
use crate::inflate::Bound;
use crate::ingest::Ingest;
use crate::lock::Lock;
use crate::manifest::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST};
use crate::pipeline::{self, Blob, ChunkReader, Halt, Staged};
use crate::platform::Platform;
use crate::progress::{LayerEvent, LayerPlan, Progress};
use crate::reference::Reference;
use crate::source::{FoundImage, FoundLayer, LayerContent, Source};
use crate::store::Store;

/// The most layers that are unpacked at once: each takes some MiB of memory.
const PARALLEL_MAX: usize = 8;

/// What to load, and how.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// For which platform; this host's unless told.
    pub platform: Option<Platform>,
    /// How many layers are unpacked at once; as many as there are processors unless told.
    pub parallel: Option<usize>,
    /// Whether the blobs of layers that are unpacked are kept as they came, too.
    pub keep_blobs: bool,
}

/// An image that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The names that lead to it now, from the source.
    pub names: Vec<Reference>,
    /// Those of `names` that led to another image before.
    pub moved: Vec<Reference>,
    /// Its ID.
    pub id: ImageId,
    /// Its manifest's digest.
    pub digest: Digest,
    /// Its layers, base first.
    pub layers: Vec<LoadedLayer>,
}

/// A layer of a loaded image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedLayer {
    /// Which layer.
    pub diff_id: DiffId,
    /// Whether it was there.
    pub origin: Origin,
}

/// Where a layer of a loaded image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was unpacked.
    Fetched,
    /// It was in the store.
    Existing,
}

impl Store {
    /// Loads the images of `source`: verifies and unpacks the layers that are not here, records the images, and folds them.
    ///
    /// Layers become visible one by one, each whole; an image with its names only when all its layers are there. So an
    /// interrupted load goes on where it stopped.
    /// # Errors
    /// Each names the image, layer or member. Nothing half-done stays; whole layers do, until the next removal of an image.
    pub fn load(&self, source: &Source, options: &LoadOptions, progress: &dyn Progress) -> Result<Vec<Loaded>> {
        let found = source.open(self, options.platform.as_ref())?;
        self.load_found(&found, &source.label(), options, progress)
    }

    /// Loads what was found in a source that messages call `label`.
    pub(crate) fn load_found(
        &self,
        found: &[FoundImage],
        label: &str,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>> {
        for image in found {
            progress.image(&image.names, &image.layers.iter().map(plan).collect::<Vec<_>>());
        }
        // From the first layer or object that is reused to the images' records.
        let store = Lock::shared(&self.layout().lock())?;
        let missing = self.missing(found, progress).map_err(|error| error.within(label))?;
        let fetched: HashSet<DiffId> = missing.iter().map(|layer| layer.diff_id).collect();
        let loaded = self
            .unpack_all(missing, options, progress)
            .and_then(|()| found.iter().map(|image| self.finish(image, &fetched)).collect());
        drop(store);
        loaded.map_err(|error| {
            if !matches!(error, Error::Io { .. }) {
                self.forget(&fetched);
            }
            error.within(label)
        })
    }

    /// Deletes those of these layers that nothing uses: a source that is refused leaves nothing. After a failure of the disk they
    /// stay, and the next try goes on from there.
    fn forget(&self, layers: &HashSet<DiffId>) {
        let collected = Lock::try_exclusive(&self.layout().lock()).and_then(|lock| match lock {
            Some(_lock) => gc::collect(self, Scope::Only(layers)).map(drop),
            // Somebody else is at work, perhaps with these layers; what stays unused goes with the next removal.
            None => Ok(()),
        });
        if let Err(error) = collected {
            log::warn!("layers of an image that was refused stay: {error}");
        }
    }

    /// Returns the layers that have to be unpacked, each once, the largest first.
    fn missing(&self, found: &[FoundImage], progress: &dyn Progress) -> Result<Vec<FoundLayer>> {
        let mut missing: Vec<FoundLayer> = Vec::new();
        let mut seen = HashSet::new();
        for layer in found.iter().flat_map(|image| &image.layers) {
            if self.is_whole(&layer.diff_id) {
                if seen.insert(layer.diff_id) {
                    progress.layer(layer.diff_id, LayerEvent::Existing);
                }
            } else if layer.content.is_some() && seen.insert(layer.diff_id) {
                missing.push(layer.clone());
            }
        }
        let absent = |layer: &&FoundLayer| !seen.contains(&layer.diff_id);
        if let Some(layer) = found.iter().flat_map(|image| &image.layers).find(absent) {
            return Err(Error::invalid(&layer.what, "the source does not hold it, and the store has no such layer"));
        }
        missing.sort_by_key(|layer| std::cmp::Reverse(layer.content.as_ref().map_or(0, LayerContent::len)));
        Ok(missing)
    }

    /// Unpacks layers, several at once. After a failure those under way are given up too.
    fn unpack_all(&self, layers: Vec<FoundLayer>, options: &LoadOptions, progress: &dyn Progress) -> Result<()> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let workers = options.parallel.unwrap_or(processors).clamp(1, PARALLEL_MAX).min(layers.len());
        let failure = Mutex::new(None);
        let give_up = AtomicBool::new(false);
        let contents: Vec<LayerContent> = layers.iter().filter_map(|layer| layer.content.clone()).collect();
        let queue = Mutex::new(VecDeque::from(layers));
        let work = || {
            while !give_up.load(Ordering::Relaxed)
                && let Some(layer) = { queue.lock().pop_front() }
            {
                if let Err(Halt::Failed(error)) = self.unpack(&layer, &give_up, options, progress) {
                    give_up.store(true, Ordering::Relaxed);
                    contents.iter().for_each(LayerContent::give_up);
                    failure.lock().get_or_insert(error.within(&layer.what));
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        failure.into_inner().map_or(Ok(()), Err)
    }

    fn unpack(
        &self,
        layer: &FoundLayer,
        give_up: &AtomicBool,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Staged<()> {
        let Some(content) = &layer.content else { return Err(Halt::Stopped) };
        if let Some((_, size)) = layer.expected.filter(|(_, size)| *size != content.len()) {
            let why = format!("it should have {size} bytes, but has {}", content.len());
            return Err(Error::invalid("blob", why).into());
        }
        // Another load may be at this very layer: it is fetched and unpacked once.
        let Some(_claim) = Claim::wait(self.layout(), &layer.diff_id, give_up)? else { return Err(Halt::Stopped) };
        if self.is_whole(&layer.diff_id) {
            progress.layer(layer.diff_id, LayerEvent::Existing);
            return Ok(());
        }
        progress.layer(layer.diff_id, LayerEvent::Started { total: content.len() });
        let blob = Blob {
            what: "blob",
            size: content.len(),
            digest: layer.expected.map(|(digest, _)| digest),
            bound: Bound::LAYER,
        };
        let mut ingest = Ingest::new(self.layout())?;
        let read = |done| progress.layer(layer.diff_id, LayerEvent::Read { done });
        let untar = |stream: &mut ChunkReader| ingest.untar(stream);
        let mut kept = match layer.expected.filter(|_| options.keep_blobs) {
            Some((digest, _)) => Some(Kept::begin(self.layout(), digest)?),
            None => None,
        };
        let mut reader: Box<dyn Read + Send> = match &mut kept {
            Some(kept) => Box::new(kept.tee(content.reader()?)),
            None => content.reader()?,
        };
        let ((), diff_id) = pipeline::run(&blob, &mut *reader, &read, give_up, untar)?;
        drop(reader);
        if DiffId(diff_id) != layer.diff_id {
            let why = format!("its tar has the diffID {diff_id}, not {} as the config says", layer.diff_id);
            return Err(Error::invalid("blob", why).into());
        }
        if let Some(kept) = kept {
            kept.publish()?;
        }
        let summary = ingest.publish(self, layer.diff_id)?;
        progress.layer(layer.diff_id, LayerEvent::Unpacked { members: summary.members, size: summary.size });
        Ok(())
    }

    /// Folds an image whose layers are all there, and records it.
    fn finish(&self, image: &FoundImage, fetched: &HashSet<DiffId>) -> Result<Loaded> {
        let diff_ids: Vec<DiffId> = image.layers.iter().map(|layer| layer.diff_id).collect();
        let label = image.names.first().map_or_else(|| "image".into(), Reference::familiar);
        self.fold(&diff_ids).map_err(|error| error.within(&label))?;
        let manifest = image.manifest.clone().map_or_else(|| self.make_manifest(image, &diff_ids), Ok)?;
        let new = NewImage { names: &image.names, manifest: &manifest, config: &image.config, index: image.index };
        let moved = self.record_image(new)?;
        let origin = |diff_id: &DiffId| if fetched.contains(diff_id) { Origin::Fetched } else { Origin::Existing };
        Ok(Loaded {
            names: image.names.clone(),
            moved,
            id: ImageId(Digest::of(&image.config)),
            digest: Digest::of(&manifest),
            layers: diff_ids.iter().map(|diff_id| LoadedLayer { diff_id: *diff_id, origin: origin(diff_id) }).collect(),
        })
    }

    /// Makes the manifest that a docker archive lacks: of plain layers, which the store can give back bit for bit.
    fn make_manifest(&self, image: &FoundImage, diff_ids: &[DiffId]) -> Result<Vec<u8>> {
        let descriptor = |media_type: &str, digest: String, size: u64| json!({ "mediaType": media_type, "size": size, "digest": digest });
        let layers =
            diff_ids.iter().map(|layer| Ok(descriptor(DOCKER_LAYER, layer.to_string(), self.layer_size(layer)?)));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": descriptor(DOCKER_CONFIG, Digest::of(&image.config).to_string(), image.config.len() as u64),
            "layers": layers.collect::<Result<Vec<_>>>()?,
        });
        serde_json::to_vec(&manifest).map_err(|cause| Error::io("write a manifest", cause))
    }
}

fn plan(layer: &FoundLayer) -> LayerPlan {
    let size = layer.expected.map(|(_, size)| size).or_else(|| layer.content.as_ref().map(LayerContent::len));
    LayerPlan { diff_id: layer.diff_id, size }
}
