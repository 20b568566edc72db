//! Stub: the jemalloc bridge is not built in.

use jiff::Timestamp;

use crate::base::TimeAnchor;
use crate::capture::collectors::{CaptureFailure, StartedCapture, Unavailable};
use crate::heap;
use crate::model::Profile;

pub(super) fn start(_: TimeAnchor) -> Result<StartedCapture, CaptureFailure> {
    Err(not_installed())
}

pub(super) fn snapshot(_: Timestamp) -> Result<Box<Profile>, CaptureFailure> {
    Err(not_installed())
}

pub(super) fn unavailable_reason() -> Option<String> {
    Some(heap::Error::NotInstalled.to_string())
}

fn not_installed() -> CaptureFailure {
    Unavailable(heap::Error::NotInstalled.to_string()).into()
}
