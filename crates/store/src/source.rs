//! Where images come from, in skopeo's spelling: a directory or an archive, in OCI's or docker's layout.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

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

    /// What messages call it.
    pub(crate) fn label(&self) -> String {
        match &self.place {
            Place::Path(path) => path.display().to_string(),
            Place::Stdin => "standard input".into(),
        }
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Path(path) => Some(path),
            Place::Stdin => None,
        }
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
                (source.form, source.path(), source.reference.as_deref()),
                (form, Some(Path::new(path)), reference)
            );
            assert!(Source::is_source(text));
        }
        for bad in ["", "redis", "docker://redis", "oci:", "oci::x", "oci:a:"] {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
    }
}
