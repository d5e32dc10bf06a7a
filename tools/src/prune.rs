//! `plyfs prune` and its forms: removing what is not in use, in one go.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Result;
use store::{Image, Removed, Store};

use crate::cli::{ContainerPruneArgs, ImagePruneArgs, SystemPruneArgs};
use crate::filter::Filters;
use crate::mounts;
use crate::print::units;

/// `plyfs image prune`
pub(crate) fn images(store: &Store, args: &ImagePruneArgs, out: &mut dyn Write) -> Result<()> {
    let filters = Filters::parse(&args.filter, store)?;
    let what = if args.all { "all images without a container or mount" } else { "all images without a name" };
    if !is_meant(args.force, what, out)? {
        return Ok(());
    }
    let bytes = prune_images(store, args.all, &filters, out)?;
    total(bytes, out)
}

/// `plyfs container prune`
pub(crate) fn containers(store: &Store, args: &ContainerPruneArgs, out: &mut dyn Write) -> Result<()> {
    if !is_meant(args.force, "all containers that are not mounted, with what they wrote", out)? {
        return Ok(());
    }
    let bytes = prune_containers(store, out)?;
    total(bytes, out)
}

/// `plyfs system prune`
pub(crate) fn system(store: &Store, args: &SystemPruneArgs, out: &mut dyn Write) -> Result<()> {
    let images = if args.all { "all images without a container or mount" } else { "all images without a name" };
    if !is_meant(args.force, &format!("all containers that are not mounted, and {images}"), out)? {
        return Ok(());
    }
    let mut bytes = prune_containers(store, out)?;
    bytes += prune_images(store, args.all, &Filters::default(), out)?;
    bytes += store.gc()?.bytes;
    total(bytes, out)
}

fn prune_images(store: &Store, all: bool, filters: &Filters, out: &mut dyn Write) -> Result<u64> {
    let pruned = store.prune_images(&|image: &Image| (all || image.names.is_empty()) && filters.takes(image))?;
    if !pruned.removed.is_empty() {
        writeln!(out, "Deleted Images:")?;
        pruned.removed.iter().try_for_each(|removed| lines(removed, ["untagged", "deleted"], out))?;
        writeln!(out)?;
    }
    Ok(pruned.bytes)
}

fn prune_containers(store: &Store, out: &mut dyn Write) -> Result<u64> {
    let (mut bytes, mut removed) = (0, Vec::new());
    let sizes = store.df()?.containers;
    for container in store.containers()? {
        if mounts::status(&container) == mounts::Status::Mounted {
            continue;
        }
        match store.remove_container(&container.id) {
            // Mounted or removed meanwhile.
            Err(error) if error.is_in_use() || error.is_not_found() => continue,
            removal => drop(removal?),
        }
        bytes += sizes.iter().find(|size| size.id == container.id).map_or(0, |size| size.bytes);
        removed.push(container.id);
    }
    if !removed.is_empty() {
        writeln!(out, "Deleted Containers:")?;
        removed.iter().try_for_each(|id| writeln!(out, "{id}"))?;
        writeln!(out)?;
    }
    Ok(bytes)
}

/// Tells what a removal did, a line for each thing.
pub(crate) fn lines(removed: &Removed, [untagged, deleted]: [&str; 2], out: &mut dyn Write) -> Result<()> {
    for name in &removed.untagged {
        writeln!(out, "{untagged}: {}", name.familiar())?;
    }
    if let Some(id) = removed.image {
        writeln!(out, "{deleted}: {id}")?;
    }
    for layer in &removed.deleted {
        writeln!(out, "{deleted}: {layer}")?;
    }
    Ok(())
}

fn total(bytes: u64, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "Total reclaimed space: {}", units::size(bytes))?;
    Ok(())
}

/// Asks whoever sits at a terminal.
pub(crate) fn is_meant(force: bool, what: &str, out: &mut dyn Write) -> Result<bool> {
    let stdin = std::io::stdin();
    if force || !stdin.is_terminal() {
        return Ok(true);
    }
    write!(out, "This removes {what}. Go on? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
