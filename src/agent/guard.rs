//! The running agent, and its end.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self as std_mpsc, Receiver};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use super::builder::Builder;
use super::event::Event;
use super::handle::AgentHandle;
use super::pending::Threads;
use super::run::LAST_WORDS;
use crate::base::{Error, log};
use crate::config::{self, Settings};

/// A running marple. Dropping it stops everything: captures that run are ended and written, open
/// incidents are closed. That takes as long as the writing, 5 seconds at the most.
#[must_use = "dropping the agent stops it: keep it as long as the service runs"]
pub struct Agent {
    pub(super) handle: AgentHandle,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) finished: Receiver<()>,
    pub(super) threads: Arc<Threads>,
}

impl Agent {
    /// Reads the settings from a TOML file, which is watched from the start on: a valid change is
    /// applied within a second, an invalid one is refused and said in the log and in `status`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or with every problem in it, each with its line.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Builder, Error> {
        let path = path.as_ref();
        let settings = config::load(path).map_err(Error::new)?;
        Ok(Builder::new(settings, Some(path.to_owned())))
    }

    /// Takes the settings from code.
    pub fn from_settings(settings: Settings) -> Builder {
        Builder::new(settings, None)
    }

    /// Begins with the default settings: the default rules and no endpoint.
    pub fn builder() -> Builder {
        Self::from_settings(Settings::default())
    }

    /// A way to talk to the agent.
    pub fn handle(&self) -> AgentHandle {
        self.handle.clone()
    }
}

/// Time that the end of an agent waits for its last log lines to be taken.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Has the log lines of an agent handed over when it is dropped.
struct FlushLog;

impl Drop for FlushLog {
    fn drop(&mut self) {
        log::flush(LAST_LINES);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _flush = FlushLog;
        // A fork has the values and not the threads: there is nobody to ask and nobody to wait for.
        if self.handle.is_inherited() {
            std::mem::forget(Arc::clone(&self.threads));
            return;
        }
        // What was never started never ends.
        self.threads.agent_loop.cancel();
        // A full queue drains within the wait below, so the request is repeated until it is in.
        let mut asked = false;
        let step = Duration::from_millis(20);
        let mut left = LAST_WORDS + Duration::from_secs(1);
        loop {
            asked = asked || self.events.try_send(Event::Shutdown).is_ok();
            match self.finished.recv_timeout(step) {
                Err(std_mpsc::RecvTimeoutError::Timeout) if left > step => left -= step,
                Err(std_mpsc::RecvTimeoutError::Timeout) => {
                    log::error("a capture is still being written; its thread is left to it");
                    return;
                }
                Ok(()) | Err(std_mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(loop_thread) = self.threads.agent_loop.take() {
            let _ = loop_thread.join();
        }
        self.threads.capture.cancel();
        let Some(capture_thread) = self.threads.capture.take() else { return };
        // With the loop gone the worker's inbox is closed. It ends after the task it has, if any; a disk
        // that hangs must not hang the host's exit.
        while !capture_thread.is_finished() {
            if left <= step {
                return;
            }
            thread::sleep(step);
            left -= step;
        }
        let _ = capture_thread.join();
    }
}
