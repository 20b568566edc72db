//! What the runtime did, and when.
