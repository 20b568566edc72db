//! A recording, from its start to its timeline.

use std::sync::Arc;

use super::assemble::assemble;
use super::flight::{self, SHARE, Window};
use super::ledger;
use super::recorder::{self, Shared};
use crate::base::{Anchor, Bytes, Clock, Moment, SystemClock};
use crate::model::Timeline;

/// Why a recording could not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another session records.
    #[error("a runtime trace is being recorded already: stop that session first")]
    Busy,
    /// `max_bytes` would not hold anything worth reading.
    #[error("trace.max_bytes of {given} is too small for a recording: give it at least {least}")]
    TooSmall {
        /// What was given.
        given: Bytes,
        /// What is needed.
        least: Bytes,
    },
}

/// The least memory a session takes.
const LEAST: Bytes = Bytes::kib(64);

/// The share of the rest kept for vitals and instants: at 16 MiB in all, the two minutes before and four
/// ticks a second of seven counters for two minutes.
const LEDGER_SHARE: u64 = 8;

/// The one recording of this process. Dropping it stops it and throws its evidence away.
#[derive(Debug)]
#[must_use = "a session records until it is stopped or dropped"]
pub struct Session {
    shared: Option<Arc<Shared>>,
    window: Option<Window>,
    anchor: Anchor,
    started: Moment,
}

impl Session {
    /// Starts recording, and takes over what the rings hold of the time before. All that is kept, the
    /// timeline made at the stop included, takes at most `max_bytes`; `anchor`, of any age, tells the wall
    /// time. Costs a millisecond for each megabyte in the rings.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] while another session runs, [`Error::TooSmall`] below 64 KiB.
    pub fn start(max_bytes: Bytes, anchor: Anchor) -> Result<Self, Error> {
        if max_bytes < LEAST {
            return Err(Error::TooSmall { given: max_bytes, least: LEAST });
        }
        // Without anything that writes to rings, all of it is for the rest.
        let rest = if recorder::has_rings() { max_bytes.get() / SHARE } else { max_bytes.get() };
        let process = rest / LEDGER_SHARE;
        let threads = rest - process;
        let [threads, process] =
            [threads, process].map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let started = SystemClock.now();
        let shared = recorder::start(threads, process).ok_or(Error::Busy)?;
        ledger::begin(&shared);
        let window = flight::begin(max_bytes);
        Ok(Self { shared: Some(shared), window, anchor, started })
    }

    /// The polls and parks of the window before and so far, of a session that goes on; none where they are
    /// not recorded. Takes for a moment what the rings and the copy of the window hold once more, for which
    /// there is room within `max_bytes` soon after the start.
    pub fn polls(&self) -> Option<Timeline> {
        let mut timeline = Timeline::new(self.anchor, std::process::id(), "");
        timeline.activity = flight::peek(self.window.as_ref()?, &mut timeline.strings);
        Some(timeline)
    }

    /// Stops recording at `now` and returns what was recorded. Costs the caller about a microsecond an
    /// event and the threads nothing.
    pub fn stop(mut self, now: Moment) -> Timeline {
        match self.shared.take() {
            Some(shared) => {
                let strays = recorder::stop();
                assemble(&shared, strays, self.anchor, self.started, now, self.window.take())
            }
            None => Timeline::new(self.anchor, std::process::id(), ""),
        }
    }
}

impl Drop for Session {
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
