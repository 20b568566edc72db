//! Failures of a capture, and their text.

use std::error::Error;

use super::panics;

/// The reason a capture failed.
pub(crate) type CaptureFailure = Box<dyn Error + Send + Sync>;

/// Runs `work`, which is marple's code, and turns a panic into a failure. The state that `work`
/// used must be discarded afterwards.
pub(crate) fn fence<T>(
    work: impl FnOnce() -> Result<T, CaptureFailure>,
) -> Result<T, CaptureFailure> {
    panics::fence(work).unwrap_or_else(|panic| Err(panicked(&panic).into()))
}

/// Runs `work`, which is the host's code, and turns a panic into a failure. The host's panic hook
/// runs first.
pub(crate) fn fence_host<T>(
    work: impl FnOnce() -> Result<T, CaptureFailure>,
) -> Result<T, CaptureFailure> {
    panics::catch(work).unwrap_or_else(|panic| Err(panicked(&panic).into()))
}

/// Returns the text of a failure caused by a panic.
pub(crate) fn panicked(panic: &str) -> String {
    format!("panicked: {panic}")
}

/// Returns an error and all its causes as one line.
pub(crate) fn chain(error: &dyn Error) -> String {
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
