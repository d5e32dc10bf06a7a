//! What is said of a handful of samples.

/// The samples of one contestant in one row, told in three numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Sums up; `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => return None,
            odd if odd % 2 == 1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Some(Summary { median, min: sorted[0], max: sorted[sorted.len() - 1] })
    }

    /// Returns half the distance of the extremes, as a part of the median: the `0.04` of `±4%`.
    pub(crate) fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median }
    }

    /// Tells whether the ranges of two contestants meet: then their order may be chance.
    pub(crate) fn meets(&self, other: &Summary) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[3.0, 1.0, 2.0]), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).map(|s| s.median), Some(2.5));
    }

    #[test]
    fn the_spread_is_half_the_range_over_the_median() {
        let of = |samples: &[f64]| Summary::of(samples).unwrap();
        assert_eq!(of(&[0.9, 1.0, 1.1]).spread(), (1.1 - 0.9) / 2.0);
        assert_eq!(of(&[0.0]).spread(), 0.0);
        assert!(of(&[1.0, 2.0]).meets(&of(&[2.0, 3.0])));
        assert!(!of(&[1.0, 2.0]).meets(&of(&[2.1, 3.0])));
    }
}
