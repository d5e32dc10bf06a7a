//! What this program and this machine are.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use rustix::process::geteuid;
use serde_json::Value;
use store::Store;

use crate::cli::{InfoArgs, VersionArgs};
use crate::namespace;
use crate::print::{self, Format, Row, row};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `plyfs version`
pub(crate) fn version(args: &VersionArgs, out: &mut dyn Write) -> Result<()> {
    match &args.format.format {
        Format::Table => writeln!(out, "plyfs {VERSION}")?,
        format => one(out, format, row! { Version: VERSION })?,
    }
    Ok(())
}

/// `plyfs info`
pub(crate) fn info(root: &Path, args: &InfoArgs, out: &mut dyn Write) -> Result<()> {
    let (images, containers, mounts) = counts(root)?;
    let facts = [
        ("Version", VERSION.to_string()),
        ("Store", root.display().to_string()),
        ("Images", images.to_string()),
        ("Containers", containers.to_string()),
        ("Mounts", mounts.to_string()),
        ("Kernel", rustix::system::uname().release().to_string_lossy().into_owned()),
        ("User", user()),
        ("FuseDevice", fuse_device()),
        ("UserNamespaces", namespace::obstacle().unwrap_or_else(|| "work".to_string())),
        ("IdRange", namespace::range_or_reason()),
        ("Fusermount", fusermount()),
    ];
    if args.format.format == Format::Table {
        for (name, text) in &facts {
            writeln!(out, "{:<17} {}", format!("{}:", words(name)), print::table::visible(text))?;
        }
        return Ok(());
    }
    let row: Row = facts.into_iter().map(|(name, text)| (name.to_string(), Value::String(text))).collect();
    one(out, &args.format.format, row)
}

/// Counts images, containers and mounts; a store that is not there is not made.
fn counts(root: &Path) -> Result<(usize, usize, usize)> {
    if !root.join("version").exists() {
        return Ok((0, 0, 0));
    }
    let store = Store::open(root)?;
    let containers = store.containers()?;
    let mounted = containers.iter().filter(|container| container.is_mounted()).count();
    Ok((store.images()?.len(), containers.len(), mounted + store.image_mounts()?.len()))
}

/// Writes one thing, not a list of one.
fn one(out: &mut dyn Write, format: &Format, row: Row) -> Result<()> {
    match format {
        Format::Json => print::json(out, &Value::Object(row)),
        format => print::rows(out, format, &[], vec![row]),
    }
}

/// Splits a field's name for people: `FuseDevice` is `FUSE device`.
fn words(field: &str) -> &str {
    match field {
        "FuseDevice" => "FUSE device",
        "UserNamespaces" => "User namespaces",
        "IdRange" => "ID range",
        "Fusermount" => "fusermount3",
        other => other,
    }
}

/// Says how much this user may do.
fn user() -> String {
    // Outside of any user namespace, all IDs are mapped to themselves.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mapped: Vec<&str> = map.split_whitespace().collect();
    match (geteuid().is_root(), mapped == ["0", "0", "4294967295"]) {
        (true, true) => "root".to_string(),
        (true, false) => "root of a user namespace".to_string(),
        (false, _) => format!("ordinary ({})", geteuid().as_raw()),
    }
}

fn fuse_device() -> String {
    match namespace::open_fuse_device() {
        Ok(()) => format!("{} can be opened", namespace::FUSE_DEVICE),
        Err(error) => format!("{error:#}"),
    }
}

fn fusermount() -> String {
    match namespace::on_path("fusermount3") {
        Some(path) => path.display().to_string(),
        None => "not found; install the package fuse3".to_string(),
    }
}
