//! Heap profiles.
//!
//! [`Allocator`] wraps the program's allocator and samples allocations by a countdown of bytes
//! (`sampler`, pure). The stack of a sampled block is interned, its site counted, and its record
//! kept in a lock-free table until the block is freed (`recorder` has a diagram). [`DumpBuffers`]
//! writes out the tables without allocating; [`snapshot`](fn@snapshot) builds a value. All tables
//! are mapped memory with a size limit, not heap memory.
//!
//! Invariants of the allocation path:
//!
//! - No lock and no waiting: it may run in a signal handler, in a forked child and in the
//!   destructor of a thread-local.
//! - No allocation while unwinding. Where an earlier step allocates (the first read of the loaded
//!   files, a cache), the thread is excluded, so that sampling never samples itself.
//!
//! Counting each block exactly would be simpler and cost ten times as much. jemalloc's own profiler
//! is as cheap, but exists only in jemalloc.

mod alloc;
mod bytes_by_rate;
mod drop_frames;
mod dump;
mod filter;
mod frames;
mod index;
#[cfg(all(feature = "jemalloc", target_os = "linux"))]
pub mod jemalloc;
mod live;
mod live_bytes;
mod recorder;
mod sampler;
mod segment;
mod sites;
mod slots;
mod snapshot;
mod stacks;
mod thread;

// Separate files, not submodules of the tested files: `tests/loom_heap` compiles the tested
// files with atomics that work only in its models.
#[cfg(test)]
mod filter_tests;
#[cfg(test)]
mod frames_tests;
#[cfg(test)]
mod sites_tests;
#[cfg(test)]
mod stacks_tests;

use std::hint::black_box;
use std::io;
use std::sync::atomic::Ordering::Relaxed;

use crate::base::Bytes;
use crate::os::eventfd::EventListener;
use crate::os::images;

pub use alloc::Allocator;
pub use drop_frames::DROP_FRAMES;
pub use dump::{
    DEFAULT_SAMPLE_TYPE, DumpBuffers, HeapDump, HeapSample, MAX_FRAMES_PER_BATCH, PERIOD_TYPE,
    SAMPLE_TYPES, losses,
};
pub use snapshot::snapshot;
pub use thread::{ProfilerExclusion, exclude_current_thread};

/// An error that prevents a heap profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program's allocator is not [`Allocator`].
    #[error(
        "no heap profile: the global allocator is not marple::Allocator; add to main.rs: \
         #[global_allocator] static A: marple::Allocator<std::alloc::System> = \
         marple::Allocator::new(std::alloc::System);"
    )]
    NotInstalled,
    /// The loaded files cannot be listed.
    #[error(transparent)]
    Images(#[from] images::Error),
}

/// Sets the mean number of bytes allocated between two samples: 0 records nothing, 1 everything.
///
/// The calling thread applies the rate at once. At rate 1 so does every other thread: the profile
/// contains all blocks allocated from here on exactly. At any other rate a thread applies it within
/// its next 64 KiB or one larger block. Recorded blocks stay and keep their weight, so sums remain
/// unbiased.
pub fn set_rate(rate: Bytes) {
    recorder::set_rate(rate.get());
    thread::redraw_interval(rate.get());
}

/// Returns the mean number of bytes between two samples. Default: 512 KiB.
pub fn rate() -> Bytes {
    Bytes(recorder::RATE.load(Relaxed))
}

/// Returns the bytes in use, or `None` if sampling is off. The value is an unbiased estimate from
/// the samples: the current sum of `inuse_space`. Costs one load.
pub fn in_use() -> Option<Bytes> {
    (recorder::INSTALLED.load(Relaxed) && rate() > Bytes(0)).then(|| recorder::LIVE_BYTES.in_use())
}

/// Sets the threshold for [`threshold_events`], replacing an earlier one. The thread whose
/// allocation raises [`in_use`] above `threshold` wakes the waiting task once. Wakes it at once if
/// the value is already above.
pub fn arm_threshold(threshold: Bytes) {
    recorder::LIVE_BYTES.arm(threshold);
}

/// Removes the threshold.
pub fn disarm_threshold() {
    recorder::LIVE_BYTES.disarm();
}

/// Creates a listener that waits for the threshold, on the caller's runtime.
///
/// # Errors
///
/// If the system cannot provide an `eventfd`: too many open files, or not Linux.
pub fn threshold_events() -> io::Result<EventListener> {
    EventListener::new(recorder::LIVE_BYTES.wake_fd())
}

/// Consumes a pending threshold event. Returns `true` if there was one.
pub fn take_threshold_event() -> bool {
    recorder::LIVE_BYTES.wake_fd().consume().is_ok()
}

/// Returns `true` if the program allocates through an [`Allocator`].
pub fn is_installed() -> bool {
    if !recorder::INSTALLED.load(Relaxed) {
        // The first allocation of a thread always sets the flag; this may be the first one.
        drop(black_box(Box::new(0u8)));
    }
    recorder::INSTALLED.load(Relaxed)
}
