//! Whose numbers: owners as they lie on disk, and as the mount shows them.

/// How user and group ids on disk are shown in the mount, and back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// For users.
    pub uid: IdMap,
    /// For groups.
    pub gid: IdMap,
}

/// One mapping of ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Runs of ids; empty means that shown and disk ids are the same.
    pub runs: Vec<Run>,
    /// Every id is shown as this one.
    pub squash: Option<u32>,
    /// Ids that the mount can show at all (the user namespace's), with the id that stands for the others.
    pub known: Option<(Vec<(u32, u32)>, u32)>,
}

/// `len` ids from `shown` on are those from `disk` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First id as the mount shows it.
    pub shown: u32,
    /// First id as it lies on disk.
    pub disk: u32,
    /// How many.
    pub len: u32,
}

/// What stands for an id that no run maps (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65534;

impl IdMap {
    /// Returns the id that programs see for an id on disk.
    pub fn shown(&self, disk: u32) -> u32 {
        if let Some(id) = self.squash {
            return id;
        }
        let shown = match self.runs.as_slice() {
            [] => disk,
            runs => runs
                .iter()
                .find(|run| disk.wrapping_sub(run.disk) < run.len)
                .map_or(OVERFLOW, |run| run.shown + (disk - run.disk)),
        };
        match &self.known {
            Some((ranges, _)) if ranges.iter().any(|(first, len)| shown.wrapping_sub(*first) < *len) => shown,
            Some((_, stand_in)) => *stand_in,
            None => shown,
        }
    }

    /// Returns the id on disk for an id that a program gave.
    pub fn disk(&self, shown: u32) -> u32 {
        match self.runs.as_slice() {
            [] => shown,
            runs => runs
                .iter()
                .find(|run| shown.wrapping_sub(run.shown) < run.len)
                .map_or(shown, |run| run.disk + (shown - run.shown)),
        }
    }
}

impl Ids {
    /// Tells whether ids on disk and in the mount differ at all.
    pub fn is_mapped(&self) -> bool {
        let mapped = |map: &IdMap| !map.runs.is_empty() || map.squash.is_some();
        mapped(&self.uid) || mapped(&self.gid)
    }

    /// Turns the ids in a POSIX ACL from those that programs see into those on disk.
    pub fn acl_to_disk(&self, acl: &mut [u8]) {
        map_acl(acl, |id| self.uid.disk(id), |id| self.gid.disk(id));
    }

    /// Turns the ids in a POSIX ACL from those on disk into those that programs see.
    pub fn acl_to_shown(&self, acl: &mut [u8]) {
        map_acl(acl, |id| self.uid.shown(id), |id| self.gid.shown(id));
    }
}

/// The attribute that holds a file's capabilities (capabilities(7), File capabilities).
pub const CAPABILITIES: &[u8] = b"security.capability";

impl Ids {
    /// Turns a file's capabilities from those on disk into those that programs see: they count where the user is root whom they
    /// name, and that user is shown as another.
    pub fn capabilities_to_shown(&self, value: Vec<u8>) -> Vec<u8> {
        map_capabilities(value, |root| self.uid.shown(root))
    }

    /// Turns a file's capabilities from those that programs see into those on disk.
    pub fn capabilities_to_disk(&self, value: Vec<u8>) -> Vec<u8> {
        map_capabilities(value, |root| self.uid.disk(root))
    }
}

/// Changes the user for whom capabilities count (linux/capability.h: four bytes of revision and flags, sixteen of sets, and in
/// revision 3 four of that user; in revision 2 it is user 0). What is of neither revision is left as it is.
fn map_capabilities(mut value: Vec<u8>, map: impl Fn(u32) -> u32) -> Vec<u8> {
    const SETS_END: usize = 20;
    const REVISION: usize = 3;
    let root = match (value.get(REVISION), value.len()) {
        (Some(2), SETS_END) => 0,
        (Some(3), 24) => u32::from_le_bytes([value[20], value[21], value[22], value[23]]),
        _ => return value,
    };
    value.truncate(SETS_END);
    match map(root) {
        0 => value[REVISION] = 2,
        root => {
            value[REVISION] = 3;
            value.extend(root.to_le_bytes());
        }
    }
    value
}

/// Changes the ids of named users and groups (linux/posix_acl_xattr.h: four bytes of version, then tag, permissions and id, in
/// 2, 2 and 4 bytes). What is no ACL is left as it is.
fn map_acl(acl: &mut [u8], uid: impl Fn(u32) -> u32, gid: impl Fn(u32) -> u32) {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let Some(entries) = acl.get_mut(4..).filter(|entries| entries.len() % 8 == 0) else { return };
    for entry in entries.chunks_exact_mut(8) {
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let mapped = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER => uid(id),
            GROUP => gid(id),
            _ => continue,
        };
        entry[4..].copy_from_slice(&mapped.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_there_and_back() {
        let map = IdMap { runs: vec![Run { shown: 0, disk: 100_000, len: 5000 }], ..IdMap::default() };
        assert_eq!((map.shown(100_042), map.disk(42)), (42, 100_042));
        assert_eq!(map.shown(7), OVERFLOW);
        assert_eq!(IdMap::default().shown(7), 7);
    }

    #[test]
    fn acls_follow_the_ids() {
        let run = |disk| IdMap { runs: vec![Run { shown: 0, disk, len: 5000 }], ..IdMap::default() };
        let ids = Ids { uid: run(100_000), gid: run(200_000) };
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &7u16.to_le_bytes(), &id.to_le_bytes()].concat();
        let acl = |user, group| [&2u32.to_le_bytes()[..], &entry(2, user), &entry(8, group), &entry(16, 42)].concat();
        let mut value = acl(33, 42);
        ids.acl_to_disk(&mut value);
        assert_eq!(value, acl(100_033, 200_042));
        ids.acl_to_shown(&mut value);
        assert_eq!(value, acl(33, 42));
        let mut short = vec![2, 0, 0, 0, 1];
        ids.acl_to_disk(&mut short);
        assert_eq!(short, [2, 0, 0, 0, 1]);
    }

    #[test]
    fn capabilities_follow_the_ids() {
        let run = Run { shown: 100_000, disk: 0, len: 5000 };
        let ids = Ids { uid: IdMap { runs: vec![run], ..IdMap::default() }, gid: IdMap::default() };
        // cap_net_raw=ep
        let sets = [1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let of = |root: u32| {
            let mut value = sets.to_vec();
            value[3] = 3;
            value.extend(root.to_le_bytes());
            value
        };
        assert_eq!(ids.capabilities_to_shown(sets.to_vec()), of(100_000));
        assert_eq!(ids.capabilities_to_disk(of(100_000)), sets);
        assert_eq!(ids.capabilities_to_shown(of(7)), of(100_007));
        assert_eq!(ids.capabilities_to_disk(of(100_007)), of(7));
        // Somebody's who is not mapped stay somebody else's.
        assert_eq!(ids.capabilities_to_shown(of(9000)), of(OVERFLOW));
        for other in [&b""[..], b"short", &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(ids.capabilities_to_shown(other.to_vec()), other);
        }
    }

    #[test]
    fn ids_outside_the_namespace_are_shown_as_the_stand_in() {
        let map = IdMap { known: Some((vec![(0, 1)], 0)), ..IdMap::default() };
        assert_eq!((map.shown(0), map.shown(33)), (0, 0));
    }
}
