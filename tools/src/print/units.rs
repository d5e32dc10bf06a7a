//! Sizes and ages as people read them.

use std::time::{Duration, SystemTime};

use layer::Time;

/// Writes a number of bytes in decimal units with three digits: `0B`, `13.3kB`, `77.9MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.5 would be rounded to 1000: that is 1.00 of the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let digits = format!("{value:.decimals$}");
    let digits = if decimals > 0 { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
    format!("{digits}{}", UNITS[unit])
}

/// Writes a span of time in one unit: `25 seconds`, `About an hour`, `3 weeks`.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_string(),
        (1, ..) => "1 second".to_string(),
        (s, 0, _) => format!("{s} seconds"),
        (_, 1, _) => "About a minute".to_string(),
        (_, m, _) if m < 46 => format!("{m} minutes"),
        (_, _, 1) => "About an hour".to_string(),
        (_, _, h) if h < 48 => format!("{h} hours"),
        (_, _, h) if h < 24 * 14 => format!("{} days", h / 24),
        (_, _, h) if h < 24 * 60 => format!("{} weeks", h / 24 / 7),
        (_, _, h) if h < 24 * 730 => format!("{} months", h / 24 / 30),
        (_, _, h) => format!("{} years", h / 24 / 365),
    }
}

/// Writes how long ago `then` was; a time that is not known is `N/A`, one in the future is `just now`.
pub(crate) fn ago(then: Option<Time>, now: Time) -> String {
    match then.map(|then| now.sec - then.sec) {
        None => "N/A".to_string(),
        Some(age @ 0..) => format!("{} ago", span(Duration::from_secs(age.unsigned_abs()))),
        Some(_) => "just now".to_string(),
    }
}

/// Returns the time now.
pub(crate) fn now() -> Time {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    Time { sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nsec: since.subsec_nanos() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (13_256, "13.3kB"),
            (77_861_021, "77.9MB"),
            (999_499, "999kB"),
            (999_999, "1MB"),
            (9_999, "10kB"),
            (1_230_000_000, "1.23GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn spans_are_told_in_one_unit() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (2 * 3600, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86400, "2 weeks"),
            (61 * 86400, "2 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn an_unknown_age_is_not_a_number() {
        let at = |sec| Time { sec, nsec: 0 };
        assert_eq!(ago(None, at(1000)), "N/A");
        assert_eq!(ago(Some(at(0)), at(1000)), "16 minutes ago");
        assert_eq!(ago(Some(at(1005)), at(1000)), "just now");
    }
}
