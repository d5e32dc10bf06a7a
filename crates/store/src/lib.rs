//! Where images live on this host: loading and unpacking, references, containers, and what they take on the disk.
//!
//! ```no_run
//! use store::{LoadOptions, Silent, Source, Store};
//!
//! let store = Store::open(&Store::default_root())?;
//! store.load(&Source::parse("oci:images:redis")?, &LoadOptions::default(), &Silent)?;
//! let image = store.image("redis")?;
//! let container = store.create_container(&image, Some("cache"))?;
//! let lower = store.lower(&image)?;
//! println!("mount {} with upper {}", lower.index.display(), container.upper.display());
//! # Ok::<(), store::Error>(())
//! ```
//!
//! A store is a directory of plain files and needs no daemon: rename is the transaction, `flock` the protocol (`lock.rs`).
//! Nothing is visible before it is whole. Everything works for an ordinary user: owners, modes, devices and extended
//! attributes of a layer live in its index, never in the host's inodes.

mod blobs;
mod claim;
mod commit;
mod containers;
mod df;
mod diff;
mod disk;
mod error;
mod explain;
mod fsck;
mod gc;
mod ids;
mod images;
mod inflate;
mod ingest;
mod inspect;
mod json;
mod layer_tar;
mod layers;
mod layout;
mod lease;
mod lent;
mod load;
mod lock;
pub mod manifest;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod mutations;
mod pipeline;
mod platform;
mod process;
mod progress;
mod receive;
mod reference;
mod save;
mod skeleton;
mod snapshots;
mod source;
mod store;
mod tape;
mod tar_writer;
mod time;
mod volumes;

pub use commit::{CommitOptions, Committed};
pub use containers::{Container, ImageMount, Mount};
pub use df::{ContainerUse, Df, ImageUse, LayerUse};
pub use diff::{ChangeKind, Reserved};
pub use error::{Error, Result};
pub use explain::{Explanation, Met, Place, Step};
pub use fsck::{Finding, Repair, Report};
pub use gc::Collected;
pub use images::{HistoryEntry, Image, ImageId, Pruned, Removal, Removed};
pub use layer_tar::LayerTar;
pub use layers::Lower;
pub use lease::Lease;
pub use lent::Lendable;
pub use load::{LoadOptions, Loaded, LoadedLayer, Origin};
pub use platform::Platform;
pub use process::Process;
pub use progress::{LayerEvent, LayerPlan, Progress, Silent};
pub use receive::{Arrival, Blobs};
pub use reference::{Reference, ReferenceError};
pub use save::ArchiveForm;
pub use snapshots::{NewSnapshot, Snapshot, SnapshotKind, Usage};
pub use source::Source;
pub use store::Store;
pub use time::{parse_rfc3339, rfc3339};
pub use volumes::{Seed, Volume};
