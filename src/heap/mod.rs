//! What holds memory.
//!
//! [`Allocator`] stands before the program's own allocator and samples what passes, by a countdown of
//! bytes (`sampler`, pure). A sampled block's stack is interned, its site counted, and its record
//! lives in a lock-free table until it is freed (`recorder` has the picture); [`snapshot`] sums the
//! table up. All tables are mapped memory with a cap, never heap.
//!
//! What holds everywhere on the allocating path: no lock and no waiting, so that it can be entered from
//! a signal handler, by a forked child and in the destructor of a thread-local; no allocation while
//! unwinding; and where one does happen before (the first read of the loaded files, a cache), the
//! thread is excluded, so that sampling never samples itself.
//!
//! Counting each block exactly would be simpler and costs an order of magnitude more; jemalloc's own
//! profiler is as cheap but is only in jemalloc.

mod alloc;
mod filter;
mod index;
mod live;
mod recorder;
mod sampler;
mod sites;
mod snapshot;
mod stacks;
mod thread;

use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;

use crate::base::Bytes;
use crate::os::images;

pub use alloc::Allocator;
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
/// The calling thread follows at once; any other before it has allocated another 64 KiB and, if that is
/// larger, one block. Blocks that are recorded already stay and keep their weight, so sums remain right.
pub fn set_rate(rate: Bytes) {
    recorder::RATE.store(rate.get(), Relaxed);
    thread::restart(rate.get());
}

/// The mean number of bytes between two samples. Default: 512 KiB.
pub fn rate() -> Bytes {
    Bytes(recorder::RATE.load(Relaxed))
}

/// Whether the program allocates through an [`Allocator`].
pub fn installed() -> bool {
    // A thread's first allocation always asks; if there never was one, this is it.
    drop(black_box(Box::new(0u8)));
    recorder::INSTALLED.load(Relaxed)
}
