//! `WWW-Authenticate`: what a registry wants to see before it answers (RFC 9110, section 11; distribution-spec, auth).

/// One way to prove who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password.
    Basic,
    /// A token from another server.
    Bearer {
        /// Where tokens are given out.
        realm: String,
        /// For which service.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
        /// Why the token that was sent is not enough.
        error: Option<String>,
    },
}

/// The longest header that is looked at, in bytes.
const HEADER_MAX: usize = 16 << 10;

/// Reads the values of all such headers; schemes that are not known are left out.
pub(crate) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    headers
        .into_iter()
        .filter(|header| header.len() <= HEADER_MAX)
        .flat_map(|header| Parser { rest: header }.all())
        .collect()
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn all(mut self) -> Vec<Challenge> {
        let mut found = Vec::new();
        loop {
            self.skip(|c| c == ',' || c.is_whitespace());
            let scheme = self.token().to_ascii_lowercase();
            if scheme.is_empty() {
                return found;
            }
            let parameters = self.parameters();
            let value = |name: &str| {
                parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).filter(|v| !v.is_empty())
            };
            match scheme.as_str() {
                "basic" => found.push(Challenge::Basic),
                "bearer" => found.extend(value("realm").map(|realm| Challenge::Bearer {
                    realm,
                    service: value("service"),
                    scope: value("scope"),
                    error: value("error"),
                })),
                _ => {}
            }
        }
    }

    /// Reads `name=value` pairs up to the next scheme or the end.
    fn parameters(&mut self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        loop {
            self.skip(|c| c == ',' || c.is_whitespace());
            let before = self.rest;
            let name = self.token().to_ascii_lowercase();
            self.skip(char::is_whitespace);
            let Some(rest) = self.rest.strip_prefix('=').filter(|_| !name.is_empty()) else {
                // A scheme, or something that is neither; then it must not be met again.
                self.rest = before;
                if name.is_empty() {
                    self.rest = "";
                }
                return found;
            };
            self.rest = rest;
            self.skip(char::is_whitespace);
            let value = if self.rest.starts_with('"') { self.quoted() } else { self.token().to_owned() };
            found.push((name, value));
        }
    }

    fn skip(&mut self, what: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(what);
    }

    fn token(&mut self) -> &str {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/?@".contains(c);
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token
    }

    fn quoted(&mut self) -> String {
        let mut value = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return value;
                }
                '\\' => value.extend(chars.next().map(|(_, c)| c)),
                c => value.push(c),
            }
        }
        self.rest = ""; // without an end it goes to the end
        value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let text = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.into(), service: text(service), scope: text(scope), error: None }
    }

    #[test]
    fn challenges_are_read_as_registries_spell_them() {
        for (header, expected) in [
            (r#"Basic realm="x, y""#, vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (r#"bearer Realm=https://a/t , SERVICE = "s""#, vec![bearer("https://a/t", Some("s"), None)]),
            (r#"Negotiate, Bearer realm="a\"b", Basic realm=x"#, vec![bearer("a\"b", None, None), Challenge::Basic]),
            (r#"Bearer service="x""#, vec![]),
            (r#"Bearer realm="unfinished"#, vec![bearer("unfinished", None, None)]),
            ("", vec![]),
            ("=,=,\"", vec![]),
        ] {
            assert_eq!(parse([header]), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_challenge_is_read_or_left(text in r#"(Bearer|Basic|[ -~]{0,9}|[ ,="\\]|realm|scope|é){0,30}"#) {
            parse([text.as_str()]);
        }

        #[test]
        fn mutated_challenges_are_read_or_left(at in 0usize..90, with in any::<char>()) {
            let text = r#"Bearer realm="https://a.b/token",service="s",scope="repository:a/b:pull", Basic realm="x""#;
            let mut chars: Vec<char> = text.chars().collect();
            let at = at.min(chars.len() - 1);
            chars[at] = with;
            parse([chars.into_iter().collect::<String>().as_str()]);
        }
    }
}
