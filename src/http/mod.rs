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
//! let token = Some(Secret::new("a long random text"));
//! let settings = HttpSettings { token, ..HttpSettings::default() };
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

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, OriginalUri, Path, Request};
use axum::http::header::{CONNECTION, CONTENT_TYPE, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use crate::agent::AgentHandle;
use crate::base::warnings;
use crate::config::{HttpSettings, Listen};
use access::{Access, AccessRole, RequestOrigin};
use audit::AuditRecord;
use connection_slots::SlotState;
pub(crate) use listener::Listener;
use notify::Action;
use query::QueryParams;
use rate_limit::{RateLimiter, RefusalPenalty};
use route::Route;

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
    routes(&Arc::new(HttpEndpoint {
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
    router_with_fallback(HttpEndpoint { agent: agent.clone(), access, limits: None })
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
    router_with_fallback(HttpEndpoint { agent: agent.clone(), access, limits })
}

fn router_with_fallback(endpoint: HttpEndpoint) -> Router {
    let endpoint = Arc::new(endpoint);
    let fallback_endpoint = Arc::clone(&endpoint);
    routes(&endpoint).fallback(move |request| {
        handle_request(Arc::clone(&fallback_endpoint), Route::Unknown, request)
    })
}

struct HttpEndpoint {
    agent: AgentHandle,
    access: Access,
    /// `None` for a nested router: its service has other limits, and its runtime may have no timer.
    limits: Option<HttpLimits>,
}

/// Rate limits of the listener.
struct HttpLimits {
    rate_limiter: RateLimiter,
    refusals: RefusalPenalty,
}

/// The address or the process that a request comes from.
#[derive(Clone)]
struct Peer(String);

fn routes(endpoint: &Arc<HttpEndpoint>) -> Router {
    Route::ALL.into_iter().fold(Router::new(), |router, (route, path)| {
        let endpoint = Arc::clone(endpoint);
        router
            .route(path, any(move |request| handle_request(Arc::clone(&endpoint), route, request)))
    })
}

/// Serves a request within the limits of the endpoint.
async fn handle_request(
    endpoint: Arc<HttpEndpoint>,
    route: Route,
    mut request: Request,
) -> Response {
    let Some(limits) = &endpoint.limits else { return dispatch(&endpoint, route, request).await };
    let slot = request.extensions_mut().remove::<Arc<SlotState>>();
    let peer =
        request.extensions().get().map_or(String::new(), |Peer(peer)| rate_limit::peer_key(peer));
    // The body of a POST has yet to arrive from the client.
    let is_request_complete = matches!(*request.method(), Method::GET | Method::HEAD);
    let set_waiting = |is_waiting: bool| match &slot {
        Some(slot) if is_waiting => slot.mark_waiting(),
        Some(slot) if is_request_complete => slot.mark_busy(),
        _ => {}
    };
    set_waiting(true);
    limits.rate_limiter.acquire().await;
    set_waiting(false);
    let mut response = dispatch(&endpoint, route, request).await;
    let is_refusal = response.status().is_client_error() || response.status().is_server_error();
    if is_refusal && limits.refusals.record_refusal(&peer) {
        set_waiting(true);
        tokio::time::sleep(limits.rate_limiter.refusal_delay()).await;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn dispatch(endpoint: &HttpEndpoint, route: Route, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let client = client_name(&parts);
    let mut audit = AuditRecord::new(route, parts.method.as_str(), &client);
    // A path whose escapes are not UTF-8 has no parameters, and no resource has such a name.
    let path_params = Path::<HashMap<String, String>>::from_request_parts(&mut parts, &()).await;
    let path_params = path_params.map(|Path(names)| names).unwrap_or_default();
    let name = |key: &str| path_params.get(key).map_or("", String::as_str);
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let action = Action::parse(&QueryParams::parse(&query));

    let required_role = route.role(name("name"), action == Some(Action::Status));
    let caller = match authorize(&endpoint.access, &parts, route, required_role, &mut audit) {
        Ok(caller) => caller,
        Err(refusal) => {
            audit.finish(refusal.status().as_u16());
            return *refusal;
        }
    };
    let location = endpoint.agent.location();
    let response = match route {
        Route::Notify => {
            let allow_get = caller.is_proven || endpoint.agent.http_settings().compat_get_toggle;
            notify::notify(&endpoint.agent, &parts.method, action, allow_get).await
        }
        Route::Status => status(&endpoint.agent).await,
        Route::Metrics => metrics(&endpoint.agent).await,
        Route::Incidents => incidents::list(location).await,
        Route::Incident => {
            incidents::manifest_or_archive(location, name("id"), &parts.headers).await
        }
        Route::Artifact => {
            incidents::file(location, name("id"), name("file"), &parts.headers).await
        }
        Route::PprofRoot => redirect_to_index(&parts),
        Route::Index => index::page(endpoint.agent.status().await.ok().as_deref(), &parts),
        Route::Pprof => {
            let pprof_request = pprof::PprofRequest {
                agent: &endpoint.agent,
                method: &parts.method,
                name: name("name"),
                query: &query,
                client: &client,
            };
            pprof::profile(pprof_request, body).await
        }
        Route::Unknown => responses::not_found(),
    };
    audit.finish(response.status().as_u16());
    response
}

/// Checks the caller, then its role, then the method. A caller that fails one check gets no
/// information about the later ones.
fn authorize(
    access: &Access,
    parts: &Parts,
    route: Route,
    required_role: AccessRole,
    audit: &mut AuditRecord,
) -> Result<RequestOrigin, Box<Response>> {
    let caller = access.check(parts).map_err(responses::access_denied)?;
    audit.set_role(caller.role);
    if route == Route::Unknown {
        return Ok(caller);
    }
    if caller.role < required_role {
        return Err(responses::insufficient_role(required_role).into());
    }
    if !route.allows_method(&parts.method) {
        return Err(responses::method_not_allowed(route.methods()).into());
    }
    Ok(caller)
}

/// Returns the name of the client, shown to other clients while it uses an engine.
fn client_name(parts: &Parts) -> String {
    use axum::extract::ConnectInfo;
    use std::net::SocketAddr;

    if let Some(Peer(peer)) = parts.extensions.get() {
        return peer.clone();
    }
    match parts.extensions.get::<ConnectInfo<SocketAddr>>() {
        Some(ConnectInfo(address)) => address.to_string(),
        None => "another request".to_owned(),
    }
}

async fn status(agent: &AgentHandle) -> Response {
    match agent.status().await {
        Ok(status) => responses::pretty_json(&status),
        Err(error) => responses::agent_error(&error),
    }
}

async fn metrics(agent: &AgentHandle) -> Response {
    match agent.status().await {
        Ok(status) => {
            let mut response = ([responses::NOSNIFF], metrics::render(&status)).into_response();
            let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => responses::agent_error(&error),
    }
}

/// Redirects `/debug/pprof` to `/debug/pprof/` with the text of Go's mux. Relative links on the
/// page need the slash.
fn redirect_to_index(parts: &Parts) -> Response {
    let path = parts.extensions.get::<OriginalUri>().map_or(parts.uri.path(), |uri| uri.path());
    let Ok(target) = HeaderValue::try_from(format!("{path}/")) else {
        return responses::not_found();
    };
    let text = format!("<a href=\"{}/\">Temporary Redirect</a>.\n\n", index::EscapedHtml(path));
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let headers = [(LOCATION, target), (CONTENT_TYPE, kind)];
    (StatusCode::TEMPORARY_REDIRECT, headers, text).into_response()
}
