//! Runtime traces: one covers the look-back window and the whole capture, with the vitals as
//! counter tracks.

use crate::base::sync::Mutex;
use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::base::{Moment, TimeAnchor};
use crate::capture::collectors::{CaptureFailure, Collector, Evidence, StartedCapture};
use crate::config::{Settings, TraceSettings};
use crate::model::{
    ArgValue, CaptureKind, EventKind, Stall, Timeline, TimelineEvent, TraceMode, TrackKind, Vitals,
};
use crate::trace::{self, TraceSession};

pub(super) fn start(
    _: CaptureKind,
    settings: &Settings,
    anchor: TimeAnchor,
) -> Result<StartedCapture, CaptureFailure> {
    let session = TraceSession::start(settings.trace.max_bytes, anchor)?;
    Ok(StartedCapture { collector: Box::new(session), initial_evidence: None })
}

impl Collector for TraceSession {
    fn engine(&self) -> &str {
        trace::recorded_sources()
    }

    fn recorded_polls(&self) -> Option<Timeline> {
        Self::polls(self)
    }

    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, CaptureFailure> {
        let mut timeline = Self::stop(*self, now);
        add_stall_events(&mut timeline);
        Ok(Some(Evidence::Timeline(Box::new(timeline))))
    }
}

/// Maximum number of stalls kept for future traces.
const MAX_RECENT_STALLS: usize = 64;

static RECENT_STALLS: Mutex<VecDeque<Stall>> = Mutex::new(VecDeque::new());

/// Keeps a stall for the traces that contain its start.
pub(crate) fn record_stall(stall: &Stall) {
    let mut recent = RECENT_STALLS.lock().unwrap_or_else(PoisonError::into_inner);
    if recent.len() == MAX_RECENT_STALLS {
        recent.pop_front();
    }
    recent.push_back(stall.clone());
}

/// Adds an instant event for each stall to the track of its thread, at the time it was detected.
fn add_stall_events(timeline: &mut Timeline) {
    let recent = RECENT_STALLS.lock().unwrap_or_else(PoisonError::into_inner);
    let anchor = timeline.anchor;
    let from = anchor.wall_at(timeline.activity.start);
    let shown: Vec<&Stall> = recent.iter().filter(|stall| stall.started >= from).collect();
    for stall in shown {
        let since_anchor = stall.started.duration_since(anchor.wall);
        let nanos = since_anchor.as_nanos() + stall.lasted.as_nanos() as i128;
        let nanos = i64::try_from(nanos).unwrap_or(0);
        let at = anchor.moment.as_nanos().saturating_add_signed(nanos);
        let track = timeline.add_track(TrackKind::Thread(stall.tid), &stall.thread);
        let mut text = |text: &str| timeline.strings.intern(text);
        let category = text("marple");
        let name = text("stall");
        let key = text("text");
        let args = vec![(key, ArgValue::Text(text(&stall.to_string())))];
        let kind = EventKind::Instant(name);
        let at = Moment::from_nanos(at);
        timeline.events.push(TimelineEvent { at, track, kind, category, args });
    }
}

/// Adds the vitals of a tick to the running recording, if any.
pub(crate) fn record_vitals(vitals: &Vitals) {
    trace::record_vitals(vitals);
}

/// Adds the reason for the recording as an instant event.
pub(crate) fn record_reason(text: &str) {
    trace::record_instant("incident", text);
}

/// Turns the recording of polls and parks on or off according to the settings.
pub(crate) fn configure(settings: &TraceSettings) {
    trace::configure(settings.mode, settings.max_bytes, settings.window);
}

/// Stops recording between captures: the agent has ended and cannot read it.
pub(crate) fn stop_recording(settings: &TraceSettings) {
    trace::configure(TraceMode::OnDemand, settings.max_bytes, settings.window);
}
