//! The comparison of a value that crossed a threshold with earlier captures.

use std::time::Duration;

use super::FireRecord;
use crate::rules::LastFire;

/// A value is worse if `headroom <= WORSE_HEADROOM_FRACTION * headroom at the last capture`.
pub(in crate::rules) const WORSE_HEADROOM_FRACTION: f64 = 2.0 / 3.0;

/// Without a limit, a value is worse if `value >= WORSE_VALUE_FACTOR * value at the last capture`.
pub(in crate::rules) const WORSE_VALUE_FACTOR: f64 = 1.5;

/// Share of the limit. With less headroom a value does not count as worse. There are eight captures
/// between 80 % and this point, and another would not finish in time.
pub(in crate::rules) const MIN_HEADROOM_FRACTION: f64 = 0.01;

/// Forecasts shorter than this are treated as equal: no capture would finish in time.
const MIN_FORECAST: Duration = Duration::from_millis(500);

/// A value that crossed a threshold, to be compared with earlier captures.
#[derive(Clone, Copy, Debug)]
pub(in crate::rules) struct FireCandidate {
    pub(in crate::rules) fire: LastFire,
    pub(in crate::rules) limit: Option<f64>,
    /// `true` if the value is past a soft limit, which only slows the process down. `limit` is then
    /// the hard limit behind it.
    pub(in crate::rules) is_above_soft_limit: bool,
    /// Time to the limit if the condition is `forecast`.
    pub(in crate::rules) forecast: Option<Duration>,
    /// `true` for a rule with `below`, where a lower value is worse.
    pub(in crate::rules) lower_is_worse: bool,
}

impl FireCandidate {
    /// Returns the headroom between `fire` and the limit of this candidate.
    pub(in crate::rules) fn headroom_at(&self, fire: &LastFire) -> Option<f64> {
        match self.limit {
            // Before the value reached the soft limit, the headroom was measured to that limit.
            Some(limit) if self.is_above_soft_limit => Some((limit - fire.value).max(0.0)),
            _ => fire.headroom,
        }
    }

    pub(super) fn is_worse_than(&self, record: &FireRecord) -> bool {
        let worst_fire = record.worst_fire;
        let value = self.fire.value;
        match (self.headroom_at(&worst_fire), self.fire.headroom, self.limit) {
            // Near the limit a value does not count as worse, unless the earlier one was far from
            // it.
            (Some(before), Some(room), Some(limit)) => {
                let near = limit * MIN_HEADROOM_FRACTION;
                room <= before * WORSE_HEADROOM_FRACTION && (room >= near || before > 3.0 * near)
            }
            _ if self.lower_is_worse => {
                value < worst_fire.value - worst_fire.value.abs() * (1.0 - WORSE_HEADROOM_FRACTION)
            }
            _ => value > worst_fire.value && value >= worst_fire.value * WORSE_VALUE_FACTOR,
        }
    }

    pub(super) fn is_sooner_than(&self, record: &FireRecord) -> bool {
        let Some(time_to_limit) = self.forecast else { return false };
        record.forecast.is_none_or(|before| {
            let before = before.max(MIN_FORECAST);
            time_to_limit.max(MIN_FORECAST) <= before.mul_f64(WORSE_HEADROOM_FRACTION)
        })
    }
}

/// Returns `true` if `fire` is worse than `before` by any amount.
pub(super) fn is_worse(fire: &LastFire, before: &LastFire, lower_is_worse: bool) -> bool {
    match (before.headroom, fire.headroom) {
        // Past a soft limit the headroom grows again, because it is measured to the hard limit.
        (Some(before_room), Some(room)) => room < before_room || fire.value > before.value,
        _ if lower_is_worse => fire.value < before.value,
        _ => fire.value > before.value,
    }
}

/// Keeps the worse of two captures in `record`.
pub(super) fn merge_worst(record: &mut FireRecord, candidate: &FireCandidate) {
    if is_worse(&candidate.fire, &record.worst_fire, candidate.lower_is_worse) {
        record.worst_fire = candidate.fire;
    }
    record.forecast = match (record.forecast, candidate.forecast) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}
