//! Serves `/debug/pprof/*` with the parameters, defaults, headers, file names and errors of Go's
//! `net/http/pprof` (`golang/go:src/net/http/pprof/pprof.go`). The module documentation of
//! [`http`](super) lists the differences and their reasons.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};

use super::query::QueryParams;
use super::symbol::{self, AddressRefused};
use crate::agent::{AgentHandle, HeapView, ProfileForm, ProfileKind, ThreadView};
use crate::base::{Bytes, Hertz};
use crate::codec::pprof;
use crate::http::response_budget;
use crate::http::responses::{NOSNIFF, pprof_error, stream_error, wrong_method};
use crate::model::{CpuMode, Profile, ValueType};

/// Maximum of `hz`, the same as for `cpu.frequency`. At higher rates the sampling itself shows in
/// the profile.
const MOST_HERTZ: u32 = 1000;
/// Minimum of `rate`, in bytes between two samples. At 4 KiB a program that allocates 1 GB/s
/// records 250,000 stacks per second, which takes a tenth of a core. With less, sampling would
/// dominate the program.
const LEAST_RATE: Bytes = Bytes::kib(4);

const TEXT: &str = "text/plain; charset=utf-8";
const BINARY: &str = "application/octet-stream";

/// A request to a pprof route.
pub(super) struct PprofRequest<'a> {
    pub(super) agent: &'a AgentHandle,
    pub(super) method: &'a Method,
    pub(super) name: &'a str,
    /// The undecoded query; `symbol` needs it raw.
    pub(super) query: &'a str,
    pub(super) who: &'a str,
}

pub(super) async fn profile(asked: PprofRequest<'_>, body: Body) -> Response {
    let query = QueryParams::parse(asked.query);
    if asked.method == Method::POST && asked.name != "symbol" {
        return wrong_method("GET, HEAD");
    }
    match asked.name {
        "profile" => cpu(&asked, &query).await,
        "trace" => trace(&asked, &query).await,
        "heap" | "allocs" => heap(&asked, &query).await,
        "goroutine" | "threadcreate" => threads(&asked, &query).await,
        "block" | "mutex" => contention(&asked, &query),
        "cmdline" => cmdline(),
        "symbol" => symbols(&asked, body).await,
        _ => pprof_error(StatusCode::NOT_FOUND, "Unknown profile"),
    }
}

async fn cpu(asked: &PprofRequest<'_>, query: &QueryParams) -> Response {
    // As in Go, a value that is not a positive number means 30.
    let seconds = query.first("seconds").parse().ok().filter(|n: &i64| *n > 0).unwrap_or(30);
    let duration = match capped(asked.agent, seconds as f64) {
        Ok(duration) => duration,
        Err(text) => return pprof_error(StatusCode::BAD_REQUEST, &text),
    };
    let frequency = match query.first("hz") {
        "" => None,
        text => match text.parse() {
            Ok(hertz) if (1..=MOST_HERTZ).contains(&hertz) => Some(Hertz(hertz)),
            _ => {
                let right = format!(r#"invalid value for "hz" - must be 1 to {MOST_HERTZ}"#);
                return pprof_error(StatusCode::BAD_REQUEST, &right);
            }
        },
    };
    let mode = match query.first("mode") {
        "" => None,
        text => match CpuMode::of(text) {
            Some(mode) => Some(mode),
            None => {
                let right = r#"invalid value for "mode" - must be "cpu" or "wall""#;
                return pprof_error(StatusCode::BAD_REQUEST, right);
            }
        },
    };
    let take = ProfileKind::Cpu { duration, frequency, mode };
    stream(asked, take, "profile", "Could not enable CPU profiling").await
}

async fn trace(asked: &PprofRequest<'_>, query: &QueryParams) -> Response {
    let seconds = query.first("seconds").parse().ok().filter(|n: &f64| *n > 0.0).unwrap_or(1.0);
    match capped(asked.agent, seconds) {
        Ok(duration) => {
            stream(asked, ProfileKind::Trace { duration }, "trace", "Could not enable tracing")
                .await
        }
        Err(text) => pprof_error(StatusCode::BAD_REQUEST, &text),
    }
}

async fn heap(asked: &PprofRequest<'_>, query: &QueryParams) -> Response {
    let view = match asked.name {
        "allocs" => HeapView::Allocated,
        _ => HeapView::InUse,
    };
    let rate = match query.first("rate") {
        "" => None,
        text => match text.parse().map(Bytes) {
            Ok(rate) if rate >= LEAST_RATE => Some(rate),
            _ => {
                let least = LEAST_RATE.get();
                let right = format!(r#"invalid value for "rate" - must be {least} bytes or more"#);
                return pprof_error(StatusCode::BAD_REQUEST, &right);
            }
        },
    };
    let mut response = match (query.first("seconds"), rate) {
        ("", Some(_)) => {
            let right = r#""rate" needs "seconds": it holds for what is allocated meanwhile"#;
            return pprof_error(StatusCode::BAD_REQUEST, right);
        }
        ("", None) => {
            let form = form(query);
            let name = if form == ProfileForm::Text { "" } else { asked.name };
            stream(asked, ProfileKind::Heap { view, form }, name, "No heap profile").await
        }
        (seconds, rate) => {
            let duration = match delta(asked.agent, query, seconds) {
                Ok(duration) => duration,
                Err(text) => return pprof_error(StatusCode::BAD_REQUEST, &text),
            };
            let take = ProfileKind::HeapDelta { duration, view, rate };
            stream(asked, take, &format!("{}-delta", asked.name), "No heap profile").await
        }
    };
    if asked.name == "heap" && query.flag("gc") > 0 {
        let told = HeaderValue::from_static("none; freed memory leaves the profile at once");
        response.headers_mut().insert(HeaderName::from_static("x-marple-gc"), told);
    }
    response
}

/// Parses `seconds` of a difference; the checks run in Go's order.
fn delta(agent: &AgentHandle, query: &QueryParams, seconds: &str) -> Result<Duration, String> {
    let bad = |text: &str| Err(text.to_owned());
    let Some(seconds) = seconds.parse().ok().filter(|n: &i64| *n > 0) else {
        return bad(r#"invalid value for "seconds" - must be a positive integer"#);
    };
    if query.flag("debug") != 0 {
        return bad("seconds and debug params are incompatible");
    }
    capped(agent, seconds as f64)
}

async fn threads(asked: &PprofRequest<'_>, query: &QueryParams) -> Response {
    let view = match asked.name {
        "goroutine" => ThreadView::Now,
        _ => ThreadView::Created,
    };
    let seconds = query.first("seconds");
    if !seconds.is_empty() {
        return match delta(asked.agent, query, seconds) {
            Ok(duration) => {
                let take = ProfileKind::ThreadsDelta { duration, view };
                stream(asked, take, &format!("{}-delta", asked.name), "No threads").await
            }
            Err(text) => pprof_error(StatusCode::BAD_REQUEST, &text),
        };
    }
    // Go's `debug=2` lists goroutines one by one.
    let form = match (view, query.flag("debug")) {
        (ThreadView::Now, 2..) => ProfileForm::Full,
        _ => form(query),
    };
    let name = if form == ProfileForm::Binary { asked.name } else { "" };
    stream(asked, ProfileKind::Threads { view, form }, name, "No threads").await
}

/// Returns an empty profile: lock contention is not recorded. Scrapers request it by default, so
/// the response is that of a Go program that has not enabled it, with a comment that says so.
fn contention(asked: &PprofRequest<'_>, query: &QueryParams) -> Response {
    let mut name = asked.name.to_owned();
    match query.first("seconds") {
        "" => {}
        // The difference is empty for any duration, so the response is immediate.
        seconds => match delta(asked.agent, query, seconds) {
            Ok(_) => name += "-delta",
            Err(text) => return pprof_error(StatusCode::BAD_REQUEST, &text),
        },
    }
    if form(query) == ProfileForm::Text {
        let (kind, rest) = match asked.name {
            "mutex" => ("mutex", "sampling period=0\n"),
            _ => ("contention", ""),
        };
        let text = format!("--- {kind}:\ncycles/second=1000000000\n{rest}# not recorded\n");
        return content(TEXT, None, text.into_bytes());
    }
    let kind = |name, unit| ValueType { name, unit };
    let types = [kind("contentions", "count"), kind("delay", "nanoseconds")];
    let now = jiff::Timestamp::now();
    let mut profile = Profile::new(&types, kind("contentions", "count"), 1, now);
    profile.comments.push(format!("{} contention is not recorded", asked.name));
    let mut bytes = Vec::new();
    match pprof::write(&profile, &mut bytes) {
        Ok(()) => content(BINARY, Some(&name), bytes),
        Err(error) => pprof_error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn cmdline() -> Response {
    let arguments: Vec<Vec<u8>> = std::env::args_os().map(OsString::into_vec).collect();
    content(TEXT, None, arguments.join(&0))
}

async fn symbols(asked: &PprofRequest<'_>, body: Body) -> Response {
    let addresses = match *asked.method {
        Method::POST => symbol::read_body(body).await,
        _ => symbol::read_query(asked.query),
    };
    match addresses {
        Ok(addresses) => stream(asked, ProfileKind::Symbols(addresses), "", "No symbols").await,
        Err(AddressRefused::Busy) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let mut response = pprof_error(status, &AddressRefused::Busy.to_string());
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(1));
            response
        }
        Err(why) => pprof_error(StatusCode::PAYLOAD_TOO_LARGE, &why.to_string()),
    }
}

fn form(query: &QueryParams) -> ProfileForm {
    if query.flag("debug") == 0 { ProfileForm::Binary } else { ProfileForm::Text }
}

/// Returns a duration within `http.max_duration`, or an error text with that limit.
fn capped(agent: &AgentHandle, seconds: f64) -> Result<Duration, String> {
    let most = agent.http().max_duration;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= most => Ok(duration),
        _ => {
            let cap = most.as_secs_f64();
            let text = format!(
                r#"invalid value for "seconds" - {seconds} is beyond the cap of {cap} (http.max_duration)"#
            );
            Err(text)
        }
    }
}

/// Runs a capture and returns it: as a file called `name`, or as text if `name` is empty. A HEAD
/// gets the headers only, and no capture runs.
async fn stream(
    asked: &PprofRequest<'_>,
    take: ProfileKind,
    name: &str,
    failure: &str,
) -> Response {
    let (kind, file) = if name.is_empty() { (TEXT, None) } else { (BINARY, Some(name)) };
    if asked.method == Method::HEAD {
        return content(kind, file, Body::empty());
    }
    let unread = || {
        let text = format!(
            "{failure}: {} bytes of captures wait for clients that do not take them",
            response_budget::MOST
        );
        pprof_error(StatusCode::SERVICE_UNAVAILABLE, &text)
    };
    if response_budget::is_full() {
        return unread();
    }
    match asked.agent.stream(take, asked.who.to_owned()).await {
        Ok(streamed) => {
            let Some(bytes) = response_budget::hold(streamed.bytes) else { return unread() };
            let mut response = content(kind, file, bytes);
            let cut = streamed.cut_short.and_then(|why| HeaderValue::try_from(why).ok());
            if let Some(why) = cut {
                response.headers_mut().insert(HeaderName::from_static("x-marple-cut-short"), why);
            }
            response
        }
        Err(error) => stream_error(failure, &error),
    }
}

fn content(kind: &'static str, file: Option<&str>, bytes: impl Into<Body>) -> Response {
    let mut response = ([NOSNIFF], bytes.into()).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    let disposition =
        file.map(|name| HeaderValue::try_from(format!("attachment; filename=\"{name}\"")));
    if let Some(Ok(disposition)) = disposition {
        headers.insert(CONTENT_DISPOSITION, disposition);
    }
    response
}
