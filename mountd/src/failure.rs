//! Why a mount did not come about: one line for whoever asked for it.

use std::fmt;

/// A failure as the user reads it: one line that says what was being done to what, and where there is one, the remedy.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// Makes a failure out of its line; line breaks and other control characters are escaped, so that it stays one line.
    pub fn new(line: impl fmt::Display) -> Self {
        Failure(one_line(&line.to_string()))
    }

    /// Returns the line.
    pub fn line(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Failure {}

impl From<overlay::error::Error> for Failure {
    fn from(error: overlay::error::Error) -> Self {
        Failure::new(error)
    }
}

/// Returns the system's words for an error number.
pub(crate) fn errno_text(errno: impl Into<std::io::Error>) -> String {
    let text = errno.into().to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Escapes control characters: names come from outside, and one line of log or error stays one line.
pub(crate) fn one_line(text: &str) -> String {
    let text = text.trim_end();
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len() + 8), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_one_line_whatever_the_name() {
        assert_eq!(Failure::new("lowerdir /a\nb\x1b[2J: gone\n").line(), "lowerdir /a\\nb\\u{1b}[2J: gone");
    }
}
