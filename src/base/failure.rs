//! Failures of a capture, and their text.

use std::error::Error;

use super::panics;

/// The reason a capture failed.
pub(crate) type CaptureFailure = Box<dyn Error + Send + Sync>;

/// Runs `work`, which is marple's code, and turns a panic into a failure. The state that `work`
/// used must be discarded afterwards.
pub(crate) fn catch_panic<T>(
    work: impl FnOnce() -> Result<T, CaptureFailure>,
) -> Result<T, CaptureFailure> {
    panics::catch_panic(work).unwrap_or_else(|panic| Err(panic_message(&panic).into()))
}

/// Runs `work`, which is the host's code, and turns a panic into a failure. The host's panic hook
/// runs first.
pub(crate) fn catch_host_panic<T>(
    work: impl FnOnce() -> Result<T, CaptureFailure>,
) -> Result<T, CaptureFailure> {
    panics::catch_host_panic(work).unwrap_or_else(|panic| Err(panic_message(&panic).into()))
}

/// Returns the text of a failure caused by a panic.
pub(crate) fn panic_message(panic: &str) -> String {
    format!("panicked: {panic}")
}

/// Returns an error and all its causes as one line.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
