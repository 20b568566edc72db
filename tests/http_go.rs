//! What clients of Go's `net/http/pprof` get here, one test a path and parameter: the same question
//! to a real Go server and to ours ([`paths`]), what differs and is told in the header of
//! `marple::http` ([`differences`]), and Go's own client against ours ([`client`]).
//!
//! `cargo test --release --test http_go` asks a service as it is released.
#![cfg(all(feature = "cpu", feature = "heap", feature = "trace"))]
#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod host;
mod peers;
mod web;

#[path = "http_go/client.rs"]
mod client;
#[path = "http_go/differences.rs"]
mod differences;
#[path = "http_go/paths.rs"]
mod paths;
#[path = "http_go/service.rs"]
mod service;

use std::alloc::System;

use web::Answer;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

/// What a client goes by: the status and these headers.
fn shape(answer: &Answer) -> (u16, Vec<(&'static str, Option<String>)>) {
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
