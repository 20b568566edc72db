//! How it is asked for and what comes back.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::take::Take;
use crate::agent::event::Event;

/// What was captured.
#[derive(Debug, Default)]
pub(crate) struct Streamed {
    pub(crate) bytes: Vec<u8>,
    /// Why it is shorter than was asked.
    pub(crate) cut_short: Option<String>,
}

/// Why nothing was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The engine is taken.
    #[error("{by}")]
    Busy {
        by: String,
        /// How long it may take until it is free, if that is known.
        wait: Option<Duration>,
    },
    /// As many as a day may have were handed over.
    #[error("budget.streams_per_day ({limit}) is spent until {until}")]
    Spent { limit: u64, until: String, wait: Duration },
    /// The settings or the build leave it out.
    #[error("{0}")]
    Absent(String),
    /// It was tried.
    #[error("{0}")]
    Failed(String),
}

/// Who asks, and how he is answered.
pub(crate) struct Ask {
    pub(crate) take: Take,
    pub(crate) who: String,
    pub(crate) reply: oneshot::Sender<Result<Streamed, StreamError>>,
}

/// A stream that was asked for. Dropping it gives it up: what runs for it is stopped at once.
#[must_use = "a stream that is dropped is given up"]
pub(crate) struct Streaming {
    answer: oneshot::Receiver<Result<Streamed, StreamError>>,
    events: mpsc::Sender<Event>,
    answered: bool,
}

impl Streaming {
    pub(in crate::agent) fn new(
        answer: oneshot::Receiver<Result<Streamed, StreamError>>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self { answer, events, answered: false }
    }
}

impl Future for Streaming {
    type Output = Result<Streamed, StreamError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(context);
        self.answered = answer.is_ready();
        let stopped = || StreamError::Failed(crate::agent::Error::Stopped.to_string());
        answer.map(|answer| answer.unwrap_or_else(|_| Err(stopped())))
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        if !self.answered {
            self.answer.close();
            // Only wakes the loop, which sees the closed answer at its next tick in any case.
            let _ = self.events.try_send(Event::StreamGone);
        }
    }
}
