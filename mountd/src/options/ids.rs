//! `uidmapping=` and `gidmapping=`: which id on the disk is shown as which.

/// One run of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id on the disk.
    pub on_disk: u32,
    /// The id that it is shown as, in the daemon's user namespace.
    pub shown: u32,
    /// How many ids the run has; at least 1, and neither side passes 2^32 - 1.
    pub len: u32,
}

/// Ids that are shown as others; an empty map changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    ranges: Vec<IdRange>,
}

impl IdMap {
    /// Reads `DISK:SHOWN:LEN[:DISK:SHOWN:LEN...]`.
    ///
    /// containers/storage writes a colon before the first triple (`:0:100000:5000`); colons at the ends mean nothing.
    pub(super) fn parse(value: &str) -> Result<Self, &'static str> {
        let numbers = value
            .split(':')
            .filter(|part| !part.is_empty())
            .map(|part| part.parse::<u32>().map_err(|_| "a part is no id"))
            .collect::<Result<Vec<_>, _>>()?;
        if numbers.is_empty() || numbers.len() % 3 != 0 {
            return Err("give triples ID:SHOWN:LENGTH");
        }
        let mut map = IdMap::default();
        for triple in numbers.chunks_exact(3) {
            map.add(IdRange { on_disk: triple[0], shown: triple[1], len: triple[2] })?;
        }
        Ok(map)
    }

    fn add(&mut self, range: IdRange) -> Result<(), &'static str> {
        if range.len == 0 {
            return Err("a length is 0");
        }
        let fits = |first: u32| first.checked_add(range.len - 1).is_some();
        if !fits(range.on_disk) || !fits(range.shown) {
            return Err("a range passes the last id");
        }
        let overlap = |a: u32, b: u32, b_len: u32| {
            u64::from(a) < u64::from(b) + u64::from(b_len) && u64::from(b) < u64::from(a) + u64::from(range.len)
        };
        let taken = |other: &IdRange| {
            overlap(range.on_disk, other.on_disk, other.len) || overlap(range.shown, other.shown, other.len)
        };
        if self.ranges.iter().any(taken) {
            return Err("two ranges overlap");
        }
        self.ranges.push(range);
        Ok(())
    }

    /// Returns the runs in the order they were given.
    pub fn ranges(&self) -> &[IdRange] {
        &self.ranges
    }

    /// Tells whether no mapping was asked for.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns what an id on the disk is shown as; `None` outside every run. An empty map shows each id as it is.
    pub fn shown(&self, on_disk: u32) -> Option<u32> {
        self.translate(on_disk, |range| (range.on_disk, range.shown))
    }

    /// Returns the id on the disk for one that is shown: the other way round.
    pub fn on_disk(&self, shown: u32) -> Option<u32> {
        self.translate(shown, |range| (range.shown, range.on_disk))
    }

    fn translate(&self, id: u32, sides: impl Fn(&IdRange) -> (u32, u32)) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(id);
        }
        self.ranges.iter().find_map(|range| {
            let (from, to) = sides(range);
            // `add` checked that `to + len - 1` fits.
            id.checked_sub(from).filter(|&offset| offset < range.len).map(|offset| to + offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_goes_both_ways_and_ends_where_its_runs_end() {
        let map = IdMap::parse("0:1000:1:1:110000:65536").unwrap();
        for (on_disk, shown) in [(0, 1000), (1, 110_000), (65_536, 175_535)] {
            assert_eq!((map.shown(on_disk), map.on_disk(shown)), (Some(shown), Some(on_disk)));
        }
        assert_eq!((map.shown(65_537), map.on_disk(0)), (None, None));
        assert_eq!((IdMap::default().shown(7), IdMap::default().on_disk(7)), (Some(7), Some(7)));
    }

    #[test]
    fn leading_colon_of_containers_storage_means_nothing() {
        let map = IdMap::parse(":0:100000:5000").unwrap();
        assert_eq!(map.ranges(), [IdRange { on_disk: 0, shown: 100_000, len: 5000 }]);
    }

    #[test]
    fn bad_mappings_are_refused() {
        for bad in [
            "",
            ":",
            "0",
            "0:1",
            "0:1:2:3",
            "a:0:1",
            "-1:0:1",
            "0:0:0",
            "4294967295:0:2",
            "0:4294967295:2",
            "0:0:10:5:20:1",
            "0:0:10:20:9:1",
            "0:0:4294967296",
            " 0:0:1",
        ] {
            assert!(IdMap::parse(bad).is_err(), "{bad:?}");
        }
        assert!(IdMap::parse("0:0:4294967295").is_ok(), "every id but the last");
    }
}
