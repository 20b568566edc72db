//! What the tests of several binaries share. Each `tests/<topic>/main.rs` has it as its module
//! `support`. What a single topic needs is a module of that topic.
#![allow(dead_code, unused_imports, unused_macros, reason = "each binary uses a part of it")]

pub(crate) mod blocks;
#[cfg(feature = "heap")]
pub(crate) mod counted_blocks;
pub(crate) mod counting;
#[cfg(all(feature = "cpu", target_os = "linux"))]
pub(crate) mod cpu_load;
#[cfg(feature = "pprof")]
pub(crate) mod drive;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod generated_code;
pub(crate) mod host;
pub(crate) mod kill;
pub(crate) mod peers;
pub(crate) mod rerun;
#[cfg(target_os = "linux")]
pub(crate) mod seccomp;
pub(crate) mod store;
#[cfg(feature = "trace")]
pub(crate) mod timeline;
#[cfg(feature = "http")]
pub(crate) mod web;
