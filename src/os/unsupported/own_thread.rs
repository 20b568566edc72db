//! Marple's threads, which inherit no attributes that have to be reset.

/// Prepares a marple thread: releases the unused memory of its stack.
pub fn enter() {
    crate::os::unused_stack::release();
}
