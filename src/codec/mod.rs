//! Model values to bytes and back.
//!
//! Each format is a module with `write(&value, impl io::Write)` and, where marple reads it too,
//! `read(&[u8])`. Nothing here opens a file or knows a path; whoever does adds the path to the error.
//!
//! - CPU and heap profiles are [`pprof`]: gzip'd `profile.proto`, as `go tool pprof` wants it.
//! - Timelines are [`perfetto`]: gzip'd Perfetto traces.
//! - Dumps of threads and tasks are [`text`] too, and JSON for scripts.
//! - What jemalloc's own profiler writes is read by `jeheap` (feature `jemalloc`).
//! - Profiles for eyes are [`legacy`]: the text Go prints for `debug=1`.
//!
//! Writers stream: a capture is written when memory may be nearly gone, so besides the model value
//! itself there is one message, one block of 32 KiB and the compressor's window in memory, however
//! long the capture is. Readers never panic, whatever the bytes are, and hold a bound on what a small
//! file may inflate to.
//!
//! The message structs are written by hand, with no `protoc` in the build and no field that is not
//! used; the tests in `tests/codec_*.rs` have other people's decoders check every field number.

mod error;
mod gzip;
#[cfg(feature = "jemalloc")]
pub mod jeheap;
pub mod legacy;
pub mod perfetto;
pub mod pprof;
mod press;
pub mod text;

pub use error::Error;
