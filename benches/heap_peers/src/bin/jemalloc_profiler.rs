//! jemalloc with its own profiler: one sample in 512 KiB, or, for its dump, in 2 bytes.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let dump = || {
        let control = jemalloc_pprof::PROF_CTL.as_ref().expect("prof:true in _RJEM_MALLOC_CONF");
        control.blocking_lock().dump_pprof().expect("a dump").len()
    };
    heap_peers::serve(|| (), dump);
}
