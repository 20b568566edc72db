//! The guard of a running agent, and its shutdown.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Error as AgentError;
use super::event::AgentEvent;
use super::handle::AgentHandle;
use super::pending::AgentThreads;
use super::run::SHUTDOWN_TIMEOUT;
use crate::base::{Error, log};
use crate::capture::own_thread::side_thread;

/// Maximum time a shutdown waits for the last log lines to be consumed.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Maximum time until both threads have ended: that of the loop, and a second for the capture
/// thread.
const SHUTDOWN_LIMIT: Duration = SHUTDOWN_TIMEOUT.saturating_add(Duration::from_secs(1));

/// Maximum time that a drop within async code, or a shutdown without a thread, waits for the
/// agent's threads.
const ASYNC_DROP_TIMEOUT: Duration = Duration::from_millis(250);

/// Interval between two checks of a shutdown's progress.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A running marple agent. Dropping it stops everything: running captures are stopped and written,
/// open incidents are closed.
///
/// The drop blocks its thread as long as the writing takes: at most 6 seconds, or a quarter of a
/// second within async code, where the agent's threads complete the shutdown in the background.
/// The last log lines can add half a second, or a quarter of a second within async code.
/// [`Agent::shutdown`] waits for the end without blocking.
#[must_use = "dropping the agent stops it: keep it as long as the service runs"]
pub struct Agent {
    pub(super) handle: AgentHandle,
    pub(super) events: mpsc::Sender<AgentEvent>,
    pub(super) finished: Receiver<()>,
    pub(super) threads: Arc<AgentThreads>,
    pub(super) is_stopped: bool,
}

impl Agent {
    /// Returns a handle for requests to the agent.
    pub fn handle(&self) -> AgentHandle {
        self.handle.clone()
    }

    /// Stops the agent: running captures are stopped and written, open incidents are closed. Takes
    /// as long as the writing, at most 6 seconds, and up to half a second for the last log lines.
    /// Blocks no thread of the executor, unless the thread `marple-shutdown` cannot be started:
    /// then it blocks for at most half a second.
    ///
    /// The shutdown continues if the future is dropped.
    ///
    /// # Errors
    ///
    /// If a capture is still being written after 6 seconds, or after a quarter of a second without
    /// the thread `marple-shutdown`. The writing continues, and the next start marks the incident
    /// as interrupted if the process ends first.
    pub async fn shutdown(self) -> Result<(), Error> {
        let thread = side_thread("marple-shutdown");
        let agent = Arc::new(Mutex::new(self));
        let stop = |agent: &Mutex<Self>, timeout| match agent.lock() {
            Ok(mut agent) => agent.stop(timeout),
            // The first attempt panicked.
            Err(_) => Err(AgentError::Stopped),
        };
        let shared = Arc::clone(&agent);
        let stopped = thread.run(move || stop(&shared, SHUTDOWN_LIMIT)).await;
        // An error if the thread could not be started.
        stopped.unwrap_or_else(|_| stop(&agent, ASYNC_DROP_TIMEOUT)).map_err(Error::from)
    }

    /// Stops the agent as [`shutdown`](Self::shutdown) does, and blocks this thread for at most
    /// `timeout`. The last log lines can add as much again, at most half a second.
    ///
    /// # Errors
    ///
    /// If a capture is still being written after `timeout`.
    pub fn shutdown_blocking(mut self, timeout: Duration) -> Result<(), Error> {
        self.stop(timeout).map_err(Error::from)
    }

    fn stop(&mut self, timeout: Duration) -> Result<(), AgentError> {
        if std::mem::replace(&mut self.is_stopped, true) {
            return Ok(());
        }
        // The threads exist only in the parent. The leaked reference keeps their handles from being
        // dropped here.
        if self.handle.is_forked() {
            std::mem::forget(Arc::clone(&self.threads));
            return Ok(());
        }
        let result = self.stop_threads(timeout);
        log::flush(LOG_FLUSH_TIMEOUT.min(timeout));
        result
    }

    fn stop_threads(&self, timeout: Duration) -> Result<(), AgentError> {
        // Dropping the body of a thread that was not started disconnects `finished`.
        self.threads.agent_loop.cancel();
        // A full queue drains within the wait below, so the request is repeated until it is
        // accepted.
        let mut requested = false;
        let mut remaining = timeout;
        loop {
            requested = requested || self.events.try_send(AgentEvent::Shutdown).is_ok();
            match self.finished.recv_timeout(CHECK_INTERVAL) {
                Err(RecvTimeoutError::Timeout) if remaining > CHECK_INTERVAL => {
                    remaining -= CHECK_INTERVAL
                }
                Err(RecvTimeoutError::Timeout) => return Err(AgentError::ShutdownTimeout(timeout)),
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(loop_thread) = self.threads.agent_loop.take_handle() {
            let _ = loop_thread.join();
        }
        self.threads.capture.cancel();
        let Some(capture_thread) = self.threads.capture.take_handle() else { return Ok(()) };
        // The end of the loop closes the queue of commands, so the capture thread ends after its
        // current one. A hanging disk must not block the host's exit.
        while !capture_thread.is_finished() {
            if remaining <= CHECK_INTERVAL {
                return Err(AgentError::ShutdownTimeout(timeout));
            }
            thread::sleep(CHECK_INTERVAL);
            remaining -= CHECK_INTERVAL;
        }
        let _ = capture_thread.join();
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let is_async = tokio::runtime::Handle::try_current().is_ok();
        let timeout = if is_async { ASYNC_DROP_TIMEOUT } else { SHUTDOWN_LIMIT };
        if let Err(error) = self.stop(timeout) {
            log::error(error.to_string());
        }
    }
}
