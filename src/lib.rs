//! An in-process incident recorder for tokio services.
//!
//! marple captures the state of the process into one directory per incident, when memory, CPU,
//! task count or another metric crosses a threshold, or on demand. The files open in
//! `go tool pprof` and Perfetto.
//!
//! # Quick start
//!
//! ```text
//! cargo add marple
//! ```
//!
//! ```no_run
//! use std::alloc::System;
//!
//! #[global_allocator]
//! static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let agent = marple::Builder::from_file("marple.toml")?.start()?;
//!     // ... the service ...
//!     agent.shutdown().await?;
//!     Ok(())
//! }
//! ```
//!
//! `marple.toml`:
//!
//! ```toml
//! dir = "/var/lib/orders/captures"
//!
//! [http]
//! listen = "unix:/run/orders/marple.sock"
//!
//! # In addition to the default rules, see `config::default_rules`.
//! [[rule]]
//! metric = "gauge.queue_depth"
//! abs = 1000
//! ```
//!
//! The agent runs while its [`Agent`] lives, and watches the runtime it is started in.
//! [`AgentHandle::watch_runtime`] adds other runtimes. `config/marple.toml` in the repository
//! documents every key with its default; [`Settings`] has the same as values.
//!
//! # What else can be recorded
//!
//! | for | add |
//! |---|---|
//! | heap profiles | `#[global_allocator]` with [`Allocator`] |
//! | spans and events in the trace | [`trace::layer`] |
//! | parked workers in the trace | [`instrument_runtime`] |
//! | polls in the trace, tasks in dumps | [`task::spawn`] |
//! | metrics of the service | [`AgentHandle::gauge`], `counter` and `histogram` |
//! | files of the service in incidents | [`Builder::add_collector`] |
//! | HTTP routes in the service's own server | [`http::router`] |
//!
//! All of these are optional. The manifest of an incident lists what was not recorded.
//!
//! ```no_run
//! use tracing_subscriber::{filter::LevelFilter, prelude::*};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     tracing_subscriber::registry()
//!         .with(marple::trace::layer().with_filter(LevelFilter::INFO)) // spans and events
//!         .init();
//!     let mut builder = tokio::runtime::Builder::new_multi_thread();
//!     marple::instrument_runtime(builder.enable_all()); // parked workers
//!     builder.build()?.block_on(async {
//!         let agent = marple::Builder::from_file("marple.toml")?.start()?;
//!         marple::task::spawn(serve()).await?; // polls, and the place a task waits at
//!         agent.shutdown().await?;
//!         Ok(())
//!     })
//! }
//! # async fn serve() {}
//! ```
//!
//! # Footprint
//!
//! The agent runs on its own threads. `marple` and `marple-capture` always exist, others as needed:
//!
//! | thread | exists |
//! |---|---|
//! | `marple-cpu`, `marple-wall` | while CPU time is sampled; `marple-wall` in wall mode |
//! | `marple-encode` | from the first timed capture over HTTP, such as `profile` |
//! | `marple-log` | from the first log line |
//! | `marple-stalls` | from the first stall that needs a stack |
//! | `marple-wakers` | from the first request of an [`AgentHandle`] that is awaited |
//! | `marple-watch` and one of `notify` | while a settings or trigger file is watched |
//! | `marple-files` | while files are read for HTTP clients |
//! | `marple-shutdown` | during [`Agent::shutdown`] |
//! | `marple-collect`, `marple-callbacks` | with custom collectors, with event callbacks |
//!
//! No work is done on the threads of the service except by the profilers: `benches/RESULTS.md` in
//! the repository has the cost of each. The agent writes to one directory and stays within the
//! limits of `[store]`. Linux has every feature; other Unixes lack cgroups and all that is read
//! from `/proc`.
//!
//! # Features
//!
//! | feature | default | content |
//! |---|---|---|
//! | `cpu` | yes | CPU profiles (pprof) |
//! | `heap` | yes | heap profiles (pprof) through [`Allocator`] |
//! | `trace` | yes | runtime traces (Perfetto), stall detection |
//! | `http` | yes | the endpoint: status, incidents, `/debug/pprof/`, Prometheus metrics |
//! | `jemalloc` | no | heap profiles by jemalloc's own profiler; brings no jemalloc |
//! | `pprof` | no | the CPU engine of the crate `pprof` on Linux, for comparison |
//! | `cli` | no | the command `marple`: `cargo install marple --features cli` |
//!
//! # Scope
//!
//! marple is not a continuous profiler and not a metrics system. It keeps evidence of the moments
//! that matter, on the machine where they happened.

#![cfg_attr(
    not(feature = "internals"),
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "the crate's own tests use the rest, by `internals`"
    )
)]

mod agent;
mod analysis;
mod base;
mod capture;
mod codec;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "heap")]
mod heap;
mod model;
mod os;
mod policy;
mod render;
mod rules;
mod stacks;
mod stalls;
mod store;
mod symbols;
mod unwind;
mod vitals;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;

#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
#[cfg(feature = "http")]
pub mod http;
pub mod metrics;
pub mod task;
#[cfg(feature = "trace")]
pub mod trace;

pub use agent::{Agent, AgentHandle, Builder, Response};
pub use base::{Error, ErrorKind, IncidentId};
pub use config::Settings;
#[cfg(feature = "heap")]
pub use heap::Allocator;
pub use model::{CaptureKind, CaptureSet};
#[cfg(feature = "trace")]
#[doc(hidden)]
pub use trace::instrument;
#[cfg(feature = "trace")]
pub use trace::instrument_runtime;

/// Custom collectors: files of the service in incidents.
pub mod collectors {
    pub use crate::agent::{CollectorOptions, CollectorOutput, CollectorResult};
}

/// Events for callbacks of the service.
pub mod events {
    pub use crate::agent::IncidentEvent;
}

/// The manifest of an incident, `incident.json`, as values.
pub mod manifest {
    pub use crate::model::{
        Artifact, CaptureRecord, Confidence, Finding, FindingEvidence, FindingKind, IncidentState,
        Limits, Losses, Manifest, Origin, Outcome, ProcessInfo, Reason, RemovedArtifact, Versions,
        VitalsRow,
    };
}

/// Rules, their metrics and their conditions.
pub mod rule {
    pub use crate::model::{
        CollectorSelection, CounterPart, HistogramPart, HoldDurations, Metric, Mode, Refire, Rule,
    };
}

/// The status of a running agent, `GET /status`, as values.
pub mod status {
    pub use crate::agent::{
        AgentCounters, BudgetStatus, CaptureStarted, ConfigStatus, IncidentStatus, OnDemandStatus,
        PastDecision, RuleStatus, Status, ToggleStatus,
    };
    pub use crate::base::{LogStatus, ThreadPanics, Warning};
    pub use crate::model::Stall;
}

/// Sizes, frequencies and shares, as in the settings.
pub mod units {
    pub use crate::base::{Bytes, Hertz, ParseBytesError, Percent};
    pub use crate::model::{CpuEngine, CpuMode, TraceMode};
}

impl Builder {
    /// Starts the agent: two threads, and the endpoint if the settings have one.
    ///
    /// Call it from any thread. Inside a tokio runtime, that runtime is watched. The call takes as
    /// long as opening the incident directory and removing the partial files of a killed process,
    /// at most 2 seconds.
    ///
    /// The agent starts without the things it cannot have yet, and retries until they are free: the
    /// directory (in use by the previous process, read-only, full), the endpoint's address,
    /// threads, descriptors. The log and `warnings` in the status name them. With
    /// [`Builder::strict`] these are errors.
    ///
    /// # Errors
    ///
    /// Returns an error if the settings are invalid (with every problem in them), if a collector
    /// cannot be registered, or if an agent is running in this process.
    pub fn start(self) -> Result<Agent, Error> {
        // `http` is a layer above `agent`, so only the root can attach the endpoint.
        #[cfg(feature = "http")]
        let this = self.add_service(http::Listener::default());
        #[cfg(not(feature = "http"))]
        let this = self;
        this.launch()
    }
}
