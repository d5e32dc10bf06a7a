//! `plyfs tree`: images drawn over the layers that they share.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use layer::DiffId;
use store::{Image, Store};

use crate::print::{table, units};

/// A layer over the same layers below, and what is on it.
#[derive(Default)]
struct Branch {
    above: BTreeMap<DiffId, Branch>,
    /// What ends here.
    images: Vec<String>,
}

/// `plyfs tree`
pub(crate) fn draw(store: &Store, name: Option<&str>, no_trunc: bool, out: &mut dyn Write) -> Result<()> {
    let images: Vec<Image> = match name {
        Some(name) => vec![store.image(name)?],
        None => store.images()?,
    };
    let mut root = Branch::default();
    for image in &images {
        let mut branch = &mut root;
        for layer in &image.diff_ids {
            branch = branch.above.entry(*layer).or_default();
        }
        let names: Vec<String> = image.names.iter().map(store::Reference::familiar).collect();
        let names = if names.is_empty() { "<none>".to_string() } else { names.join(", ") };
        branch.images.push(format!("{names} ({})", image.id.short()));
    }
    let show = |layer: &DiffId| -> Result<String> {
        let id = if no_trunc { layer.to_string() } else { layer.0.hex()[..12].to_string() };
        Ok(format!("{id} {}", units::size(store.layer_size(layer)?)))
    };
    for (layer, branch) in &root.above {
        line(out, "", &show(layer)?, branch)?;
        below(out, branch, "", &show)?;
    }
    Ok(())
}

fn below(out: &mut dyn Write, branch: &Branch, indent: &str, show: &dyn Fn(&DiffId) -> Result<String>) -> Result<()> {
    let count = branch.above.len();
    for (at, (layer, next)) in branch.above.iter().enumerate() {
        let (twig, more) = if at + 1 == count { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        line(out, &format!("{indent}{twig}"), &show(layer)?, next)?;
        below(out, next, &format!("{indent}{more}"), show)?;
    }
    Ok(())
}

fn line(out: &mut dyn Write, indent: &str, layer: &str, branch: &Branch) -> Result<()> {
    let images = branch.images.join("; ");
    writeln!(out, "{indent}{}", table::visible(format!("{layer}  {images}").trim_end()))?;
    Ok(())
}
