//! containerd's filters: `kind==active,labels."a.b"!=c`, several of them in a list (containerd, filters/filter.go).
//!
//! A filter holds where all its conditions do. Regular expressions (`~=`) are refused: nothing that talks to a snapshotter sends them.

use store::{Snapshot, SnapshotKind};
use tonic::Status;

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
}

impl Filter {
    pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<Filter>, Status> {
        let read = |text: &String| {
            Filter::parse(text).map_err(|why| Status::invalid_argument(format!("filter '{text}': {why}")))
        };
        texts.iter().map(read).collect()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut rest = Reader { text };
        let mut conditions = Vec::new();
        while !rest.text.is_empty() {
            conditions.push(rest.condition()?);
            if !rest.text.is_empty() && !rest.take(",") {
                return Err(format!("',' is missing before '{}'", rest.text));
            }
        }
        Ok(Filter { conditions })
    }

    pub(crate) fn matches(&self, snapshot: &Snapshot) -> bool {
        self.conditions.iter().all(|condition| {
            let found = field(snapshot, &condition.path);
            match &condition.test {
                Test::Present => found.is_some(),
                Test::Equal(value) => found == Some(value),
                Test::NotEqual(value) => found.unwrap_or_default() != value,
            }
        })
    }
}

fn field<'a>(snapshot: &'a Snapshot, path: &[String]) -> Option<&'a str> {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    match names.as_slice() {
        ["kind"] => Some(match snapshot.kind {
            SnapshotKind::View => "view",
            SnapshotKind::Active => "active",
            SnapshotKind::Committed => "committed",
        }),
        ["name"] => Some(&snapshot.name),
        ["parent"] => Some(snapshot.parent.as_deref().unwrap_or_default()),
        ["labels", label @ ..] => snapshot.labels.get(&label.join(".")).map(String::as_str),
        _ => None,
    }
}

struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn take(&mut self, word: &str) -> bool {
        match self.text.strip_prefix(word) {
            Some(rest) => {
                self.text = rest;
                true
            }
            None => false,
        }
    }

    fn condition(&mut self) -> Result<Condition, String> {
        let mut path = vec![self.name()?];
        while self.take(".") {
            path.push(self.name()?);
        }
        let test = match () {
            () if self.take("==") => Test::Equal(self.value()?),
            () if self.take("!=") => Test::NotEqual(self.value()?),
            () if self.take("~=") => return Err("regular expressions are not supported".into()),
            () => Test::Present,
        };
        Ok(Condition { path, test })
    }

    fn name(&mut self) -> Result<String, String> {
        if self.text.starts_with('"') {
            return self.quoted();
        }
        let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '-' || c == '/';
        self.until(|c| !is_name(c)).ok_or_else(|| format!("a name is missing before '{}'", self.text))
    }

    fn value(&mut self) -> Result<String, String> {
        match self.text.starts_with('"') {
            true => self.quoted(),
            false => Ok(self.until(|c| c == ',').unwrap_or_default()),
        }
    }

    fn until(&mut self, ends: impl Fn(char) -> bool) -> Option<String> {
        let len = self.text.find(ends).unwrap_or(self.text.len());
        let (word, rest) = self.text.split_at(len);
        self.text = rest;
        (!word.is_empty()).then(|| word.to_owned())
    }

    /// Reads what Go quotes by `%q`.
    fn quoted(&mut self) -> Result<String, String> {
        let mut value = String::new();
        let mut chars = self.text.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.text = &self.text[at + 1..];
                    return Ok(value);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, 't')) => value.push('\t'),
                    Some((_, c @ ('"' | '\\'))) => value.push(c),
                    _ => return Err("an escape that is not known".into()),
                },
                c => value.push(c),
            }
        }
        Err("a quote is not closed".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, parent: Option<&str>, labels: &[(&str, &str)]) -> Snapshot {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let time = layer::Time { sec: 0, nsec: 0 };
        Snapshot {
            id: String::new(),
            name: name.into(),
            parent: parent.map(str::to_owned),
            kind: SnapshotKind::Active,
            labels: labels.iter().map(owned).collect(),
            created: time,
            updated: time,
            layers: Vec::new(),
            usage: store::Usage::default(),
            upper: "u".into(),
            work: "w".into(),
            target: "t".into(),
            log: "l".into(),
            mount: None,
        }
    }

    #[test]
    fn filters_choose_as_containerd_does() {
        let chosen = [
            ("name==a", true),
            ("name==b", false),
            ("kind==active,parent==p", true),
            ("kind==view", false),
            ("parent!=\"\"", true),
            ("labels.\"containerd.io/snapshot.ref\"==sha256:12,parent==\"p\"", true),
            ("labels.\"containerd.io/snapshot.ref\"==sha256:1", false),
            ("labels.l", true),
            ("labels.m", false),
            ("labels.m!=x", true),
            ("labels.l==\"a,\\\"b\"", true),
            ("unknown", false),
            ("", true),
        ];
        let it = snapshot("a", Some("p"), &[("containerd.io/snapshot.ref", "sha256:12"), ("l", "a,\"b")]);
        for (text, wanted) in chosen {
            assert_eq!(Filter::parse(text).unwrap().matches(&it), wanted, "{text}");
        }
        // A snapshot without a parent has the empty one: so containerd looks for the first layer of an image.
        let first = snapshot("a", None, &[]);
        assert!(Filter::parse("parent==\"\"").unwrap().matches(&first));
        assert!(!Filter::parse("parent!=\"\"").unwrap().matches(&first));
    }

    #[test]
    fn mistakes_are_refused() {
        for text in ["==x", "name==\"x", "name~=x", "name;x", ".x", "labels.\"\\q\""] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
    }
}
