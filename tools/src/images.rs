//! Commands about images.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use store::{Image, LoadOptions, Loaded, Reference, Removal, Source, Store, rfc3339};

use crate::cli::{HistoryArgs, ImagesArgs, LoadArgs, RmiArgs, TagArgs};
use crate::filter::Filters;
use crate::print::{self, Column, Row, row, table, units};
use crate::{for_each, progress, prune};

/// What stands where an image has no name (docker's spelling).
const NONE: &str = "<none>";

/// As docker cuts the column CREATED BY.
const COMMAND_WIDTH: usize = 45;

/// `plyfs load`
pub(crate) fn load(store: &Store, args: &LoadArgs, out: &mut dyn Write) -> Result<()> {
    let source = match (&args.source, &args.input) {
        (Some(source), _) => source_of(source)?,
        (None, Some(file)) if file != Path::new("-") => Source::archive(file),
        (None, input) => {
            if input.is_none() && std::io::stdin().is_terminal() {
                bail!(
                    "load: nothing to read: standard input is the terminal; name a source, or an archive with -i FILE"
                );
            }
            Source::stdin()
        }
    };
    let loaded = store.load(&source, &LoadOptions::default(), &*progress::new(args.quiet))?;
    for image in &loaded {
        announce(image, out)?;
    }
    Ok(())
}

/// Reads a source in skopeo's spelling; the path of an archive or a layout alone will do.
pub(crate) fn source_of(text: &str) -> Result<Source> {
    match !Source::is_source(text) && Path::new(text).exists() {
        true => Ok(Source::archive(text)),
        false => Ok(Source::parse(text)?),
    }
}

fn announce(image: &Loaded, out: &mut dyn Write) -> Result<()> {
    for name in &image.names {
        writeln!(out, "Loaded image: {}", name.familiar())?;
    }
    if image.names.is_empty() {
        writeln!(out, "Loaded image ID: {}", image.id)?;
    }
    Ok(())
}

/// `plyfs images`
pub(crate) fn list(store: &Store, args: &ImagesArgs, out: &mut dyn Write) -> Result<()> {
    let now = units::now();
    let wanted = args.name.as_deref().map(Wanted::parse);
    let filters = Filters::parse(&args.filter, store)?;
    let mut rows = Vec::new();
    for image in store.images()?.into_iter().filter(|image| filters.takes(image)) {
        let shown: Vec<Option<&Reference>> = match (&wanted, image.names.is_empty()) {
            (None, true) => vec![None],
            (Some(_), true) => vec![],
            (wanted, false) => {
                let wants = |name: &&Reference| {
                    wanted.as_ref().is_none_or(|wanted| wanted.is(name)) && filters.takes_name(name)
                };
                image.names.iter().filter(wants).map(Some).collect()
            }
        };
        rows.extend(shown.into_iter().map(|name| image_row(&image, name, args, now)));
    }
    if args.quiet {
        return ids(out, rows);
    }
    let columns: &[Column] = match args.digests {
        false => &[
            ("REPOSITORY", "Repository"),
            ("TAG", "Tag"),
            ("IMAGE ID", "ID"),
            ("CREATED", "CreatedSince"),
            ("SIZE", "Size"),
        ],
        true => &[
            ("REPOSITORY", "Repository"),
            ("TAG", "Tag"),
            ("DIGEST", "Digest"),
            ("IMAGE ID", "ID"),
            ("CREATED", "CreatedSince"),
            ("SIZE", "Size"),
        ],
    };
    print::rows(out, &args.format.format, columns, rows)
}

/// The argument of `plyfs images`: a repository with all its tags, or one name.
struct Wanted {
    repository: String,
    tag: Option<String>,
}

impl Wanted {
    fn parse(text: &str) -> Self {
        match Reference::parse(text) {
            Ok(name) => {
                // `redis` alone is every tag of it, though the reference is completed with one.
                let last = text.rsplit('/').next().unwrap_or(text);
                let tag = if last.contains(':') { name.tag().map(str::to_string) } else { None };
                Wanted { repository: name.repository(), tag }
            }
            Err(_) => Wanted { repository: String::new(), tag: None },
        }
    }

    fn is(&self, name: &Reference) -> bool {
        name.repository() == self.repository && (self.tag.is_none() || self.tag.as_deref() == name.tag())
    }
}

fn image_row(image: &Image, name: Option<&Reference>, args: &ImagesArgs, now: layer::Time) -> Row {
    row! {
        Repository: name.map_or(NONE.to_string(), Reference::familiar_repository),
        Tag: name.and_then(Reference::tag).unwrap_or(NONE),
        Digest: name.map_or(image.digest, |name| image.digest_of(name)).to_string(),
        ID: if args.no_trunc { image.id.to_string() } else { image.id.short() },
        CreatedSince: units::ago(image.created, now),
        CreatedAt: image.created.map(rfc3339),
        Size: units::size(image.size),
        SizeBytes: image.size,
    }
}

/// Prints the field `ID` of each row, each once.
fn ids(out: &mut dyn Write, rows: Vec<Row>) -> Result<()> {
    let mut printed = Vec::new();
    for row in rows {
        let id = row.get("ID").and_then(|id| id.as_str()).unwrap_or_default().to_string();
        if !printed.contains(&id) {
            writeln!(out, "{id}")?;
            printed.push(id);
        }
    }
    Ok(())
}

/// `plyfs history`
pub(crate) fn history(store: &Store, args: &HistoryArgs, out: &mut dyn Write) -> Result<()> {
    let (now, image) = (units::now(), store.image(&args.image)?);
    let id = if args.no_trunc { image.id.to_string() } else { image.id.short() };
    let mut rows = Vec::new();
    for (step, entry) in store.history(&image)?.into_iter().enumerate() {
        let command = entry.created_by.split_whitespace().collect::<Vec<_>>().join(" ");
        rows.push(row! {
            // Only the newest step's image is known: the layers below have no config of their own.
            ID: if step == 0 { id.as_str() } else { "<missing>" },
            Layer: entry.layer.map(|layer| layer.to_string()),
            CreatedSince: units::ago(entry.created, now),
            CreatedAt: entry.created.map(rfc3339),
            CreatedBy: if args.no_trunc { command } else { table::ellipsis(&command, COMMAND_WIDTH) },
            Size: units::size(entry.size),
            SizeBytes: entry.size,
            Comment: entry.comment,
        });
    }
    if args.quiet {
        for row in rows {
            writeln!(out, "{}", row.get("ID").and_then(|id| id.as_str()).unwrap_or_default())?;
        }
        return Ok(());
    }
    let columns: &[Column] = &[
        ("IMAGE", "ID"),
        ("CREATED", "CreatedSince"),
        ("CREATED BY", "CreatedBy"),
        ("SIZE", "Size"),
        ("COMMENT", "Comment"),
    ];
    print::rows(out, &args.format.format, columns, rows)
}

/// `plyfs tag`
pub(crate) fn tag(store: &Store, args: &TagArgs) -> Result<()> {
    store.tag(&args.image, &args.name)?;
    Ok(())
}

/// `plyfs rmi`
pub(crate) fn remove(store: &Store, args: &RmiArgs, out: &mut dyn Write) -> Result<ExitCode> {
    let removal = if args.force { Removal::Force } else { Removal::Ask };
    for_each(&args.images, |name| {
        let removed = match store.remove_image(name, removal) {
            Err(error) if args.force && error.is_not_found() => return Ok(()),
            removed => removed?,
        };
        prune::lines(&removed, ["Untagged", "Deleted"], out)
    })
}
