//! Names that users give to objects.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A name: 1 to 63 of `a-z A-Z 0-9 . _ -`, starting with a letter or digit; never spelled like an id.
///
/// The alphabet is what store keys, file names, LVM tags and NBD export names all take as they are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name must not be empty")]
    Empty,
    #[error("a name has at most {max} characters, this one has {length}", max = Name::MAX)]
    TooLong { length: usize },
    #[error("'{name}' is not a name: {character:?} is not allowed (letters, digits, '.', '_' and '-' are)")]
    Character { name: String, character: char },
    #[error("'{name}' is not a name: it must start with a letter or a digit")]
    Start { name: String },
    #[error("'{name}' is not a name: it is spelled like an id")]
    LikeId { name: String },
}

impl Name {
    /// Longest name, in characters (all ASCII).
    pub const MAX: usize = 63;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that comes closest to `text`, whatever that is; `fallback` where nothing of it can stay.
    pub fn resembling(text: &str, fallback: &'static str) -> Self {
        let letter = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
        let close: String =
            text.chars().map(letter).skip_while(|c| !c.is_ascii_alphanumeric()).take(Self::MAX).collect();
        close.parse().unwrap_or_else(|_| Self(fallback.into()))
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let length = text.chars().count();
        if length > Self::MAX {
            return Err(NameError::TooLong { length });
        }
        let name = || text.to_owned();
        if let Some(character) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
            return Err(NameError::Character { name: name(), character });
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(NameError::Start { name: name() });
        }
        if uuid::Uuid::try_parse(text).is_ok() {
            return Err(NameError::LikeId { name: name() });
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0.into()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_taken() {
        for text in ["a", "db-01", "ubuntu-24.04", "Vol_7", "0", &"x".repeat(63)] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn any_text_has_a_name_that_comes_close() {
        for (text, name) in [("db-01.lan", "db-01.lan"), ("-my host", "my-host"), ("", "service"), ("ä", "service")] {
            assert_eq!(Name::resembling(text, "service").as_str(), name);
        }
    }

    #[test]
    fn names_that_would_break_a_key_a_path_or_a_lookup_are_refused() {
        for text in
            ["", "-a", ".", "..", "a/b", "a b", "ä", "a\n", "0198c1f2-6c3e-7d1a-9b1f-3f0f5d0a7c11", &"x".repeat(64)]
        {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
    }
}
