//! marple over the system's allocator, at 512 KiB.

use std::alloc::System;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

fn main() {
    heap_peers::serve(|| (), || 0);
}
