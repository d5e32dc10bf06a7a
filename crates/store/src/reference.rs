//! Image references as people write them, completed and checked (distribution/reference, normalize.go and regexp.go).

use std::fmt;
use std::str::FromStr;

use layer::Digest;

const DEFAULT_DOMAIN: &str = "docker.io";
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A completed image reference: `redis` is `docker.io/library/redis:latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no image reference: {why}")]
pub struct ReferenceError {
    text: String,
    why: String,
}

impl Reference {
    /// Reads and completes a reference: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`.
    ///
    /// The first component is a host only if a `/` follows and it is `localhost`, or has a `.`, a `:` or an upper-case letter; else
    /// the host is `docker.io`, and a single component gets `library/`. Without tag and digest the tag is `latest`.
    ///
    /// # Errors
    /// The rule that the text breaks.
    pub fn parse(text: &str) -> std::result::Result<Self, ReferenceError> {
        read(text).map_err(|why| ReferenceError { text: text.chars().take(300).collect(), why })
    }

    /// Returns the registry's host, with its port.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the repository's path in its registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns host and path: `docker.io/library/redis`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Returns the repository as docker shows it: `redis`, `user/app`, `quay.io/a/b`.
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        match self.path.strip_prefix("library/") {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// Returns the whole reference as docker shows it: `redis:latest`.
    pub fn familiar(&self) -> String {
        self.familiar_repository() + &self.suffix()
    }

    /// Returns the tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest; where there is a tag too, the digest wins.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns the same name without a digest; `latest` if it had no tag.
    pub fn tagged(&self) -> Self {
        let tag = self.tag.clone().unwrap_or_else(|| "latest".to_owned());
        Reference { tag: Some(tag), digest: None, ..self.clone() }
    }

    /// Returns the repository with this tag.
    ///
    /// # Errors
    /// What is no tag.
    pub fn with_tag(&self, tag: &str) -> std::result::Result<Self, ReferenceError> {
        Reference::parse(&format!("{}:{tag}", self.repository()))
    }

    /// Returns the repository with this digest, and no tag.
    pub fn pinned(&self, digest: Digest) -> Self {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> std::result::Result<Self, ReferenceError> {
        Reference::parse(text)
    }
}

fn read(text: &str) -> std::result::Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("64 hex digits are an ID".into());
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|e| e.to_string())?)),
        None => (text, None),
    };
    let (domain, rest) = split_domain(name);
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    check_domain(&domain)?;
    check_path(path)?;
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let library = domain == DEFAULT_DOMAIN && !path.contains('/');
    let path = if library { format!("library/{path}") } else { path.to_owned() };
    if domain.len() + 1 + path.len() > NAME_MAX {
        return Err(format!("the name is longer than {NAME_MAX} characters"));
    }
    let tag = match (tag, digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { domain, path, tag, digest })
}

fn split_domain(name: &str) -> (String, &str) {
    let is_host = |first: &str| {
        first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    match name.split_once('/') {
        Some((first, rest)) if is_host(first) => {
            let domain = if first == "index.docker.io" { DEFAULT_DOMAIN } else { first };
            (domain.to_owned(), rest)
        }
        _ => (DEFAULT_DOMAIN.to_owned(), name),
    }
}

fn check_domain(domain: &str) -> std::result::Result<(), String> {
    let bad = || format!("'{domain}' is no host");
    let (host, port) = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return Err(bad());
            }
            (None, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(bad)?) })
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let label = |label: &str| {
        let inside = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inside && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let host_ok = host.is_none_or(|host| host.split('.').all(label));
    let port_ok = port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    if host_ok && port_ok { Ok(()) } else { Err(bad()) }
}

fn check_path(path: &str) -> std::result::Result<(), String> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a repository must be lower case".into());
    }
    match path.split('/').all(is_component) {
        true => Ok(()),
        false => Err(format!("'{path}' is no repository: components of a-z 0-9, joined by '.', '_', '__' or '-'")),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well = |b: Option<&u8>| b.is_some_and(|&b| is_word(b));
    if !ends_well(bytes.first()) || !ends_well(bytes.last()) {
        return false;
    }
    let separators = component.split(|c: char| c.is_ascii() && is_word(c as u8)).filter(|s| !s.is_empty());
    separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn check_tag(tag: &str) -> std::result::Result<(), String> {
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    match first && tag.len() <= TAG_MAX && tag.bytes().all(inside) {
        true => Ok(()),
        false => Err(format!("'{tag}' is no tag: 1 to {TAG_MAX} of A-Z a-z 0-9 _ . -, the first not . or -")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_references_are_completed() {
        let digest = Digest::of(b"");
        for (given, full, familiar) in [
            ("redis", "docker.io/library/redis:latest", "redis:latest"),
            ("redis:7", "docker.io/library/redis:7", "redis:7"),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            ("docker.io/redis", "docker.io/library/redis:latest", "redis:latest"),
            ("index.docker.io/library/redis", "docker.io/library/redis:latest", "redis:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x", "localhost:5000/a/b:x"),
            ("Host/app", "Host/app:latest", "Host/app:latest"),
            ("quay.io/a/b_c__d--e.f", "quay.io/a/b_c__d--e.f:latest", "quay.io/a/b_c__d--e.f:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("library/x/y", "docker.io/library/x/y:latest", "library/x/y:latest"),
        ] {
            let reference = Reference::parse(given).unwrap();
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, familiar));
            assert_eq!(Reference::parse(full).unwrap(), reference);
        }
        let both = Reference::parse(&format!("redis:7@{digest}")).unwrap();
        assert_eq!((both.tag(), both.digest()), (Some("7"), Some(digest)));
        let digest_only = Reference::parse(&format!("redis@{digest}")).unwrap();
        assert_eq!((digest_only.tag(), digest_only.digest()), (None, Some(digest)));
    }

    #[test]
    fn what_breaks_the_grammar_is_refused() {
        let long = "a".repeat(300);
        let id = Digest::of(b"").hex();
        for bad in [
            "",
            "Redis",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a: b",
            "a___b",
            "a._b",
            "-a",
            "a-",
            "a..b",
            "a@sha256:00",
            "a@",
            "ho_st.x/a",
            "host:port/a",
            "-x.y/a",
            "a\0b",
            "ä",
            "a/../b",
            &long,
            &id,
            &format!("a:{}", "x".repeat(129)),
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
