//! The words of mount(8) to a helper (`mount.fuse3.plyfs SOURCE TARGET [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`), as words of
//! ours: there some letters mean other things.

use std::ffi::{OsStr, OsString};

/// What mount(8) asks of its helper.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Our words.
    pub(crate) words: Vec<OsString>,
    /// Everything but the mount itself is to be done (`mount -f`).
    pub(crate) fake: bool,
}

/// Translates the words. What is not mount(8)'s own stays as it is, and is read, or refused, as ever.
pub(crate) fn asked(given: &[OsString]) -> Asked {
    let (mut words, mut fake) = (Vec::new(), false);
    let mut given = given.iter();
    while let Some(word) = given.next() {
        match word.to_str() {
            // -s: be lenient; -n: write no mtab; -v: say more. Nothing of it is for us; -s and -f are others of ours.
            Some(flags) if is_cluster(flags) => fake |= flags.contains('f'),
            // The type has brought us here.
            Some("-t") => drop(given.next()),
            Some("-o") => words.extend([Some(word), given.next()].into_iter().flatten().cloned()),
            Some("--") => {
                words.push(word.clone());
                words.extend(given.by_ref().cloned());
            }
            _ => words.push(word.clone()),
        }
    }
    Asked { words, fake }
}

fn is_cluster(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|letters| !letters.is_empty() && letters.chars().all(|c| "sfnv".contains(c)))
}

/// Tells whether a program is called as a helper of mount(8).
pub(crate) fn is_helper(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"mount.fuse")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_mount_become_ours() {
        for (given, ours) in [
            ("overlay /m -s -n -v -o lowerdir=/a -t fuse3.plyfs", "overlay /m -o lowerdir=/a"),
            ("overlay /m -o rw,lowerdir=/a -sv", "overlay /m -o rw,lowerdir=/a"),
            ("/m -o -v", "/m -o -v"),
            ("-o lowerdir=/a -- -n /m", "-o lowerdir=/a -- -n /m"),
            ("-N /proc/1/ns/mnt /m", "-N /proc/1/ns/mnt /m"),
            ("--help", "--help"),
        ] {
            let given: Vec<OsString> = given.split(' ').map(OsString::from).collect();
            let ours: Vec<OsString> = ours.split(' ').map(OsString::from).collect();
            assert_eq!(asked(&given), Asked { words: ours, fake: false });
        }
        let given = ["overlay", "/m", "-fv", "-o", "lowerdir=/a"].map(OsString::from);
        let ours = ["overlay", "/m", "-o", "lowerdir=/a"].map(OsString::from).to_vec();
        assert_eq!(asked(&given), Asked { words: ours, fake: true });
    }
}
