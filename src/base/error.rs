//! The public error type.

use std::fmt;

/// An error with a one-sentence message that contains the path, the value and the remedy.
///
/// The type is opaque. [`std::error::Error::source`] returns the underlying error.
pub struct Error(Box<dyn std::error::Error + Send + Sync>);

impl Error {
    /// Wraps an error of an inner layer.
    pub(crate) fn new(inner: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(inner.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Error {
    /// Formats as [`fmt::Display`] does, because a `main` that returns an error prints this form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
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
