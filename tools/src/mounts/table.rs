//! The kernel's table of mounts, and who uses one.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A mount that this process can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// The kernel's number.
    pub(crate) id: u64,
    /// The mount point.
    pub(crate) target: PathBuf,
    /// The filesystem: `fuse.plyfs`, `ext4`...
    pub(crate) kind: String,
}

impl Mounted {
    /// Tells whether our daemon made it, under either of its names.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.kind.as_str(), "fuse.plyfs" | "fuse.fuse-overlayfs")
    }
}

/// Reads the table; of two mounts on one directory the later one is on top.
///
/// # Errors
/// Where there is no /proc.
pub(crate) fn read() -> Result<Vec<Mounted>> {
    const FILE: &str = "/proc/self/mountinfo";
    let text = fs::read(FILE).context(FILE)?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(line).collect())
}

/// Reads a line (proc(5)): `ID PARENT MAJOR:MINOR ROOT TARGET OPTIONS [TAG...] - KIND SOURCE OPTIONS`.
fn line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let target = unescape(fields.nth(3)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mounted { id, target, kind: String::from_utf8_lossy(kind).into_owned() })
}

/// Reads `\040` as a blank, and so on.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        path.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &rest[4..] } else { after };
    }
    PathBuf::from(OsString::from_vec(path))
}

/// How many users of a mount are named.
const NAMED: usize = 4;

/// Finds programs whose directory, root or open files lie on a mount, as far as we may look: `bash (1234)`.
pub(crate) fn users(target: &Path) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = numbers.filter(|pid| *pid != std::process::id());
    others.filter(|pid| uses(*pid, target)).take(NAMED).map(describe).collect()
}

fn uses(pid: u32, target: &Path) -> bool {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = fs::read_dir(base.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let links = ["cwd", "root", "exe"].into_iter().map(|name| base.join(name)).chain(descriptors);
    // A link is read and not followed: the mount may hang.
    links.into_iter().any(|link| fs::read_link(link).is_ok_and(|path| lies_in(&path, target)))
}

fn lies_in(path: &Path, directory: &Path) -> bool {
    // A deleted file is told as `/path (deleted)`, which begins in the same directory.
    path.as_os_str().as_bytes().starts_with(b"/") && path.starts_with(directory)
}

fn describe(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} ({pid})", name.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_tags() {
        let read = |text: &str| line(text.as_bytes()).unwrap();
        let mounted =
            read("36 35 98:0 / /mnt/a\\040b\\134c rw,noatime master:1 shared:2 - fuse.plyfs one rw,user_id=0");
        assert_eq!(mounted.target, Path::new("/mnt/a b\\c"));
        assert!(mounted.is_ours());
        let mounted = read("1 0 8:1 /x / rw - ext4 /dev/sda1 rw");
        assert_eq!((mounted.id, mounted.target.as_path(), mounted.kind.as_str()), (1, Path::new("/"), "ext4"));
        assert!(line(b"").is_none());
        assert!(line(b"x y z").is_none());
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(read().unwrap().iter().any(|mount| mount.target == Path::new("/")));
    }

    #[test]
    fn a_program_in_a_directory_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        let found = users(&dir.path().canonicalize().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [format!("sleep ({})", child.id())]);
    }
}
