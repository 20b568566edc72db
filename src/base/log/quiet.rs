//! Suppression of log events that libraries emit on marple's threads.
//!
//! axum logs rejected requests, and tokio logs each task if it is built for tokio-console. Such
//! events bypass the queue and would call the host's subscriber on threads that must not call it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tracing::Dispatch;
use tracing::dispatcher::{has_been_set, with_default};

pin_project! {
    /// A future whose events are not sent to any subscriber.
    pub(crate) struct QuietSubscriber<F> {
        #[pin]
        inner: F,
    }
}

/// Wraps `inner` so that events emitted while polling it, by any library, are discarded.
pub(crate) fn quiet<F: Future>(inner: F) -> QuietSubscriber<F> {
    QuietSubscriber { inner }
}

impl<F: Future> Future for QuietSubscriber<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let inner = self.project().inner;
        // The scoped default is set only during a poll. Once a thread has one, `tracing`
        // permanently assumes a subscriber exists and stops forwarding events to `log`. While any
        // thread has one, all threads take a slower path to theirs.
        if has_been_set() {
            with_default(&Dispatch::none(), || inner.poll(context))
        } else {
            inner.poll(context)
        }
    }
}
