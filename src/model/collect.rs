//! Files of custom collectors: their names, and the selection of an incident.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Maximum length of a name. The full file name (service, instance, number, `custom.` and this
/// name) stays below the 255 bytes that file systems allow.
const MAX_NAME_LEN: usize = 64;

/// The file name of a custom collector, such as `running_queries.txt`.
///
/// In an incident it follows `{service}_{instance}.{seq}.custom.`, so no name can collide with a
/// built-in artifact.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(Arc<str>);

impl FileName {
    /// Returns the name as a string slice.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An error from parsing a [`FileName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a valid file name: write 1 to {MAX_NAME_LEN} letters, digits, `-`, `_` or `.`, \
     without a `.` at either end and without `.part` at the end"
)]
pub struct ParseFileNameError(String);

impl FromStr for FileName {
    type Err = ParseFileNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_valid = (1..=MAX_NAME_LEN).contains(&text.len())
            && text.chars().all(is_allowed)
            && !text.starts_with('.')
            && !text.ends_with('.')
            && !text.ends_with(".part");
        is_valid.then(|| Self(text.into())).ok_or_else(|| ParseFileNameError(text.to_owned()))
    }
}

/// A selection of custom collectors for an incident.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum CollectorSelection {
    /// All registered collectors.
    All,
    /// The collectors of these file names.
    Only(BTreeSet<FileName>),
}

impl CollectorSelection {
    /// The empty selection.
    pub const EMPTY: Self = Self::Only(BTreeSet::new());

    /// Returns `true` if the selection is empty.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Only(names) if names.is_empty())
    }

    /// Returns `true` if the file `name` is selected.
    pub fn includes(&self, name: &FileName) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }

    /// Returns the names selected individually. The iterator is empty for
    /// [`CollectorSelection::All`].
    pub fn names(&self) -> impl Iterator<Item = &FileName> {
        match self {
            Self::All => None,
            Self::Only(names) => Some(names.iter()),
        }
        .into_iter()
        .flatten()
    }

    /// Adds the selection `other` to this one.
    pub fn add(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Only(names), Self::Only(more)) => names.extend(more.iter().cloned()),
        }
    }
}

impl FromIterator<FileName> for CollectorSelection {
    fn from_iter<I: IntoIterator<Item = FileName>>(names: I) -> Self {
        Self::Only(names.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_validated() {
        for name in ["a", "running_queries.txt", "pool-2.json", "a..b", &"x".repeat(64)] {
            assert_eq!(name.parse::<FileName>().unwrap().as_str(), name);
        }
        for name in [
            "",
            ".",
            "..",
            ".hidden",
            "a.",
            "a/b",
            "../a",
            "a b",
            "a\0",
            "é",
            "a.part",
            &"x".repeat(65),
        ] {
            assert!(name.parse::<FileName>().is_err(), "{name}");
        }
    }

    #[test]
    fn adding_selections_gives_their_union() {
        let name = |text: &str| text.parse::<FileName>().unwrap();
        let mut wanted = CollectorSelection::EMPTY;
        assert!(wanted.is_empty() && !wanted.includes(&name("a")));
        wanted.add(&CollectorSelection::from_iter([name("a")]));
        wanted.add(&CollectorSelection::from_iter([name("b")]));
        assert!(wanted.includes(&name("a")) && wanted.includes(&name("b")));
        assert!(!wanted.includes(&name("c")) && !wanted.is_empty());
        wanted.add(&CollectorSelection::All);
        wanted.add(&CollectorSelection::EMPTY);
        assert_eq!(wanted, CollectorSelection::All);
    }
}
