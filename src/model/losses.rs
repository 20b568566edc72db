//! Data that was not recorded, counted by cause.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A cause of lost data, with its count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Description of what was lost and why: `samples dropped: buffer full`.
    pub cause: Cow<'static, str>,
    /// Number of losses.
    pub count: u64,
}

/// Losses by cause. Empty if everything was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Losses(Vec<Loss>);

impl Losses {
    /// Adds `count` losses of `cause`. A count of 0 adds no entry.
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

    /// Adds all losses of `other`.
    pub fn merge(&mut self, other: &Self) {
        for loss in &other.0 {
            self.add(loss.cause.clone(), loss.count);
        }
    }

    /// Returns `true` if nothing was lost.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the entries, ordered by the first loss of each cause.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Loss> {
        self.0.iter()
    }
}
