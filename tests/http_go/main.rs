//! Compatibility with Go's `net/http/pprof`, one test for each path and parameter. [`paths`] sends
//! the same requests to a real Go server and to marple. [`differences`] tests what differs, as the
//! header of `marple::http` documents. [`client`] runs Go's own client against marple.
//!
//! A binary of its own, because `cargo test --release --test http_go` tests a release build of the
//! service, with the default features. The allocator is marple's, as in a service. Other tests of
//! the endpoint belong to `tests/http`.
#![cfg(all(feature = "cpu", feature = "heap", feature = "trace"))]
#![cfg(all(target_os = "linux", target_env = "gnu"))]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod differences;
mod paths;
mod service;

use std::alloc::System;

use crate::support::web::Response;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

/// Returns the parts of a response that a client uses: the status and these headers.
fn shape(answer: &Response) -> (u16, Vec<(&'static str, Option<String>)>) {
    let headers = [
        "content-type",
        "content-disposition",
        "content-encoding",
        "x-content-type-options",
        "x-go-pprof",
        "allow",
        "location",
    ];
    let value = |name| (name, answer.header(name).map(str::to_owned));
    (answer.status, headers.into_iter().map(value).collect())
}
