//! Reads the vitals, once a tick.
