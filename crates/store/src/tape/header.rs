//! One 512-byte header block (POSIX pax, ustar; GNU tar, tar.h; star).

use layer::Dev;

use super::sparse::{self, Segment};

pub(super) const BLOCK: usize = 512;

/// A header block, read field by field.
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Self {
        let form = match (&block[257..265], &block[508..512]) {
            (b"ustar  \0", _) => Form::Gnu,
            (magic, b"tar\0") if magic.starts_with(b"ustar\0") => Form::Star,
            (magic, _) if magic.starts_with(b"ustar\0") => Form::Ustar,
            _ => Form::V7,
        };
        Header { block, form }
    }

    /// Compares the checksum: the sum of all bytes, the field itself taken as spaces; old tars summed signed bytes.
    pub(super) fn check(&self) -> Result<(), String> {
        let stated = octal(&self.block[148..156]).ok_or("its header has no checksum")?;
        let bytes = || self.block[..148].iter().chain(b"        ").chain(&self.block[156..]);
        let unsigned: u64 = bytes().map(|&b| u64::from(b)).sum();
        let signed: i64 = bytes().map(|&b| i64::from(b as i8)).sum();
        match stated == unsigned || i64::try_from(stated) == Ok(signed) {
            true => Ok(()),
            false => Err("the checksum of its header is wrong".into()),
        }
    }

    pub(super) fn flag(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.form {
            Form::Ustar => text(&self.block[345..500]),
            Form::Star => text(&self.block[345..476]),
            Form::V7 | Form::Gnu => b"",
        };
        match prefix {
            b"" => name.to_vec(),
            _ => [prefix, b"/", name].concat(),
        }
    }

    pub(super) fn link(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Result<u32, String> {
        let mode = number(&self.block[100..108], "mode")?;
        u32::try_from(mode).map_err(|_| format!("the mode {mode} is out of range"))
    }

    pub(super) fn uid(&self) -> Result<i64, String> {
        number(&self.block[108..116], "owner")
    }

    pub(super) fn gid(&self) -> Result<i64, String> {
        number(&self.block[116..124], "group")
    }

    pub(super) fn size(&self) -> Result<u64, String> {
        length(&self.block[124..136], "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, String> {
        number(&self.block[136..148], "time")
    }

    pub(super) fn device(&self) -> Result<Dev, String> {
        let half = |field: &[u8]| {
            let number = number(field, "device number")?;
            u32::try_from(number).map_err(|_| format!("the device number {number} is out of range"))
        };
        match self.form {
            Form::V7 => Err("a device without a number".into()),
            _ => Ok(Dev { major: half(&self.block[329..337])?, minor: half(&self.block[337..345])? }),
        }
    }

    /// The part of an old GNU sparse map that stands in the header.
    pub(super) fn sparse_map(&self) -> Result<Vec<Segment>, String> {
        let mut map = Vec::new();
        match self.form {
            Form::Gnu => sparse::read_old_entries(&self.block[386..482], &mut map).map(|()| map),
            _ => Err("a sparse member whose header is not GNU's".into()),
        }
    }

    pub(super) fn is_sparse_extended(&self) -> bool {
        self.block[482] != 0
    }

    pub(super) fn real_size(&self) -> Result<u64, String> {
        length(&self.block[483..495], "real size")
    }
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number that counts bytes.
pub(super) fn length(field: &[u8], what: &str) -> Result<u64, String> {
    let value = number(field, what)?;
    u64::try_from(value).map_err(|_| format!("the {what} {value} is negative"))
}

/// Octal digits between spaces and NULs, or base 256: big-endian two's complement under a first bit of 1 (GNU).
fn number(field: &[u8], what: &str) -> Result<i64, String> {
    let out_of_range = || format!("the {what} is out of range");
    let Some((&first, rest)) = field.split_first() else { return Ok(0) };
    if first & 0x80 == 0 {
        let value = octal(field).ok_or_else(|| format!("the {what} '{}' is no number", field.escape_ascii()))?;
        return i64::try_from(value).map_err(|_| out_of_range());
    }
    // The bit behind the marker is the sign.
    let start = if first & 0x40 == 0 { i64::from(first & 0x3f) } else { i64::from(first as i8) };
    rest.iter().try_fold(start, |value, &byte| Some(value.checked_mul(256)? | i64::from(byte))).ok_or_else(out_of_range)
}

/// Digits between blanks; the first NUL behind them ends the field, whatever follows.
fn octal(field: &[u8]) -> Option<u64> {
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    text(&field[start..]).trim_ascii_end().iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Ok(0o644)),
            (b"    644 ", Ok(0o644)),
            (b"\0\0\0\0\0\0\0\0", Ok(0)),
            (b"77777777777\0", Ok(0o77777777777)),
            (b"777777777777", Ok(0o777777777777)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x02", Ok(0x102)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Ok(-2)),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Ok(i64::MIN)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Ok(i64::MAX)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", Err(())),
            (b"\xc0\0\0\0\0\0\0\0\0\0\0\0", Err(())),
            (b"0000648\0", Err(())),
            (b"-000001\0", Err(())),
            (b"+1\0", Err(())),
            (b"1x\0", Err(())),
        ] {
            assert_eq!(number(field, "x").map_err(|_| ()), value, "{}", field.escape_ascii());
        }
        assert!(length(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", "size").unwrap_err().contains("negative"));
    }
}
