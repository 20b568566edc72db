//! jemalloc with its own profiler, which samples every block, for jemalloc_pprof's dump.

use heap_peers::Counting;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Counting<Jemalloc> = Counting(Jemalloc);

fn main() {
    let dump = || {
        let control = jemalloc_pprof::PROF_CTL.as_ref().expect("prof:true in _RJEM_MALLOC_CONF");
        control.blocking_lock().dump_pprof().expect("a dump").len()
    };
    heap_peers::serve(|| (), dump);
}
