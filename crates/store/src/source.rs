//! Where images come from, in skopeo's spelling: a directory or an archive, in OCI's or docker's layout.

mod docker;
mod files;
mod oci;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use layer::{DiffId, Digest};

use crate::error::{Error, Result};
use crate::manifest::Config;
use crate::platform::Platform;
use crate::receive::Blobs;
use crate::reference::Reference;
use crate::store::Store;
use files::{Content, Files};

/// A place that images are loaded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub(crate) form: Form,
    pub(crate) place: Place,
    /// Which of its images; all if not told.
    pub(crate) reference: Option<String>,
}

/// How images lie in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A directory in OCI layout.
    OciDir,
    /// A tar of an OCI layout.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
    /// Told by the content.
    Any,
}

/// Where the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Path(PathBuf),
    Stdin,
}

impl Source {
    /// Reads `oci:DIR[:REF]`, `oci-archive:FILE[:REF]` or `docker-archive:FILE[:REF]`. REF is a name, or `@N` for the N-th image
    /// from 0; without it all images are meant.
    ///
    /// # Errors
    /// [`Error::Invalid`] for any other spelling.
    pub fn parse(text: &str) -> Result<Self> {
        let help = "a source is oci:DIR[:REF], oci-archive:FILE[:REF] or docker-archive:FILE[:REF]";
        let bad = |why: &str| Error::invalid(format!("source '{text}'"), format!("{why}; {help}"));
        let (kind, rest) = text.split_once(':').ok_or_else(|| bad("it names no kind"))?;
        let form = match kind {
            "oci" => Form::OciDir,
            "oci-archive" => Form::OciArchive,
            "docker-archive" => Form::DockerArchive,
            other => return Err(bad(&format!("'{other}' is no kind known here"))),
        };
        let (path, reference) = match rest.split_once(':') {
            Some((path, reference)) => (path, Some(reference.to_owned())),
            None => (rest, None),
        };
        if path.is_empty() || reference.as_deref() == Some("") {
            return Err(bad("it is incomplete"));
        }
        Ok(Source { form, place: Place::Path(path.into()), reference })
    }

    /// Tells whether a text is meant as a source, not as an image's name.
    pub fn is_source(text: &str) -> bool {
        ["oci:", "oci-archive:", "docker-archive:"].iter().any(|kind| text.starts_with(kind))
    }

    /// The archive `file`, of whatever kind its content tells, compressed or not; or a directory in OCI layout.
    pub fn archive(file: impl Into<PathBuf>) -> Self {
        Source { form: Form::Any, place: Place::Path(file.into()), reference: None }
    }

    /// The archive that comes on standard input.
    pub fn stdin() -> Self {
        Source { form: Form::Any, place: Place::Stdin, reference: None }
    }

    /// Finds the images that are meant, reads and checks their documents. Layers are not touched yet.
    pub(crate) fn open(&self, store: &Store, platform: Option<&Platform>) -> Result<Vec<FoundImage>> {
        let found = self.find(store, platform).map_err(|error| error.within(self.label()))?;
        match (found.is_empty(), &self.reference) {
            (false, _) => Ok(found),
            (true, Some(reference)) => Err(Error::NotFound(format!(
                "{}: it holds no image '{reference}'; without :REF all are loaded",
                self.label()
            ))),
            (true, None) => Err(Error::NotFound(format!("{}: it holds no images", self.label()))),
        }
    }

    fn find(&self, store: &Store, platform: Option<&Platform>) -> Result<Vec<FoundImage>> {
        let files = match &self.place {
            Place::Path(path) if path.is_dir() => Files::directory(path),
            Place::Path(_) if self.form == Form::OciDir => {
                return Err(Error::invalid("OCI layout", "there is no such directory"));
            }
            Place::Path(path) => Files::archive(path, store)?,
            Place::Stdin => Files::stdin(store)?,
        };
        let wanted = Wanted { reference: self.reference.as_deref(), platform };
        match self.form {
            Form::OciDir | Form::OciArchive => oci::find(&files, &wanted),
            Form::DockerArchive => docker::find(&files, &wanted),
            // Since v25 docker writes both forms into one archive; OCI's has the manifest.
            Form::Any if files.has("oci-layout") && files.has("index.json") => oci::find(&files, &wanted),
            Form::Any if files.has("manifest.json") => docker::find(&files, &wanted),
            Form::Any => Err(Error::invalid(
                "archive",
                "it has neither index.json (an OCI layout) nor manifest.json (docker save); is it a plain tar of files?",
            )),
        }
    }

    /// What messages call it.
    pub(crate) fn label(&self) -> String {
        match &self.place {
            Place::Path(path) => path.display().to_string(),
            Place::Stdin => "standard input".into(),
        }
    }
}

/// Which images of a source are meant.
pub(crate) struct Wanted<'a> {
    reference: Option<&'a str>,
    platform: Option<&'a Platform>,
}

/// An image in a source, its documents read and checked.
pub(crate) struct FoundImage {
    pub(crate) names: Vec<Reference>,
    /// As received; `None` where the source has none (docker archives).
    pub(crate) manifest: Option<Vec<u8>>,
    /// As received.
    pub(crate) config: Vec<u8>,
    /// The index that the names lead to at a registry.
    pub(crate) index: Option<Digest>,
    /// Base first.
    pub(crate) layers: Vec<FoundLayer>,
}

/// A layer in a source.
#[derive(Clone)]
pub(crate) struct FoundLayer {
    pub(crate) diff_id: DiffId,
    /// What messages call its blob.
    pub(crate) what: String,
    /// The hash and the length of the blob, where a manifest tells.
    pub(crate) expected: Option<(Digest, u64)>,
    /// `None` if the source does not have it: then the store must.
    pub(crate) content: Option<LayerContent>,
}

/// Where a layer's blob is read from.
#[derive(Clone)]
pub(crate) enum LayerContent {
    /// A file, or a part of one.
    Here(Content),
    /// Somewhere else, by its digest.
    Remote { blobs: Arc<dyn Blobs>, digest: Digest, size: u64 },
}

impl LayerContent {
    /// The blob's length, in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            LayerContent::Here(content) => content.len(),
            LayerContent::Remote { size, .. } => *size,
        }
    }

    pub(crate) fn reader(&self) -> Result<Box<dyn Read + Send>> {
        match self {
            LayerContent::Here(content) => Ok(Box::new(content.reader())),
            LayerContent::Remote { blobs, digest, size } => {
                blobs.open(digest, *size).map_err(|cause| Error::io("fetch", cause))
            }
        }
    }

    /// Says that nobody waits for it any more.
    pub(crate) fn give_up(&self) {
        if let LayerContent::Remote { blobs, .. } = self {
            blobs.give_up();
        }
    }
}

impl Wanted<'_> {
    /// The N of `@N`.
    fn position(&self) -> Option<usize> {
        self.reference?.strip_prefix('@')?.parse().ok()
    }

    /// Tells whether an image with these names, at that position, is meant.
    fn is_meant(&self, position: usize, names: &[&str]) -> bool {
        let Some(wanted) = self.reference else { return true };
        let full = Reference::parse(wanted).ok();
        let same = |name: &&str| *name == wanted || (full.is_some() && Reference::parse(name).ok() == full);
        self.position() == Some(position) || names.iter().any(same)
    }
}

/// Reads names; what is no reference is told and left out.
fn read_names<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<Reference> {
    let mut names: Vec<Reference> = Vec::new();
    for text in texts {
        match Reference::parse(text) {
            Ok(name) => names.push(name.tagged()),
            Err(why) => log::warn!("an image is loaded without this name: {why}"),
        }
    }
    names.sort();
    names.dedup();
    names
}

/// Checks what a config says of its layers against how many there are.
pub(crate) fn check_layers(config: &Config, layers: usize, what: &str) -> Result<()> {
    match config.diff_ids.len() {
        0 if layers == 0 => Err(Error::unsupported(what, "it has no layers: there is nothing to mount")),
        ids if ids != layers => Err(Error::invalid(what, format!("{ids} diff_ids in its config, but {layers} layers"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_spelt_as_skopeo_does() {
        for (text, form, path, reference) in [
            ("oci:/a/b", Form::OciDir, "/a/b", None),
            ("oci:b:redis:7", Form::OciDir, "b", Some("redis:7")),
            ("oci-archive:x.tar", Form::OciArchive, "x.tar", None),
            ("docker-archive:x.tar:quay.io/a/b:1", Form::DockerArchive, "x.tar", Some("quay.io/a/b:1")),
        ] {
            let source = Source::parse(text).unwrap();
            assert_eq!(
                (source.form, source.place, source.reference.as_deref()),
                (form, Place::Path(path.into()), reference)
            );
            assert!(Source::is_source(text));
        }
        for bad in ["", "redis", "docker://redis", "oci:", "oci::x", "oci:a:"] {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
    }
}
