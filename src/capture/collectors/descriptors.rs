//! Dumps of open file descriptors, taken once at the start.

use crate::base::{Bytes, TimeAnchor};
use crate::capture::collectors::{CaptureFailure, Evidence, Snapshot, StartedCapture};
use crate::os::proc::descriptors;

/// Memory of a dump: counts of at most 4096 targets, and inodes of at most 100,000 sockets.
pub(super) const MEMORY: Bytes = Bytes::mib(4);

pub(super) fn start(anchor: TimeAnchor) -> Result<StartedCapture, CaptureFailure> {
    let dump = descriptors::dump(anchor.wall)?;
    Ok(StartedCapture {
        collector: Box::new(Snapshot { engine: "/proc/self/fd" }),
        initial_evidence: Some(Evidence::Descriptors(Box::new(dump))),
    })
}
