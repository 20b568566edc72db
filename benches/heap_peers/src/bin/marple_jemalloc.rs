//! marple over jemalloc, at 512 KiB.

#[global_allocator]
static ALLOCATOR: marple::Allocator<tikv_jemallocator::Jemalloc> =
    marple::Allocator::new(tikv_jemallocator::Jemalloc);

fn main() {
    heap_peers::serve(|| (), || 0);
}
