//! The panics of the service, grouped.

use jiff::Timestamp;

use super::Losses;
use crate::base::{PanicPlace, RecordedPanics};

/// The panics since the agent's start, grouped by source location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicDump {
    /// Wall-clock time of the dump.
    pub taken: Timestamp,
    /// Number of panics.
    pub total: u64,
    /// Panics by source location, the most frequent first.
    pub places: Vec<PanicPlace>,
    /// Panics counted without a source location.
    pub losses: Losses,
}

impl PanicDump {
    /// Creates a dump of the panics in `recorded`, taken at `taken`.
    pub fn new(taken: Timestamp, recorded: RecordedPanics) -> Self {
        let mut losses = Losses::default();
        losses.add("panics counted without their place", recorded.unplaced);
        Self { taken, total: recorded.total, places: recorded.places, losses }
    }
}
