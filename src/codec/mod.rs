//! Model values to bytes and back.
