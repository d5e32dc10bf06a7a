//! What the store takes on the disk, and taking less.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::Value;
use store::{Df, Image, ImageId, Reference, Repair, Store, rfc3339};

use crate::cli::{DfArgs, FsckArgs, GcArgs};
use crate::print::{self, Format, Row, row, units};

/// `plyfs df`
pub(crate) fn df(store: &Store, args: &DfArgs, out: &mut dyn Write) -> Result<()> {
    let df = store.df()?;
    match (args.verbose, &args.format.format) {
        (false, format) => {
            let columns = [
                ("TYPE", "Type"),
                ("TOTAL", "TotalCount"),
                ("ACTIVE", "Active"),
                ("SIZE", "Size"),
                ("RECLAIMABLE", "Reclaimable"),
            ];
            print::rows(out, format, &columns, summary(store, &df)?)
        }
        (true, Format::Table) => tables(store, &df, out),
        (true, Format::Json) => {
            let list = |rows: Vec<Row>| Value::Array(rows.into_iter().map(Value::Object).collect());
            let all = row! {
                Images: list(image_rows(store, &df)?),
                Layers: list(layer_rows(store, &df)?),
                Containers: list(container_rows(store, &df)?),
                OtherBytes: df.other_bytes,
                TotalBytes: df.total,
            };
            print::json(out, &Value::Object(all))
        }
        (true, _) => bail!("df -v: prints a table or JSON; leave the template or -v out"),
    }
}

fn summary(store: &Store, df: &Df) -> Result<Vec<Row>> {
    let containers = store.containers()?;
    let mounted = containers.iter().filter(|container| container.is_mounted()).count();
    let used = df.images.iter().filter(|image| image.users > 0).count();
    Ok(vec![
        summary_row("Images", Some((df.images.len(), used)), df.image_bytes, Some(df.image_reclaimable)),
        summary_row(
            "Containers",
            Some((containers.len(), mounted)),
            df.container_bytes,
            Some(df.container_reclaimable),
        ),
        summary_row("Other", None, df.other_bytes, None),
        summary_row("Total", None, df.total, None),
    ])
}

fn summary_row(kind: &str, counts: Option<(usize, usize)>, bytes: u64, reclaimable: Option<u64>) -> Row {
    let percent = |part: u64| part.saturating_mul(100).checked_div(bytes).unwrap_or_default();
    row! {
        Type: kind,
        TotalCount: counts.map(|(all, _)| all),
        Active: counts.map(|(_, active)| active),
        Size: units::size(bytes),
        SizeBytes: bytes,
        Reclaimable: reclaimable.map(|part| format!("{} ({}%)", units::size(part), percent(part))),
        ReclaimableBytes: reclaimable,
    }
}

fn tables(store: &Store, df: &Df, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "Images:\n")?;
    let columns = [
        ("REPOSITORY", "Repository"),
        ("TAG", "Tag"),
        ("IMAGE ID", "ID"),
        ("CREATED", "CreatedSince"),
        ("SIZE", "Size"),
        ("SHARED SIZE", "SharedSize"),
        ("UNIQUE SIZE", "UniqueSize"),
        ("CONTAINERS", "Containers"),
    ];
    print::rows(out, &Format::Table, &columns, image_rows(store, df)?)?;
    writeln!(out, "\nLayers:\n")?;
    let columns = [
        ("LAYER", "ID"),
        ("SIZE", "Size"),
        ("IN OBJECTS", "Objects"),
        ("SHARED OBJECTS", "SharedObjects"),
        ("IMAGES", "Images"),
    ];
    print::rows(out, &Format::Table, &columns, layer_rows(store, df)?)?;
    writeln!(out, "\nContainers:\n")?;
    let columns = [
        ("CONTAINER ID", "ID"),
        ("IMAGE", "Image"),
        ("SIZE", "Size"),
        ("CREATED", "CreatedSince"),
        ("STATUS", "Status"),
        ("NAMES", "Names"),
    ];
    print::rows(out, &Format::Table, &columns, container_rows(store, df)?)?;
    writeln!(out, "\nOther: {}. Total: {}.", units::size(df.other_bytes), units::size(df.total))?;
    Ok(())
}

fn image_rows(store: &Store, df: &Df) -> Result<Vec<Row>> {
    let now = units::now();
    let uses: HashMap<ImageId, _> = df.images.iter().map(|image| (image.id, image)).collect();
    let mut rows = Vec::new();
    for image in store.images()? {
        let Some(usage) = uses.get(&image.id) else { continue }; // Loaded since.
        let name = image.names.first();
        rows.push(row! {
            Repository: name.map_or("<none>".to_string(), Reference::familiar_repository),
            Tag: name.and_then(Reference::tag).unwrap_or("<none>"),
            ID: image.id.short(),
            CreatedSince: units::ago(image.created, now),
            CreatedAt: image.created.map(rfc3339),
            Size: units::size(usage.shared + usage.unique),
            SizeBytes: usage.shared + usage.unique,
            SharedSize: units::size(usage.shared),
            SharedBytes: usage.shared,
            UniqueSize: units::size(usage.unique),
            UniqueBytes: usage.unique,
            Containers: usage.users,
        });
    }
    Ok(rows)
}

fn layer_rows(store: &Store, df: &Df) -> Result<Vec<Row>> {
    let labels: HashMap<ImageId, String> =
        store.images()?.iter().map(|image: &Image| (image.id, image.label())).collect();
    let label = |id: &ImageId| labels.get(id).cloned().unwrap_or_else(|| id.short());
    let layers = df.layers.iter().map(|layer| {
        row! {
            ID: layer.diff_id.0.hex()[..12].to_string(),
            DiffID: layer.diff_id.to_string(),
            Size: units::size(layer.own + layer.objects),
            SizeBytes: layer.own + layer.objects,
            Objects: units::size(layer.objects),
            ObjectsBytes: layer.objects,
            SharedObjects: units::size(layer.shared_objects),
            SharedObjectsBytes: layer.shared_objects,
            Images: layer.images.iter().map(label).collect::<Vec<_>>().join(", "),
        }
    });
    Ok(layers.collect())
}

fn container_rows(store: &Store, df: &Df) -> Result<Vec<Row>> {
    let now = units::now();
    let bytes: HashMap<&str, u64> = df.containers.iter().map(|usage| (usage.id.as_str(), usage.bytes)).collect();
    let containers = store.containers()?.into_iter().map(|container| {
        let bytes = bytes.get(container.id.as_str()).copied().unwrap_or_default();
        row! {
            ID: container.short_id(),
            Names: container.name,
            Image: container.image_name,
            Size: units::size(bytes),
            SizeBytes: bytes,
            CreatedSince: units::ago(Some(container.created), now),
            CreatedAt: rfc3339(container.created),
            Status: crate::mounts::status(&container).to_string(),
        }
    });
    Ok(containers.collect())
}

/// `plyfs gc`
pub(crate) fn gc(store: &Store, _args: &GcArgs, out: &mut dyn Write) -> Result<()> {
    let collected = store.gc()?;
    for layer in &collected.layers {
        writeln!(out, "Deleted: {layer}")?;
    }
    for (count, what) in [(collected.objects, "objects"), (collected.folded, "folded indexes")] {
        if count > 0 {
            writeln!(out, "Deleted: {count} {what}")?;
        }
    }
    writeln!(out, "Total reclaimed space: {}", units::size(collected.bytes))?;
    Ok(())
}

/// `plyfs fsck`: a line for each thing that is wrong.
pub(crate) fn fsck(store: &Store, args: &FsckArgs, out: &mut dyn Write) -> Result<ExitCode> {
    let report = store.fsck(if args.repair { Repair::Yes } else { Repair::No })?;
    for finding in &report.findings {
        let done = finding.repaired.as_ref().map(|done| format!(": {done}")).unwrap_or_default();
        writeln!(out, "{}", print::table::visible(&format!("{}: {}{done}", finding.what, finding.why)))?;
    }
    let left = report.findings.iter().filter(|finding| finding.repaired.is_none()).count();
    if !args.quiet {
        let found = match (report.findings.len(), left) {
            (0, _) => "nothing is wrong".to_string(),
            (all, 0) => format!("{all} things were wrong and are repaired"),
            (all, left) => format!(
                "{all} things are wrong, {left} of them not repaired; 'plyfs fsck --repair' repairs what it can"
            ),
        };
        writeln!(
            out,
            "{} images, {} layers, {} objects, {} containers, {} snapshots, {} read: {found}",
            report.images,
            report.layers,
            report.objects,
            report.containers,
            report.snapshots,
            units::size(report.bytes)
        )?;
    }
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
