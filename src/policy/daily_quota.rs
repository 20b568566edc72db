//! The quota of on-demand captures per 24 hours, and the part of it persisted across restarts.
//!
//! `incidents_per_day` does not apply here: a continuous profiler that pulls three profiles every
//! 15 seconds is a main use of the endpoint. It must neither be limited by that budget nor use up
//! what incidents need. On-demand captures therefore have a separate quota,
//! `budget.streams_per_day`, large enough for several profilers; it stops clients that request
//! captures in a loop. A capture counts from its acceptance and is refunded if it produces nothing.
//! Rejected requests and symbol requests do not count.
//!
//! Captures are counted per quarter hour, so that 24 hours take a hundred numbers at any rate. A
//! quarter hour is freed as a whole, 24 hours after its end, so no period of 24 hours exceeds the
//! quota.
//!
//! The saved count exceeds the used count by up to a [lease](Allowance::lease). `state.json` is
//! thus written once for many captures, before the first of them. A process that is killed has used
//! up its whole lease, so a process in a crash loop stays within the quota.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::{Moment, TimeAnchor};
use crate::policy::incident_budget::DAY;
use crate::policy::saved_state::moment_of;

const QUARTER: Duration = Duration::from_secs(15 * 60);
/// Maximum lease: the captures of a continuous profiler in five minutes.
const MOST_LEASE: u64 = 64;

/// A quarter hour in `state.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedQuarterHour {
    /// Start time.
    from: Timestamp,
    /// Upper bound of the number of captures.
    captures: u64,
}

impl SavedQuarterHour {
    /// Returns the time field, for rebasing.
    pub(crate) fn time_mut(&mut self) -> &mut Timestamp {
        &mut self.from
    }
}

/// On-demand captures of the last 24 hours.
#[derive(Debug)]
pub(crate) struct DailyQuota {
    limit: u64,
    /// Oldest first, without those that no longer count.
    quarters: Vec<QuarterHour>,
    /// True if more was used than is saved.
    dirty: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct QuarterHour {
    from: Moment,
    used: u64,
    saved: u64,
}

impl QuarterHour {
    /// Returns the time at which its captures are freed.
    fn end(&self) -> Moment {
        self.from + QUARTER + DAY
    }
}

impl DailyQuota {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit: limit as u64, quarters: Vec::new(), dirty: false }
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit as u64;
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Continues from the saved counts.
    pub(crate) fn restore(&mut self, anchor: TimeAnchor, saved: &[SavedQuarterHour]) {
        let quarter = |it: &SavedQuarterHour| QuarterHour {
            from: moment_of(anchor, it.from),
            used: it.captures,
            saved: it.captures,
        };
        self.quarters.extend(saved.iter().map(quarter));
        self.quarters.sort_by_key(|quarter| quarter.from);
        self.forget(anchor.moment);
    }

    /// Returns the time at which quota is available again, or `None` if it is not exhausted.
    pub(crate) fn spent_until(&self, now: Moment) -> Option<Moment> {
        let mut left = self.spent(now);
        for quarter in self.counted(now) {
            if left < self.limit {
                return None;
            }
            left -= quarter.used;
            if left < self.limit {
                return Some(quarter.end());
            }
        }
        None
    }

    /// Returns the number of captures taken or in progress in the 24 hours before `now`.
    pub(crate) fn spent(&self, now: Moment) -> u64 {
        self.counted(now).map(|quarter| quarter.used).sum()
    }

    /// Counts an accepted capture.
    pub(crate) fn spend(&mut self, now: Moment) {
        self.forget(now);
        let begins = self.quarters.last().is_none_or(|last| now.since(last.from) >= QUARTER);
        if begins {
            self.quarters.push(QuarterHour { from: now, used: 0, saved: 0 });
        }
        if let Some(last) = self.quarters.last_mut() {
            last.used += 1;
            self.dirty |= last.used > last.saved;
        }
    }

    /// Refunds the capture accepted at `at`, which produced nothing. The saved count is unchanged:
    /// it is an upper bound.
    pub(crate) fn refund(&mut self, at: Moment) {
        let quarter = self.quarters.iter_mut().rfind(|quarter| quarter.from <= at);
        if let Some(quarter) = quarter {
            quarter.used = quarter.used.saturating_sub(1);
        }
    }

    /// Returns `true` if the state must be saved.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Returns the counts to save.
    pub(crate) fn save(&mut self, anchor: TimeAnchor) -> Vec<SavedQuarterHour> {
        self.dirty = false;
        let lease = self.lease();
        // All quarter hours but the last are complete, so their counts are exact.
        self.quarters.iter_mut().for_each(|quarter| quarter.saved = quarter.used);
        if let Some(last) = self.quarters.last_mut() {
            last.saved = last.used.next_multiple_of(lease);
        }
        let saved = |quarter: &QuarterHour| SavedQuarterHour {
            from: anchor.wall_at(quarter.from),
            captures: quarter.saved,
        };
        self.quarters.iter().map(saved).collect()
    }

    /// Returns the number of captures per save: a thousandth of the quota, so that a restart costs
    /// little, and nothing with a small quota.
    fn lease(&self) -> u64 {
        (self.limit / 1000).clamp(1, MOST_LEASE)
    }

    fn counted(&self, now: Moment) -> impl Iterator<Item = &QuarterHour> {
        self.quarters.iter().filter(move |quarter| now < quarter.end())
    }

    fn forget(&mut self, now: Moment) {
        self.quarters.retain(|quarter| now < quarter.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn anchor(seconds: u64) -> TimeAnchor {
        let wall: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let zero = TimeAnchor { moment: at(0), wall, suspended: Duration::ZERO };
        TimeAnchor { moment: at(seconds), wall: zero.wall_at(at(seconds)), ..zero }
    }

    const DAY: u64 = 24 * 60 * 60;

    #[test]
    fn what_was_used_comes_back_a_day_after_its_quarter_hour() {
        let mut allowance = DailyQuota::new(3);
        for second in [0, 60, 5000] {
            assert_eq!(allowance.spent_until(at(second)), None, "{second}");
            allowance.spend(at(second));
        }
        let until = at(900 + DAY);
        for second in [5000, DAY, 900 + DAY - 1] {
            assert_eq!(allowance.spent_until(at(second)), Some(until), "{second}");
        }
        assert_eq!(allowance.spent_until(until), None);
        assert_eq!(allowance.spent(until), 1);
        allowance.set_limit(1);
        let until = at(5000 + 900 + DAY);
        assert_eq!(allowance.spent_until(at(5000)), Some(until), "as the settings say now");
    }

    #[test]
    fn what_came_to_nothing_is_given_back() {
        let mut allowance = DailyQuota::new(2);
        allowance.spend(at(0));
        allowance.spend(at(1000));
        assert!(allowance.spent_until(at(1000)).is_some());
        allowance.refund(at(0));
        assert_eq!((allowance.spent_until(at(1000)), allowance.spent(at(1000))), (None, 1));
        assert_eq!(allowance.quarters[0].used, 0, "where it was spent");
    }

    #[test]
    fn what_is_saved_is_never_less_than_what_was_used() {
        for (limit, lease) in [(3, 1), (1999, 1), (20_000, 20), (100_000, 64), (10_000_000, 64)] {
            let mut allowance = DailyQuota::new(limit);
            let (mut saved, mut times) = (Vec::new(), 0);
            for second in 0..1800 {
                allowance.spend(at(second));
                if allowance.is_dirty() {
                    saved = allowance.save(anchor(second));
                    times += 1;
                }
                let mut after = DailyQuota::new(limit);
                after.restore(anchor(second), &saved);
                let (used, found) = (allowance.spent(at(second)), after.spent(at(second)));
                assert!((used..used + lease).contains(&found), "{limit}: {found} of {used}");
            }
            assert_eq!(times, 2 * 900_u64.div_ceil(lease), "{limit}");
        }
    }

    #[test]
    fn a_client_whose_captures_all_fail_writes_nothing() {
        let mut allowance = DailyQuota::new(3);
        allowance.spend(at(0));
        assert!(allowance.is_dirty());
        let _ = allowance.save(anchor(0));
        for second in 0..100 {
            allowance.refund(at(second));
            allowance.spend(at(second));
            assert!(!allowance.is_dirty());
        }
    }

    #[test]
    fn a_clock_turned_back_makes_it_no_larger() {
        let mut allowance = DailyQuota::new(1);
        let from = anchor(10 * DAY).wall;
        allowance.restore(anchor(5000), &[SavedQuarterHour { from, captures: 1 }]);
        assert_eq!(allowance.spent_until(at(5000)), Some(at(5000 + 900 + DAY)));
    }
}
