//! How many captures a day may be handed over, and what of it outlives the process.
//!
//! `incidents_per_day` is no measure here: a continuous profiler that pulls three profiles every 15 seconds
//! is what the endpoint is for, and must neither be starved by that budget nor use up what an incident
//! needs. So streams have a number of their own, `budget.streams_per_day`, high enough for several
//! profilers; what it stops is a client that asks in a loop. A capture counts from when it is taken on until
//! it has come to nothing; a refusal and a look-up of names are none.
//!
//! Counted by quarter hours, so that a day is a hundred numbers whatever is asked for. A quarter hour is
//! given back as a whole, a day after its end: no 24 hours ever see more than the number.
//!
//! What is saved runs ahead of what was used by up to a [lease](Allowance::lease). So `state.json` is
//! written once for many captures, before the first of them, and a process that is killed has used up
//! what it might have taken: one that crashes in a loop stays within the budget.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::agent::budget::DAY;
use crate::agent::state::moment_of;
use crate::base::{Anchor, Moment};

const QUARTER: Duration = Duration::from_secs(15 * 60);
/// Captures that one writing of `state.json` is for, at the most: a continuous profiler's in five minutes.
const MOST_LEASE: u64 = 64;

/// What `state.json` holds of a quarter hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::agent) struct Saved {
    /// When it began.
    from: Timestamp,
    /// How many captures it may have had.
    captures: u64,
}

impl Saved {
    /// The time it is dated by.
    pub(in crate::agent) fn time_mut(&mut self) -> &mut Timestamp {
        &mut self.from
    }
}

/// The captures handed over within a day.
#[derive(Debug)]
pub(in crate::agent) struct Allowance {
    limit: u64,
    /// The oldest first, none of it further back than counts.
    quarters: Vec<Quarter>,
    /// Whether more was used than is saved.
    dirty: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Quarter {
    from: Moment,
    used: u64,
    saved: u64,
}

impl Quarter {
    /// When what was used in it is given back.
    fn end(&self) -> Moment {
        self.from + QUARTER + DAY
    }
}

impl Allowance {
    pub(in crate::agent) fn new(limit: usize) -> Self {
        Self { limit: limit as u64, quarters: Vec::new(), dirty: false }
    }

    /// As the settings say from here on.
    pub(in crate::agent) fn set_limit(&mut self, limit: usize) {
        self.limit = limit as u64;
    }

    pub(in crate::agent) fn limit(&self) -> u64 {
        self.limit
    }

    /// Goes on from what was saved.
    pub(in crate::agent) fn restore(&mut self, anchor: Anchor, saved: &[Saved]) {
        let quarter = |it: &Saved| Quarter {
            from: moment_of(anchor, it.from),
            used: it.captures,
            saved: it.captures,
        };
        self.quarters.extend(saved.iter().map(quarter));
        self.quarters.sort_by_key(|quarter| quarter.from);
        self.forget(anchor.moment);
    }

    /// Until when there is no capture more; none when there is.
    pub(in crate::agent) fn spent_until(&self, now: Moment) -> Option<Moment> {
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

    /// How many were handed over or are being taken, in the day before `now`.
    pub(in crate::agent) fn spent(&self, now: Moment) -> u64 {
        self.counted(now).map(|quarter| quarter.used).sum()
    }

    /// One more is taken on.
    pub(super) fn spend(&mut self, now: Moment) {
        self.forget(now);
        let begins = self.quarters.last().is_none_or(|last| now.since(last.from) >= QUARTER);
        if begins {
            self.quarters.push(Quarter { from: now, used: 0, saved: 0 });
        }
        if let Some(last) = self.quarters.last_mut() {
            last.used += 1;
            self.dirty |= last.used > last.saved;
        }
    }

    /// The one taken on at `at` came to nothing. What is saved stays: it is a bound.
    pub(super) fn refund(&mut self, at: Moment) {
        let quarter = self.quarters.iter_mut().rfind(|quarter| quarter.from <= at);
        if let Some(quarter) = quarter {
            quarter.used = quarter.used.saturating_sub(1);
        }
    }

    /// Whether there is something to be saved.
    pub(in crate::agent) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// What is to be saved.
    pub(in crate::agent) fn save(&mut self, anchor: Anchor) -> Vec<Saved> {
        self.dirty = false;
        let lease = self.lease();
        // What was used in those before the last is known.
        self.quarters.iter_mut().for_each(|quarter| quarter.saved = quarter.used);
        if let Some(last) = self.quarters.last_mut() {
            last.saved = last.used.next_multiple_of(lease);
        }
        let saved = |quarter: &Quarter| Saved {
            from: anchor.wall_at(quarter.from),
            captures: quarter.saved,
        };
        self.quarters.iter().map(saved).collect()
    }

    /// How many captures one saving is for: a thousandth of the day's, so that what a restart costs is
    /// little, and with a small budget nothing.
    fn lease(&self) -> u64 {
        (self.limit / 1000).clamp(1, MOST_LEASE)
    }

    fn counted(&self, now: Moment) -> impl Iterator<Item = &Quarter> {
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

    fn anchor(seconds: u64) -> Anchor {
        let wall: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let zero = Anchor { moment: at(0), wall, suspended: Duration::ZERO };
        Anchor { moment: at(seconds), wall: zero.wall_at(at(seconds)), ..zero }
    }

    const DAY: u64 = 24 * 60 * 60;

    #[test]
    fn what_was_used_comes_back_a_day_after_its_quarter_hour() {
        let mut allowance = Allowance::new(3);
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
        let mut allowance = Allowance::new(2);
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
            let mut allowance = Allowance::new(limit);
            let (mut saved, mut times) = (Vec::new(), 0);
            for second in 0..1800 {
                allowance.spend(at(second));
                if allowance.is_dirty() {
                    saved = allowance.save(anchor(second));
                    times += 1;
                }
                let mut after = Allowance::new(limit);
                after.restore(anchor(second), &saved);
                let (used, found) = (allowance.spent(at(second)), after.spent(at(second)));
                assert!((used..used + lease).contains(&found), "{limit}: {found} of {used}");
            }
            assert_eq!(times, 2 * 900_u64.div_ceil(lease), "{limit}");
        }
    }

    #[test]
    fn a_client_whose_captures_all_fail_writes_nothing() {
        let mut allowance = Allowance::new(3);
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
        let mut allowance = Allowance::new(1);
        let from = anchor(10 * DAY).wall;
        allowance.restore(anchor(5000), &[Saved { from, captures: 1 }]);
        assert_eq!(allowance.spent_until(at(5000)), Some(at(5000 + 900 + DAY)));
    }
}
