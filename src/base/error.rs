//! The one error the public sees.

use std::fmt;

/// Something marple could not do, said in one sentence with the path, the value and what would be
/// right. Opaque: what went wrong inside is reachable through [`std::error::Error::source`].
pub struct Error(Box<dyn std::error::Error + Send + Sync>);

impl Error {
    /// Wraps a layer's own error.
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
    /// Prints as [`fmt::Display`] does: `main` returning an error shows this form, and a person reads it.
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
    fn what_main_prints_is_for_people() {
        let inner = std::io::Error::other("the disk is gone");
        let error = Error::new(inner);
        assert_eq!(format!("{error:?}"), "the disk is gone");
        assert_eq!(format!("{error}"), "the disk is gone");
    }
}
