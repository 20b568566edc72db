//! Failures around a capture, as text.

use super::collect::Failure;
use crate::base::panics;

/// Runs `work`, which is marple's code. A panic in it is a failure like others; the state it worked on is given up.
pub(super) fn fence<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    panics::fence(work).unwrap_or_else(|panic| Err(panicked(&panic).into()))
}

/// Runs `work`, which is the host's code. A panic in it is a failure like others, after the host's panic hook has run.
pub(super) fn fence_host<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    panics::catch(work).unwrap_or_else(|panic| Err(panicked(&panic).into()))
}

/// Returns the text of a failure by a panic.
pub(super) fn panicked(panic: &str) -> String {
    format!("panicked: {panic}")
}

/// An error with all its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
