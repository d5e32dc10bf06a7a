//! Answers and faults: what a program is told, and what is wrong with the disk.

use std::fmt;

/// An error number of the system (errno(3)).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

/// Why an operation did not happen.
#[derive(Debug)]
pub enum Error {
    /// An expected answer (`ENOENT`, `EEXIST`...): cheap, not logged.
    Answer(Errno),
    /// Something is wrong below: a disk error, a corrupt index. Logged once, by whoever turns it into an errno.
    Fault(Box<Fault>),
}

/// A failure of the disk or of stored data.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct Fault {
    /// What was being done to what.
    pub doing: String,
    /// The error number for the program that asked.
    pub errno: Errno,
    /// What went wrong.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The result of an operation on the union.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns the error number that the program gets.
    pub fn errno(&self) -> Errno {
        match self {
            Error::Answer(errno) => *errno,
            Error::Fault(fault) => fault.errno,
        }
    }

    /// Makes a fault out of a failed call.
    pub fn fault(
        doing: impl Into<String>,
        errno: Errno,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Error::Fault(Box::new(Fault { doing: doing.into(), errno, source: source.into() }))
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Answer(errno)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Answer(errno) => errno.fmt(f),
            Error::Fault(fault) => fault.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "` (errno(3)).")]
            pub const $name: Errno = Errno(libc::$name);)*
        }

        impl fmt::Debug for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $(libc::$name => f.write_str(stringify!($name)),)*
                    other => write!(f, "errno {other}"),
                }
            }
        }
    };
}
errnos! {
    EPERM ENOENT EIO EBADF EAGAIN ENOMEM EACCES EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL EMFILE ETXTBSY EFBIG ENOSPC
    EROFS EMLINK ERANGE ENAMETOOLONG ENOSYS ENOTEMPTY ELOOP ENODATA EOVERFLOW EOPNOTSUPP ESTALE EDQUOT ENXIO
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
