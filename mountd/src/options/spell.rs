//! The other way round: options spelled so that [`super::parse`] reads them back, for programs that start the daemon.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Returns `name=value`, with the value's commas and backslashes escaped: one `-o` argument, or a part of one.
pub fn spell(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut spelled = format!("{name}=").into_bytes();
    escape(value.as_ref().as_bytes(), b",\\", &mut spelled);
    OsString::from_vec(spelled)
}

/// Returns `name=A:B:C`, with commas, colons and backslashes inside the paths escaped, as `lowerdir=` wants it.
pub fn spell_list(name: &str, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> OsString {
    let mut spelled = format!("{name}=").into_bytes();
    for (i, path) in paths.into_iter().enumerate() {
        if i > 0 {
            spelled.push(b':');
        }
        escape(path.as_ref().as_os_str().as_bytes(), b",:\\", &mut spelled);
    }
    OsString::from_vec(spelled)
}

pub(crate) fn escape(bytes: &[u8], special: &[u8], into: &mut Vec<u8>) {
    for &byte in bytes {
        if special.contains(&byte) {
            into.push(b'\\');
        }
        into.push(byte);
    }
}
