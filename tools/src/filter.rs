//! `--filter KEY=VALUE`: which images a command is about. A key that is not known is an error, as docker has it.

use anyhow::{Result, anyhow, bail};
use layer::Time;
use store::{Image, Reference, Store, parse_rfc3339};

use crate::print::units;

/// What `--help` says of filters.
pub(crate) const HELP: &str = "\
Filters:
  dangling=true|false      without a name, or with one
  before=IMAGE             made before that image
  since=IMAGE              made after that image
  until=TIME               made before a time: 2026-01-31, 2026-01-31T12:00:00Z, or an age as 36h
  label=KEY[=VALUE]        with that label
  label!=KEY[=VALUE]       without it
  reference=PATTERN        with a name such as 'redis', 'redis:7*', '*/tools:*'";

/// Everything that was asked for; an image must meet all of it, but of several references one.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    dangling: Option<bool>,
    before: Vec<Time>,
    since: Vec<Time>,
    /// A label, its value if that matters, and whether it is wanted.
    labels: Vec<(String, Option<String>, bool)>,
    references: Vec<String>,
}

impl Filters {
    /// Reads filters; images that they name must be there.
    pub(crate) fn parse(texts: &[String], store: &Store) -> Result<Self> {
        let mut filters = Filters::default();
        for text in texts {
            let (key, value) = text.split_once('=').ok_or_else(|| anyhow!("--filter '{text}': write KEY=VALUE"))?;
            let time_of = |value: &str| -> Result<Time> { Ok(store.image(value)?.created.unwrap_or_default()) };
            match key {
                "dangling" => filters.dangling = Some(truth(text, value)?),
                "before" => filters.before.push(time_of(value)?),
                "since" => filters.since.push(time_of(value)?),
                "until" => filters.before.push(moment(text, value)?),
                "label" | "label!" => {
                    let (label, value) = match value.split_once('=') {
                        Some((label, value)) => (label, Some(value.to_string())),
                        None => (value, None),
                    };
                    filters.labels.push((label.to_string(), value, key == "label"));
                }
                "reference" => filters.references.push(value.to_string()),
                _ => bail!(
                    "--filter '{text}': '{key}' is no filter; there are dangling, before, since, until, label, reference"
                ),
            }
        }
        Ok(filters)
    }

    /// Tells whether the image is meant, whatever it is called.
    pub(crate) fn takes(&self, image: &Image) -> bool {
        let created = image.created.unwrap_or_default();
        let labels = if self.labels.is_empty() { Vec::new() } else { image.labels() };
        let has = |label: &str, value: &Option<String>| {
            labels.iter().any(|(key, known)| key == label && value.as_ref().is_none_or(|value| value == known))
        };
        self.dangling.is_none_or(|dangling| dangling == image.names.is_empty())
            && self.before.iter().all(|before| created < *before)
            && self.since.iter().all(|since| created > *since)
            && self.labels.iter().all(|(label, value, wanted)| has(label, value) == *wanted)
            && (self.references.is_empty() || image.names.iter().any(|name| self.takes_name(name)))
    }

    /// Tells whether a name is one of those that are meant.
    pub(crate) fn takes_name(&self, name: &Reference) -> bool {
        let spellings = [name.familiar(), name.familiar_repository(), name.to_string(), name.repository()];
        let fits = |pattern: &String| spellings.iter().any(|spelling| matches(pattern.as_bytes(), spelling.as_bytes()));
        self.references.is_empty() || self.references.iter().any(fits)
    }
}

fn truth(text: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "1" | "t" | "True" | "TRUE" => Ok(true),
        "false" | "0" | "f" | "False" | "FALSE" => Ok(false),
        _ => bail!("--filter '{text}': '{value}' is neither true nor false"),
    }
}

/// A point in time, or an age: `90s`, `10m`, `36h`, `1h30m`.
fn moment(text: &str, value: &str) -> Result<Time> {
    if let Some(time) = parse_rfc3339(value).or_else(|| parse_rfc3339(&format!("{value}T00:00:00Z"))) {
        return Ok(time);
    }
    if let Ok(sec) = value.parse() {
        return Ok(Time { sec, nsec: 0 });
    }
    let (mut rest, mut age) = (value, 0);
    while let Some(at) = rest.find(|c: char| !c.is_ascii_digit()) {
        let unit = match rest.as_bytes()[at] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => break,
        };
        let Some(part) = rest[..at].parse::<i64>().ok().and_then(|n| n.checked_mul(unit)) else { break };
        age += part;
        rest = &rest[at + 1..];
    }
    match rest.is_empty() && !value.is_empty() {
        true => Ok(Time { sec: units::now().sec - age, nsec: 0 }),
        false => bail!("--filter '{text}': '{value}' is neither a time such as 2026-01-31 nor an age such as 36h"),
    }
}

/// Matches as Go's path.Match: `*` and `?` stand for anything but a slash, `[a-z]` for one of a range.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            matches(rest, text) || text.split_first().is_some_and(|(c, after)| *c != b'/' && matches(pattern, after))
        }
        (Some((b'?', rest)), Some((c, after))) => *c != b'/' && matches(rest, after),
        (Some((b'[', rest)), Some((c, after))) => {
            let Some(end) = rest.iter().position(|b| *b == b']') else { return false };
            let (set, rest) = (&rest[..end], &rest[end + 1..]);
            let (negated, set) = set.strip_prefix(b"^").map_or((false, set), |set| (true, set));
            let mut at = 0;
            let mut found = false;
            while at < set.len() {
                if at + 2 < set.len() && set[at + 1] == b'-' {
                    found |= (set[at]..=set[at + 2]).contains(c);
                    at += 3;
                } else {
                    found |= set[at] == *c;
                    at += 1;
                }
            }
            found != negated && matches(rest, after)
        }
        (Some((p, rest)), Some((c, after))) => p == c && matches(rest, after),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_paths_do() {
        for (pattern, text, fits) in [
            ("redis", "redis", true),
            ("redis", "redis:7", false),
            ("redis:*", "redis:7", true),
            ("re*", "redis:7", true),
            ("*", "a/b", false),
            ("*/b:?", "a/b:1", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("", "", true),
            ("**", "ab", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn times_are_points_or_ages() {
        let at = |value: &str| moment("until", value).unwrap().sec;
        assert_eq!(at("1970-01-02"), 86_400);
        assert_eq!(at("1970-01-01T00:01:00Z"), 60);
        assert_eq!(at("77"), 77);
        let age = units::now().sec - at("1h30m");
        assert!((5399..=5402).contains(&age), "{age}");
        assert!(moment("until=x", "x").is_err() && moment("until=", "").is_err() && moment("until=3w", "3w").is_err());
    }
}
