//! Runtime traces: one, over the window before the capture and all of it, with the vitals as counters.

use super::{Collector, Evidence, Failure, Started};
use crate::base::{Anchor, Moment};
use crate::config::{Settings, TraceSettings};
use crate::model::{CaptureKind, TraceMode, Vitals};
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

/// Records polls and parks from here on, or not, as these settings say.
pub(in crate::agent) fn configure(settings: &TraceSettings) {
    trace::configure(settings.mode, settings.max_bytes, settings.window);
}

/// Records nothing any more: there is nobody left to read it.
pub(in crate::agent) fn end(settings: &TraceSettings) {
    trace::configure(TraceMode::OnDemand, settings.max_bytes, settings.window);
}
