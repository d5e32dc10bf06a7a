//! What a load tells while it runs.

use layer::DiffId;

use crate::reference::Reference;

/// Hears how a load gets on; called from several threads.
pub trait Progress: Send + Sync {
    /// An image was found in the source; its layers, base first, come next.
    fn image(&self, names: &[Reference], layers: &[LayerPlan]) {
        let (_, _) = (names, layers);
    }

    /// A layer got on.
    fn layer(&self, layer: DiffId, event: LayerEvent) {
        let (_, _) = (layer, event);
    }
}

/// A layer that a load is about to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// Which layer.
    pub diff_id: DiffId,
    /// The length of its blob as it travelled, in bytes, where it is known beforehand.
    pub size: Option<u64>,
}

/// A step of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerEvent {
    /// It is in the store already.
    Existing,
    /// Unpacking begins.
    Started {
        /// The length of the blob, in bytes.
        total: u64,
    },
    /// So much of the blob was read so far, in bytes.
    Read {
        /// From its start.
        done: u64,
    },
    /// It is whole, verified and in the store.
    Unpacked {
        /// How many members its tar has.
        members: u64,
        /// The length of its tar, in bytes.
        size: u64,
    },
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}
