//! Points in time as image configs spell them (RFC 3339).

use layer::Time;

/// Returns the time now.
pub(crate) fn now() -> Time {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
}

/// Writes a time as RFC 3339 in UTC, with as many fraction digits as it takes.
pub fn rfc3339(time: Time) -> String {
    let (days, second) = (time.sec.div_euclid(86_400), time.sec.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let fraction = match time.nsec {
        0 => String::new(),
        nsec => format!(".{nsec:09}").trim_end_matches('0').to_owned(),
    };
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{fraction}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Reads an RFC 3339 time; `None` for anything else.
pub fn parse_rfc3339(text: &str) -> Option<Time> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let [year, month, day] = numbers(date, '-')?;
    let zone_at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone_at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':')?;
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !in_range || fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nsec = format!("{fraction:0<9}")[..9].parse().ok()?;
    let sec = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset(zone)?;
    Some(Time { sec, nsec })
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts =
        text.split(separator).map(|part| match part.bytes().all(|b| b.is_ascii_digit()) && part.len() <= 4 {
            true => part.parse().ok(),
            false => None,
        });
    let all = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(all)
}

/// Seconds east of UTC.
fn offset(zone: &str) -> Option<i64> {
    let sign = match zone.as_bytes().first()? {
        b'Z' | b'z' => return (zone.len() == 1).then_some(0),
        b'+' => 1,
        _ => -1,
    };
    let [hour, minute, _] = numbers(&format!("{}:0", zone.get(1..)?), ':')?;
    Some(sign * (hour * 3600 + minute * 60))
}

/// Days since 1970-01-01 of a date, and back: howardhinnant.github.io/date_algorithms.html.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_written() {
        for (text, sec, nsec) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2026-11-20T23:59:01.746996138Z", 1_795_219_141, 746_996_138),
            ("2000-02-29T12:00:00.5Z", 951_825_600, 500_000_000),
            ("1969-12-31T23:59:59Z", -1, 0),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
        ] {
            assert_eq!(parse_rfc3339(text), Some(Time { sec, nsec }), "{text}");
            assert_eq!(rfc3339(Time { sec, nsec }), text);
        }
        assert_eq!(parse_rfc3339("2026-01-01T02:00:00+02:00"), parse_rfc3339("2026-01-01T00:00:00Z"));
        for bad in
            ["", "2026", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00.Z", "x-01-01T00:00:00Z"]
        {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }
}
