//! The panics of the service, grouped.

use jiff::Timestamp;

use super::Losses;
use crate::base::{PanicLocation, RecordedPanics};

/// The panics since the agent's start, grouped by source location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicDump {
    /// Wall-clock time of the dump.
    pub taken_at: Timestamp,
    /// Number of panics.
    pub total: u64,
    /// Panics by source location, the most frequent first.
    pub locations: Vec<PanicLocation>,
    /// Panics counted without a source location.
    pub losses: Losses,
}

impl PanicDump {
    /// Creates a dump of the panics in `recorded`, taken at `taken_at`.
    pub fn new(taken_at: Timestamp, recorded: RecordedPanics) -> Self {
        let mut losses = Losses::default();
        losses.add("panics without a recorded location", recorded.without_location);
        Self { taken_at, total: recorded.total, locations: recorded.locations, losses }
    }
}
