//! Files that marple writes and reads, and the command line that works on them:
//!
//! - `perfetto*` and `pprof`: traces and profiles as independent decoders read them (Go's pprof,
//!   Perfetto's schema and its trace processor), and the memory that writing and reading take.
//! - `symbol_tables` and `after_deploy`: names of functions from the files of a process, damaged and
//!   hostile ones included, and in an agent whose files a deployment replaces.
//! - `symbolize`: the program `marple` over a heap profile that the test writes. A new command gets
//!   a module; what the commands compute is tested in its layer.
//!
//! Other files of a running agent belong to `tests/agent`.
//!
//! The allocator is marple's above one that counts: the first for heap profiles, the second for the
//! tests of memory. marple's forwards each call and keeps its tables in mapped memory, so the
//! counts are those of the program. Its first sample also allocates the unwinder's caches, which
//! happens before a test measures. Counts belong to the process, so each test needs a separate
//! process (nextest).

#[path = "../support/mod.rs"]
mod support;

#[cfg(all(
    feature = "cpu",
    feature = "heap",
    feature = "trace",
    target_os = "linux",
    target_env = "gnu"
))]
mod after_deploy;
mod perfetto;
mod perfetto_memory;
#[cfg(feature = "trace")]
mod perfetto_polls;
mod perfetto_samples;
mod pprof;
mod symbol_tables;
#[cfg(all(feature = "cli", feature = "heap"))]
mod symbolize;

use crate::support::counting::Counting;

#[cfg(feature = "heap")]
#[global_allocator]
static ALLOCATOR: marple::Allocator<Counting> = marple::Allocator::new(Counting);

#[cfg(not(feature = "heap"))]
#[global_allocator]
static ALLOCATOR: Counting = Counting;
