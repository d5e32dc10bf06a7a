//! What layers say by extended attributes: opaque, redirect, metacopy, whiteout.
//!
//! The kernel's overlayfs writes them as `trusted.overlay.*`, in user namespaces as `user.overlay.*`; both are honoured, and
//! one more spelling of opaque. They come from layers that anyone may have made: a redirect names a place inside the layers or
//! it is refused.

use layer::{Name, NameBuf, TreePath};

use rustix::io::Result;

/// What a layer says about one of its files or directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// A directory: nothing below it shows through.
    pub(super) opaque: bool,
    /// A directory: empty regular files in it may be whiteouts.
    pub(super) has_whiteouts: bool,
    /// An empty regular file, in such a directory: hides what is below.
    pub(super) whiteout: bool,
    /// A regular file: the content is that of a file further down.
    pub(super) metacopy: bool,
    /// Where further down it goes on.
    pub(super) redirect: Option<Redirect>,
}

/// Where the lower part of a renamed directory or file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    /// In the same directory under this name.
    Beside(NameBuf),
    /// At this path.
    From(TreePath),
    /// Spelled in a way that names no place inside the layers.
    Bad,
}

const NAMESPACES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

impl Marks {
    /// Reads the marks out of a list of attribute names, each ended by a NUL, fetching the values that matter with `get`.
    pub(super) fn read(names: &[u8], get: impl Fn(&[u8]) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let mut marks = Marks::default();
        for name in names.split(|&b| b == 0) {
            let short = NAMESPACES.iter().find_map(|namespace| name.strip_prefix(*namespace));
            match short {
                Some(b"opaque") => match get(name)?.as_deref() {
                    Some([b'y', ..]) => marks.opaque = true,
                    Some([b'x', ..]) => marks.has_whiteouts = true,
                    _ => {}
                },
                Some(b"redirect") if marks.redirect.is_none() => marks.redirect = get(name)?.as_deref().map(redirect),
                Some(b"metacopy") => marks.metacopy = true,
                Some(b"whiteout") => marks.whiteout = true,
                _ if name == b"user.fuseoverlayfs.opaque" => {
                    marks.opaque |= get(name)?.is_some_and(|value| value.starts_with(b"y"));
                }
                _ => {}
            }
        }
        Ok(marks)
    }
}

/// Reads a redirect as the kernel spells it: an absolute path without empty names, or one name.
fn redirect(value: &[u8]) -> Redirect {
    let Some(path) = value.strip_prefix(b"/") else {
        return NameBuf::new(value).map_or(Redirect::Bad, Redirect::Beside);
    };
    let names: std::result::Result<Vec<_>, _> = path.split(|&b| b == b'/').map(Name::new).collect();
    let Ok(names) = names else { return Redirect::Bad };
    let mut path = TreePath::root();
    names.into_iter().for_each(|name| path.push(name));
    Redirect::From(path)
}

/// Tells whether an extended attribute is the union's own: never shown to programs.
pub(super) fn is_private(name: &[u8]) -> bool {
    const OTHERS: [&[u8]; 2] = [b"user.fuseoverlayfs.", b"user.containers.override_"];
    NAMESPACES.iter().chain(&OTHERS).any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(attributes: &[(&str, &str)]) -> Marks {
        let names: Vec<u8> = attributes.iter().flat_map(|(name, _)| name.bytes().chain([0])).collect();
        let get = |wanted: &[u8]| {
            Ok(attributes
                .iter()
                .find(|(name, _)| name.as_bytes() == wanted)
                .map(|(_, value)| value.as_bytes().to_vec()))
        };
        Marks::read(&names, get).unwrap()
    }

    #[test]
    fn every_spelling_of_opaque_counts_and_no_other_value() {
        for name in ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"] {
            assert!(read(&[("user.a", "y"), (name, "y")]).opaque, "{name}");
            assert!(!read(&[(name, "n")]).opaque && !read(&[(name, "")]).opaque);
        }
        assert!(!read(&[("user.opaque", "y")]).opaque);
        let marks = read(&[("trusted.overlay.opaque", "x")]);
        assert!(marks.has_whiteouts && !marks.opaque);
        assert!(read(&[("user.overlay.whiteout", "")]).whiteout && read(&[("trusted.overlay.metacopy", "")]).metacopy);
    }

    #[test]
    fn a_redirect_stays_inside_the_layers() {
        let of = |value| read(&[("trusted.overlay.redirect", value)]).redirect.unwrap();
        assert_eq!(of("name"), Redirect::Beside(NameBuf::new("name").unwrap()));
        assert_eq!(of("/a/b"), Redirect::From(TreePath::parse(b"a/b").unwrap()));
        for bad in ["", ".", "..", "../x", "a/b", "/", "//", "/a//b", "/a/", "/..", "/a/../b", "/a/.", "/a\0b", "a\0"] {
            assert_eq!(of(bad), Redirect::Bad, "{bad:?}");
        }
        assert_eq!(of(&format!("/{}", "x".repeat(256))), Redirect::Bad);
    }

    #[test]
    fn the_unions_own_attributes_are_private() {
        for private in ["trusted.overlay.origin", "user.overlay.overlay.x", "user.containers.override_stat"] {
            assert!(is_private(private.as_bytes()), "{private}");
        }
        for public in
            ["trusted.overlays", "user.overlay", "security.capability", "user.containers.x", "system.posix_acl_access"]
        {
            assert!(!is_private(public.as_bytes()), "{public}");
        }
    }
}
