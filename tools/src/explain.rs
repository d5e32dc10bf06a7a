//! `plyfs explain`: why a path is what it is.

use std::io::Write;

use anyhow::{Context, Result};
use layer::{DiffId, Digest, FileType, TreePath};
use serde_json::Value;
use store::{Explanation, Image, Met, Place, Step, Store};

use crate::cli::ExplainArgs;
use crate::print::{self, Column, Row, row};

/// `plyfs explain`
pub(crate) fn explain(store: &Store, args: &ExplainArgs, out: &mut dyn Write) -> Result<()> {
    let path = TreePath::parse(args.path.as_encoded_bytes())
        .with_context(|| format!("path '{}': give it as it is inside, without '..'", args.path.display()))?;
    let (explanation, image) = match store.container(&args.name) {
        Ok(container) => (store.explain_container(&container, &path)?, store.image(&container.image.to_string()).ok()),
        Err(error) if error.is_not_found() => {
            let image = store.image(&args.name)?;
            (store.explain_image(&image, &path)?, Some(image))
        }
        Err(error) => return Err(error.into()),
    };
    let columns: &[Column] =
        &[("", "Seen"), ("PLACE", "Place"), ("DIFFID", "ShortDiffID"), ("PATH", "Path"), ("WHAT", "What")];
    let digests = image.as_ref().map(digests).unwrap_or_default();
    let rows = explanation.steps.iter().map(|step| step_row(step, &digests)).collect();
    if args.format.format == print::Format::Table {
        writeln!(out, "{}\n", verdict(&explanation))?;
    }
    print::rows(out, &args.format.format, columns, rows)
}

fn verdict(explanation: &Explanation) -> String {
    let place = |step: &Step| match step.place {
        Place::Upper => "the container's own layer".to_owned(),
        Place::Layer(number, _) => format!("layer {number}"),
    };
    match (explanation.winner(), explanation.steps.first()) {
        (Some(step), _) => format!("/{} comes from {}.", explanation.path, place(step)),
        (None, Some(step)) => format!("/{} is not there: {}, see below.", explanation.path, place(step)),
        (None, None) => format!("/{} is nowhere.", explanation.path),
    }
}

/// The digests that the layers had when they travelled, in the order of the layers.
fn digests(image: &Image) -> Vec<Option<Digest>> {
    let manifest: Value = serde_json::from_slice(&image.manifest).unwrap_or_default();
    let layers = manifest.get("layers").and_then(Value::as_array).cloned().unwrap_or_default();
    layers.iter().map(|layer| layer.get("digest")?.as_str()?.parse().ok()).collect()
}

fn step_row(step: &Step, digests: &[Option<Digest>]) -> Row {
    let (place, diff_id, digest) = match step.place {
        Place::Upper => ("upper".to_owned(), None, None),
        Place::Layer(number, DiffId(diff_id)) => {
            (format!("layer {number}"), Some(diff_id), digests.get(number).copied().flatten())
        }
    };
    row! {
        Seen: if step.wins { "=>" } else { "" },
        Wins: step.wins,
        Place: place,
        DiffID: diff_id.map(|diff_id| diff_id.to_string()),
        ShortDiffID: diff_id.map(|diff_id| diff_id.hex()[..12].to_owned()),
        Digest: digest.map(|digest| digest.to_string()),
        Path: format!("/{}", step.path),
        What: what(&step.met),
    }
}

fn what(met: &Met) -> String {
    match met {
        Met::Entry { kind, perm, uid, gid, size } => {
            format!("{} {perm:04o} {uid}:{gid}, {size} bytes", kind_name(*kind))
        }
        Met::Metadata => "owner, mode and times; the content is further down".into(),
        Met::Whiteout => "whiteout: hides what is further down".into(),
        Met::Opaque => "opaque directory: hides what is further down in it".into(),
        Met::Redirect(from) => format!("moved here; further down it is /{from}"),
        Met::NotADirectory(kind) => format!("{}: hides what is further down", kind_name(*kind)),
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::File => "file",
        FileType::Dir => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Char => "character device",
        FileType::Block => "block device",
        FileType::Fifo => "named pipe",
        FileType::Socket => "socket",
    }
}
