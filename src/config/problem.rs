//! Problems in settings, with the information needed to fix them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Error for settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        source: io::Error,
    },
    /// The file or the settings are not valid.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// The thread that watches the files cannot be started.
    #[error("cannot start the thread that watches the configuration: {0}")]
    ThreadStart(io::Error),
}

/// One problem in the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Problem {
    /// Line and column in the file, both from 1, the column in characters. `None` for settings made
    /// in code.
    pub position: Option<(usize, usize)>,
    /// Key such as `store.max_bytes`, or `rule[0].abs` for the first rule. Empty if the problem is
    /// not about one key.
    pub key: String,
    /// The value and the valid form.
    pub message: String,
}

impl Problem {
    /// Returns a problem at byte `offset` of `text`.
    pub(super) fn at_offset(text: &str, offset: usize, key: String, message: String) -> Self {
        let before = text.get(..offset.min(text.len())).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Self { position: Some((line, column)), key, message }
    }
}

/// All problems of a configuration, in the order of the file. At most 100 are kept; further ones
/// are only counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    origin: Option<PathBuf>,
    problems: Vec<Problem>,
    omitted: usize,
}

impl Problems {
    /// Returns `problems`, sorted by position. `origin` is their file, or `None` for settings made
    /// in code.
    pub(super) fn new(origin: Option<&Path>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.position);
        Self { origin: origin.map(Path::to_owned), problems, omitted: 0 }
    }

    /// Adds `omitted` problems that are only counted.
    pub(super) fn with_omitted(self, omitted: usize) -> Self {
        Self { omitted, ..self }
    }

    /// Returns the problems that were kept.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    fn write_line(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{}:", origin.display())?;
        }
        if let Some((line, column)) = problem.position {
            write!(f, "{line}:{column}:")?;
        }
        if self.origin.is_some() || problem.position.is_some() {
            f.write_str(" ")?;
        }
        if !problem.key.is_empty() {
            write!(f, "{}: ", problem.key)?;
        }
        f.write_str(&problem.message)
    }
}

impl fmt::Display for Problems {
    /// Writes one line for a single problem. Several problems get a line with their number and one
    /// line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [problem] = self.problems.as_slice() {
            return self.write_line(f, problem);
        }
        write!(f, "{} problems in the configuration:", self.problems.len())?;
        for problem in &self.problems {
            f.write_str("\n  ")?;
            self.write_line(f, problem)?;
        }
        if self.omitted > 0 {
            write!(f, "\n  and {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
