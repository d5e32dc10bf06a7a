//! Checked names and paths: bytes, never assumed to be UTF-8.

use std::borrow::Borrow;
use std::fmt;

/// The longest name in bytes (`NAME_MAX`, limits.h).
pub const NAME_MAX: usize = 255;

/// One directory entry's name: 1..=255 bytes, without `/` and NUL, and neither `.` nor `..`.
///
/// Checked once where bytes come in (FUSE, tar, an index file); inside, a `Name` needs no check.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<'a>(&'a [u8]);

/// An owned [`Name`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameBuf(Box<[u8]>);

/// Why bytes are not a [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("the name is empty")]
    Empty,
    /// More than 255 bytes: `ENAMETOOLONG`.
    #[error("the name is longer than 255 bytes")]
    TooLong,
    /// `.` or `..`.
    #[error("the name is '.' or '..'")]
    Dots,
    /// A `/` or a NUL byte.
    #[error("the name holds a '/' or a NUL byte")]
    BadByte,
}

impl<'a> Name<'a> {
    /// Checks `bytes` and borrows them as a name.
    ///
    /// # Errors
    /// The rule that the bytes break.
    pub fn new(bytes: &'a [u8]) -> Result<Self, NameError> {
        match bytes {
            b"" => Err(NameError::Empty),
            b"." | b".." => Err(NameError::Dots),
            _ if bytes.len() > NAME_MAX => Err(NameError::TooLong),
            _ if has_bad_byte(bytes) => Err(NameError::BadByte),
            _ => Ok(Name(bytes)),
        }
    }

    /// Returns the name's bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Copies the name.
    pub fn to_buf(self) -> NameBuf {
        NameBuf(self.0.into())
    }
}

impl NameBuf {
    /// Checks `bytes` and owns them as a name.
    ///
    /// # Errors
    /// As [`Name::new`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        Name::new(&bytes)?;
        Ok(NameBuf(bytes.into()))
    }

    /// Borrows the name.
    pub fn as_name(&self) -> Name<'_> {
        Name(&self.0)
    }

    /// Returns the name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for NameBuf {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// A path inside a tree: names joined by `/`, with no leading slash; the root is the empty path.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The root of the tree.
    pub fn root() -> Self {
        TreePath::default()
    }

    /// Reads a path as tar members and users spell it: leading `/` and `./`, doubled slashes and a trailing `/` mean nothing.
    ///
    /// # Errors
    /// `..` anywhere ([`NameError::Dots`]), a component over 255 bytes, a NUL byte.
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        let mut path = TreePath::root();
        for component in bytes.split(|&b| b == b'/') {
            match component {
                b"" | b"." => {}
                _ => path.push(Name::new(component)?),
            }
        }
        Ok(path)
    }

    /// Appends one name.
    pub fn push(&mut self, name: Name<'_>) {
        if !self.0.is_empty() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(name.as_bytes());
    }

    /// Returns the path of `name` in this directory.
    pub fn join(&self, name: Name<'_>) -> Self {
        let mut path = self.clone();
        path.push(name);
        path
    }

    /// Returns the names from the root down.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = Name<'_>> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty()).map(Name)
    }

    /// Splits off the last name; `None` for the root.
    pub fn split_last(&self) -> Option<(TreePath, Name<'_>)> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (TreePath(self.0[..slash].to_vec()), Name(&self.0[slash + 1..])),
            None => (TreePath::root(), Name(&self.0)),
        })
    }

    /// Tells whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bytes, without a leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Looks for what no name has, eight bytes at a time: every name of an image is looked at when it is mounted.
fn has_bad_byte(bytes: &[u8]) -> bool {
    let bad = |bytes: [u8; 8]| {
        let word = u64::from_ne_bytes(bytes);
        has_zero_byte(word) || has_zero_byte(word ^ u64::from_ne_bytes([b'/'; 8]))
    };
    // The last chunk overlaps those before it.
    if let Some(last) = bytes.last_chunk::<8>() {
        return bad(*last) || bytes.as_chunks().0.iter().any(|eight| bad(*eight));
    }
    match (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (Some([a, b, c, d]), Some([e, f, g, h])) => bad([*a, *b, *c, *d, *e, *f, *g, *h]),
        _ => bytes.iter().any(|&b| b == b'/' || b == 0),
    }
}

/// A subtraction borrows from a byte's highest bit where that bit is not set and the byte is 0, or where the byte below it is.
fn has_zero_byte(word: u64) -> bool {
    word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080 != 0
}

fn escape(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c.is_control() || c == '\\' {
                true => write!(f, "{}", c.escape_default())?,
                false => write!(f, "{c}")?,
            }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

macro_rules! shown_escaped {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                escape(self.as_bytes(), f)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"{self}\"")
            }
        }
    )*};
}
shown_escaped!(Name<'_>, NameBuf, TreePath);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_posix() {
        assert_eq!(Name::new(b""), Err(NameError::Empty));
        assert_eq!(Name::new(b".."), Err(NameError::Dots));
        assert_eq!(Name::new(b"a/b"), Err(NameError::BadByte));
        assert_eq!(Name::new(b"a\0"), Err(NameError::BadByte));
        assert_eq!(Name::new(&[b'x'; 256]), Err(NameError::TooLong));
        assert!(Name::new(&[0xff; 255]).is_ok());
        assert!(Name::new(b"...").is_ok());
    }

    #[test]
    fn a_bad_byte_is_found_wherever_it_is_and_no_other_is_taken_for_it() {
        for len in 1..=40 {
            for at in 0..len {
                for byte in 0..=u8::MAX {
                    let mut name = vec![b'x'; len];
                    name[at] = byte;
                    // What stands behind a zero byte is what a borrow would reach.
                    if let Some(next) = name.get_mut(at + 1) {
                        *next = byte ^ 1;
                    }
                    let plain = name.iter().any(|&b| b == b'/' || b == 0);
                    assert_eq!(has_bad_byte(&name), plain, "{name:?}");
                }
            }
        }
    }

    #[test]
    fn paths_are_read_as_tar_spells_them() {
        for (given, expected) in [("./a/b/", "a/b"), ("/a//b", "a/b"), (".", ""), ("/", ""), ("", ""), ("a/./b", "a/b")]
        {
            assert_eq!(TreePath::parse(given.as_bytes()).unwrap().as_bytes(), expected.as_bytes());
        }
        assert_eq!(TreePath::parse(b"a/../b"), Err(NameError::Dots));
    }

    #[test]
    fn the_last_name_splits_off() {
        let path = TreePath::parse(b"a/b/c").unwrap();
        let (parent, name) = path.split_last().unwrap();
        assert_eq!((parent.as_bytes(), name.as_bytes()), (&b"a/b"[..], &b"c"[..]));
        assert!(TreePath::root().split_last().is_none());
    }

    #[test]
    fn bytes_that_are_not_text_are_shown_escaped() {
        assert_eq!(Name::new(b"a\xff\nb").unwrap().to_string(), "a\\xff\\nb");
    }
}
