//! Thread dumps, taken once at the start.

use crate::base::{Bytes, SystemClock, TimeAnchor};
use crate::capture::collectors::{CaptureFailure, Evidence, Snapshot, StartedCapture};
use crate::config::{Settings, ThreadsMode};
use crate::stacks::threads;

/// Memory of a dump of a thousand threads, and the slots their stacks are copied into.
pub(super) const MEMORY: Bytes = Bytes::mib(4);

pub(super) fn disabled_reason(settings: &Settings) -> Option<&'static str> {
    (settings.stacks.threads == ThreadsMode::Off).then_some("`stacks.threads` is \"off\"")
}

pub(super) fn start(
    settings: &Settings,
    anchor: TimeAnchor,
) -> Result<StartedCapture, CaptureFailure> {
    let signals = settings.stacks.threads == ThreadsMode::Full;
    let dump = threads::dump(&SystemClock, anchor, signals)?;
    let engine = if signals { "signal and /proc" } else { "/proc" };
    Ok(StartedCapture {
        collector: Box::new(Snapshot { engine }),
        initial_evidence: Some(Evidence::Threads(Box::new(dump))),
    })
}
