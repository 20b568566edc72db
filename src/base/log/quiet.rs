//! Libraries that log on marple's threads.
//!
//! axum logs rejected requests and tokio, built for its console, each task. Such events do not pass through the queue:
//! they would call the host's subscriber where it must not be called.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tracing::Dispatch;
use tracing::dispatcher::{has_been_set, with_default};

pin_project! {
    /// A future whose events go to no subscriber.
    pub(crate) struct Quiet<F> {
        #[pin]
        inner: F,
    }
}

/// Has events that `inner` emits, whatever library does it, go to no subscriber.
pub(crate) fn quiet<F: Future>(inner: F) -> Quiet<F> {
    Quiet { inner }
}

impl<F: Future> Future for Quiet<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let inner = self.project().inner;
        // A thread's own subscriber makes `tracing` believe for good that there is one, and keep events from `log`; and
        // as long as any thread has one, all others take a longer way to theirs. So only for the time of a poll.
        if has_been_set() {
            with_default(&Dispatch::none(), || inner.poll(context))
        } else {
            inner.poll(context)
        }
    }
}
