//! The public error type.

use std::fmt;

/// An error with a one-sentence message that contains the path, the value and the remedy.
///
/// [`Error::kind`] and the `is_*` methods distinguish the errors that a program can handle.
/// [`std::error::Error::source`] returns the underlying error.
pub struct Error {
    kind: ErrorKind,
    inner: Box<dyn std::error::Error + Send + Sync>,
}

/// The category of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The settings cannot be read or are invalid.
    Settings,
    /// A name or a value passed to a function is invalid, or a limit of registrations is reached.
    InvalidInput,
    /// An agent is running in this process already.
    AlreadyRunning,
    /// The agent has stopped, or this process is a fork of the one in which it runs.
    Stopped,
    /// There was no reply within the time allowed.
    Timeout,
    /// The agent's queue is full: retry later.
    Busy,
    /// The system does not provide a resource: a thread, the incident directory, an address.
    Unavailable,
    /// Any other error.
    Other,
}

impl Error {
    /// Wraps an error of an inner layer as [`ErrorKind::Other`].
    pub(crate) fn new(inner: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::with_kind(ErrorKind::Other, inner)
    }

    pub(crate) fn with_kind(
        kind: ErrorKind,
        inner: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, inner: inner.into() }
    }

    /// Returns the category of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns `true` if the settings cannot be read or are invalid.
    pub fn is_settings(&self) -> bool {
        self.kind == ErrorKind::Settings
    }

    /// Returns `true` if an agent is running in this process already.
    pub fn is_already_running(&self) -> bool {
        self.kind == ErrorKind::AlreadyRunning
    }

    /// Returns `true` if the agent has stopped, or if this process is a fork without an agent.
    pub fn is_stopped(&self) -> bool {
        self.kind == ErrorKind::Stopped
    }

    /// Returns `true` if there was no reply within the time allowed.
    pub fn is_timeout(&self) -> bool {
        self.kind == ErrorKind::Timeout
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

impl fmt::Debug for Error {
    /// Formats as [`fmt::Display`] does, because a `main` that returns an error prints this form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_equals_display() {
        let inner = std::io::Error::other("the disk is gone");
        let error = Error::new(inner);
        assert_eq!(format!("{error:?}"), "the disk is gone");
        assert_eq!(format!("{error}"), "the disk is gone");
    }
}
