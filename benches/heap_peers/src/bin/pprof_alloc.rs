//! pprof-alloc over the system's allocator, at its default rate of 512 KiB.

#[global_allocator]
static ALLOCATOR: pprof_alloc::PprofAlloc = pprof_alloc::PprofAlloc::new().with_pprof();

fn main() {
    heap_peers::serve(|| (), || 0);
}
