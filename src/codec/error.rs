//! Why bytes could not be read.

use crate::base::Bytes;

/// Why a file's bytes are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compressed stream is damaged.
    #[error(
        "the gzip stream is damaged or cut short: {0}; was the file copied while being written?"
    )]
    Gzip(#[source] std::io::Error),
    /// There is more in it than a reader accepts.
    #[error("it holds more than {limit} of data, the most a reader accepts; it is not one of ours")]
    TooLarge {
        /// The most that is accepted.
        limit: Bytes,
    },
    /// Decoded, it would take more memory than a reader gives it.
    #[error(
        "decoded, it would take more than {limit} of memory, the most a reader gives a profile; it holds more \
         messages than any profiler writes"
    )]
    TooMuchMemory {
        /// The most memory a decoded profile may take.
        limit: Bytes,
    },
    /// The bytes are not a sequence of protobuf fields.
    #[error("not a pprof profile: its bytes are not a sequence of protobuf fields")]
    NotFields,
    /// The bytes are not the messages of a profile.
    #[error("not a pprof profile: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// The text is not jemalloc's, or cut short.
    #[cfg(feature = "jemalloc")]
    #[error("not a heap profile of jemalloc: {0}")]
    Jeheap(String),
    /// The messages contradict each other.
    #[error("a pprof profile that contradicts itself: {0}")]
    Inconsistent(String),
}
