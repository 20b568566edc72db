//! Who may use how much of `max_bytes`, and what things cost.
//!
//! Prices are what the dearest moment takes. A recording's dearest moment lies in the making of its
//! timeline: at its beginning all records exist and the room for all events is reserved, at its end all
//! events have their arguments and no record is left. So an event pays for itself and for its record or its
//! arguments, whichever is more.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::log::Record;
use crate::model::{ArgValue, StringHandle, TimelineEvent};

/// What an event takes in the timeline, without its arguments.
pub(super) const EVENT: usize = size_of::<TimelineEvent>();

/// What an argument takes in the timeline.
const ARG: usize = size_of::<(StringHandle, ArgValue)>();

/// What a record takes, its part in the list of chunks included.
const RECORD: usize = size_of::<Record>() + 1;

const _: () = assert!(RECORD <= 41, "a record stays within 40 bytes");

/// What a text takes in the timeline's table besides its bytes, at the worst moment of the table's growth,
/// when the old and the new one both exist: reference counts 24, row 48, hash entry 85.
pub(super) const TEXT: usize = 160;

/// The price of an event with so many arguments.
pub(super) const fn price(args: usize) -> usize {
    let args = args * ARG;
    EVENT + if args > RECORD { args } else { RECORD }
}

/// The session whose budget has refused somebody.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// Bytes that may still be used by a session. Once it refuses anybody the recording is over for
/// everybody, so that all threads' tracks end about together and fields are no longer formatted in vain.
#[derive(Debug)]
pub(super) struct Budget {
    session: u64,
    left: AtomicUsize,
}

impl Budget {
    /// The threads' share in `session`.
    pub(super) const fn new(session: u64, bytes: usize) -> Self {
        Self { session, left: AtomicUsize::new(bytes) }
    }

    /// The session.
    pub(super) const fn session(&self) -> u64 {
        self.session
    }

    /// Takes `most`, or `least` where there is no more.
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

/// Whether the budget of `session` is used up.
pub(super) fn is_spent(session: u64) -> bool {
    SPENT.load(Ordering::Relaxed) == session
}
