//! Errors of readers.

use crate::base::Bytes;

/// Reason why a file's bytes cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compressed stream is damaged.
    #[error(
        "the gzip stream is damaged or truncated: {0}; if the file was copied while being written, \
         copy it again"
    )]
    Gzip(#[source] std::io::Error),
    /// The content exceeds the reader's limit.
    #[error(
        "the decompressed size exceeds {limit}, the limit of the reader; the file was not written \
         by marple"
    )]
    TooLarge {
        /// Maximum size of the content.
        limit: Bytes,
    },
    /// The decoded profile would exceed the reader's memory limit.
    #[error(
        "the decoded profile would exceed {limit} of memory, the limit of the reader; it has more \
         messages than a profiler writes"
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
    #[error("not a jemalloc heap profile: {0}")]
    JemallocHeap(String),
    /// The messages are inconsistent with each other.
    #[error("inconsistent pprof profile: {0}")]
    Inconsistent(String),
}
