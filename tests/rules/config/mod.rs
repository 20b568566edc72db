//! Settings: parsing, validation and its messages, the shipped files of `config/`, and the watcher
//! of a settings file. `marple::config` has no thread but the watcher's.

mod files;
mod problems;
mod values;
#[cfg(unix)]
mod watch;
