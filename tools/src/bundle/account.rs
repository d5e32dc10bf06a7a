//! Who a process in an image runs as: names are looked up in the image's own passwd and group.
//!
//! The files belong to whoever made the image. They are opened beneath the mounted root, where a link to `/etc/shadow` leads to
//! the image's and not to the host's; what is no plain file, or longer than a passwd has reason to be, is refused.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;

/// The longest passwd or group that is read, in bytes.
const LONGEST: u64 = 4 << 20;

/// The largest ID that a process may have: runtimes keep the upper half for themselves.
const MAX_ID: u32 = i32::MAX as u32;

/// The user and the groups of a process, and where it is at home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, ascending.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Finds `USER[:GROUP]`, each a name or a number, in the image that is mounted at `root`. Empty is root.
///
/// # Errors
/// A name that the image does not have; a passwd or group that cannot be read.
pub(crate) fn find(root: &Path, text: &str) -> Result<Account> {
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| root.display().to_string())?;
    resolve(text, &read(&root, "etc/passwd")?, &read(&root, "etc/group")?)
}

/// Reads a text file of the image; one that is not there is empty.
fn read(root: &OwnedFd, path: &str) -> Result<String> {
    match open_inside(root, path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(LONGEST + 1).read_to_end(&mut bytes).with_context(|| format!("/{path} of the image"))?;
            match bytes.len() as u64 > LONGEST {
                true => bail!("/{path} of the image: longer than {LONGEST} bytes"),
                false => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(anyhow!("/{path} of the image: {}", crate::reason(&error))),
    }
}

/// Opens a plain file; the image's root is `/` for every link on the way.
fn open_inside(root: &OwnedFd, path: &str) -> io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // First without opening it: a pipe would wait, and a device do who knows what.
    let found = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a plain file"));
    }
    use std::os::fd::AsRawFd;
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    match rustix::fs::openat(CWD, again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => Ok(File::from(file)),
        Err(Errno::NOENT) => Err(io::Error::other("/proc is not mounted")),
        Err(errno) => Err(errno.into()),
    }
}

/// As docker reads it: a number need not be in passwd; with a group given, there are no supplementary ones.
fn resolve(text: &str, passwd: &str, group: &str) -> Result<Account> {
    let (user, given) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().find_map(|line| Entry::parse(line).filter(|entry| entry.is(user)));
    let (uid, primary) = match (&entry, number(user)) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => bail!("the image has no user '{user}' in /etc/passwd; give a number, or -u 0"),
    };
    let groups = || group.lines().filter_map(Group::parse);
    let (gid, mut others) = match given {
        None => {
            let name = entry.as_ref().map(|entry| entry.name);
            let of_user = groups().filter(|group| name.is_some_and(|name| group.members.split(',').any(|m| m == name)));
            (primary, of_user.map(|group| group.gid).collect())
        }
        Some(given) => match groups().find(|group| group.name == given).map(|group| group.gid).or(number(given)) {
            Some(gid) => (gid, Vec::new()),
            None => bail!("the image has no group '{given}' in /etc/group; give a number"),
        },
    };
    others.sort_unstable();
    others.dedup();
    let home = entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/");
    Ok(Account { uid, gid, groups: others, home: home.to_owned() })
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= MAX_ID)
}

/// A line of passwd.
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
        Some(Entry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }

    fn is(&self, user: &str) -> bool {
        self.name == user || number(user) == Some(self.uid)
    }
}

/// A line of group.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        Some(Group { name: fields.next()?, gid: number(fields.nth(1)?)?, members: fields.next().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nredis:x:999:998::/data:/bin/false\nfew:x:7:8\n";
    const GROUP: &str = "root:x:0:\nredis:x:998:\naudio:x:29:redis,other\ndisk:x:6:other,redis\nbad:x:y:redis\n";

    fn account(text: &str) -> (u32, u32, Vec<u32>, String) {
        let account = resolve(text, PASSWD, GROUP).unwrap();
        (account.uid, account.gid, account.groups, account.home)
    }

    #[test]
    fn users_and_groups_are_read_as_docker_reads_them() {
        assert_eq!(account(""), (0, 0, vec![], "/root".into()));
        assert_eq!(account("redis"), (999, 998, vec![6, 29], "/data".into()));
        assert_eq!(account("999"), (999, 998, vec![6, 29], "/data".into()));
        assert_eq!(account("redis:audio"), (999, 29, vec![], "/data".into()));
        assert_eq!(account("redis:5"), (999, 5, vec![], "/data".into()));
        assert_eq!(account("1234"), (1234, 0, vec![], "/".into()));
        assert_eq!(account(":audio"), (0, 29, vec![], "/root".into()));
        assert_eq!(account("few:"), (7, 8, vec![], "/".into()));
    }

    #[test]
    fn names_that_are_not_there_are_named() {
        for (text, word) in [("nobody", "'nobody'"), ("redis:none", "'none'"), ("-1", "'-1'"), ("4294967295", "429")] {
            let said = resolve(text, PASSWD, GROUP).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    #[test]
    fn links_do_not_lead_out_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("outside"), "spy:x:1:1::/:\n").unwrap();
        symlink(dir.path().join("outside"), root.join("etc/passwd")).unwrap();
        symlink("../../outside", root.join("etc/group")).unwrap();
        let said = find(&root, "spy").unwrap_err().to_string();
        assert!(said.contains("no user 'spy'"), "{said}");
        // The same links, to something that the image has.
        std::fs::write(root.join("outside"), "inside:x:5:6::/:\n").unwrap();
        std::fs::remove_file(root.join("etc/passwd")).unwrap();
        symlink("../../../outside", root.join("etc/passwd")).unwrap();
        assert_eq!(find(&root, "inside").unwrap().uid, 5);
    }

    #[test]
    fn what_is_no_plain_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        rustix::fs::mknodat(CWD, etc.join("passwd"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        let said = find(dir.path(), "root").unwrap_err().to_string();
        assert!(said.contains("/etc/passwd of the image: not a plain file"), "{said}");
    }
}
