//! Where things lie under the store's root.

use std::path::{Path, PathBuf};

use layer::{ChainId, DiffId, Digest};

/// The store's version, as the file `version` tells it.
pub(crate) const VERSION: &str = "plyfs store 1\n";

/// The directories that a store has, parents first.
const DIRECTORIES: [&str; 16] = [
    "objects",
    "layers",
    "folded",
    "images",
    "images/manifests",
    "images/configs",
    "images/refs",
    "blobs",
    "containers",
    "mounts",
    "snapshots",
    "leases",
    "lent",
    "volumes",
    "ingest",
    "trash",
];

/// The paths of one store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Layout { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn directories(&self) -> impl Iterator<Item = PathBuf> + '_ {
        DIRECTORIES.iter().map(|name| self.root.join(name))
    }

    pub(crate) fn version(&self) -> PathBuf {
        self.root.join("version")
    }

    /// Shared by what adds, exclusive for what deletes.
    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Held for the moment of changing a record: a reference, a container, a mount.
    pub(crate) fn records_lock(&self) -> PathBuf {
        self.root.join("records.lock")
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    pub(crate) fn object(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("objects").join(&hex[..2]).join(&hex[2..])
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, layer: &DiffId) -> PathBuf {
        self.root.join("layers").join(layer.0.hex())
    }

    pub(crate) fn all_folded(&self) -> PathBuf {
        self.root.join("folded")
    }

    pub(crate) fn folded(&self, chain: &ChainId) -> PathBuf {
        self.root.join("folded").join(chain.0.hex())
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.root.join("images/manifests")
    }

    pub(crate) fn configs(&self) -> PathBuf {
        self.root.join("images/configs")
    }

    pub(crate) fn refs(&self) -> PathBuf {
        self.root.join("images/refs")
    }

    /// Layers' blobs as they came, where they are kept.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    /// How often each layer is lent to another store's images.
    pub(crate) fn lent(&self) -> PathBuf {
        self.root.join("lent")
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name)
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
}

/// The files of a layer's directory.
pub(crate) const INDEX: &str = "index";
pub(crate) const BODIES: &str = "bodies";
pub(crate) const SKELETON: &str = "skeleton";
