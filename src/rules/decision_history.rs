//! Earlier decisions of a rule.

use super::decision::Decision;
use crate::base::Moment;

/// Number of decisions kept, 2 KiB a rule. An incident has about six changes, from `within_limits`
/// over `holding`, `fire` and `not_worse` to `clear`.
pub(super) const MAX_CHANGES: usize = 16;

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
    changes: [Option<DecisionChange>; MAX_CHANGES],
    next: usize,
}

impl DecisionHistory {
    /// Adds `change` and drops the oldest decision.
    pub(super) fn push(&mut self, change: DecisionChange) {
        if let Some(slot) = self.changes.get_mut(self.next) {
            *slot = Some(change);
        }
        self.next = (self.next + 1) % MAX_CHANGES;
    }

    /// Returns the decisions, the newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = DecisionChange> {
        let (newer, older) =
            self.changes.split_at_checked(self.next).unwrap_or((&self.changes, &[]));
        newer.iter().rev().chain(older.iter().rev()).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::HoldReason;

    #[test]
    fn keeps_latest_changes_newest_first() {
        let mut history = DecisionHistory::default();
        assert_eq!(history.newest_first().count(), 0);
        for n in 0..MAX_CHANGES as u64 + 3 {
            let decision = Decision::Hold(HoldReason::NoValue);
            history.push(DecisionChange { at: Moment::from_nanos(n), value: None, decision });
            let times: Vec<u64> =
                history.newest_first().map(|change| change.at.as_nanos()).collect();
            let oldest = (n + 1).saturating_sub(MAX_CHANGES as u64);
            assert_eq!(times, (oldest..=n).rev().collect::<Vec<_>>());
        }
    }
}
