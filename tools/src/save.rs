//! `plyfs save`, `plyfs export`: what leaves the store as an archive, to a file or to standard output.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use store::{ArchiveForm, Store};

use crate::cli::{ExportArgs, SaveArgs, SaveFormat};

/// `plyfs save`
pub(crate) fn save(store: &Store, args: &SaveArgs) -> Result<()> {
    let form = match args.format {
        SaveFormat::DockerArchive => ArchiveForm::Docker,
        SaveFormat::OciArchive => ArchiveForm::Oci,
    };
    to_output("save", args.output.as_deref(), |out| Ok(store.save(&args.images, form, out)?))
}

/// `plyfs export`
pub(crate) fn export(store: &Store, args: &ExportArgs) -> Result<()> {
    let container = store.container(&args.container)?;
    to_output("export", args.output.as_deref(), |out| Ok(store.export(&container, out)?))
}

/// Has an archive written to a file, whole or not at all, or to standard output unless that is a terminal.
pub(crate) fn to_output(
    command: &str,
    output: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let Some(path) = output.filter(|path| *path != Path::new("-")) else {
        let stdout = std::io::stdout();
        if stdout.is_terminal() {
            bail!("{command}: standard output is the terminal; name a file with -o FILE, or send it elsewhere");
        }
        let mut out = BufWriter::with_capacity(256 << 10, stdout.lock());
        write(&mut out)?;
        return Ok(out.flush()?);
    };
    let doing = || format!("{command}: write {}", path.display());
    // A pipe or device is written as it is; a file is replaced when it is whole.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let mut out = BufWriter::with_capacity(256 << 10, File::options().write(true).open(path).with_context(doing)?);
        write(&mut out)?;
        return out.flush().with_context(doing);
    }
    let unfinished = Unfinished::beside(path);
    let mut out = BufWriter::with_capacity(256 << 10, File::create(&unfinished.0).with_context(doing)?);
    write(&mut out)?;
    out.flush().with_context(doing)?;
    std::fs::rename(&unfinished.0, path).with_context(doing)
}

/// A file that is deleted unless it was renamed.
struct Unfinished(PathBuf);

impl Unfinished {
    fn beside(path: &Path) -> Self {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}.part", std::process::id()));
        Unfinished(path.with_file_name(name))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok(); // It is gone where all went well.
    }
}
