//! Memory budget within `max_bytes`, and the price of each item.
//!
//! Prices are peak costs. The peak of a recording is in building its timeline. At its start all
//! records exist and the memory for all events is reserved. At its end all events have their
//! arguments and no record is left. So an event costs `event + max(record, arguments)`.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::model::{ArgValue, StringHandle, TimelineEvent};

/// Size of an event in the timeline, without its arguments.
pub(super) const EVENT_BYTES: usize = size_of::<TimelineEvent>();

/// Size of an argument in the timeline.
const ARG_BYTES: usize = size_of::<(StringHandle, ArgValue)>();

/// Size of a record of a span, including its part of the list of chunks: `40 + 1`.
pub(super) const RECORD_BYTES: usize = 41;

/// Size of a text in the timeline's string table, in addition to its bytes, at the peak of the
/// table's growth, when the old and the new table both exist: reference counts 24 + row 48 + hash
/// entry 85, rounded up.
pub(super) const TEXT_OVERHEAD_BYTES: usize = 160;

/// Returns the price of an event with `args` arguments.
pub(super) const fn event_cost(args: usize) -> usize {
    let args = args * ARG_BYTES;
    EVENT_BYTES + if args > RECORD_BYTES { args } else { RECORD_BYTES }
}

/// Number of the session whose budget is used up.
static EXHAUSTED_SESSION: AtomicU64 = AtomicU64::new(0);

/// The bytes that a session may still use. The first refusal ends the recording for all threads, so
/// that all tracks end at about the same time and fields are not formatted for nothing.
#[derive(Debug)]
pub(super) struct TraceBudget {
    session: u64,
    remaining: AtomicUsize,
}

impl TraceBudget {
    /// Creates the budget of the threads in `session`.
    pub(super) const fn new(session: u64, bytes: usize) -> Self {
        Self { session, remaining: AtomicUsize::new(bytes) }
    }

    pub(super) const fn session(&self) -> u64 {
        self.session
    }

    /// Takes `preferred` bytes, or `minimum` if so many are not available. Returns `None` if
    /// neither are.
    pub(super) fn reserve(&self, preferred: usize, minimum: usize) -> Option<usize> {
        let reserved = [preferred, minimum].into_iter().find(|&bytes| {
            let subtract = |remaining: usize| remaining.checked_sub(bytes);
            self.remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract).is_ok()
        });
        if reserved.is_none() {
            EXHAUSTED_SESSION.store(self.session, Ordering::Relaxed);
        }
        reserved
    }
}

/// Returns `true` if the budget of `session` is used up.
pub(super) fn is_exhausted(session: u64) -> bool {
    EXHAUSTED_SESSION.load(Ordering::Relaxed) == session
}
