//! The engines that sample thread by thread, and what runs behind both of them.
//!
//! ```text
//!  perf: ring a thread ─┐            ┌─ window   the last seconds, by buckets (look-back)
//!                       ├─ drain ─── ┤
//!  timer: pool of slots ┘  unwind    └─ during   the session that runs
//!                          dedup
//! ```
//!
//! One thread, `marple-cpu`, does the middle: it finds threads, empties rings, unwinds and counts. It is
//! a thread of its own because `marple-capture` may encode for a second, and rings that are emptied
//! every 40 ms to 200 ms and hold twice that would overflow meanwhile. Starting and stopping a session
//! happens on the caller's thread under the same lock, which is held for one turn: some milliseconds.
//!
//! There is one sampler at a time. While a session runs, its frequency is the sampler's and the window
//! rests; what the window held by then went out as the session's `before`. So the two never cost twice.
//!
//! What a sample stands for is settled at the report: `charges` notes what CPU time the kernel charged to each
//! thread in the bucket or session, and `strata` lets the samples of each name add up to it.
//!
//! # What it costs
//!
//! `perf` takes a ring a thread, by [`perf`]'s arithmetic 64 KiB, and 4 MiB in all at 99 Hz and less;
//! `timer` a pool of 2 MiB, and more where stacks were deep on many cores: at most 32 KiB a slot. Tables are bounded by
//! `tally`'s constants. `cargo bench --bench cpu` has the times.

mod allotment;
mod charges;
mod images;
mod perf;
mod recorder;
mod relief;
mod report;
mod roster;
mod sampler;
mod strata;
mod tally;
mod timed;
mod timer;
mod wall;
mod wall_report;
mod wall_standing;
mod wall_watch;
mod window;

pub(super) use recorder::Recorder;
pub(super) use wall::Wall;
