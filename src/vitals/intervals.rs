//! Readings at intervals longer than a tick.

use std::time::Duration;

use crate::base::Moment;

/// Returns `true`, and sets `last` to `now`, if `interval` has passed since `last`.
pub(super) fn take_if_due(last: &mut Option<Moment>, now: Moment, interval: Duration) -> bool {
    let is_due = last.is_none_or(|last| now.since(last) >= interval);
    if is_due {
        *last = Some(now);
    }
    is_due
}
