//! Whether to capture: a pure function of the vitals.
