//! Causes of lost trace records.

use crate::model::Losses;

/// A cause of a loss; the discriminant is its index in [`LossCounts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LossCause {
    /// `max_bytes` is used up.
    Room,
    /// The slice is nested too deep.
    Depth,
    /// The allocator had no memory for another chunk.
    Memory,
    /// The thread's local storage is destroyed: the event came from a destructor that runs after
    /// marple's.
    NoLocal,
    /// The allocator, called by marple, emitted an event.
    Reentered,
    /// Fields of a span or an event: too many of them, or no room for their texts.
    Fields,
    /// The ledger's share is used up.
    Ledger,
    /// A gauge that is infinite or not a number.
    NotANumber,
}

impl LossCause {
    pub(super) const ALL: [Self; 8] = [
        Self::Room,
        Self::Depth,
        Self::Memory,
        Self::NoLocal,
        Self::Reentered,
        Self::Fields,
        Self::Ledger,
        Self::NotANumber,
    ];

    /// Returns the description in a timeline.
    const fn text(self) -> &'static str {
        match self {
            Self::Room => "trace events dropped: trace.max_bytes used up",
            Self::Depth => "trace events dropped: slices nested too deep",
            Self::Memory => "trace events dropped: no memory",
            Self::NoLocal => {
                "trace events dropped: emitted after the thread's local storage was gone"
            }
            Self::Reentered => "trace events dropped: emitted by the allocator during recording",
            Self::Fields => "trace fields left out: too many or no room for their texts",
            Self::Ledger => "vitals and instants dropped: their share of trace.max_bytes used up",
            Self::NotANumber => "counter values left out: not a finite number",
        }
    }
}

/// Number of losses per cause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LossCounts([u64; LossCause::ALL.len()]);

impl LossCounts {
    /// Counts `n` more of `cause`.
    pub(super) fn add(&mut self, cause: LossCause, n: u64) {
        if let Some(count) = self.0.get_mut(cause as usize) {
            *count += n;
        }
    }

    /// Adds all counts to `losses`.
    pub(super) fn tell(&self, losses: &mut Losses) {
        for (cause, &count) in LossCause::ALL.iter().zip(&self.0) {
            losses.add(cause.text(), count);
        }
    }
}
