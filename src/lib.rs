//! marple watches a Rust service from the inside.

pub mod base;
pub mod config;
pub mod model;

pub mod agent;
pub mod codec;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "heap")]
pub mod heap;
#[cfg(feature = "http")]
pub mod http;
pub mod os;
pub mod rules;
pub mod store;
pub mod symbols;
#[cfg(feature = "trace")]
pub mod trace;
pub mod vitals;

#[cfg(feature = "heap")]
pub use heap::Allocator;
