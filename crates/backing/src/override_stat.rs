//! The record of owner, mode and kind that a filesystem could not hold: `user.containers.override_stat`, in podman's spelling
//! `uid:gid:mode[:type]`, where a device's type is `char-MAJOR-MINOR` or `block-MAJOR-MINOR`.

use std::fmt;

use layer::{Dev, FileType, Stat};

/// What a record says; it takes the place of what the filesystem says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverrideStat {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Permission bits, `07777`.
    pub perm: u16,
    /// The kind, with a device's number; `None` leaves it.
    pub kind: Option<(FileType, Dev)>,
}

impl OverrideStat {
    /// Reads a record; `None` for one that is malformed.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(text).ok()?.split(':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
        let kind = match fields.next() {
            None | Some("") => None,
            Some(kind) => Some(parse_kind(kind)?),
        };
        if fields.next().is_some() {
            return None;
        }
        Some(OverrideStat { uid, gid, perm: (mode & 0o7777) as u16, kind })
    }

    /// Returns the attributes as they are meant.
    pub fn apply(&self, stat: Stat) -> Stat {
        let (kind, rdev) = match self.kind {
            // A directory is what it is: a record must not turn a tree into a file, or a file into a tree.
            Some((kind, rdev)) if (kind == FileType::Dir) == (stat.kind == FileType::Dir) => (kind, rdev),
            _ => (stat.kind, stat.rdev),
        };
        let size = if matches!(kind, FileType::File | FileType::Dir | FileType::Symlink) { stat.size } else { 0 };
        Stat { uid: self.uid, gid: self.gid, perm: self.perm, kind, rdev, size, ..stat }
    }
}

fn parse_kind(text: &str) -> Option<(FileType, Dev)> {
    let mut parts = text.split('-');
    let kind = match parts.next()? {
        "file" => FileType::File,
        "dir" => FileType::Dir,
        "symlink" => FileType::Symlink,
        "pipe" | "fifo" => FileType::Fifo,
        "socket" => FileType::Socket,
        "char" => FileType::Char,
        "block" => FileType::Block,
        _ => return None,
    };
    let dev = match kind {
        FileType::Char | FileType::Block => {
            Dev { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? }
        }
        _ => Dev::default(),
    };
    if parts.next().is_some() { None } else { Some((kind, dev)) }
}

impl fmt::Display for OverrideStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:0{:o}", self.uid, self.gid, self.perm)?;
        let Some((kind, Dev { major, minor })) = self.kind else { return Ok(()) };
        match kind {
            FileType::File => f.write_str(":file"),
            FileType::Dir => f.write_str(":dir"),
            FileType::Symlink => f.write_str(":symlink"),
            FileType::Fifo => f.write_str(":pipe"),
            FileType::Socket => f.write_str(":socket"),
            FileType::Char => write!(f, ":char-{major}-{minor}"),
            FileType::Block => write!(f, ":block-{major}-{minor}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_podman_writes_them() {
        for text in ["0:0:0755", "42:0:04755:file", "0:0:0600:char-1-3", "1:2:0660:block-8-0", "0:0:0777:symlink", "0:5:01777:dir"] {
            let record = OverrideStat::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text} is a record"));
            assert_eq!(record.to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_no_record() {
        for text in ["", "0", "0:0", "0:0:9", "a:0:0755", "0:0:0755:what", "0:0:0755:char-1", "0:0:0755:char-1-2-3", "0:0:0755:file:x", "-1:0:0"] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), None, "{text}");
        }
    }
}
