//! What a rule decided before.

use super::verdict::Decision;
use crate::base::Moment;

/// How many changes of mind are kept: an incident has some six, from `within_limits` over `holding`,
/// `fire` and `not_worse` to `clear`. 2 KiB a rule.
pub(super) const KEPT: usize = 16;

/// A decision that was other than the one before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Said {
    /// When.
    pub at: Moment,
    /// The metric's value then, in its unit.
    pub value: Option<f64>,
    /// What was decided.
    pub decision: Decision,
}

/// The last changes of mind of one rule. Allocates nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    said: [Option<Said>; KEPT],
    next: usize,
}

impl Past {
    /// Keeps `said`, in place of the oldest.
    pub(super) fn push(&mut self, said: Said) {
        if let Some(slot) = self.said.get_mut(self.next) {
            *slot = Some(said);
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// What is kept, the newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = Said> {
        let (newer, older) = self.said.split_at_checked(self.next).unwrap_or((&self.said, &[]));
        newer.iter().rev().chain(older.iter().rev()).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Hold;

    #[test]
    fn the_newest_come_first_and_the_oldest_go() {
        let mut past = Past::default();
        assert_eq!(past.newest_first().count(), 0);
        for n in 0..KEPT as u64 + 3 {
            let decision = Decision::Hold(Hold::NoValue);
            past.push(Said { at: Moment::from_nanos(n), value: None, decision });
            let times: Vec<u64> = past.newest_first().map(|said| said.at.as_nanos()).collect();
            let oldest = (n + 1).saturating_sub(KEPT as u64);
            assert_eq!(times, (oldest..=n).rev().collect::<Vec<_>>());
        }
    }
}
