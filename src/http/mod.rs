//! The endpoint: what clients of Go's `net/http/pprof` expect, and what marple has besides.
//!
//! | route | answer | role |
//! |---|---|---|
//! | `POST /monitor/notify` (`GET` with a token, over the own Unix socket, or from a browser's own page) | flips the toggle; `?action=start\|stop\|toggle\|status` says it outright | control; `status`: read |
//! | `/status` | how the agent stands, as [`Status`](crate::agent::Status) | read |
//! | `/metrics` | the same for Prometheus | read |
//! | `/incidents` | every incident with its files, the latest first | read |
//! | `/incidents/{id}` | its manifest | read |
//! | `/incidents/{id}/{file}` | a file; ranges, ETag by SHA-256 | read |
//! | `/incidents/{id}.tar.gz` | all of it | read |
//! | `/debug/pprof/` | the page people know | read |
//! | `/debug/pprof/{profile,heap,allocs,trace,goroutine,threadcreate,cmdline}` | as in Go | capture |
//! | `/debug/pprof/symbol` | as in Go | read |
//!
//! # Three ways in
//!
//! A listener of marple's own (`[http]` in the settings) runs on the agent's thread, so that it answers when
//! the service's runtime is stuck. It is on loopback or a Unix socket of mode 0600, or it asks for a token. Prefer
//! the socket: loopback without a token gives heap and arguments to every user of the machine, which a warning in
//! `/status` says.
//!
//! [`router`] nests into an axum application; [`guarded`] is the same with tokens and names of its own.
//! Either is a `tower::Service` of HTTP requests, so it also serves behind hyper or beside tonic, on a tokio
//! runtime. A nested router asks for nothing by itself, since only the service knows what stands before it.
//! A prefix nobody knows is one line, and shows in every log of every proxy on the way; the token does not:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let agent = marple::Agent::builder().start()?;
//! use marple::config::{HttpSettings, Secret};
//! use marple::http;
//!
//! let by_prefix = axum::Router::new().nest("/a-long-random-prefix", http::router(&agent.handle()));
//!
//! let token = Some(Secret::new("a long random text"));
//! let settings = HttpSettings { token, ..HttpSettings::default() };
//! let by_token = axum::Router::new().nest("/internal", http::guarded(&agent.handle(), &settings));
//! # Ok(())
//! # }
//! ```
//!
//! Behind hyper alone a router is `TowerToHyperService::new(router)` of `hyper_util`, in a tonic server it is
//! `add_routes(Routes::from(router))` with `accept_http1(true)`; `tests/http_service.rs` has both.
//!
//! # Who asks
//!
//! `go tool pprof` brings no token of its own and opens no Unix socket. Give it the file:
//! `curl --unix-socket PATH -o heap http://localhost/debug/pprof/heap && go tool pprof heap`, or with a token
//! `curl -H "Authorization: Bearer $TOKEN" -o heap URL/debug/pprof/heap && go tool pprof heap`; or let it come over
//! loopback, or below a prefix.
//!
//! Grafana Alloy (`pyroscope.scrape`) and Parca ask by `bearer_token` or `authorization` of their configuration, and
//! their default paths are all here: `allocs`, `block`, `goroutine`, `heap`, `mutex`, `profile`, `threadcreate`. What
//! they ask for only when told to, `delta_heap`, `delta_block`, `delta_mutex` and `/debug/fgprof`, comes from packages
//! besides Go's own and is 404 here as it is in a Go service without them; `heap?seconds=N` is such a difference.
//! `tests/http_scrapers.rs` asks as their sources do; they themselves are in no package registry, and were not run.
//!
//! # Where it differs from Go's
//!
//! | Go | here | why |
//! |---|---|---|
//! | streams with chunked encoding what is over 2 KiB | `Content-Length` | a failure at the end is a 500, not a profile that is cut off |
//! | `trace` is Go's execution trace | Perfetto's, from `trace.window` before the request on | `go tool trace` reads Go's scheduler alone; what led up to a moment is recorded anyway |
//! | any `seconds` | 400 beyond `http.max_duration` | a forgotten client would hold the one profiler for a day |
//! | `seconds` is rounded to what fits 64 bits of nanoseconds, infinity too | 400 | it is beyond the cap |
//! | `seconds` for `block` and `mutex` waits | an empty difference at once | nothing is gained in any time |
//! | a profile a program has not is 404 | also one that the settings or the build leave out (`stacks.threads = "off"`, no `#[global_allocator]` line), with the reason | asking again is of no use, and nothing is broken |
//! | any number of answers wait for clients that do not take them | 503 beyond 64 MiB of them | they are the service's memory |
//! | any number of captures | 429 and `Retry-After` beyond `budget.streams_per_day` | a client that asks in a loop is a load; a continuous profiler takes a fifth of it |
//! | `goroutine` is goroutines | threads with their stacks; with `debug=2` the tasks too | a task that does not run has no stack of its own |
//! | `threadcreate` has stacks | their number | where threads were made is not recorded |
//! | any number of requests a second | those beyond `http.max_requests_per_second` wait; so do refusals of a peer after 32 of them | a client that loops costs some per cent of a core at most |
//! | any list of addresses for `symbol` | 413 beyond 50,000, 503 beyond 16 bodies at once | they are the service's memory |
//! | HTTP/2, TLS: silence | 505, 400 in words, and a line in the log | one sees what is wrong |
//! | busy: 500, `cpu profiling already in use` | 500, who has it and until when, `Retry-After` | so that one knows whether to wait |
//! | the profile runs on when its client goes away during the last write | it is dropped | nobody reads it |
//! | a HEAD takes the capture and throws it away | the headers, and no capture | a probe costs nothing |
//! | `POST` of anything but the default mux's routes is 405 | `symbol` takes `POST` | `go tool pprof` asks for symbols by `POST` |
//! | `heap?debug=1` scales by the rate in its first line, has `runtime.MemStats` | values are estimates already (`@ heapprofile`); the process' vitals | see [`codec::legacy`](crate::codec::legacy) |
//! | `gc=1` collects first | `X-Marple-Gc` says that nothing waits for a collector | freed memory leaves the profile at once |
//! | `goroutineleak` | 404 | tasks are not traced |
//! | | `hz=` (1 to 1000) and `mode=` (`cpu`, `wall`) on `profile`, `rate=` on `heap?seconds=` (4096 and more) | within hard caps |
//!
//! # What holds
//!
//! Nothing here blocks the agent's thread: captures, symbols and encoding are done by the thread
//! `marple-capture`, files are read by blocking threads of the runtime, and what is left is arithmetic
//! on a few KiB. A client that goes away drops its handler, which gives its capture up at once. One that stays
//! and takes nothing holds no engine: its capture is over, and what it holds is a place that others may need
//! (`places`) and bytes that are counted (`unread`). One capture of each kind runs at a time, and those that last
//! leave room for snapshots and symbols. `tests/http_memory.rs` has the memory that each route may take. What clients asked for is encoded at low priority. The module
//! `access` has the doors a request passes, `audit` what is told of it.

mod access;
mod answer;
mod archive;
mod audit;
mod chunks;
mod connection;
mod greeting;
mod incidents;
mod index;
mod listener;
mod metrics;
mod notify;
mod pace;
mod places;
mod pprof;
mod query;
mod route;
mod rows;
mod symbol;
mod unread;

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
use access::{Access, Caller, Role};
use audit::Audit;
pub(crate) use listener::Listener;
use notify::Action;
use pace::{Pace, Refusals};
use places::Seat;
use query::Query;
use route::Route;

/// The routes, to be nested into the service's own router under any prefix. Whoever gets to them may do
/// everything, except a browser on behalf of another site.
///
/// A prefix that nobody knows is one line:
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
    routes(&Arc::new(Endpoint { agent: agent.clone(), access: Access::open(), limits: None }))
}

/// The routes behind the tokens and the names of `settings`; what it says of listening means nothing here.
/// Whatever else is asked for below the prefix it is nested under is answered like what is there, so that
/// strangers learn nothing.
pub fn guarded(agent: &AgentHandle, settings: &HttpSettings) -> Router {
    let access = Access::nested(settings);
    all_paths(Endpoint { agent: agent.clone(), access, limits: None })
}

/// The routes of the own listener.
fn own(agent: &AgentHandle, settings: &HttpSettings) -> Router {
    let access = Access::own(settings);
    match &settings.listen {
        Listen::Tcp(address) if !access.has_tokens() => {
            let text = format!(
                "every user and container that reaches {address} can read heap, traces and arguments: \
                 listen on a Unix socket (listen = \"unix:PATH\"), or set token_file"
            );
            warnings::set("http.token", text);
        }
        _ => warnings::clear("http.token"),
    }
    let pace = Pace::new(settings.max_requests_per_second);
    let limits = Some(Limits { pace, refusals: Refusals::default() });
    all_paths(Endpoint { agent: agent.clone(), access, limits })
}

fn all_paths(endpoint: Endpoint) -> Router {
    let endpoint = Arc::new(endpoint);
    let others = Arc::clone(&endpoint);
    routes(&endpoint).fallback(move |request| answer(Arc::clone(&others), Route::Unknown, request))
}

struct Endpoint {
    agent: AgentHandle,
    access: Access,
    /// `None` for a nested router, whose service has limits of its own and whose runtime may have no timer.
    limits: Option<Limits>,
}

/// Rate limits of the own listener.
struct Limits {
    pace: Pace,
    refusals: Refusals,
}

/// Where a request comes from, as far as the listener knows.
#[derive(Clone)]
struct Peer(String);

fn routes(endpoint: &Arc<Endpoint>) -> Router {
    Route::ALL.into_iter().fold(Router::new(), |router, (route, path)| {
        let endpoint = Arc::clone(endpoint);
        router.route(path, any(move |request| answer(Arc::clone(&endpoint), route, request)))
    })
}

/// Answers a request within the limits of the endpoint.
async fn answer(endpoint: Arc<Endpoint>, route: Route, mut request: Request) -> Response {
    let Some(limits) = &endpoint.limits else { return dispatch(&endpoint, route, request).await };
    let seat = request.extensions_mut().remove::<Arc<Seat>>();
    let peer =
        request.extensions().get().map_or(String::new(), |Peer(peer)| pace::shared_name(peer));
    // The body of a POST is still the client's to send.
    let is_work = matches!(*request.method(), Method::GET | Method::HEAD);
    let waiting = |wait: bool| match &seat {
        Some(seat) if wait => seat.waits(),
        Some(seat) if is_work => seat.works(),
        _ => {}
    };
    waiting(true);
    limits.pace.turn().await;
    waiting(false);
    let mut response = dispatch(&endpoint, route, request).await;
    let is_refusal = response.status().is_client_error() || response.status().is_server_error();
    if is_refusal && limits.refusals.count(&peer) {
        waiting(true);
        tokio::time::sleep(limits.pace.penalty()).await;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn dispatch(endpoint: &Endpoint, route: Route, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let who = who(&parts);
    let mut audit = Audit::new(route, parts.method.as_str(), &who);
    // A path whose escapes are no UTF-8 has no parts, and nothing is called so.
    let names = Path::<HashMap<String, String>>::from_request_parts(&mut parts, &()).await;
    let names = names.map(|Path(names)| names).unwrap_or_default();
    let name = |key: &str| names.get(key).map_or("", String::as_str);
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let action = Action::parse(&Query::parse(&query));

    let needed = route.role(name("name"), action == Some(Action::Tell));
    let caller = match admit(&endpoint.access, &parts, route, needed, &mut audit) {
        Ok(caller) => caller,
        Err(refusal) => {
            audit.answered(refusal.status().as_u16());
            return *refusal;
        }
    };
    let location = endpoint.agent.location();
    let response = match route {
        Route::Notify => {
            let may_get = caller.is_proven || endpoint.agent.http().compat_get_toggle;
            notify::notify(&endpoint.agent, &parts.method, action, may_get).await
        }
        Route::Status => status(&endpoint.agent).await,
        Route::Metrics => metrics(&endpoint.agent).await,
        Route::Incidents => incidents::list(location).await,
        Route::Incident => incidents::one(location, name("id"), &parts.headers).await,
        Route::Artifact => {
            incidents::file(location, name("id"), name("file"), &parts.headers).await
        }
        Route::PprofRoot => to_index(&parts),
        Route::Index => index::page(endpoint.agent.status().await.ok().as_deref(), &parts),
        Route::Pprof => {
            let asked = pprof::Asked {
                agent: &endpoint.agent,
                method: &parts.method,
                name: name("name"),
                query: &query,
                who: &who,
            };
            pprof::profile(asked, body).await
        }
        Route::Unknown => answer::not_found(),
    };
    audit.answered(response.status().as_u16());
    response
}

/// Checks the caller, then its role, then the method. A caller that fails the first check learns nothing of
/// the others.
fn admit(
    access: &Access,
    parts: &Parts,
    route: Route,
    needed: Role,
    audit: &mut Audit,
) -> Result<Caller, Box<Response>> {
    let caller = access.check(parts).map_err(answer::denied)?;
    audit.allowed(caller.role);
    if route == Route::Unknown {
        return Ok(caller);
    }
    if caller.role < needed {
        return Err(answer::lacks(needed).into());
    }
    if !route.takes(&parts.method) {
        return Err(answer::wrong_method(route.methods()).into());
    }
    Ok(caller)
}

/// Who is told to others while he has an engine.
fn who(parts: &Parts) -> String {
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
        Ok(status) => answer::readable(&status),
        Err(error) => answer::failure(&error),
    }
}

async fn metrics(agent: &AgentHandle) -> Response {
    match agent.status().await {
        Ok(status) => {
            let mut response = ([answer::NOSNIFF], metrics::text(&status)).into_response();
            let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => answer::failure(&error),
    }
}

/// Go's mux sends `/debug/pprof` on to `/debug/pprof/`, with these words; relative links on the page need the
/// slash.
fn to_index(parts: &Parts) -> Response {
    let path = parts.extensions.get::<OriginalUri>().map_or(parts.uri.path(), |it| it.path());
    let Ok(place) = HeaderValue::try_from(format!("{path}/")) else { return answer::not_found() };
    let text = format!("<a href=\"{}/\">Temporary Redirect</a>.\n\n", index::Escaped(path));
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let headers = [(LOCATION, place), (CONTENT_TYPE, kind)];
    (StatusCode::TEMPORARY_REDIRECT, headers, text).into_response()
}
