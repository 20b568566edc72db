//! Encoders and decoders of model values.
//!
//! Each format is a module with `write(&value, impl io::Write)` and, if marple also reads it,
//! `read(&[u8])`. The modules open no files and have no paths; the caller adds the path to an
//! error.
//!
//! - CPU and heap profiles are [`pprof`]: gzip-compressed `profile.proto`, for `go tool pprof`.
//! - Timelines are [`perfetto`]: gzip-compressed Perfetto traces.
//! - Dumps of threads and tasks are also [`text`], and JSON for scripts.
//! - `jemalloc_heap` reads the output of jemalloc's own profiler (feature `jemalloc`).
//! - [`go_debug`] is the text form of profiles that Go prints for `debug=1`.
//!
//! Writers stream, because a capture may be written when memory is nearly exhausted. Independent of
//! the length of the capture, they hold the model value, one message, one block of 32 KiB and the
//! compressor's window. Readers never panic on any input, and limit the size to which a small file
//! may inflate.
//!
//! The message structs are hand-written, without `protoc` in the build and without unused fields.
//! The tests in `tests/files` check every field number with independent decoders.

mod error;
pub mod go_debug;
mod gzip;
#[cfg(feature = "jemalloc")]
pub mod jemalloc_heap;
pub mod perfetto;
pub mod pprof;
mod reusable_gzip;
pub mod text;

pub use error::Error;
