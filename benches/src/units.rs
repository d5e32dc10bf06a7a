//! Numbers as people read them: three digits and a unit.

use serde::Serialize;

/// What a row counts. Less is better in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// Writes a value with three digits: `12.3 ms`, `1.02 GiB`.
    pub fn show(self, value: f64) -> String {
        let (steps, base): (&[&str], f64) = match self {
            Unit::Seconds => {
                return match value {
                    v if v <= 0.0 => "0 s".into(),
                    v if v < 0.999_5e-3 => format!("{} us", digits(v * 1e6)),
                    v if v < 0.999_5 => format!("{} ms", digits(v * 1e3)),
                    v => format!("{} s", digits(v)),
                };
            }
            Unit::Bytes => (&["B", "KiB", "MiB", "GiB", "TiB"], 1024.0),
        };
        let (mut value, mut step) = (value.max(0.0), 0);
        while value >= 999.5 && step + 1 < steps.len() {
            value /= base;
            step += 1;
        }
        format!("{} {}", digits(value), steps[step])
    }
}

/// Writes a ratio: `<0.001x`, `0.06x`, `1.25x`, `14.2x`.
pub(crate) fn ratio(ratio: f64) -> String {
    match ratio {
        r if r < 0.0005 => "<0.001x".into(),
        r if r < 0.0995 => format!("{r:.3}x"),
        r if r < 9.995 => format!("{r:.2}x"),
        r if r < 99.95 => format!("{r:.1}x"),
        r => format!("{r:.0}x"),
    }
}

fn digits(value: f64) -> String {
    let decimals = match value {
        0.0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_a_unit() {
        for (unit, value, text) in [
            (Unit::Seconds, 0.0, "0 s"),
            (Unit::Seconds, 2.39e-5, "23.9 us"),
            (Unit::Seconds, 0.000_999_9, "1.00 ms"),
            (Unit::Seconds, 0.343, "343 ms"),
            (Unit::Seconds, 12.34, "12.3 s"),
            (Unit::Bytes, 0.0, "0 B"),
            (Unit::Bytes, 1023.0, "1.00 KiB"),
            (Unit::Bytes, 1024.0 * 1024.0 * 1024.0, "1.00 GiB"),
        ] {
            assert_eq!(unit.show(value), text);
        }
        assert_eq!([0.0, 0.0512, 1.0, 14.2, 160.0].map(ratio), ["<0.001x", "0.051x", "1.00x", "14.2x", "160x"]);
    }
}
