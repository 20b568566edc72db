//! The HTTP endpoint: the routes of Go's `net/http/pprof`, and those of marple.
//!
//! | route | response | role |
//! |---|---|---|
//! | `/monitor/notify` | changes the toggle, or returns its state | control; `status`: read |
//! | `/status` | the agent's [`Status`](crate::agent::Status) | read |
//! | `/metrics` | the same for Prometheus | read |
//! | `/incidents` | every incident with its files, the latest first | read |
//! | `/incidents/{id}` | its manifest | read |
//! | `/incidents/{id}/{file}` | a file; ranges, ETag by SHA-256 | read |
//! | `/incidents/{id}.tar.gz` | all files | read |
//! | `/debug/pprof/` | the index page | read |
//! | `/debug/pprof/symbol` | as in Go | read |
//! | `/debug/pprof/{name}` | a profile, as in Go | capture |
//!
//! The names of profiles are `profile`, `heap`, `allocs`, `trace`, `goroutine`, `threadcreate`,
//! `cmdline`, `block` and `mutex`.
//!
//! `/monitor/notify` flips the toggle, or does what `?action=start|stop|toggle|status` names. It
//! takes a `POST`, and a `GET` for `status`. Any other `GET` needs a token, the Unix socket of the
//! listener, a page of the same origin, or `http.compat_get_toggle`.
//!
//! # Three ways to serve it
//!
//! The listener of marple (`[http]` in the settings) runs on the agent's thread, so it responds
//! when the service's runtime is stuck. It listens on loopback or on a Unix socket of mode 0600;
//! any other address needs a token. Prefer the socket: loopback without a token exposes heap and
//! command line to every user of the machine, and a warning in `/status` says so.
//!
//! [`router`] nests into an axum application. [`guarded`] does the same with tokens and host names.
//! Either is a `tower::Service` of HTTP requests, so it also runs under hyper or next to tonic, on
//! a tokio runtime. [`router`] checks no token: the service decides how to protect it. An
//! unguessable prefix takes one line, but appears in the logs of every proxy on the path; a token
//! does not:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let agent = marple::Agent::builder().start()?;
//! use marple::config::{HttpSettings, Secret};
//! use marple::http;
//!
//! let by_prefix =
//!     axum::Router::new().nest("/a-long-random-prefix", http::router(&agent.handle()));
//!
//! let mut settings = HttpSettings::default();
//! settings.token = Some(Secret::new("a long random text"));
//! let by_token = axum::Router::new().nest("/internal", http::guarded(&agent.handle(), &settings));
//! # Ok(())
//! # }
//! ```
//!
//! With hyper alone, wrap a router as `TowerToHyperService::new(router)` of `hyper_util`. In a
//! tonic server, use `add_routes(Routes::from(router))` with `accept_http1(true)`.
//! `tests/http_endpoint/embedding.rs` shows both.
//!
//! # Clients
//!
//! `go tool pprof` sends no token and opens no Unix socket. Pass it a file: `curl --unix-socket
//! PATH -o heap http://localhost/debug/pprof/heap && go tool pprof heap`, or with a token `curl -H
//! "Authorization: Bearer $TOKEN" -o heap URL/debug/pprof/heap && go tool pprof heap`. It can also
//! connect over loopback, or below a prefix.
//!
//! Grafana Alloy (`pyroscope.scrape`) and Parca send the `bearer_token` or `authorization` of their
//! configuration. All their default paths exist: `allocs`, `block`, `goroutine`, `heap`, `mutex`,
//! `profile`, `threadcreate`. The paths `delta_heap`, `delta_block`, `delta_mutex` and
//! `/debug/fgprof` are off in their defaults and come from packages outside Go's standard library.
//! They are 404, as in a Go service without those packages; `heap?seconds=N` is such a difference.
//! `tests/http_endpoint/scrapers.rs` sends the requests found in the sources of both. The scrapers
//! themselves are in no package registry and were not run.
//!
//! # Differences from Go
//!
//! - **Length.** Go streams responses over 2 KiB with chunked encoding. marple sends
//!   `Content-Length`, so a failure at the end is a 500 and not a truncated profile.
//! - **`trace`.** Go returns its execution trace; marple returns a Perfetto trace that starts
//!   `trace.window` before the request. `go tool trace` reads only Go's scheduler, and the
//!   look-back is recorded anyway.
//! - **`seconds`.** Go accepts any value and rounds it to 64 bits of nanoseconds, infinity
//!   included. A value beyond `http.max_duration` is 400: a forgotten client would occupy the one
//!   profiler for a day.
//! - **`seconds` for `block` and `mutex`.** Go waits. marple returns an empty difference at once,
//!   because these profiles never change.
//! - **Missing profiles.** Both return 404. marple also returns it, with the reason, for a profile
//!   that is disabled by the settings (`stacks.threads = "off"`) or the build (no
//!   `#[global_allocator]`). Retrying is useless, and nothing is broken.
//! - **Unread responses.** Go keeps any number of them. marple returns 503 beyond 64 MiB of them,
//!   since they are the service's memory.
//! - **Captures per day.** Beyond `budget.on_demand_captures_per_day` marple returns 429 with
//!   `Retry-After`, since a client in a loop is a load. A continuous profiler takes a fifth of the
//!   default.
//! - **`goroutine`.** It lists threads with their stacks, and with `debug=2` also the tasks,
//!   because a task that is not running has no stack.
//! - **`threadcreate`.** It has the number of threads without stacks. Stacks at thread creation are
//!   not recorded.
//! - **Requests per second.** Requests beyond `http.max_requests_per_second` are delayed, and so
//!   are refusals of a peer after 32 of them. A client in a loop then costs at most a few per cent
//!   of a core.
//! - **`symbol`.** More than 50,000 addresses are 413, and more than 16 bodies at once 503, since
//!   they are the service's memory. It accepts `POST`, which `go tool pprof` uses; any other
//!   profile is 405.
//! - **HTTP/2 and TLS.** Go closes the connection. marple sends a 505 or 400 with a text, and logs
//!   a line, so that the cause is visible.
//! - **Busy profiler.** Go returns 500, `cpu profiling already in use`. The 500 of marple adds the
//!   current client, the end of its capture and `Retry-After`.
//! - **Disconnected client.** If a client goes away during the last write, Go finishes the profile
//!   and marple drops it.
//! - **`HEAD`.** Go takes the capture and discards it. marple returns the headers without a
//!   capture, so a probe is free.
//! - **`heap?debug=1`.** Go scales by the rate in the first line and adds `runtime.MemStats`.
//!   marple writes values that are already estimates (`@ heapprofile`) and the vitals of the
//!   process.
//! - **`gc=1`.** Go collects garbage first. marple sends `X-Marple-Gc`: there is no collector, and
//!   freed memory leaves the profile at once.
//! - **`goroutineleak`.** It is 404: references between tasks are not traced.
//! - **Additional parameters**, within hard limits: `hz=` (1 to 1000) and `mode=` (`cpu`, `wall`)
//!   on `profile`, `rate=` (4096 or more) on `heap?seconds=`.
//!
//! # Guarantees
//!
//! Handlers do not block the agent's thread. Captures, symbolization and encoding run on the thread
//! `marple-capture`, encoding at low priority. Files are read on blocking threads of the runtime.
//! The rest is arithmetic on a few KiB.
//!
//! A client that disconnects drops its handler, which cancels its capture at once. A client that
//! stays connected and reads nothing holds no engine, because its capture is finished. It holds a
//! connection slot that others can reclaim (`connection_slots`) and bytes that are counted
//! (`response_budget`).
//!
//! One capture of each kind runs at a time. Captures with a duration leave capacity for snapshots
//! and symbols. `tests/http_endpoint/memory.rs` checks the memory limit of each route. The module
//! `access` has the checks of a request, `audit` its log lines and counts.

mod access;
mod archive;
mod audit;
mod chunks;
mod connection;
mod connection_slots;
mod dispatch;
mod incident_list;
mod incidents;
mod index;
mod listener;
mod metrics;
mod notify;
mod pprof;
mod protocol;
mod query;
mod rate_limit;
mod response_budget;
mod responses;
mod route;
mod symbol;

use std::sync::Arc;

use axum::Router;

use crate::agent::AgentHandle;
use crate::base::warnings;
use crate::config::{HttpSettings, Listen};
use access::Access;
use dispatch::{HttpEndpoint, HttpLimits};
pub(crate) use listener::Listener;
use rate_limit::{RateLimiter, RefusalPenalty};

/// Returns the routes, to be nested into the service's router under any prefix. Every request that
/// reaches them has all roles, except one that a browser sends on behalf of another site.
///
/// An unguessable prefix takes one line:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let agent = marple::Agent::builder().start()?;
/// # let app = axum::Router::new();
/// let app = app.nest("/a-long-random-prefix", marple::http::router(&agent.handle()));
/// # Ok(())
/// # }
/// ```
pub fn router(agent: &AgentHandle) -> Router {
    dispatch::routes(&Arc::new(HttpEndpoint {
        agent: agent.clone(),
        access: Access::with_origin_check_only(),
        limits: None,
    }))
}

/// Returns the routes behind the tokens and host names of `settings`; `settings.listen` is ignored.
/// Unknown paths below the prefix get the same checks as existing ones, so an unauthorized client
/// cannot find out which paths exist.
pub fn guarded(agent: &AgentHandle, settings: &HttpSettings) -> Router {
    let access = Access::for_nested_router(settings);
    dispatch::router_with_fallback(HttpEndpoint { agent: agent.clone(), access, limits: None })
}

/// Returns the routes of the listener.
fn listener_router(agent: &AgentHandle, settings: &HttpSettings) -> Router {
    let access = Access::for_listener(settings);
    match &settings.listen {
        Listen::Tcp(address) if !access.has_tokens() => {
            let text = format!(
                "the HTTP endpoint on {address} requires no token: every user and container that can \
                 connect to it can read heap, traces and arguments; listen on a Unix socket \
                 (listen = \"unix:PATH\"), or set token_file"
            );
            warnings::set("http.token", text);
        }
        _ => warnings::clear("http.token"),
    }
    let rate_limiter = RateLimiter::new(settings.max_requests_per_second);
    let limits = Some(HttpLimits { rate_limiter, refusals: RefusalPenalty::default() });
    dispatch::router_with_fallback(HttpEndpoint { agent: agent.clone(), access, limits })
}

/// The address or the process that a request comes from.
#[derive(Clone)]
struct Peer(String);
