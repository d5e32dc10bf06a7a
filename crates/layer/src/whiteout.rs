//! How a tar layer spells what it hides: `.wh.` names (OCI image-spec, layer.md, Whiteouts).

use crate::name::{Name, NameError};

/// What stands before a name to hide it.
pub const PREFIX: &[u8] = b".wh.";

/// The name of an opaque marker: hides everything that lower layers have in this directory.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a name in a layer stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling<'a> {
    /// An ordinary entry.
    Plain(Name<'a>),
    /// Hides this name in lower layers; an entry of the same layer stays.
    Whiteout(Name<'a>),
    /// Hides all that lower layers have in the directory that holds it.
    Opaque,
    /// Another `.wh..wh.` name: AUFS bookkeeping (`.wh..wh.plnk`, `.wh..wh.aufs`), never an entry of the result.
    Bookkeeping,
}

/// Reads what `name` stands for in a tar layer.
///
/// # Errors
/// `.wh.` alone, `.wh..` and `.wh...`, which would hide no name, `.` and `..`.
pub fn spelling(name: Name<'_>) -> Result<Spelling<'_>, NameError> {
    match name.as_bytes() {
        OPAQUE => Ok(Spelling::Opaque),
        bytes if bytes.starts_with(b".wh..wh.") => Ok(Spelling::Bookkeeping),
        bytes => match bytes.strip_prefix(PREFIX) {
            Some(hidden) => Name::new(hidden).map(Spelling::Whiteout),
            None => Ok(Spelling::Plain(name)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_told() {
        let name = |n: &'static str| Name::new(n.as_bytes()).unwrap();
        assert_eq!(spelling(name("a")), Ok(Spelling::Plain(name("a"))));
        assert_eq!(spelling(name(".wh.a")), Ok(Spelling::Whiteout(name("a"))));
        assert_eq!(spelling(name(".wh..wh..opq")), Ok(Spelling::Opaque));
        assert_eq!(spelling(name(".wh..wh.plnk")), Ok(Spelling::Bookkeeping));
        assert_eq!(spelling(name(".wh.")), Err(NameError::Empty));
        assert_eq!(spelling(name(".wh..")), Err(NameError::Dots));
        assert_eq!(spelling(name(".wh...")), Err(NameError::Dots));
        assert_eq!(spelling(name(".wh.wh")), Ok(Spelling::Whiteout(name("wh"))));
    }
}
