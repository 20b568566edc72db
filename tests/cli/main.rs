//! The command line `marple`, run as a program over files that a service left: here the test itself
//! writes a heap profile.
//!
//! A new command gets a module. What the commands compute is tested in its layer. The allocator is
//! marple's, so that there is a profile.
#![cfg(all(feature = "cli", feature = "heap"))]

#[path = "../support/mod.rs"]
mod support;

mod symbolize;

use std::alloc::System;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);
