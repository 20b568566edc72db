//! jemalloc with its own profiler, at one sample in 512 KiB.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    heap_peers::serve(|| (), || 0);
}
