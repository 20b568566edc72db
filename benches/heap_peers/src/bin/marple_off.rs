//! marple over the system's allocator, sampling nothing.

use std::alloc::System;

use marple::base::Bytes;
use marple::heap;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

fn main() {
    heap_peers::serve(|| heap::set_rate(Bytes(0)), || 0);
}
