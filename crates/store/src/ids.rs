//! Whom the files of an ordinary user's containers belong to, seen from outside the namespace that the containers live in.
//!
//! There the user is root, and the first range of `/etc/subuid` and `/etc/subgid` is the users from 1 (`plyfs unshare --map range`, podman). Root,
//! and root of a namespace, sees owners as they are meant.

use std::fs;
use std::sync::LazyLock;

use layer::Stat;

/// The user's own ID, and the first range of subordinate ones.
#[derive(Clone, Copy, Debug)]
struct Map {
    own: u32,
    range: Option<(u32, u32)>,
}

static MAPS: LazyLock<Option<(Map, Map)>> = LazyLock::new(|| {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        return None;
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let name = user_name(&read("/etc/passwd"), uid.as_raw());
    let range = |path: &str| subordinate(&read(path), uid.as_raw(), name.as_deref());
    let users = Map { own: uid.as_raw(), range: range("/etc/subuid") };
    Some((users, Map { own: gid.as_raw(), range: range("/etc/subgid") }))
});

/// Says whom a file is meant to belong to whose owner was set and not recorded.
pub(crate) fn as_meant(stat: &mut Stat) {
    if let Some((users, groups)) = &*MAPS {
        (stat.uid, stat.gid) = (users.inside(stat.uid), groups.inside(stat.gid));
    }
}

impl Map {
    fn inside(self, id: u32) -> u32 {
        let in_range = self.range.and_then(|(start, count)| id.checked_sub(start).filter(|offset| *offset < count));
        match in_range {
            Some(offset) => offset + 1,
            None if id == self.own => 0,
            None => id,
        }
    }
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let named = |line: &str| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    };
    passwd.lines().find_map(named)
}

/// The first range of a user, by name or number (subuid(5)).
fn subordinate(text: &str, uid: u32, name: Option<&str>) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let (owner, start, count) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        ((Some(owner) == name || owner.parse() == Ok(uid)) && count > 0).then_some((start, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_those_that_the_namespace_shows() {
        let map = Map { own: 1001, range: Some((100_000, 65_536)) };
        for (outside, inside) in
            [(1001, 0), (100_000, 1), (100_999, 1000), (165_535, 65_536), (165_536, 165_536), (0, 0)]
        {
            assert_eq!(map.inside(outside), inside);
        }
        assert_eq!(Map { own: 7, range: None }.inside(7), 0);
    }

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("me"));
        let text = "root:1:2\n# note\nme:100000:65536\n1001:300000:10\nempty:5:0\n";
        assert_eq!(subordinate(text, 1000, Some("me")), Some((100_000, 65_536)));
        assert_eq!(subordinate(text, 1001, None), Some((300_000, 10)));
        assert_eq!(subordinate(text, 1002, Some("empty")), None);
    }
}
