//! marple over the system's allocator, sampling nothing.

use std::alloc::System;

use marple::internals::base::Bytes;
use marple::internals::heap;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

fn main() {
    heap_peers::serve(|| heap::set_rate(Bytes(0)), || 0);
}
