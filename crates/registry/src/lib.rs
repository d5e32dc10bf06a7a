//! OCI distribution: images come from registries and go to them.
//!
//! ```no_run
//! use registry::{PullOptions, Registries, Settings};
//! use store::{Reference, Silent, Store};
//!
//! let store = Store::open(&Store::default_root())?;
//! let registries = Registries::new(Settings::default())?;
//! registries.pull(&store, &Reference::parse("quay.io/some/image:1")?, &PullOptions::default(), &Silent)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This is the only room with async and TLS; its face is blocking. A layer goes to the store's pipeline while it arrives. What
//! was fetched is believed only after its digest was checked, by whoever reads it. Credentials go to the registry that
//! they are for and to the token server that it names, never along a redirect, and never into a message.

mod auth;
mod blob;
mod challenge;
mod client;
mod credentials;
mod error;
mod hosts;
mod login;
mod manifests;
mod mirrors;
mod pull;
mod push;
mod registries;
mod repository;
mod search;
mod upload;
mod web;

pub use credentials::{AuthFiles, Credential};
pub use error::{Error, Result};
pub use manifests::{Fetched, Inspected};
pub use pull::{PullOptions, Pulled};
pub use push::{Compression, LayerPushed, PushOptions, PushProgress, Pushed};
pub use registries::{Patience, Registries, Settings};
pub use search::{Found, SearchOptions};
