//! Marple's own threads, which inherit nothing that has to be put back.

/// Begins a thread of marple's.
pub fn enter() {
    crate::os::memory::release_own_stack();
}
