//! What holds memory.
