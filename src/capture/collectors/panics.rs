//! Lists of the service's panics, taken once at the start.

use crate::base::{Bytes, TimeAnchor, panic_log};
use crate::capture::collectors::{CaptureFailure, Evidence, Snapshot, StartedCapture};
use crate::model::PanicDump;

/// Memory of a list: 64 locations with messages of at most 512 bytes, twice.
pub(super) const MEMORY: Bytes = Bytes::kib(256);

pub(super) fn start(anchor: TimeAnchor) -> Result<StartedCapture, CaptureFailure> {
    let dump = PanicDump::new(anchor.wall, panic_log::list());
    Ok(StartedCapture {
        collector: Box::new(Snapshot { engine: "panic hook" }),
        initial_evidence: Some(Evidence::Panics(Box::new(dump))),
    })
}
