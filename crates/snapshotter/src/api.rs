//! The messages and the server of containerd's snapshot service, as tonic-prost-build 0.14 made them from `proto/`, once: to build
//! this crate takes no protoc.
#![allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, clippy::unwrap_used, reason = "generated")]

#[rustfmt::skip]
pub(crate) mod types;

#[rustfmt::skip]
pub(crate) mod snapshots;
