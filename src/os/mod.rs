//! What the operating system tells about the process and lets it do.

pub mod images;
pub mod memory;
pub mod sigprof;
pub mod unwind;
mod unwind_modules;
mod unwind_thread;
