//! The HTTP endpoint over real sockets: its listener and routes, access control, on-demand
//! captures, incidents and their files, and its limits of time, memory and number.
//!
//! Go's client and server beside it belong to `tests/http_go`. The crate is not called `http`: that
//! is a library to `symbols::owner`, and no function here would count as one of the service. The
//! allocator is marple's above one that counts: the first for heap profiles, the second for the
//! memory that requests take.
#![cfg(feature = "http")]

#[path = "../support/mod.rs"]
mod support;

#[cfg(all(feature = "cpu", feature = "heap", feature = "trace"))]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod captures;
mod collectors;
mod embedding;
mod incidents;
mod listener;
#[cfg(all(feature = "heap", feature = "trace"))]
mod memory;
mod metrics;
mod on_demand_quota;
#[cfg(all(feature = "cpu", feature = "heap"))]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod scrapers;
mod security;
#[cfg(all(feature = "cpu", feature = "heap", feature = "trace", target_os = "linux"))]
mod slow_clients;
#[cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]
mod wall;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: marple::Allocator<Counting> = marple::Allocator::new(Counting);
