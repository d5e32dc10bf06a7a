//! Content hashes: of blobs ([`Digest`]), of layers ([`DiffId`]), of stacks ([`ChainId`]).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A SHA-256 content hash, written `sha256:` and 64 lower-case hex digits (OCI image-spec, descriptor.md, Digests).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// The hash of a layer's uncompressed tar stream (OCI image-spec, config.md, Layer DiffID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiffId(pub Digest);

/// The name of a stack of layers (OCI image-spec, config.md, Layer ChainID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(pub Digest);

/// Why a text is not a [`Digest`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// An algorithm that cannot be verified here.
    #[error("digest '{0}': only sha256 can be verified")]
    Algorithm(String),
    /// Not 64 lower-case hex digits.
    #[error("digest '{0}': not 64 lower-case hex digits after 'sha256:'")]
    Encoding(String),
}

impl Digest {
    /// Wraps a finished SHA-256.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }

    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// Returns the hash's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 hex digits, without the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Reads 64 lower-case hex digits, without the algorithm.
    ///
    /// # Errors
    /// [`DigestError::Encoding`].
    pub fn from_hex(hex: &str) -> Result<Self, DigestError> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let bad = || DigestError::Encoding(hex.chars().take(100).collect());
        if hex.len() != 64 {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0]).zip(digit(pair[1])).map(|(h, l)| h << 4 | l).ok_or_else(bad)?;
        }
        Ok(Digest(bytes))
    }
}

impl ChainId {
    /// Names the stack of `layers`, base first; `None` for no layers.
    ///
    /// ChainID(L0) = diffID(L0); then SHA-256 of the ASCII text `ChainID + " " + diffID`.
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        let (base, rest) = layers.split_first()?;
        Some(rest.iter().fold(ChainId(base.0), |chain, layer| chain.then(*layer)))
    }

    /// Names this stack with one more layer on top.
    pub fn then(self, layer: DiffId) -> Self {
        ChainId(Digest::of(format!("{} {}", self.0, layer.0).as_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Digest::from_hex(hex),
            _ => Err(DigestError::Algorithm(text.chars().take(100).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_back_as_written() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    #[test]
    fn other_spellings_are_refused() {
        let upper = Digest::of(b"").hex().to_uppercase();
        assert!(matches!(format!("sha256:{upper}").parse::<Digest>(), Err(DigestError::Encoding(_))));
        assert!(matches!("sha512:00".parse::<Digest>(), Err(DigestError::Algorithm(_))));
        assert!(matches!("sha256:../../etc".parse::<Digest>(), Err(DigestError::Encoding(_))));
        assert!(matches!("sha256:äöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäö".parse::<Digest>(), Err(DigestError::Encoding(_))));
    }

    #[test]
    fn a_chain_names_its_layers_in_order() {
        let (a, b) = (DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b")));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        assert_eq!(ChainId::of(&[a, b]), Some(ChainId(Digest::of(format!("{a} {b}").as_bytes()))));
        assert_ne!(ChainId::of(&[a, b]), ChainId::of(&[b, a]));
    }
}
