//! The two threads of marple and the only wiring.
