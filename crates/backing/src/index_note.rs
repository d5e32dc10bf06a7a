//! The note on an index file that its bytes have been checked, kept as an extended attribute.
//!
//! Checking every name and number of a large index takes longer than all the rest of a mount. Whoever writes an index notes that the
//! check was passed; from then on only the checksum is computed, which tells whether these are still the bytes of the note.

use std::os::fd::AsFd;

use layer::FileType;
use layer::index::Index;
use rustix::fs::XattrFlags;
use rustix::io::Result;

/// The attribute; copies of the file that lose it are checked whole.
const NAME: &[u8] = b"user.plyfs.checked";

/// Returns the note on an index file, or nothing where there is none that we may believe.
///
/// Only the superuser or ourselves may be able to write the file: whoever can write it could forge its note too, with bytes that no
/// check has seen. A note that cannot be read is none: the check is always possible.
pub fn read(file: impl AsFd) -> Vec<u8> {
    believed(file).unwrap_or_default()
}

fn believed(file: impl AsFd) -> Result<Vec<u8>> {
    let stat = crate::sys::stat_of(&file)?.stat;
    let is_trusted = stat.uid == 0 || stat.uid == rustix::process::geteuid().as_raw();
    // With an ACL, the group's bits are the most that anybody else may do (acl(5)).
    if stat.kind != FileType::File || !is_trusted || stat.perm & 0o022 != 0 {
        return Ok(Vec::new());
    }
    Ok(crate::sys::xattr_of(file, NAME)?.unwrap_or_default())
}

/// Notes on a file that its bytes are those of `index`.
///
/// # Errors
/// As fsetxattr(2): not every filesystem has such attributes.
pub fn write<B: AsRef<[u8]>>(file: impl AsFd, index: &Index<B>) -> Result<()> {
    crate::sys::set_xattr_of(file, NAME, &index.note(), XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_note_counts_only_where_nobody_else_can_write() {
        let index = layer::fixture::layer([layer::fixture::file("f", "content")]).index;
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("index");
        std::fs::write(&path, index.bytes()).unwrap();
        let file = File::open(&path).unwrap();
        assert!(read(&file).is_empty(), "before it is written");
        let noted = match write(&file, &index) {
            Ok(()) => index.note().to_vec(),
            // A filesystem without such attributes: no note, ever.
            Err(errno) => {
                assert_eq!(errno, Errno::OPNOTSUPP);
                Vec::new()
            }
        };
        for (mode, expected) in
            [(0o600, &noted), (0o644, &noted), (0o660, &Vec::new()), (0o602, &Vec::new()), (0o600, &noted)]
        {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(&read(&file), expected, "mode {mode:o}");
        }
        // Only the superuser can give a file away.
        if std::os::unix::fs::fchown(&file, Some(12_345), None).is_ok() {
            assert!(read(&file).is_empty(), "somebody else's");
        }
        assert!(read(File::open(top.path()).unwrap()).is_empty(), "a directory");
    }
}
