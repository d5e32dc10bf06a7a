//! `user.containers.override_stat`: owner, mode and kind of a file that its filesystem may not hold itself.
//!
//! The spelling is podman's (containers/storage): `uid:gid:mode[:kind]`, the ids decimal, the mode octal, the kind one of `file`,
//! `dir`, `symlink`, `pipe`, `socket`, `char-MAJOR-MINOR`, `block-MAJOR-MINOR`.

use layer::{Dev, FileType, Stat};

/// The attribute's name.
pub const NAME: &[u8] = b"user.containers.override_stat";

/// What fuse-overlayfs 1.x calls it: its mode has the bits of the kind in it, and the kind is not said otherwise.
pub const FUSE_OVERLAYFS: &[u8] = b"user.fuseoverlayfs.override_stat";

/// What the attribute says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Permission bits: `mode & 07777`.
    pub perm: u16,
    /// The kind, with the device number of a device node; `None` where it is not said.
    pub kind: Option<(FileType, Dev)>,
}

impl Override {
    /// Returns what the attribute has to say for a file to be shown as `stat`.
    pub fn of(stat: &Stat) -> Self {
        Override { uid: stat.uid, gid: stat.gid, perm: stat.perm, kind: Some((stat.kind, stat.rdev)) }
    }

    /// Reads an attribute's value; `None` for what is not spelled as it should be.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        // Some writers end it as a C string.
        let mut fields = text.trim_end_matches('\0').split(':');
        let uid = number(fields.next()?, 10)?;
        let gid = number(fields.next()?, 10)?;
        let perm = number(fields.next()?, 8)?;
        let kind = fields.next().map(parse_kind);
        if fields.next().is_some() || kind == Some(None) {
            return None;
        }
        Some(Override { uid, gid, perm: (perm & 0o7777) as u16, kind: kind.flatten() })
    }

    /// Spells the value out.
    pub fn format(&self) -> String {
        let kind = match self.kind {
            None => String::new(),
            Some((FileType::File, _)) => ":file".into(),
            Some((FileType::Dir, _)) => ":dir".into(),
            Some((FileType::Symlink, _)) => ":symlink".into(),
            Some((FileType::Fifo, _)) => ":pipe".into(),
            Some((FileType::Socket, _)) => ":socket".into(),
            Some((FileType::Char, dev)) => format!(":char-{}-{}", dev.major, dev.minor),
            Some((FileType::Block, dev)) => format!(":block-{}-{}", dev.major, dev.minor),
        };
        format!("{}:{}:{:04o}{kind}", self.uid, self.gid, self.perm)
    }

    /// Shows `stat` as the attribute says. A kind counts only where a regular file stands for another file: what is
    /// a directory on the disk stays one, and nothing else becomes one.
    pub fn apply(&self, stat: &mut Stat) {
        (stat.uid, stat.gid, stat.perm) = (self.uid, self.gid, self.perm);
        if let Some((kind, rdev)) = self.kind
            && stat.kind == FileType::File
            && kind != FileType::Dir
        {
            (stat.kind, stat.rdev) = (kind, rdev);
            if !matches!(kind, FileType::File | FileType::Symlink) {
                stat.size = 0;
            }
        }
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
            Dev { major: number(parts.next()?, 10)?, minor: number(parts.next()?, 10)? }
        }
        _ => Dev::default(),
    };
    parts.next().is_none().then_some((kind, dev))
}

/// Reads digits only: `from_str_radix` takes a sign, too.
fn number(text: &str, radix: u32) -> Option<u32> {
    u32::from_str_radix(text, radix).ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer::{Ino, Time};

    #[test]
    fn podmans_spellings_are_read_and_written() {
        let dev = |major, minor| Dev { major, minor };
        let none = Dev::default();
        for (text, uid, gid, perm, kind) in [
            ("1000:1011:0644:file", 1000, 1011, 0o644, Some((FileType::File, none))),
            ("0:0:0755:dir", 0, 0, 0o755, Some((FileType::Dir, none))),
            ("1:2:0777:symlink", 1, 2, 0o777, Some((FileType::Symlink, none))),
            ("1:2:0666:pipe", 1, 2, 0o666, Some((FileType::Fifo, none))),
            ("1:2:0700:socket", 1, 2, 0o700, Some((FileType::Socket, none))),
            ("5:6:0600:block-8-0", 5, 6, 0o600, Some((FileType::Block, dev(8, 0)))),
            ("5:6:0600:char-10-229", 5, 6, 0o600, Some((FileType::Char, dev(10, 229)))),
            ("4294967295:0:7755:file", u32::MAX, 0, 0o7755, Some((FileType::File, none))),
            ("0:0:0000", 0, 0, 0, None),
        ] {
            let expected = Override { uid, gid, perm, kind };
            assert_eq!(Override::parse(text.as_bytes()), Some(expected), "{text}");
            assert_eq!(expected.format(), text);
        }
        assert_eq!(Override::parse(b"0:0:755").unwrap().perm, 0o755);
        assert_eq!(Override::parse(b"0:0:100755:file\0").unwrap().perm, 0o755);
    }

    #[test]
    fn other_spellings_are_no_override() {
        for bad in [
            "",
            ":",
            "0:0",
            "0:0:",
            "0:0:8",
            "-1:0:0644",
            "+1:0:0644",
            "0:0:0644:",
            "0:0:0644:door",
            "0:0:0644:file-1",
            "0:0:0644:char",
            "0:0:0644:char-1",
            "0:0:0644:char-1-2-3",
            "0:0:0644:char--1",
            "4294967296:0:0644",
            "0:0:0644:file:x",
            "\u{661}:0:0644",
        ] {
            assert_eq!(Override::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(Override::parse(b"\xff:0:0644"), None);
    }

    #[test]
    fn a_kind_is_shown_only_for_a_regular_file() {
        let stat = |kind| Stat {
            ino: Ino(2),
            kind,
            perm: 0o600,
            nlink: 1,
            uid: 1000,
            gid: 1000,
            rdev: Dev::default(),
            size: 0,
            blocks: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
        };
        let shown = |value: &str, kind| {
            let mut stat = stat(kind);
            Override::parse(value.as_bytes()).unwrap().apply(&mut stat);
            stat
        };
        let null = shown("0:5:0666:char-1-3", FileType::File);
        assert_eq!((null.kind, null.rdev, null.mode()), (FileType::Char, Dev { major: 1, minor: 3 }, 0o020_666));
        assert_eq!((null.uid, null.gid), (0, 5));
        assert_eq!(shown("0:0:0755:file", FileType::Dir).kind, FileType::Dir);
        assert_eq!(shown("0:0:0755:dir", FileType::File).kind, FileType::File);
        assert_eq!(Override::parse(Override::of(&null).format().as_bytes()), Some(Override::of(&null)));
    }
}
