//! The `perf` and `timer` engines, which sample each thread separately, and the recorder they
//! share.
//!
//! ```text
//!  perf: ring per thread ──┐             ┌─ window   the last seconds, by buckets (look-back)
//!                          ├─ drain ─────┤
//!  timer: pool of slots ───┘  unwind     └─ session  the running session
//!                             deduplicate
//! ```
//!
//! The thread `marple-cpu` runs the middle column: it finds threads, drains rings, unwinds and
//! counts. It is separate from `marple-capture`, which may encode for a second: rings are drained
//! every 10 to 200 ms and hold twice that interval, so they would overflow. Callers start and stop
//! a session on their own thread under the same lock, which is held for one pass of the recorder:
//! some milliseconds.
//!
//! One sampler runs at a time. While a session runs, the sampler uses the session's frequency and
//! the window is inactive; the window's previous content is the session's look-back profile. The
//! two are never paid for at the same time.
//!
//! The weight of samples is determined when the profile is built. `thread_cpu_clocks` records the
//! CPU time that the kernel charged to each thread in a bucket or session. `scaling` scales the
//! samples of each name to add up to it.
//!
//! # Cost
//!
//! `perf` uses one ring per thread, 64 KiB by the arithmetic of `perf/ring_size.rs`, and 4 MiB for
//! all rings at 100 Hz and below. `timer` uses a pool of 2 MiB, and more if stacks are deep on many
//! cores: at most 32 KiB per slot. The constants of `sample_table` bound the tables.
//! `cargo bench --bench cpu` prints the times.

mod allotment;
mod drain_state;
mod engine;
mod images;
mod perf;
mod period;
mod recorder;
mod report;
mod sample_key;
mod sample_table;
mod sample_times;
mod sampler;
mod scaling;
mod thread_cpu_clocks;
mod thread_state_key;
mod thread_table;
mod timer;
mod wall;
mod wall_report;
mod wall_sampler;
mod window;

pub(super) use recorder::CpuRecorder;
pub(super) use wall::WallRecorder;
