//! Settings: parsing, validation and its messages, the shipped files of `config/`, and the watcher
//! of a settings file. `marple::config` has no thread but the watcher's, and these tests start no
//! agent.
//!
//! Changes of the settings of a running agent belong to `tests/agent`. The allocator is the
//! system's.

mod files;
mod problems;
mod values;
#[cfg(unix)]
mod watch;
