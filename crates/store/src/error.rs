//! What the store answers when it cannot do what it was asked: the thing, the reason, and where there is one the remedy.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{doing}: {cause}{}", remedy(.cause))]
    Io {
        /// What was being done to what.
        doing: String,
        /// What the system said.
        cause: io::Error,
    },
    /// There is no such image, container, layer or file.
    #[error("{0}")]
    NotFound(String),
    /// A name or ID prefix that stands for more than one thing.
    #[error("{0}")]
    Ambiguous(String),
    /// Something that is in use must stay.
    #[error("{0}")]
    InUse(String),
    /// A name that is taken.
    #[error("{0}")]
    Exists(String),
    /// Bytes from outside (a layer, a manifest, an archive, a name) break a rule.
    #[error("{what}: {why}")]
    Invalid {
        /// Which bytes.
        what: String,
        /// Which rule.
        why: String,
    },
    /// Bytes from outside are well formed but not for us.
    #[error("{what}: {why}")]
    Unsupported {
        /// Which bytes.
        what: String,
        /// What it is, and what to do.
        why: String,
    },
    /// The store's own files are not as they were written.
    #[error("{what}: {why}")]
    Corrupt {
        /// Which file.
        what: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
}

impl Error {
    /// Tells whether the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound(_))
    }

    /// Tells whether the thing asked for is in use.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Error::InUse(_))
    }

    pub(crate) fn io(doing: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Error::Io { doing: doing.into(), cause: cause.into() }
    }

    /// A failed call on a path: `at("read", path)` as the argument of `map_err`.
    pub(crate) fn at<E: Into<io::Error>>(verb: &str, path: &Path) -> impl FnOnce(E) -> Self {
        let doing = format!("{verb} {}", path.display());
        move |cause| Error::io(doing, cause)
    }

    pub(crate) fn invalid(what: impl Display, why: impl Display) -> Self {
        Error::Invalid { what: what.to_string(), why: why.to_string() }
    }

    pub(crate) fn unsupported(what: impl Display, why: impl Display) -> Self {
        Error::Unsupported { what: what.to_string(), why: why.to_string() }
    }

    pub(crate) fn corrupt(what: impl Display, why: impl Display) -> Self {
        Error::Corrupt { what: what.to_string(), why: why.to_string() }
    }

    /// Says in what larger thing it happened.
    pub(crate) fn within(self, outer: impl Display) -> Self {
        match self {
            Error::Io { doing, cause } => Error::Io { doing: format!("{outer}: {doing}"), cause },
            Error::NotFound(text) => Error::NotFound(format!("{outer}: {text}")),
            Error::Ambiguous(text) => Error::Ambiguous(format!("{outer}: {text}")),
            Error::InUse(text) => Error::InUse(format!("{outer}: {text}")),
            Error::Exists(text) => Error::Exists(format!("{outer}: {text}")),
            Error::Invalid { what, why } => Error::Invalid { what: format!("{outer}: {what}"), why },
            Error::Unsupported { what, why } => Error::Unsupported { what: format!("{outer}: {what}"), why },
            Error::Corrupt { what, why } => Error::Corrupt { what: format!("{outer}: {what}"), why },
        }
    }
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space there, or choose another store with --root or PLYFS_ROOT"
        }
        io::ErrorKind::PermissionDenied => {
            "; run as the user who owns it, with 'plyfs unshare plyfs ...' if a container of yours wrote it, or choose another store \
             with --root or PLYFS_ROOT"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; choose another store with --root or PLYFS_ROOT",
        _ => "",
    }
}

/// Makes outside bytes fit for a message: control characters escaped, and cut to some hundred characters.
pub(crate) fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 300;
    let mut text = String::new();
    for c in String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).chars() {
        match c.is_control() {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
    }
    if bytes.len() > LONGEST { text + "..." } else { text }
}
