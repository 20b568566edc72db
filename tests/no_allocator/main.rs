//! A program that does not install `marple::Allocator`: what is missing, what is reported, and what
//! works all the same.
//!
//! The allocator is the system's, which is what these tests need. Nearly all other programs have
//! marple's; `tests/heap` is about them.
#![cfg(all(feature = "heap", feature = "http"))]

#[path = "../support/mod.rs"]
mod support;

mod captures;
mod heap;
mod on_demand_quota;
