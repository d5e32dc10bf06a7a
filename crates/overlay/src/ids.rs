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
    fn ids_outside_the_namespace_are_shown_as_the_stand_in() {
        let map = IdMap { known: Some((vec![(0, 1)], 0)), ..IdMap::default() };
        assert_eq!((map.shown(0), map.shown(33)), (0, 0));
    }
}
