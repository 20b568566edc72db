//! Which recording runs, and whether whoever looks for stalls rests: one word, and the load of it is all that a
//! poll costs while off.
//!
//! He sleeps while nothing is polled. The lowest bit of [`EPOCH`] ([`RESTS`]) says that he does: a thread whose rings
//! are of the recording without it takes the way of a new recording, which is there anyhow, and wakes him
//! after its poll has begun. So he costs a poll nothing but the first after a rest, which pays for one
//! `write` to an `eventfd`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::epoch_word::Epoch;
use crate::os::wake::Wake;

pub(super) use super::epoch_word::RESTS;

/// Which recording runs.
pub(in crate::trace) static EPOCH: Epoch = Epoch::of(AtomicU64::new(0));

/// A poll has begun while he rested, or a recording.
pub(in crate::trace) static BEGAN: Wake = Wake::new();

/// The tick at which the recording began.
pub(in crate::trace) static SINCE: AtomicU64 = AtomicU64::new(0);

/// Sets which recording runs, none for no number.
pub(in crate::trace) fn record(number: Option<u64>) {
    EPOCH.record(number);
    // That took the bit away.
    BEGAN.wake();
}

/// Whether anything is.
#[inline]
pub(in crate::trace) fn is_recorded() -> bool {
    EPOCH.load(Ordering::Relaxed) != 0
}

/// Has the next poll that begins wake [`BEGAN`], or the next recording if none runs. A poll that begins on another
/// core right now may not see it.
pub(in crate::trace) fn rest() {
    EPOCH.rest();
}

/// Whether that stands, and no poll has begun since.
pub(in crate::trace) fn rests() -> bool {
    EPOCH.rests()
}

/// Polls that begin wake nobody; whether they would have, until here.
pub(in crate::trace) fn stir() -> bool {
    EPOCH.stir()
}
