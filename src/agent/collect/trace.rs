//! Runtime traces: one, over the whole capture, with the vitals as counters.

use super::{Collector, Evidence, Failure, Started};
use crate::base::{Anchor, Moment};
use crate::config::Settings;
use crate::model::{CaptureKind, Vitals};
use crate::trace::{self, Session};

pub(super) fn start(
    _: CaptureKind,
    settings: &Settings,
    anchor: Anchor,
) -> Result<Started, Failure> {
    let session = Session::start(settings.trace.max_bytes, anchor)?;
    Ok(Started { collector: Box::new(session), at_start: None })
}

impl Collector for Session {
    fn engine(&self) -> &str {
        trace::engine()
    }

    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, Failure> {
        Ok(Some(Evidence::Timeline(Box::new(Self::stop(*self, now)))))
    }
}

/// Puts the vitals of a tick into the recording, if one runs.
pub(in crate::agent) fn record_vitals(vitals: &Vitals) {
    trace::record_vitals(vitals);
}

/// Marks why the recording is made.
pub(in crate::agent) fn record_reason(text: &str) {
    trace::record_instant("incident", text);
}
