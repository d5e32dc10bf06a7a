//! PAX extended headers: `LENGTH KEY=VALUE\n` records (POSIX pax, pax Extended Header).

use std::collections::HashSet;

use layer::Time;

use super::sparse::{self, Segment};
use crate::error::shown;
use crate::manifest::base64;

/// What the records of one extended header say of the next member.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// GNU's sparse records, of the forms 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    /// `size` in 0.x, `realsize` in 1.0.
    real_size: Option<u64>,
    blocks: Option<u64>,
    map: Option<Vec<Segment>>,
    /// 0.0: offsets and lengths as records of their own, in turn.
    pairs: Vec<Segment>,
    open_offset: Option<u64>,
}

/// Where the map of a sparse member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SparseForm {
    /// 0.0 and 0.1.
    InHeader,
    /// 1.0.
    InBody,
}

impl Pax {
    pub(super) fn read(content: &[u8]) -> Result<Self, String> {
        let mut pax = Pax::default();
        let mut seen = HashSet::new();
        for record in Records(content) {
            let (key, value) = record?;
            let repeats = matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes");
            if !repeats && !seen.insert(key) {
                return Err(format!("the PAX record '{}' is given twice", shown(key)));
            }
            pax.take(key, value).map_err(|why| format!("PAX record '{}': {why}", shown(key)))?;
        }
        if pax.sparse.open_offset.is_some() {
            return Err("a sparse offset without a length".into());
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        // An empty value takes back what a global header said; those are not used for any of these.
        let is_set = !value.is_empty();
        match key {
            b"path" if is_set => self.path = Some(name(value)?),
            b"linkpath" if is_set => self.linkpath = Some(name(value)?),
            b"size" if is_set => self.size = Some(decimal(value)?),
            b"uid" if is_set => self.uid = Some(id(value)?),
            b"gid" if is_set => self.gid = Some(id(value)?),
            b"mtime" if is_set => self.mtime = Some(time(value)?),
            b"SCHILY.realsize" => return Err("star's sparse members are not supported".into()),
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(attribute, value.to_vec())?;
                } else if let Some(attribute) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = base64(value).ok_or("its value is no base64")?;
                    self.xattr(&percent_decode(attribute)?, value)?;
                } else if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(field, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, attribute: &[u8], value: Vec<u8>) -> Result<(), String> {
        if attribute.is_empty() || attribute.contains(&0) {
            return Err("an extended attribute without a name, or with a NUL byte in it".into());
        }
        match self.xattrs.iter().find(|(name, _)| name == attribute) {
            // libarchive writes both spellings.
            Some((_, same)) if *same == value => Ok(()),
            Some(_) => Err("the attribute is given twice, with different values".into()),
            None => {
                self.xattrs.push((attribute.to_vec(), value));
                Ok(())
            }
        }
    }
}

/// Checks a global header: it may say what concerns no member's meaning (a comment), nothing else.
///
/// POSIX lets it rename, resize and re-own all members behind it; Go's reader, and with it docker and containerd, ignores that. One tar
/// would be two different trees.
pub(super) fn check_global(content: &[u8]) -> Result<(), String> {
    const MEANS_SOMETHING: [&[u8]; 6] = [b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"];
    const PREFIXES: [&[u8]; 3] = [b"SCHILY.", b"LIBARCHIVE.xattr.", b"GNU.sparse."];
    for record in Records(content) {
        let (key, value) = record?;
        let means = MEANS_SOMETHING.contains(&key) || PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        if means && !value.is_empty() {
            return Err(format!(
                "a global PAX header sets '{}' for all members, on which readers of layers disagree",
                shown(key)
            ));
        }
    }
    Ok(())
}

impl PaxSparse {
    pub(super) fn form(&self) -> Option<SparseForm> {
        match (self.major, self.minor) {
            (Some(1), Some(0)) => Some(SparseForm::InBody),
            (Some(_), _) | (_, Some(_)) => Some(SparseForm::InHeader),
            _ if self.map.is_some() || self.blocks.is_some() || !self.pairs.is_empty() || self.real_size.is_some() => {
                Some(SparseForm::InHeader)
            }
            _ => None,
        }
    }

    /// Returns the file's length and, if the header has it, its map.
    pub(super) fn size_and_map(self) -> Result<(u64, Vec<Segment>), String> {
        if !matches!((self.major, self.minor), (None, None) | (Some(0), Some(0 | 1)) | (Some(1), Some(0))) {
            return Err("GNU sparse members of this version are not known".into());
        }
        let size = self.real_size.ok_or("a sparse member without its real size")?;
        if self.major == Some(1) {
            return match self.map.is_some() || !self.pairs.is_empty() {
                true => Err("a sparse member with two maps".into()),
                false => Ok((size, Vec::new())),
            };
        }
        let map = match (self.map, self.pairs.is_empty()) {
            (Some(map), true) => map,
            (Some(_), false) => return Err("a sparse member with two maps".into()),
            (None, _) => self.pairs,
        };
        match self.blocks {
            Some(blocks) if blocks != map.len() as u64 => {
                Err(format!("a sparse map of {} segments that says it has {blocks}", map.len()))
            }
            _ => Ok((size, map)),
        }
    }

    fn take(&mut self, field: &[u8], value: &[u8]) -> Result<(), String> {
        match field {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(name(value)?),
            b"size" | b"realsize" => {
                let size = decimal(value)?;
                if self.real_size.replace(size).is_some_and(|before| before != size) {
                    return Err("the real size is given twice".into());
                }
            }
            b"numblocks" => self.blocks = Some(decimal(value)?),
            b"map" => self.map = Some(sparse::read_comma_map(value)?),
            b"offset" => {
                if self.open_offset.replace(decimal(value)?).is_some() {
                    return Err("two offsets without a length between".into());
                }
            }
            b"numbytes" => {
                let offset = self.open_offset.take().ok_or("a length without an offset")?;
                self.pairs.push(Segment { offset, len: decimal(value)? });
            }
            _ => return Err("not a record that is known".into()),
        }
        Ok(())
    }
}

/// The records of an extended header; ends with the first that is malformed.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0);
        self.0 = record.map_or(b"", |(.., rest)| rest);
        let malformed = || "a malformed PAX record".to_owned();
        Some(record.map(|(key, value, _)| (key, value)).ok_or_else(malformed))
    }
}

fn split_record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().take(20).position(|&b| b == b' ')?;
    let len = usize::try_from(decimal(&content[..space]).ok()?).ok()?;
    let record = content.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=')?;
    let key = &record[..equals];
    let good = !key.is_empty() && !key.contains(&0);
    good.then(|| (key, &record[equals + 1..], &content[len..]))
}

pub(super) fn decimal(text: &[u8]) -> Result<u64, String> {
    let bad = || format!("'{}' is no number", shown(text));
    if text.is_empty() {
        return Err(bad());
    }
    text.iter()
        .try_fold(0u64, |value, digit| match digit {
            b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
            _ => None,
        })
        .filter(|&value| i64::try_from(value).is_ok())
        .ok_or_else(bad)
}

fn id(text: &[u8]) -> Result<i64, String> {
    let (sign, digits) = text.strip_prefix(b"-").map_or((1, text), |digits| (-1, digits));
    // It fits: `decimal` stays below 2^63.
    decimal(digits).map(|value| sign * value as i64)
}

/// Seconds since the epoch: `[-]DIGITS[.DIGITS]`; what is finer than a nanosecond is cut off towards the past.
fn time(text: &[u8]) -> Result<Time, String> {
    let bad = || format!("'{}' is no time", shown(text));
    let (negative, digits) = text.strip_prefix(b"-").map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = match digits.iter().position(|&b| b == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let sec = decimal(whole).map_err(|_| bad())? as i64;
    let mut nsec = 0;
    for at in 0..9 {
        nsec = nsec * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'));
    }
    Ok(match (negative, nsec) {
        (false, nsec) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec: 0 },
        (true, nsec) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

fn name(value: &[u8]) -> Result<Vec<u8>, String> {
    if value.contains(&0) { Err("a NUL byte in it".into()) } else { Ok(value.to_vec()) }
}

fn percent_decode(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut parts = text.split(|&b| b == b'%');
    let mut bytes = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let hex = part
            .get(..2)
            .filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))
            .and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).ok_or("a bad % in its name")?;
        bytes.push(byte);
        bytes.extend_from_slice(&part[2..]);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let len = (1..).find(|len| len - len.to_string().len() == rest).unwrap();
        [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
    }

    #[test]
    fn records_say_what_the_header_cannot() {
        let text = [
            record("path", "ä".repeat(100).as_bytes()),
            record("size", b"8589934592"),
            record("mtime", b"-1.25"),
            record("SCHILY.xattr.user.a", b"x\0\n=y"),
            record("LIBARCHIVE.xattr.user.b%25", b"AP8="),
            record("uname", b"somebody"),
        ];
        let pax = Pax::read(&text.concat()).unwrap();
        assert_eq!(pax.path.unwrap(), "ä".repeat(100).as_bytes());
        assert_eq!((pax.size, pax.mtime), (Some(1 << 33), Some(Time { sec: -2, nsec: 750_000_000 })));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x\0\n=y".to_vec()), (b"user.b%".to_vec(), b"\0\xff".to_vec())]);
    }

    #[test]
    fn times_have_nanoseconds_and_may_lie_before_1970() {
        for (text, sec, nsec) in [
            ("0", 0, 0),
            ("1.5", 1, 500_000_000),
            ("1.1234567899", 1, 123_456_789),
            ("-1", -1, 0),
            ("-0.000000001", -1, 999_999_999),
            ("9223372036854775807", i64::MAX, 0),
        ] {
            assert_eq!(time(text.as_bytes()), Ok(Time { sec, nsec }), "{text}");
        }
        for bad in ["", "-", ".5", "1.5x", "nan", "1e9", "9223372036854775808", "--1", "+1", "inf"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_and_repeated_records_are_refused() {
        let twice = [record("path", b"a"), record("path", b"b")].concat();
        let conflict = [record("SCHILY.xattr.user.a", b"x"), record("LIBARCHIVE.xattr.user.a", b"eQ==")].concat();
        for bad in [
            &b"5 a=b"[..],
            b"6 a=b\n\0\0",
            b"99 a=b\n",
            b"7 a=b\n",
            b"5 a=b\n",
            b"a=b\n",
            b" a=b\n",
            b"6 =ab\n",
            b"5 ab\n",
            b"-6 a=b\n",
            b"99999999999999999999999 a=b\n",
            b"0 a=b\n",
            b"2 \n",
            b"\0",
            &record("path", b"a\0b"),
            &record("size", b"-1"),
            &record("size", b"9223372036854775808"),
            &record("uid", b"x"),
            &record("mtime", b"NaN"),
            &record("a\0b", b"x"),
            &record("SCHILY.xattr.", b"x"),
            &record("LIBARCHIVE.xattr.a", b"!"),
            &record("LIBARCHIVE.xattr.%g0", b""),
            &record("GNU.sparse.numbytes", b"1"),
            &record("GNU.sparse.offset", b"1"),
            &record("GNU.sparse.new", b"1"),
            &twice,
            &conflict,
        ] {
            assert!(Pax::read(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn a_global_header_may_not_change_members() {
        assert!(check_global(&record("comment", b"from git")).is_ok());
        for key in ["path", "size", "mtime", "SCHILY.xattr.user.a", "GNU.sparse.name"] {
            assert!(check_global(&record(key, b"1")).is_err(), "{key}");
        }
        assert!(check_global(b"x").is_err());
    }
}
