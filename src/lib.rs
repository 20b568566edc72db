//! marple watches a Rust service from the inside. When memory, CPU, task count or another measure
//! crosses a threshold, or somebody asks, it captures what the process is doing into a directory: one
//! directory per incident, files that `go tool pprof` and Perfetto open.
//!
//! # In a service
//!
//! ```no_run
//! use std::alloc::System;
//!
//! #[global_allocator]
//! static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let _agent = marple::Agent::from_file("config/marple.toml")?.start()?;
//!     // ... the service ...
//!     Ok(())
//! }
//! ```
//!
//! ```toml
//! dir = "/var/lib/orders/captures"
//!
//! [http]
//! listen = "127.0.0.1:6060"
//!
//! # Comes to the default rules, see `config::default_rules`.
//! [[rule]]
//! metric = "gauge.queue_depth"
//! abs = 1000
//! ```
//!
//! That is all. The runtime [`Agent`] is started in is watched; others are added with
//! [`AgentHandle::observe`]. The allocator line is for heap profiles alone, [`trace::layer`] and
//! [`instrument`] for what a trace shows besides the vitals, [`task::spawn`] for tasks that a dump is to
//! show; without them everything else works, and the incident's manifest says what is missing.
//!
//! # What it asks of the process
//!
//! Threads of its own, `marple`, `marple-capture`, while CPU time is sampled `marple-cpu` (in wall mode `marple-wall`), once a
//! profile was asked for over HTTP `marple-encode`, for log lines `marple-log`, for stacks of stalls `marple-stalls`, for
//! wakers of requests that are awaited `marple-wakers`, and none of the host's time but what the engines take: see [`cpu`], [`heap`] and [`trace`]. A directory it may write to; it stays within the
//! bounds of `[store]`. Linux has everything; other Unixes lack cgroups and what is read from `/proc`.
//!
//! # What it is not for
//!
//! It is no continuous profiler and no metrics system: it keeps evidence of the moments that matter, on
//! the machine where they happened.

pub mod base;
pub mod model;

pub mod config;
pub mod os;

pub mod codec;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "heap")]
pub mod heap;
pub mod rules;
pub mod stacks;
pub mod store;
pub mod symbols;
#[cfg(feature = "trace")]
pub mod trace;
pub mod vitals;

pub mod task;

pub mod agent;
#[cfg(feature = "http")]
pub mod http;

pub use agent::{Agent, AgentHandle, Builder, Pending};
pub use base::Error;
pub use config::Settings;
#[cfg(feature = "heap")]
pub use heap::Allocator;
pub use model::{CaptureKind, CaptureSet};
#[cfg(feature = "trace")]
pub use trace::instrument;

impl Builder {
    /// Starts the agent: two threads, and the endpoint if the settings have one.
    ///
    /// Works from any thread, inside a tokio runtime, which is then watched, or outside of all. Takes as long as opening
    /// the directory of incidents and sweeping what a killed process left there, at most 2 seconds.
    ///
    /// What the agent cannot have now it does without, and takes once it is free: the directory (in use by the process
    /// before, read-only, full), the endpoint's address, threads, descriptors. `warnings` of the status and the log
    /// say what is missing. [`Builder::strict`] makes these errors.
    ///
    /// # Errors
    ///
    /// If the settings are not valid (with every problem in them), a collector cannot be registered, or an agent is
    /// running in this process.
    pub fn start(self) -> Result<Agent, Error> {
        // The endpoint lies above the agent, so it is tied to it here.
        #[cfg(feature = "http")]
        let this = self.attach(http::Listener::default());
        #[cfg(not(feature = "http"))]
        let this = self;
        this.launch()
    }
}
