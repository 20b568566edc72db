//! jemalloc without its profiler.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    heap_peers::serve(|| (), || 0);
}
