//! The thread `marple-cpu`, and the sessions that other threads start and stop on it.

use std::any::Any;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::drain_state::{DrainState, Extent};
use super::sampler::drain_interval;
use crate::base::{
    Clock, Hertz, Moment, ProcessBound, SystemClock, TimeAnchor, panics, thread_start, warnings,
};
use crate::cpu::error::Error;
use crate::cpu::options::Options;
use crate::model::Profile;
use crate::os::own_thread;

/// Pause between two batches of name reads, in which a caller can start or stop a session.
const NAME_BATCH_INTERVAL: Duration = Duration::from_millis(1);

/// Minimum interval between wake-ups by thread-start notifications, for a host that starts threads
/// in a loop.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(5);

/// Consecutive panics after which the thread ends.
const MAX_PANICS: u32 = 8;

pub(in crate::cpu) struct CpuRecorder {
    shared: Arc<RecorderShared>,
    thread: ProcessBound<JoinHandle<()>>,
    /// Wakes the recorder when a thread reports its start.
    _thread_starts: thread_start::Subscription,
}

struct RecorderShared {
    state: Mutex<DrainState>,
    wake: Condvar,
}

impl CpuRecorder {
    /// Starts the engine, and the look-back window if `options` enable it.
    pub(in crate::cpu) fn start(options: &Options) -> Result<Self, Error> {
        let state = DrainState::new(options)?;
        let shared = Arc::new(RecorderShared { state: Mutex::new(state), wake: Condvar::new() });
        let thread = thread::Builder::new().name("marple-cpu".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            let guard = options.on_thread_start;
            move || shared.run(guard)
        });
        let thread = thread.map_err(|source| Error::SpawnThread { source })?;
        let recorder = Arc::downgrade(&shared);
        let _thread_starts = thread_start::subscribe(move || {
            if let Some(shared) = recorder.upgrade() {
                shared.wake.notify_one();
            }
        });
        Ok(Self { shared, thread: ProcessBound::new(thread), _thread_starts })
    }

    /// Returns `true` if the recorder belongs to the parent process of this fork.
    pub(in crate::cpu) fn is_inherited(&self) -> bool {
        self.thread.is_inherited()
    }

    /// Returns the engine and the reason for its selection.
    pub(in crate::cpu) fn engine(&self) -> String {
        self.shared.lock().engine.description.clone()
    }

    /// Starts a session and returns the content of the window, which stays empty until the session
    /// ends.
    pub(in crate::cpu) fn begin_session(
        &self,
        frequency: Hertz,
        anchor: TimeAnchor,
    ) -> Result<Option<Profile>, Error> {
        let mut state = self.shared.lock();
        let lookback = state.begin_session(frequency, anchor)?;
        self.shared.wake.notify_one();
        Ok(lookback)
    }

    /// Returns the content of the window and clears it.
    pub(in crate::cpu) fn take_window(&self, anchor: TimeAnchor) -> Option<Profile> {
        self.shared.lock().take_window(anchor)
    }

    /// Stops the session and returns its profile.
    pub(in crate::cpu) fn end_session(&self, now: Moment) -> Option<Profile> {
        self.shared.lock().end_session(now)
    }
}

impl Drop for CpuRecorder {
    fn drop(&mut self) {
        if self.is_inherited() {
            return;
        }
        self.shared.lock().should_stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl RecorderShared {
    fn lock(&self) -> MutexGuard<'_, DrainState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, on_thread_start: fn() -> Box<dyn Any>) {
        let _guard = on_thread_start();
        own_thread::enter();
        let mut state = self.lock();
        let mut last_notification = Moment::default();
        let mut panics_in_a_row = 0;
        while !state.should_stop {
            let now = SystemClock.now();
            let pass_result = panics::catch_and_record_panic("marple-cpu", || {
                state.run_pass(now, Extent::Due);
                state.thread_table.resolve_names()
            });
            if now.since(last_notification) >= NOTIFY_INTERVAL {
                last_notification = now;
                thread_start::arm();
            }
            panics_in_a_row = if pass_result.is_some() { 0 } else { panics_in_a_row + 1 };
            if panics_in_a_row >= MAX_PANICS {
                let reason = "the profiler's thread panicked";
                state.failure = Some(reason.to_owned());
                warnings::set("cpu.engine", format!("CPU profiling stopped: {reason}"));
                return;
            }
            let has_unnamed_threads = pass_result.unwrap_or(false);
            // No longer wait: the smallest rings hold two samples and would overflow.
            let wait = if has_unnamed_threads {
                NAME_BATCH_INTERVAL
            } else {
                drain_interval(state.frequency)
            };
            state = self.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
