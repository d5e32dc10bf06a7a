//! Commands about containers, and `inspect`, which knows both kinds of thing.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use serde_json::Value;
use store::{CommitOptions, Container, Reference, Reserved, Store, rfc3339};

use crate::cli::{CommitArgs, CreateArgs, DiffArgs, InspectArgs, Kind, PsArgs, RmArgs};
use crate::print::{self, Column, Format, Row, row, units};
use crate::{complain, for_each, mounts};

/// `plyfs create`
pub(crate) fn create(store: &Store, args: &CreateArgs, out: &mut dyn Write) -> Result<()> {
    let image = store.image(&args.image)?;
    let container = store.create_container(&image, args.name.as_deref())?;
    writeln!(out, "{}", container.id)?;
    Ok(())
}

/// `plyfs ps`
pub(crate) fn list(store: &Store, args: &PsArgs, out: &mut dyn Write) -> Result<()> {
    let now = units::now();
    let mut rows = Vec::new();
    for container in store.containers()? {
        let status = mounts::status(&container);
        if args.all || status != mounts::Status::NotMounted {
            rows.push(container_row(&container, status, args, now));
        }
    }
    if args.quiet {
        for row in rows {
            writeln!(out, "{}", row.get("ID").and_then(|id| id.as_str()).unwrap_or_default())?;
        }
        return Ok(());
    }
    let columns: &[Column] = &[
        ("CONTAINER ID", "ID"),
        ("IMAGE", "Image"),
        ("CREATED", "CreatedSince"),
        ("STATUS", "Status"),
        ("MOUNT POINT", "MountPoint"),
        ("NAMES", "Names"),
    ];
    print::rows(out, &args.format.format, columns, rows)
}

fn container_row(container: &Container, status: mounts::Status, args: &PsArgs, now: layer::Time) -> Row {
    let mount = container.mount.as_ref().filter(|_| status != mounts::Status::NotMounted);
    row! {
        ID: if args.no_trunc { container.id.as_str() } else { container.short_id() },
        Names: container.name,
        Image: container.image_name,
        ImageID: if args.no_trunc { container.image.to_string() } else { container.image.short() },
        CreatedSince: units::ago(Some(container.created), now),
        CreatedAt: rfc3339(container.created),
        Status: status.to_string(),
        MountPoint: mount.map(|mount| mount.target.display().to_string()),
        Pid: mount.filter(|mount| mount.is_live()).map(|mount| mount.process.pid),
    }
}

/// `plyfs diff`
pub(crate) fn diff(store: &Store, args: &DiffArgs, out: &mut dyn Write) -> Result<()> {
    let container = store.container(&args.container)?;
    let changes = store.diff(&container)?;
    if args.format.format == Format::Table {
        for (kind, path) in changes {
            writeln!(out, "{kind} /{path}")?;
        }
        return Ok(());
    }
    let rows = changes.iter().map(|(kind, path)| row! { Kind: kind.to_string(), Path: format!("/{path}") }).collect();
    print::rows(out, &args.format.format, &[], rows)
}

/// `plyfs commit`
pub(crate) fn commit(store: &Store, args: &CommitArgs, out: &mut dyn Write) -> Result<()> {
    let container = store.container(&args.container)?;
    let name = match args.name.as_deref().map(Reference::parse).transpose()? {
        Some(name) if name.digest().is_some() => bail!("commit: '{name}' has a digest; give a name without one"),
        name => name,
    };
    let committed = store.commit(
        &container,
        &CommitOptions {
            name,
            author: args.author.clone(),
            message: args.message.clone(),
            changes: args.change.clone(),
            reserved: if args.skip_reserved { Reserved::Skip } else { Reserved::Refuse },
        },
    )?;
    writeln!(out, "{}", committed.id)?;
    Ok(())
}

/// `plyfs rm`
pub(crate) fn remove(store: &Store, args: &RmArgs, out: &mut dyn Write) -> Result<ExitCode> {
    for_each(&args.containers, |name| {
        let container = match store.container(name) {
            Err(error) if args.force && error.is_not_found() => return Ok(()),
            found => found?,
        };
        if args.force {
            mounts::end(store, &container)?;
        }
        store.remove_container(&container.id)?;
        writeln!(out, "{name}")?;
        Ok(())
    })
}

/// `plyfs inspect`: everything that was found, then what was not.
pub(crate) fn inspect(store: &Store, args: &InspectArgs, kind: Option<Kind>, out: &mut dyn Write) -> Result<ExitCode> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in &args.names {
        match describe(store, name, kind) {
            Ok(value) => found.push(value),
            Err(error) => missing.push(error),
        }
    }
    match &args.format {
        Format::Table | Format::Json => print::json(out, &Value::Array(found))?,
        Format::Lines(template) | Format::Columns(template) => {
            for value in found {
                writeln!(out, "{}", template.render(&value)?)?;
            }
        }
    }
    for error in &missing {
        complain(&format!("{error:#}"));
    }
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Describes the container of that name, else the image.
fn describe(store: &Store, name: &str, kind: Option<Kind>) -> Result<Value> {
    if kind != Some(Kind::Image) {
        match store.container(name) {
            Ok(container) => return Ok(store.inspect_container(&container)),
            Err(error) if error.is_not_found() && kind.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    match store.image(name) {
        Ok(image) => Ok(store.inspect(&image)?),
        Err(error) if error.is_not_found() && kind.is_none() => Err(neither(name)),
        Err(error) => Err(error.into()),
    }
}

/// Neither a container nor an image has this name.
pub(crate) fn neither(name: &str) -> anyhow::Error {
    anyhow!("no such container or image: {name}; 'plyfs ps -a' and 'plyfs images' list what is here")
}
