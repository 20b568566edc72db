//! What was not recorded, and why.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// One cause and how often it struck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// What was lost and why, in words: `samples dropped: buffer full`.
    pub cause: Cow<'static, str>,
    /// How many.
    pub count: u64,
}

/// Losses by cause; empty when everything was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Losses(Vec<Loss>);

impl Losses {
    /// Counts `count` more of `cause`; zero is not an entry.
    pub fn add(&mut self, cause: impl Into<Cow<'static, str>>, count: u64) {
        if count == 0 {
            return;
        }
        let cause = cause.into();
        match self.0.iter_mut().find(|loss| loss.cause == cause) {
            Some(loss) => loss.count += count,
            None => self.0.push(Loss { cause, count }),
        }
    }

    /// Counts all of `other` too.
    pub fn merge(&mut self, other: &Self) {
        for loss in &other.0 {
            self.add(loss.cause.clone(), loss.count);
        }
    }

    /// Whether nothing was lost.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries, in the order their causes first struck.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Loss> {
        self.0.iter()
    }
}
