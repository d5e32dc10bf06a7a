//! Which of an index's images runs here (containerd/platforms, compare.go: the rule that everybody follows).

use std::fmt;

use crate::error::{Error, Result};

/// An operating system on a processor, in Go's words: `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    /// The operating system: `linux`.
    pub os: String,
    /// The processor: `amd64`, `arm64`, `arm`...
    pub architecture: String,
    /// Its variant: `v7`; `None` for the processor's default.
    pub variant: Option<String>,
}

impl Platform {
    /// Returns the platform of this host.
    pub fn host() -> Self {
        Platform::new("linux", std::env::consts::ARCH, None)
    }

    /// Reads `OS/ARCH[/VARIANT]`, or `ARCH` alone.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let word =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        match parts[..] {
            _ if !parts.iter().all(word) => {}
            [architecture] => return Ok(Platform::new("linux", architecture, None)),
            [os, architecture] => return Ok(Platform::new(os, architecture, None)),
            [os, architecture, variant] => return Ok(Platform::new(os, architecture, Some(variant))),
            _ => {}
        }
        Err(Error::invalid(format!("platform '{text}'"), "it is spelt OS/ARCH[/VARIANT], as linux/arm64"))
    }

    /// Normalises the spellings that are about (containerd/platforms, database.go).
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let variant = variant.filter(|variant| !variant.is_empty()).map(str::to_ascii_lowercase);
        let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", Some("v1") | None) => ("amd64".into(), None),
            ("x86_64" | "x86-64" | "amd64", _) => ("amd64".into(), variant),
            ("i386" | "i486" | "i586" | "i686" | "x86" | "386", _) => ("386".into(), None),
            ("aarch64" | "arm64", Some("8" | "v8" | "v8.0") | None) => ("arm64".into(), None),
            ("aarch64" | "arm64", _) => ("arm64".into(), variant),
            ("armhf", _) => ("arm".into(), Some("v7".into())),
            ("armel", _) => ("arm".into(), Some("v6".into())),
            ("arm", None | Some("7")) => ("arm".into(), Some("v7".into())),
            ("arm", Some("5" | "6" | "8")) => ("arm".into(), variant.map(|v| format!("v{v}"))),
            ("powerpc64", _) if cfg!(target_endian = "little") => ("ppc64le".into(), variant),
            (other, _) => (other.to_owned(), variant),
        };
        Platform { os: os.to_ascii_lowercase(), architecture, variant }
    }

    /// Returns what runs on this platform, best first.
    pub fn runs(&self) -> Vec<Platform> {
        let like = |architecture: &str, variant: Option<String>| Platform {
            os: self.os.clone(),
            architecture: architecture.to_owned(),
            variant,
        };
        let arm = |highest: u32| (5..=highest).rev().map(|v| like("arm", Some(format!("v{v}"))));
        let number = |prefix: &str| self.variant.as_deref().and_then(|v| v.strip_prefix(prefix)?.parse::<u32>().ok());
        let mut all = vec![self.clone()];
        match self.architecture.as_str() {
            "amd64" => {
                let below = (2..number("v").unwrap_or(1).min(9)).rev();
                all.extend(below.map(|v| like("amd64", Some(format!("v{v}")))));
                all.extend([like("amd64", None), like("386", None)]);
            }
            "arm64" => {
                if let Some(minor) = number("v9.") {
                    all.extend((0..minor.min(20)).rev().map(|v| like("arm64", Some(format!("v9.{v}")))));
                    all.extend((1..=(minor + 5).min(20)).rev().map(|v| like("arm64", Some(format!("v8.{v}")))));
                } else if let Some(minor) = number("v8.") {
                    all.extend((1..minor.min(20)).rev().map(|v| like("arm64", Some(format!("v8.{v}")))));
                }
                all.push(like("arm64", None));
                all.extend(arm(8));
            }
            "arm" => all.extend(arm(number("v").unwrap_or(7).saturating_sub(1).min(8))),
            _ => {}
        }
        all.dedup();
        all
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_platform_lists_what_it_runs_best_first() {
        for (host, runs) in [
            ("linux/amd64", "linux/amd64 linux/386"),
            ("linux/amd64/v3", "linux/amd64/v3 linux/amd64/v2 linux/amd64 linux/386"),
            ("x86_64", "linux/amd64 linux/386"),
            ("linux/arm/v7", "linux/arm/v7 linux/arm/v6 linux/arm/v5"),
            ("linux/arm64", "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5"),
            ("linux/aarch64/v8", "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            let all: Vec<String> = Platform::parse(host).unwrap().runs().iter().map(Platform::to_string).collect();
            assert_eq!(all.join(" "), runs, "{host}");
        }
        for bad in ["", "a//b", "a/b/c/d", "lin ux/amd64"] {
            assert!(Platform::parse(bad).is_err());
        }
    }
}
