//! Errors of readers.

use crate::base::Bytes;

/// Reason why a file's bytes cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compressed stream is damaged.
    #[error(
        "the gzip stream is damaged or cut short: {0}; was the file copied while being written?"
    )]
    Gzip(#[source] std::io::Error),
    /// The content exceeds the reader's limit.
    #[error("it holds more than {limit} of data, the most a reader accepts; it is not one of ours")]
    TooLarge {
        /// Maximum size of the content.
        limit: Bytes,
    },
    /// The decoded profile would exceed the reader's memory limit.
    #[error(
        "decoded, it would take more than {limit} of memory, the most a reader gives a profile; it holds more \
         messages than any profiler writes"
    )]
    TooMuchMemory {
        /// Maximum memory of a decoded profile.
        limit: Bytes,
    },
    /// The bytes are not a sequence of protobuf fields.
    #[error("not a pprof profile: its bytes are not a sequence of protobuf fields")]
    MalformedFields,
    /// The bytes are not the messages of a profile.
    #[error("not a pprof profile: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// The text is not a jemalloc heap profile, or is truncated.
    #[cfg(feature = "jemalloc")]
    #[error("not a heap profile of jemalloc: {0}")]
    JemallocHeap(String),
    /// The messages are inconsistent with each other.
    #[error("a pprof profile that contradicts itself: {0}")]
    Inconsistent(String),
}
