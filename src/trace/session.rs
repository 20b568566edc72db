//! A recording session, from its start to its timeline.

use std::sync::Arc;

use super::assemble::assemble;
use super::flight::{self, RING_BYTES_DIVISOR, Window};
use super::recorder::{self, RecorderState};
use super::sources;
use crate::base::{Bytes, Clock, Moment, SystemClock, TimeAnchor};
use crate::model::Timeline;
use crate::trace::process_recorder;

/// Errors of starting a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another session is recording.
    #[error("a runtime trace is already being recorded; stop that session first")]
    Busy,
    /// `max_bytes` is too small for a useful recording.
    #[error("trace.max_bytes {given} is too small for a recording; set it to at least {minimum}")]
    TooSmall {
        /// The given `max_bytes`.
        given: Bytes,
        /// The minimum.
        minimum: Bytes,
    },
}

/// Minimum memory of a session.
const MIN_BYTES: Bytes = Bytes::kib(64);

/// Divisor of the part of the rest reserved for vitals and instants. With 16 MiB in total and a
/// writer of rings, the part is 512 KiB, or 3855 values of 136 bytes. It holds seven counters for
/// the two minutes before the session and for 107 s of four ticks a second in it.
const PROCESS_EVENTS_DIVISOR: u64 = 8;

/// The only recording session of this process. Dropping it stops the recording and discards the
/// data.
#[derive(Debug)]
#[must_use = "a session records until it is stopped or dropped"]
pub struct TraceSession {
    shared: Option<Arc<RecorderState>>,
    window: Option<Window>,
    anchor: TimeAnchor,
    started: Moment,
}

impl TraceSession {
    /// Starts recording and copies the rings' records from the time before. All data kept,
    /// including the timeline built at the stop, takes at most `max_bytes`. `anchor`, of any age,
    /// relates moments to wall time. Costs a millisecond per megabyte in the rings.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if another session runs, [`Error::TooSmall`] if `max_bytes` is below 64 KiB.
    pub fn start(max_bytes: Bytes, anchor: TimeAnchor) -> Result<Self, Error> {
        if max_bytes < MIN_BYTES {
            return Err(Error::TooSmall { given: max_bytes, minimum: MIN_BYTES });
        }
        // Without a writer of rings, spans, events and vitals get the rings' share too.
        let remaining = if sources::has_ring_writers() {
            max_bytes.get() / RING_BYTES_DIVISOR
        } else {
            max_bytes.get()
        };
        let process = remaining / PROCESS_EVENTS_DIVISOR;
        let threads = remaining - process;
        let [threads, process] =
            [threads, process].map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let started = SystemClock.now();
        let shared = recorder::start(threads, process).ok_or(Error::Busy)?;
        process_recorder::add_recent_vitals(&shared);
        let window = flight::begin(max_bytes);
        Ok(Self { shared: Some(shared), window, anchor, started })
    }

    /// Returns the polls and parks of the window before the session and of the session so far,
    /// without stopping it. `None` if polls and parks are not recorded. Temporarily needs memory
    /// for another copy of the rings and of the copied window; soon after the start this fits into
    /// `max_bytes`.
    pub fn polls(&self) -> Option<Timeline> {
        let mut timeline = Timeline::new(self.anchor, std::process::id(), "");
        timeline.activity = flight::peek(self.window.as_ref()?, &mut timeline.strings);
        Some(timeline)
    }

    /// Stops recording at `now` and returns the recorded data. Costs the caller about a microsecond
    /// per event, and the recorded threads nothing.
    pub fn stop(mut self, now: Moment) -> Timeline {
        match self.shared.take() {
            Some(shared) => {
                let unattached_losses = recorder::stop();
                assemble(
                    &shared,
                    unattached_losses,
                    self.anchor,
                    self.started,
                    now,
                    self.window.take(),
                )
            }
            None => Timeline::new(self.anchor, std::process::id(), ""),
        }
    }
}

impl Drop for TraceSession {
    fn drop(&mut self) {
        if self.window.take().is_some() {
            flight::abandon();
        }
        if let Some(shared) = self.shared.take() {
            recorder::stop();
            for log in shared.take_logs() {
                log.close();
            }
        }
    }
}
