//! The panics of the service, grouped.

use jiff::Timestamp;

use super::Losses;
use crate::base::{PanicPlace, RecordedPanics};

/// The panics since the agent's start, by their place in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicDump {
    /// Wall-clock time at which it was taken.
    pub taken: Timestamp,
    /// Number of panics.
    pub total: u64,
    /// The places, the most frequent first.
    pub places: Vec<PanicPlace>,
    /// Panics that are in no place.
    pub losses: Losses,
}

impl PanicDump {
    /// A dump of what was recorded, taken at `taken`.
    pub fn new(taken: Timestamp, recorded: RecordedPanics) -> Self {
        let mut losses = Losses::default();
        losses.add("panics counted without their place", recorded.unplaced);
        Self { taken, total: recorded.total, places: recorded.places, losses }
    }
}
