//! Causes of lost trace records.

use crate::model::Losses;

/// A cause of a loss; the discriminant is its index in [`LossCounts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LossCause {
    /// `max_bytes` is used up.
    OutOfBudget,
    /// The slice is nested too deep.
    TooDeep,
    /// The allocator had no memory for another chunk.
    OutOfMemory,
    /// The thread's local storage is destroyed: the event came from a destructor that runs after
    /// marple's.
    ThreadLocalDestroyed,
    /// The allocator, called by marple, emitted an event.
    Reentrant,
    /// Fields of a span or an event: too many of them, or no room for their texts.
    Fields,
    /// The share of process events is used up.
    ProcessEventsFull,
    /// A gauge that is infinite or not a number.
    NotFinite,
}

impl LossCause {
    pub(super) const ALL: [Self; 8] = [
        Self::OutOfBudget,
        Self::TooDeep,
        Self::OutOfMemory,
        Self::ThreadLocalDestroyed,
        Self::Reentrant,
        Self::Fields,
        Self::ProcessEventsFull,
        Self::NotFinite,
    ];

    /// Returns the description in a timeline.
    const fn description(self) -> &'static str {
        match self {
            Self::OutOfBudget => "trace events dropped: trace.max_bytes is used up",
            Self::TooDeep => "trace events dropped: slices nested too deep",
            Self::OutOfMemory => "trace events dropped: no memory",
            Self::ThreadLocalDestroyed => {
                "trace events dropped: emitted after the thread's local storage was destroyed"
            }
            Self::Reentrant => "trace events dropped: emitted by the allocator during recording",
            Self::Fields => "trace fields omitted: too many fields, or no space for their text",
            Self::ProcessEventsFull => {
                "vitals and instants dropped: their part of trace.max_bytes is used up"
            }
            Self::NotFinite => "counter values omitted: not a finite number",
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
    pub(super) fn add_to(&self, losses: &mut Losses) {
        for (cause, &count) in LossCause::ALL.iter().zip(&self.0) {
            losses.add(cause.description(), count);
        }
    }
}
