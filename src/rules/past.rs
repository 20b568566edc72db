//! Earlier decisions of a rule.

use super::verdict::Decision;
use crate::base::Moment;

/// Number of decisions kept, 2 KiB a rule. An incident has about six changes, from `within_limits`
/// over `holding`, `fire` and `not_worse` to `clear`.
pub(super) const KEPT: usize = 16;

/// A decision that differs in kind from the one before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecisionChange {
    /// Time of the decision.
    pub at: Moment,
    /// Value of the metric at that time, in its unit.
    pub value: Option<f64>,
    /// The decision.
    pub decision: Decision,
}

/// The last changes of one rule's decision. Allocates nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct DecisionHistory {
    said: [Option<DecisionChange>; KEPT],
    next: usize,
}

impl DecisionHistory {
    /// Adds `said` and drops the oldest decision.
    pub(super) fn push(&mut self, said: DecisionChange) {
        if let Some(slot) = self.said.get_mut(self.next) {
            *slot = Some(said);
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// Returns the decisions, the newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = DecisionChange> {
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
        let mut past = DecisionHistory::default();
        assert_eq!(past.newest_first().count(), 0);
        for n in 0..KEPT as u64 + 3 {
            let decision = Decision::Hold(Hold::NoValue);
            past.push(DecisionChange { at: Moment::from_nanos(n), value: None, decision });
            let times: Vec<u64> = past.newest_first().map(|said| said.at.as_nanos()).collect();
            let oldest = (n + 1).saturating_sub(KEPT as u64);
            assert_eq!(times, (oldest..=n).rev().collect::<Vec<_>>());
        }
    }
}
