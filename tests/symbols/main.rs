//! Names of functions: from the files of a process, damaged and hostile ones included, and in an
//! agent whose files a deployment replaces. The fate of loaded code belongs here.
//!
//! Source lines and inlined functions, which only the command line finds, belong to `tests/cli`.
//! The allocator is marple's above one that counts: the first for heap profiles, the second for the
//! memory that symbol tables take.

#[path = "../support/mod.rs"]
mod support;

#[cfg(all(
    feature = "cpu",
    feature = "heap",
    feature = "trace",
    target_os = "linux",
    target_env = "gnu"
))]
mod after_deploy;
mod files;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: marple::Allocator<Counting> = marple::Allocator::new(Counting);
