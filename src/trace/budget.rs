//! Memory budget within `max_bytes`, and the price of each item.
//!
//! Prices are peak costs. The peak of a recording is in building its timeline. At its start all
//! records exist and the memory for all events is reserved. At its end all events have their
//! arguments and no record is left. So an event costs `event + max(record, arguments)`.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::model::{ArgValue, StringHandle, TimelineEvent};
use crate::trace::span_log::SpanRecord;

/// Size of an event in the timeline, without its arguments.
pub(super) const EVENT: usize = size_of::<TimelineEvent>();

/// Size of an argument in the timeline.
const ARG: usize = size_of::<(StringHandle, ArgValue)>();

/// Size of a record, including its part of the list of chunks.
const RECORD: usize = size_of::<SpanRecord>() + 1;

const _: () = assert!(RECORD <= 41, "a record stays within 40 bytes");

/// Size of a text in the timeline's string table, in addition to its bytes, at the peak of the
/// table's growth, when the old and the new table both exist: reference counts 24 + row 48 + hash
/// entry 85, rounded up.
pub(super) const TEXT: usize = 160;

/// Returns the price of an event with `args` arguments.
pub(super) const fn price(args: usize) -> usize {
    let args = args * ARG;
    EVENT + if args > RECORD { args } else { RECORD }
}

/// Number of the session whose budget is used up.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// The bytes that a session may still use. The first refusal ends the recording for all threads, so
/// that all tracks end at about the same time and fields are not formatted for nothing.
#[derive(Debug)]
pub(super) struct TraceBudget {
    session: u64,
    left: AtomicUsize,
}

impl TraceBudget {
    /// Creates the budget of the threads in `session`.
    pub(super) const fn new(session: u64, bytes: usize) -> Self {
        Self { session, left: AtomicUsize::new(bytes) }
    }

    pub(super) const fn session(&self) -> u64 {
        self.session
    }

    /// Takes `most` bytes, or `least` if `most` are not available. Returns `None` if neither are.
    pub(super) fn take(&self, most: usize, least: usize) -> Option<usize> {
        let taken = [most, least].into_iter().find(|&bytes| {
            let less = |left: usize| left.checked_sub(bytes);
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        });
        if taken.is_none() {
            SPENT.store(self.session, Ordering::Relaxed);
        }
        taken
    }
}

/// Returns `true` if the budget of `session` is used up.
pub(super) fn is_spent(session: u64) -> bool {
    SPENT.load(Ordering::Relaxed) == session
}
