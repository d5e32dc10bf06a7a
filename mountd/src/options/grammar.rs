//! The grammar: words into flags, positional arguments and single `-o` options. Knows no option's meaning.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::Failure;

/// What the words say, before any option is looked at.
pub(super) enum Line {
    Help,
    Version,
    Mount(MountLine),
}

/// The words of a mount.
#[derive(Default)]
pub(super) struct MountLine {
    pub(super) foreground: bool,
    pub(super) debug: bool,
    pub(super) single: bool,
    pub(super) source: Option<OsString>,
    pub(super) target: OsString,
    pub(super) options: Vec<Given>,
}

/// One option as it was given, escapes still in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) name: String,
    pub(super) value: Option<Vec<u8>>,
}

impl Given {
    /// Returns the option as the user typed it, for messages.
    pub(super) fn spelled(&self) -> String {
        match &self.value {
            None => self.name.clone(),
            Some(value) => format!("{}={}", self.name, String::from_utf8_lossy(value)),
        }
    }
}

pub(super) fn read<W: AsRef<OsStr>>(words: &[W]) -> Result<Line, Failure> {
    let mut line = MountLine::default();
    let mut positional = Vec::new();
    let mut words = words.iter().map(|w| w.as_ref().as_bytes());
    let mut only_positional = false;
    while let Some(word) = words.next() {
        match word {
            _ if only_positional => positional.push(word),
            b"--" => only_positional = true,
            b"--help" => return Ok(Line::Help),
            b"--version" => return Ok(Line::Version),
            b"--debug" => (line.debug, line.foreground) = (true, true),
            b"--foreground" => line.foreground = true,
            [b'-', b'-', ..] => return Err(unknown_flag(word)),
            [b'-', letters @ ..] if !letters.is_empty() => {
                if let Some(asked) = short_flags(word, letters, &mut words, &mut line)? {
                    return Ok(asked);
                }
            }
            _ => positional.push(word),
        }
    }
    let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    (line.source, line.target) = match *positional.as_slice() {
        [] => return Err(Failure::new("no mount point given: name the directory to mount on, last on the line")),
        [target] => (None, owned(target)),
        [source, target] => (Some(owned(source)), owned(target)),
        [_, _, extra, ..] => {
            return Err(Failure::new(format!(
                "too many arguments at '{}': give [SOURCE] TARGET",
                String::from_utf8_lossy(extra)
            )));
        }
    };
    Ok(Line::Mount(line))
}

/// Reads a cluster such as `-f`, `-fd`, `-oro`, `-fo OPTS`.
fn short_flags<'a>(
    word: &[u8],
    letters: &'a [u8],
    words: &mut impl Iterator<Item = &'a [u8]>,
    line: &mut MountLine,
) -> Result<Option<Line>, Failure> {
    for (i, letter) in letters.iter().enumerate() {
        match letter {
            b'h' => return Ok(Some(Line::Help)),
            b'V' => return Ok(Some(Line::Version)),
            b'f' => line.foreground = true,
            // As libfuse has it: debug output has nowhere to go in the background.
            b'd' => (line.debug, line.foreground) = (true, true),
            b's' => line.single = true,
            b'o' => {
                let attached = &letters[i + 1..];
                let list = if attached.is_empty() { words.next() } else { Some(attached) };
                let list = list.ok_or_else(|| Failure::new("-o needs a list of options behind it"))?;
                split(list, &mut line.options)?;
                return Ok(None);
            }
            _ => return Err(unknown_flag(word)),
        }
    }
    Ok(None)
}

fn unknown_flag(word: &[u8]) -> Failure {
    Failure::new(format!("unknown argument '{}': see --help", String::from_utf8_lossy(word)))
}

/// Splits a list at its commas; `\,` is no comma, and neither is one inside the quotes of a SELinux context.
fn split(list: &[u8], into: &mut Vec<Given>) -> Result<(), Failure> {
    let mut rest = list;
    while !rest.is_empty() {
        let end = end_of_option(rest)?;
        // Runtimes leave empty options behind (`workdir=W,,volatile`).
        if end > 0 {
            into.push(given(&rest[..end])?);
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Ok(())
}

fn end_of_option(list: &[u8]) -> Result<usize, Failure> {
    let mut i = quoted_context(list)?;
    while let Some(&byte) = list.get(i) {
        match byte {
            b',' => return Ok(i),
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
    Ok(list.len())
}

/// Returns the length of `context="..."` at the start of `list`, 0 where there is no such thing.
///
/// Runtimes write `context="system_u:object_r:container_file_t:s0:c1,c2"`, as mount(8) wants it. Only contexts are read so: a
/// directory's name may begin with a quote.
fn quoted_context(list: &[u8]) -> Result<usize, Failure> {
    const NAMES: [&[u8]; 4] = [b"context=\"", b"fscontext=\"", b"defcontext=\"", b"rootcontext=\""];
    let Some(name) = NAMES.into_iter().find(|name| list.starts_with(name)) else { return Ok(0) };
    let close = list[name.len()..].iter().position(|&b| b == b'"');
    let close = close
        .ok_or_else(|| Failure::new(format!("option '{}': the quote is not closed", String::from_utf8_lossy(list))))?;
    Ok(name.len() + close + 1)
}

fn given(option: &[u8]) -> Result<Given, Failure> {
    let (name, value) = match option.iter().position(|&b| b == b'=') {
        Some(equals) => (&option[..equals], Some(option[equals + 1..].to_vec())),
        None => (option, None),
    };
    let name = str::from_utf8(name)
        .map_err(|_| Failure::new(format!("unknown option '{}'", String::from_utf8_lossy(option))))?;
    Ok(Given { name: name.to_owned(), value })
}

/// Takes the escapes out: a backslash stands for the byte behind it, as in kernel overlayfs's options.
pub(super) fn unescape(value: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    plain
}

/// Splits at colons that are not escaped; the parts keep their escapes.
pub(super) fn split_colons(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut escaped = false;
    value.split(move |&byte| {
        let separates = byte == b':' && !escaped;
        escaped = byte == b'\\' && !escaped;
        separates
    })
}
