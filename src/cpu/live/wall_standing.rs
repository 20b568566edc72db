//! How threads are found standing: their names, states and where in the kernel they wait, as numbers.

use std::collections::HashMap;

/// So many kinds of standing (thread's name, state, wait channel) are told apart.
const MAX_STANDINGS: usize = 8192;

/// How a thread was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Standing {
    pub(super) thread: String,
    pub(super) state: &'static str,
    /// The kernel's function it waits in; empty for none.
    pub(super) wait: String,
    /// Why there is no stack; empty when there is.
    pub(super) why: &'static str,
}

/// The numbers of standings.
#[derive(Default)]
pub(super) struct Standings {
    known: Vec<Standing>,
    numbers: HashMap<Standing, u32>,
}

impl Standings {
    /// Its number; of those beyond [`MAX_STANDINGS`] all in one state have one.
    pub(super) fn number(&mut self, standing: Standing) -> u32 {
        if let Some(&number) = self.numbers.get(&standing) {
            return number;
        }
        if self.known.len() >= MAX_STANDINGS {
            let state = standing.state;
            let rest = Standing { thread: "(others)".to_owned(), state, ..Standing::default() };
            // As many as there are states.
            return self.numbers.get(&rest).copied().unwrap_or_else(|| self.add(rest));
        }
        self.add(standing)
    }

    fn add(&mut self, standing: Standing) -> u32 {
        let number = self.known.len() as u32;
        self.known.push(standing.clone());
        self.numbers.insert(standing, number);
        number
    }

    pub(super) fn get(&self, number: u32) -> Option<&Standing> {
        self.known.get(number as usize)
    }
}
