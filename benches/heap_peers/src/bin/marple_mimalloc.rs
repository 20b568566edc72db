//! marple over mimalloc, at 512 KiB.

#[global_allocator]
static ALLOCATOR: marple::Allocator<mimalloc::MiMalloc> =
    marple::Allocator::new(mimalloc::MiMalloc);

fn main() {
    heap_peers::serve(|| (), || 0);
}
