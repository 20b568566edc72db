//! What holds memory.
//!
//! [`Allocator`] stands before the program's own allocator and samples what passes, by a countdown of
//! bytes (`sampler`, pure). A sampled block's stack is interned, its site counted, and its record
//! lives in a lock-free table until it is freed (`recorder` has the picture); [`Room`] shows what the
//! tables hold without allocating, [`snapshot`] makes a value of it. All tables are mapped memory with a cap, never heap.
//!
//! What holds everywhere on the allocating path: no lock and no waiting, so that it can be entered from
//! a signal handler, by a forked child and in the destructor of a thread-local; no allocation while
//! unwinding; and where one does happen before (the first read of the loaded files, a cache), the
//! thread is excluded, so that sampling never samples itself.
//!
//! Counting each block exactly would be simpler and costs an order of magnitude more; jemalloc's own
//! profiler is as cheap but is only in jemalloc.

mod alloc;
mod dump;
mod filter;
mod frames;
mod index;
#[cfg(all(feature = "jemalloc", target_os = "linux"))]
pub mod jemalloc;
mod level;
mod live;
mod recorder;
mod sampler;
mod segment;
mod sites;
mod slots;
mod snapshot;
mod stacks;
mod thread;

// Beside what they test and not in it: `tests/heap_loom.rs` compiles those files, with atomics that work
// in its models only.
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
use crate::os::images;
use crate::os::wake::Listener;

pub use alloc::Allocator;
pub use dump::{
    BATCH, DEFAULT_SAMPLE_TYPE, DROP_FRAMES, Dump, PERIOD_TYPE, Room, SAMPLE_TYPES, Sample, losses,
};
pub use snapshot::snapshot;
pub use thread::{Exclusion, exclude_current_thread};

/// Why there is no heap profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program's allocator is another.
    #[error(
        "the program's allocator is not marple's, so there is nothing to show; add to main.rs: \
         #[global_allocator] static A: marple::Allocator<std::alloc::System> = \
         marple::Allocator::new(std::alloc::System);"
    )]
    NotInstalled,
    /// The loaded files could not be listed.
    #[error(transparent)]
    Images(#[from] images::Error),
}

/// Sets the mean number of bytes allocated between two samples: 0 records nothing, 1 everything.
///
/// The calling thread follows at once, and so does every other at rate 1: all blocks allocated from here on are in
/// the profile exactly. At another rate a thread follows before it has allocated another 64 KiB and, if that is larger, one
/// block. Blocks that are recorded already stay and keep their weight, so sums remain right.
pub fn set_rate(rate: Bytes) {
    recorder::set_rate(rate.get());
    thread::restart(rate.get());
}

/// The mean number of bytes between two samples. Default: 512 KiB.
pub fn rate() -> Bytes {
    Bytes(recorder::RATE.load(Relaxed))
}

/// What the program has asked for and not given back, as its samples tell: an unbiased estimate, the sum
/// of `inuse_space` at this moment. None while nothing is sampled. Costs one load.
pub fn in_use() -> Option<Bytes> {
    (recorder::INSTALLED.load(Relaxed) && rate() > Bytes(0)).then(|| recorder::LEVEL.in_use())
}

/// Has the thread that brings [`in_use`] above `mark` wake whoever waits for [`crossings`], once; an
/// earlier mark is forgotten. If it is above already, wakes at once.
pub fn watch(mark: Bytes) {
    recorder::LEVEL.watch(mark);
}

/// Watches for no mark.
pub fn unwatch() {
    recorder::LEVEL.unwatch();
}

/// Waits for the mark to be crossed, on the runtime of the caller.
///
/// # Errors
///
/// When the system has no `eventfd` to give: too many open files, or not Linux.
pub fn crossings() -> io::Result<Listener> {
    Listener::new(recorder::LEVEL.wake())
}

/// Takes a crossing away from [`crossings`]; whether there was one.
pub fn crossed() -> bool {
    recorder::LEVEL.wake().hear().is_ok()
}

/// Whether the program allocates through an [`Allocator`].
pub fn installed() -> bool {
    if !recorder::INSTALLED.load(Relaxed) {
        // A thread's first allocation always asks; if there never was one, this is it.
        drop(black_box(Box::new(0u8)));
    }
    recorder::INSTALLED.load(Relaxed)
}
