//! Files that marple writes, as independent decoders read them: Go's pprof, Perfetto's schema and
//! its trace processor. Also the memory that writing and reading take.
//!
//! The input is made by the test. Files of a running agent belong to `tests/agent`. The allocator
//! counts, which the tests of memory need.

#[path = "../support/mod.rs"]
mod support;

mod perfetto;
mod perfetto_memory;
mod perfetto_polls;
mod perfetto_samples;
mod pprof;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
