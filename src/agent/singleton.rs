//! The guard of a running agent, and its shutdown.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self as std_mpsc, Receiver};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use super::builder::Builder;
use super::event::AgentEvent;
use super::handle::AgentHandle;
use super::pending::AgentThreads;
use super::run::SHUTDOWN_TIMEOUT;
use crate::base::{Error, log};
use crate::config::{self, Settings};

/// A running marple agent. Dropping it stops everything: running captures are stopped and written,
/// open incidents are closed. The drop takes as long as the writing, at most 5 seconds.
#[must_use = "dropping the agent stops it: keep it as long as the service runs"]
pub struct Agent {
    pub(super) handle: AgentHandle,
    pub(super) events: mpsc::Sender<AgentEvent>,
    pub(super) finished: Receiver<()>,
    pub(super) threads: Arc<AgentThreads>,
}

impl Agent {
    /// Reads the settings from a TOML file and watches the file from the start. A valid change is
    /// applied within a second. An invalid one is rejected and reported in the log and in `status`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is invalid. The error lists every problem with its line.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Builder, Error> {
        let path = path.as_ref();
        let settings = config::load(path).map_err(Error::new)?;
        Ok(Builder::new(settings, Some(path.to_owned())))
    }

    /// Creates a builder with settings from code.
    pub fn from_settings(settings: Settings) -> Builder {
        Builder::new(settings, None)
    }

    /// Creates a builder with the default settings: the default rules and no endpoint.
    pub fn builder() -> Builder {
        Self::from_settings(Settings::default())
    }

    /// Returns a handle for requests to the agent.
    pub fn handle(&self) -> AgentHandle {
        self.handle.clone()
    }
}

/// Maximum time a shutdown waits for the last log lines to be consumed.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Guard that flushes the agent's log lines when dropped.
struct FlushLog;

impl Drop for FlushLog {
    fn drop(&mut self) {
        log::flush(LOG_FLUSH_TIMEOUT);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _flush = FlushLog;
        // A fork inherits the values but not the threads: nothing to send to, nothing to wait for.
        if self.handle.is_forked() {
            std::mem::forget(Arc::clone(&self.threads));
            return;
        }
        // A thread that was not started would never report its end.
        self.threads.agent_loop.cancel();
        // A full queue drains within the wait below, so the request is repeated until it is
        // accepted.
        let mut requested = false;
        let step = Duration::from_millis(20);
        let mut remaining = SHUTDOWN_TIMEOUT + Duration::from_secs(1);
        loop {
            requested = requested || self.events.try_send(AgentEvent::Shutdown).is_ok();
            match self.finished.recv_timeout(step) {
                Err(std_mpsc::RecvTimeoutError::Timeout) if remaining > step => remaining -= step,
                Err(std_mpsc::RecvTimeoutError::Timeout) => {
                    log::error("a capture is still being written; its thread is left to it");
                    return;
                }
                Ok(()) | Err(std_mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(loop_thread) = self.threads.agent_loop.take_handle() {
            let _ = loop_thread.join();
        }
        self.threads.capture.cancel();
        let Some(capture_thread) = self.threads.capture.take_handle() else { return };
        // Once the loop has ended, the worker's inbox is closed and the worker ends after its
        // current command. A hanging disk must not block the host's exit.
        while !capture_thread.is_finished() {
            if remaining <= step {
                return;
            }
            thread::sleep(step);
            remaining -= step;
        }
        let _ = capture_thread.join();
    }
}
