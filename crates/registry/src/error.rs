//! What a registry, or the way to it, answers when it does not do what was asked.

use std::fmt::Display;

/// The result of an operation on a registry.
pub type Result<T> = std::result::Result<T, Error>;

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store's part failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The registry does not have it.
    #[error("{0}")]
    NotFound(String),
    /// The registry wants other credentials, or any.
    #[error("{0}")]
    Unauthorized(String),
    /// No answer came, or it broke off, too often.
    #[error("{0}")]
    Unreachable(String),
    /// The registry answered with an error.
    #[error("{0}")]
    Refused(String),
    /// What the registry sent breaks a rule.
    #[error("{what}: {why}")]
    Invalid {
        /// Which answer.
        what: String,
        /// Which rule.
        why: String,
    },
    /// A file of settings or credentials, or an option, cannot be used.
    #[error("{what}: {why}")]
    Settings {
        /// Which.
        what: String,
        /// Why.
        why: String,
    },
}

impl Error {
    pub(crate) fn invalid(what: impl Display, why: impl Display) -> Self {
        Error::Invalid { what: what.to_string(), why: why.to_string() }
    }

    pub(crate) fn settings(what: impl Display, why: impl Display) -> Self {
        Error::Settings { what: what.to_string(), why: why.to_string() }
    }

    /// Tells whether another mirror may do better.
    pub(crate) fn is_for_next_mirror(&self) -> bool {
        matches!(
            self,
            Error::NotFound(_)
                | Error::Unauthorized(_)
                | Error::Unreachable(_)
                | Error::Refused(_)
                | Error::Invalid { .. }
        )
    }
}

/// Makes text from outside fit for a message: one line, no control characters, not too long.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut line: String = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push_str("...");
    }
    line
}

/// Says what went wrong below, innermost last.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    shown(&text)
}
