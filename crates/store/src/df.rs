//! What the store takes on the disk, and for what. It adds up to what `du` says of the store's directory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use layer::{DiffId, Digest};

use crate::disk;
use crate::error::Result;
use crate::images::{Catalogue, Image, ImageId};
use crate::store::Store;

/// What the store takes, in allocated bytes (each inode once, directories included).
#[derive(Clone, Debug, Default)]
pub struct Df {
    /// All of the store: what `du -s --block-size=1` says.
    pub total: u64,
    /// Each image.
    pub images: Vec<ImageUse>,
    /// Each layer.
    pub layers: Vec<LayerUse>,
    /// Each container.
    pub containers: Vec<ContainerUse>,
    /// Layers, objects, folded indexes and documents of images, shared ones once.
    pub image_bytes: u64,
    /// Of `image_bytes`: what would be free if all images without containers and mounts were removed.
    pub image_reclaimable: u64,
    /// All containers.
    pub container_bytes: u64,
    /// Of `container_bytes`: what would be free if all containers that are not mounted were removed.
    pub container_reclaimable: u64,
    /// What no image needs any more, what is under way, and the store's own directories and locks.
    pub other_bytes: u64,
}

/// What an image takes.
#[derive(Clone, Debug)]
pub struct ImageUse {
    /// Which.
    pub id: ImageId,
    /// What it takes that other images use too, in bytes.
    pub shared: u64,
    /// What would be free if it were removed, in bytes.
    pub unique: u64,
    /// How many containers and mounts use it.
    pub users: usize,
}

/// What a layer takes.
#[derive(Clone, Debug)]
pub struct LayerUse {
    /// Which.
    pub diff_id: DiffId,
    /// Its own files, in bytes.
    pub own: u64,
    /// The objects that it uses, shared ones included, in bytes.
    pub objects: u64,
    /// Of `objects`: what other layers use too.
    pub shared_objects: u64,
    /// The images that have it.
    pub images: Vec<ImageId>,
}

/// What a container takes.
#[derive(Clone, Debug)]
pub struct ContainerUse {
    /// Its ID.
    pub id: String,
    /// All that it has written, in bytes.
    pub bytes: u64,
}

/// Something on the disk that belongs to images.
#[derive(Default)]
struct Part {
    bytes: u64,
    images: BTreeSet<ImageId>,
}

impl Store {
    /// Returns what the store takes, and for what.
    ///
    /// # Errors
    /// The disk; a layer or record that cannot be read.
    pub fn df(&self) -> Result<Df> {
        let catalogue = Catalogue::read(self)?;
        let images = catalogue.ids().map(|id| catalogue.image(self, id.0)).collect::<Result<Vec<_>>>()?;
        let users = self.users()?;
        let mut objects = BTreeMap::new();
        for layer in self.layers()? {
            objects.insert(layer, self.objects_of(&layer)?);
        }
        let parts = self.parts(&catalogue, &images, &objects)?;
        let sum =
            |wanted: &dyn Fn(&Part) -> bool| parts.values().filter(|part| wanted(part)).map(|part| part.bytes).sum();
        let mut df = Df {
            total: disk::allocated(self.root())?,
            layers: self.layer_uses(&images, &objects, &parts)?,
            image_bytes: sum(&|_| true),
            image_reclaimable: sum(&|part| part.images.iter().all(|id| !users.contains_key(id))),
            ..Df::default()
        };
        for image in &images {
            df.images.push(ImageUse {
                id: image.id,
                shared: sum(&|part| part.images.contains(&image.id) && part.images.len() > 1),
                unique: sum(&|part| part.images.contains(&image.id) && part.images.len() == 1),
                users: users.get(&image.id).copied().unwrap_or_default(),
            });
        }
        for container in self.containers()? {
            let bytes = disk::allocated(&self.layout().containers().join(&container.id))?;
            df.container_bytes += bytes;
            if !container.is_mounted() {
                df.container_reclaimable += bytes;
            }
            df.containers.push(ContainerUse { id: container.id, bytes });
        }
        df.other_bytes = df.total.saturating_sub(df.image_bytes + df.container_bytes);
        Ok(df)
    }

    /// Counts the containers and mounts of each image that has any.
    fn users(&self) -> Result<HashMap<ImageId, usize>> {
        let mut users = HashMap::new();
        let containers = self.containers()?.into_iter().map(|container| container.image);
        for image in containers.chain(self.image_mounts()?.into_iter().map(|mount| mount.image)) {
            *users.entry(image).or_default() += 1;
        }
        Ok(users)
    }

    /// Measures everything that belongs to images, each thing once.
    fn parts(
        &self,
        catalogue: &Catalogue,
        images: &[Image],
        objects: &BTreeMap<DiffId, HashSet<Digest>>,
    ) -> Result<BTreeMap<PathBuf, Part>> {
        let mut parts: BTreeMap<PathBuf, Part> = BTreeMap::new();
        for image in images {
            let mut paths = catalogue.documents(self, image.id);
            paths.extend(image.chain().map(|chain| self.layout().folded(&chain)));
            paths.extend(image.diff_ids.iter().map(|layer| self.layout().layer(layer)));
            let of_layers = image.diff_ids.iter().filter_map(|layer| objects.get(layer)).flatten();
            paths.extend(of_layers.map(|digest| self.layout().object(digest)));
            for path in paths {
                parts.entry(path).or_default().images.insert(image.id);
            }
        }
        for (path, part) in &mut parts {
            part.bytes = disk::allocated(path)?;
        }
        Ok(parts)
    }

    fn layer_uses(
        &self,
        images: &[Image],
        objects: &BTreeMap<DiffId, HashSet<Digest>>,
        parts: &BTreeMap<PathBuf, Part>,
    ) -> Result<Vec<LayerUse>> {
        let mut layers_of: HashMap<&Digest, usize> = HashMap::new();
        objects.values().flatten().for_each(|digest| *layers_of.entry(digest).or_default() += 1);
        let bytes = |path: PathBuf| parts.get(&path).map_or_else(|| disk::allocated(&path), |part| Ok(part.bytes));
        let mut uses = Vec::new();
        for (layer, digests) in objects {
            let mut layer_use = LayerUse {
                diff_id: *layer,
                own: bytes(self.layout().layer(layer))?,
                objects: 0,
                shared_objects: 0,
                images: images.iter().filter(|image| image.diff_ids.contains(layer)).map(|image| image.id).collect(),
            };
            for digest in digests {
                let object = bytes(self.layout().object(digest))?;
                layer_use.objects += object;
                if layers_of.get(digest).is_some_and(|layers| *layers > 1) {
                    layer_use.shared_objects += object;
                }
            }
            uses.push(layer_use);
        }
        Ok(uses)
    }
}
