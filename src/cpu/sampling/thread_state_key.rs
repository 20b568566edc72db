//! Interned descriptions of thread states: name, state and wait channel.

use std::collections::HashMap;

/// Maximum number of distinct descriptions (thread name, state, wait channel).
const MAX_STANDINGS: usize = 8192;

/// Description of a thread's state at a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ThreadStateKey {
    pub(super) thread: String,
    pub(super) state: &'static str,
    /// Kernel function in which the thread waits; empty if none.
    pub(super) wait: String,
    /// Reason for a missing stack; empty if there is one.
    pub(super) why: &'static str,
}

/// Interner of descriptions.
#[derive(Default)]
pub(super) struct ThreadStateInterner {
    known: Vec<ThreadStateKey>,
    numbers: HashMap<ThreadStateKey, u32>,
}

impl ThreadStateInterner {
    /// Returns the number of a description. Beyond [`MAX_STANDINGS`] all descriptions with one
    /// state share a number.
    pub(super) fn number(&mut self, standing: ThreadStateKey) -> u32 {
        if let Some(&number) = self.numbers.get(&standing) {
            return number;
        }
        if self.known.len() >= MAX_STANDINGS {
            let state = standing.state;
            let rest = ThreadStateKey {
                thread: "(others)".to_owned(),
                state,
                ..ThreadStateKey::default()
            };
            // At most one more for each state.
            return self.numbers.get(&rest).copied().unwrap_or_else(|| self.add(rest));
        }
        self.add(standing)
    }

    fn add(&mut self, standing: ThreadStateKey) -> u32 {
        let number = self.known.len() as u32;
        self.known.push(standing.clone());
        self.numbers.insert(standing, number);
        number
    }

    pub(super) fn get(&self, number: u32) -> Option<&ThreadStateKey> {
        self.known.get(number as usize)
    }
}
