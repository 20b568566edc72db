//! What is wrong with settings, in the words a person needs to make it right.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What it says is not valid.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// The thread that watches the files cannot be started.
    #[error("cannot start the thread that watches the configuration: {0}")]
    NoThread(io::Error),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line and column in the file, both from 1, the column in characters; none for settings made in
    /// code.
    pub place: Option<(usize, usize)>,
    /// The key, such as `store.max_bytes`, or `rule[0].abs` for the first rule; empty when it is not
    /// about one key.
    pub key: String,
    /// The value and what would be right.
    pub message: String,
}

impl Problem {
    /// A problem at byte `offset` of `text`.
    pub(super) fn at(text: &str, offset: usize, key: String, message: String) -> Self {
        let before = text.get(..offset.min(text.len())).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Self { place: Some((line, column)), key, message }
    }
}

/// Everything that is wrong, in the order of the file; of more than a hundred problems the rest is
/// counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    origin: Option<PathBuf>,
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    /// The problems in `list`, found in the file `origin` or, without one, in settings made in code.
    pub(super) fn new(origin: Option<&Path>, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| problem.place);
        Self { origin: origin.map(Path::to_owned), list, more: 0 }
    }

    /// The same and `more` that are only counted.
    pub(super) fn and(self, more: usize) -> Self {
        Self { more, ..self }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{}:", origin.display())?;
        }
        if let Some((line, column)) = problem.place {
            write!(f, "{line}:{column}:")?;
        }
        if self.origin.is_some() || problem.place.is_some() {
            f.write_str(" ")?;
        }
        if !problem.key.is_empty() {
            write!(f, "{}: ", problem.key)?;
        }
        f.write_str(&problem.message)
    }
}

impl fmt::Display for Problems {
    /// One problem is one line; several are a line that counts them and one line for each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [problem] = self.list.as_slice() {
            return self.line(f, problem);
        }
        write!(f, "{} problems in the configuration:", self.list.len())?;
        for problem in &self.list {
            f.write_str("\n  ")?;
            self.line(f, problem)?;
        }
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
