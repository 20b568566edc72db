//! The system's allocator.

fn main() {
    heap_peers::serve(|| (), || 0);
}
