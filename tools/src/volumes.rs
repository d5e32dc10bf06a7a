//! `plyfs volume ...`: the named volumes of `plyfs run -v NAME:DIR`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use store::Store;

use crate::cli::{FormatArg, IdMap};
use crate::print::{self, Column, row, units};
use crate::{for_each, namespace, prune};

/// `plyfs volume ...`
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(VolumeLsArgs),
    /// Remove volumes with all that they hold
    #[command(visible_alias = "remove")]
    Rm(VolumeRmArgs),
    /// Remove volumes that no container was run with, or none that is still there
    Prune(VolumePruneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VolumeLsArgs {
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeRmArgs {
    /// Volumes, by name
    #[arg(value_name = "VOLUME", required = true)]
    volumes: Vec<String>,
    /// A volume that is not there is no error
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VolumePruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Runs a command about volumes.
pub(crate) fn run(root: &Path, command: &VolumeCommand, out: &mut dyn Write) -> Result<ExitCode> {
    // What a container of an ordinary user wrote may belong to users who exist in the user's namespace only.
    let removes = !matches!(command, VolumeCommand::Ls(_));
    if removes && !rustix::process::geteuid().is_root() {
        namespace::enter(IdMap::Auto)?;
    }
    let store = Store::open(root)?;
    match command {
        VolumeCommand::Ls(args) => list(&store, args, out).map(|()| ExitCode::SUCCESS),
        VolumeCommand::Rm(args) => remove(&store, args, out),
        VolumeCommand::Prune(args) => prune_unused(&store, args, out).map(|()| ExitCode::SUCCESS),
    }
}

fn list(store: &Store, args: &VolumeLsArgs, out: &mut dyn Write) -> Result<()> {
    let volumes = store.volumes()?;
    if args.quiet {
        return Ok(volumes.iter().try_for_each(|volume| writeln!(out, "{}", volume.name))?);
    }
    let columns: &[Column] = &[("DRIVER", "Driver"), ("VOLUME NAME", "Name"), ("CONTAINERS", "Containers")];
    let rows = volumes.into_iter().map(|volume| {
        row! {
            Name: volume.name,
            Driver: "local",
            Mountpoint: volume.path.display().to_string(),
            Containers: volume.containers.join(", "),
        }
    });
    print::rows(out, &args.format.format, columns, rows.collect())
}

fn remove(store: &Store, args: &VolumeRmArgs, out: &mut dyn Write) -> Result<ExitCode> {
    for_each(&args.volumes, |name| {
        match store.remove_volume(name) {
            Err(error) if args.force && error.is_not_found() => return Ok(()),
            removed => removed?,
        };
        Ok(writeln!(out, "{name}")?)
    })
}

fn prune_unused(store: &Store, args: &VolumePruneArgs, out: &mut dyn Write) -> Result<()> {
    if !prune::is_meant(args.force, "all volumes that no container was run with, with what they hold", out)? {
        return Ok(());
    }
    let (mut removed, mut bytes) = (Vec::new(), 0);
    for volume in store.volumes()?.into_iter().filter(|volume| volume.containers.is_empty()) {
        match store.remove_volume(&volume.name) {
            // Taken into use or removed meanwhile.
            Err(error) if error.is_in_use() || error.is_not_found() => {}
            freed => {
                bytes += freed?;
                removed.push(volume.name);
            }
        }
    }
    if !removed.is_empty() {
        writeln!(out, "Deleted Volumes:")?;
        removed.iter().try_for_each(|name| writeln!(out, "{name}"))?;
        writeln!(out)?;
    }
    writeln!(out, "Total reclaimed space: {}", units::size(bytes))?;
    Ok(())
}
