//! Interned descriptions of thread states: name, state and wait channel.

use std::collections::HashMap;

/// Maximum number of distinct descriptions (thread name, state, wait channel).
const MAX_THREAD_STATES: usize = 8192;

/// Description of a thread's state at a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ThreadStateKey {
    pub(super) thread: String,
    pub(super) state: &'static str,
    /// Kernel function in which the thread waits; empty if none.
    pub(super) wait_channel: String,
    /// Reason for a missing stack; empty if there is one.
    pub(super) missing_stack_reason: &'static str,
}

/// Interner of descriptions.
#[derive(Default)]
pub(super) struct ThreadStateInterner {
    keys: Vec<ThreadStateKey>,
    numbers: HashMap<ThreadStateKey, u32>,
}

impl ThreadStateInterner {
    /// Returns the number of a description. Beyond [`MAX_THREAD_STATES`] all descriptions with one
    /// state share a number.
    pub(super) fn intern(&mut self, key: ThreadStateKey) -> u32 {
        if let Some(&number) = self.numbers.get(&key) {
            return number;
        }
        if self.keys.len() >= MAX_THREAD_STATES {
            let state = key.state;
            let others = ThreadStateKey {
                thread: "(others)".to_owned(),
                state,
                ..ThreadStateKey::default()
            };
            // At most one more for each state.
            return self.numbers.get(&others).copied().unwrap_or_else(|| self.add(others));
        }
        self.add(key)
    }

    fn add(&mut self, key: ThreadStateKey) -> u32 {
        let number = self.keys.len() as u32;
        self.keys.push(key.clone());
        self.numbers.insert(key, number);
        number
    }

    pub(super) fn get(&self, number: u32) -> Option<&ThreadStateKey> {
        self.keys.get(number as usize)
    }
}
