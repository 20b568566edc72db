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
use super::symbol::{self, AddressListError};
use crate::agent::{AgentHandle, HeapView, ProfileForm, ProfileKind, ThreadView};
use crate::base::{Bytes, Hertz};
use crate::codec::pprof;
use crate::http::response_budget;
use crate::http::responses::{NOSNIFF, capture_error, method_not_allowed, pprof_error};
use crate::model::{CpuMode, Profile, ValueType};

/// Maximum of `hz`, the same as for `cpu.frequency_hz`. At higher rates the sampling itself shows
/// in the profile.
const MAX_HERTZ: u32 = 1000;
/// Minimum of `rate`, in bytes between two samples. At 4 KiB a program that allocates 1 GB/s
/// records 250,000 stacks per second, which takes a tenth of a core. With less, sampling would
/// dominate the program.
const MIN_HEAP_RATE: Bytes = Bytes::kib(4);

const TEXT: &str = "text/plain; charset=utf-8";
const BINARY: &str = "application/octet-stream";

/// A request to a pprof route.
pub(super) struct PprofRequest<'a> {
    pub(super) agent: &'a AgentHandle,
    pub(super) method: &'a Method,
    pub(super) name: &'a str,
    /// The undecoded query; `symbol` needs it raw.
    pub(super) query: &'a str,
    pub(super) client: &'a str,
}

pub(super) async fn profile(request: PprofRequest<'_>, body: Body) -> Response {
    let query = QueryParams::parse(request.query);
    if request.method == Method::POST && request.name != "symbol" {
        return method_not_allowed("GET, HEAD");
    }
    match request.name {
        "profile" => cpu(&request, &query).await,
        "trace" => trace(&request, &query).await,
        "heap" | "allocs" => heap(&request, &query).await,
        "goroutine" | "threadcreate" => threads(&request, &query).await,
        "block" | "mutex" => contention(&request, &query),
        "cmdline" => cmdline(),
        "symbol" => symbols(&request, body).await,
        _ => pprof_error(StatusCode::NOT_FOUND, "Unknown profile"),
    }
}

async fn cpu(request: &PprofRequest<'_>, query: &QueryParams) -> Response {
    // As in Go, a value that is not a positive number means 30.
    let seconds = query.first("seconds").parse().ok().filter(|n: &i64| *n > 0).unwrap_or(30);
    let duration = match checked_duration(request.agent, seconds as f64) {
        Ok(duration) => duration,
        Err(text) => return pprof_error(StatusCode::BAD_REQUEST, &text),
    };
    let frequency = match query.first("hz") {
        "" => None,
        text => match text.parse() {
            Ok(hertz) if (1..=MAX_HERTZ).contains(&hertz) => Some(Hertz(hertz)),
            _ => {
                let message = format!(r#"invalid value for "hz" - must be 1 to {MAX_HERTZ}"#);
                return pprof_error(StatusCode::BAD_REQUEST, &message);
            }
        },
    };
    let mode = match query.first("mode") {
        "" => None,
        text => match CpuMode::from_name(text) {
            Some(mode) => Some(mode),
            None => {
                let message = r#"invalid value for "mode" - must be "cpu" or "wall""#;
                return pprof_error(StatusCode::BAD_REQUEST, message);
            }
        },
    };
    let profile_kind = ProfileKind::Cpu { duration, frequency, mode };
    run_capture(request, profile_kind, "profile", "Could not enable CPU profiling").await
}

async fn trace(request: &PprofRequest<'_>, query: &QueryParams) -> Response {
    let seconds = query.first("seconds").parse().ok().filter(|n: &f64| *n > 0.0).unwrap_or(1.0);
    match checked_duration(request.agent, seconds) {
        Ok(duration) => {
            run_capture(
                request,
                ProfileKind::Trace { duration },
                "trace",
                "Could not enable tracing",
            )
            .await
        }
        Err(text) => pprof_error(StatusCode::BAD_REQUEST, &text),
    }
}

async fn heap(request: &PprofRequest<'_>, query: &QueryParams) -> Response {
    let view = match request.name {
        "allocs" => HeapView::Allocated,
        _ => HeapView::InUse,
    };
    let rate = match query.first("rate") {
        "" => None,
        text => match text.parse().map(Bytes) {
            Ok(rate) if rate >= MIN_HEAP_RATE => Some(rate),
            _ => {
                let min_bytes = MIN_HEAP_RATE.get();
                let message =
                    format!(r#"invalid value for "rate" - must be {min_bytes} bytes or more"#);
                return pprof_error(StatusCode::BAD_REQUEST, &message);
            }
        },
    };
    let mut response = match (query.first("seconds"), rate) {
        ("", Some(_)) => {
            let message = r#""rate" needs "seconds": it applies to allocations during that time"#;
            return pprof_error(StatusCode::BAD_REQUEST, message);
        }
        ("", None) => {
            let form = requested_form(query);
            let name = if form == ProfileForm::Text { "" } else { request.name };
            run_capture(request, ProfileKind::Heap { view, form }, name, "No heap profile").await
        }
        (seconds, rate) => {
            let duration = match parse_delta_duration(request.agent, query, seconds) {
                Ok(duration) => duration,
                Err(text) => return pprof_error(StatusCode::BAD_REQUEST, &text),
            };
            let profile_kind = ProfileKind::HeapDelta { duration, view, rate };
            run_capture(
                request,
                profile_kind,
                &format!("{}-delta", request.name),
                "No heap profile",
            )
            .await
        }
    };
    if request.name == "heap" && query.integer("gc") > 0 {
        let note = HeaderValue::from_static("none; freed memory leaves the profile at once");
        response.headers_mut().insert(HeaderName::from_static("x-marple-gc"), note);
    }
    response
}

/// Parses `seconds` of a difference; the checks run in Go's order.
fn parse_delta_duration(
    agent: &AgentHandle,
    query: &QueryParams,
    seconds: &str,
) -> Result<Duration, String> {
    let bad = |text: &str| Err(text.to_owned());
    let Some(seconds) = seconds.parse().ok().filter(|n: &i64| *n > 0) else {
        return bad(r#"invalid value for "seconds" - must be a positive integer"#);
    };
    if query.integer("debug") != 0 {
        return bad("seconds and debug params are incompatible");
    }
    checked_duration(agent, seconds as f64)
}

async fn threads(request: &PprofRequest<'_>, query: &QueryParams) -> Response {
    let view = match request.name {
        "goroutine" => ThreadView::Now,
        _ => ThreadView::Created,
    };
    let seconds = query.first("seconds");
    if !seconds.is_empty() {
        return match parse_delta_duration(request.agent, query, seconds) {
            Ok(duration) => {
                let profile_kind = ProfileKind::ThreadsDelta { duration, view };
                run_capture(request, profile_kind, &format!("{}-delta", request.name), "No threads")
                    .await
            }
            Err(text) => pprof_error(StatusCode::BAD_REQUEST, &text),
        };
    }
    // Go's `debug=2` lists goroutines one by one.
    let form = match (view, query.integer("debug")) {
        (ThreadView::Now, 2..) => ProfileForm::Full,
        _ => requested_form(query),
    };
    let name = if form == ProfileForm::Binary { request.name } else { "" };
    run_capture(request, ProfileKind::Threads { view, form }, name, "No threads").await
}

/// Returns an empty profile: lock contention is not recorded. Scrapers request it by default, so
/// the response is that of a Go program that has not enabled it, with a comment that says so.
fn contention(request: &PprofRequest<'_>, query: &QueryParams) -> Response {
    let mut name = request.name.to_owned();
    match query.first("seconds") {
        "" => {}
        // The difference is empty for any duration, so the response is immediate.
        seconds => match parse_delta_duration(request.agent, query, seconds) {
            Ok(_) => name += "-delta",
            Err(text) => return pprof_error(StatusCode::BAD_REQUEST, &text),
        },
    }
    if requested_form(query) == ProfileForm::Text {
        let (kind, period_line) = match request.name {
            "mutex" => ("mutex", "sampling period=0\n"),
            _ => ("contention", ""),
        };
        let text = format!("--- {kind}:\ncycles/second=1000000000\n{period_line}# not recorded\n");
        return content(TEXT, None, text.into_bytes());
    }
    let kind = |name, unit| ValueType { name, unit };
    let types = [kind("contentions", "count"), kind("delay", "nanoseconds")];
    let now = jiff::Timestamp::now();
    let mut profile = Profile::new(&types, kind("contentions", "count"), 1, now);
    profile.comments.push(format!("{} contention is not recorded", request.name));
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

async fn symbols(request: &PprofRequest<'_>, body: Body) -> Response {
    let addresses = match *request.method {
        Method::POST => symbol::read_body(body).await,
        _ => symbol::read_query(request.query),
    };
    match addresses {
        Ok(addresses) => {
            run_capture(request, ProfileKind::Symbols(addresses), "", "No symbols").await
        }
        Err(AddressListError::Busy) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let mut response = pprof_error(status, &AddressListError::Busy.to_string());
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(1));
            response
        }
        Err(error) => pprof_error(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string()),
    }
}

fn requested_form(query: &QueryParams) -> ProfileForm {
    if query.integer("debug") == 0 { ProfileForm::Binary } else { ProfileForm::Text }
}

/// Returns a duration within `http.max_duration`, or an error text with that limit.
fn checked_duration(agent: &AgentHandle, seconds: f64) -> Result<Duration, String> {
    let max_duration = agent.http_settings().max_duration;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= max_duration => Ok(duration),
        _ => {
            let max_seconds = max_duration.as_secs_f64();
            let text = format!(
                r#"invalid value for "seconds" - {seconds} exceeds {max_seconds} (http.max_duration)"#
            );
            Err(text)
        }
    }
}

/// Runs a capture and returns it: as a file called `name`, or as text if `name` is empty. A HEAD
/// gets the headers only, and no capture runs.
async fn run_capture(
    request: &PprofRequest<'_>,
    profile_kind: ProfileKind,
    name: &str,
    failure: &str,
) -> Response {
    let (kind, file) = if name.is_empty() { (TEXT, None) } else { (BINARY, Some(name)) };
    if request.method == Method::HEAD {
        return content(kind, file, Body::empty());
    }
    let over_budget = || {
        let text = format!(
            "{failure}: unread responses would exceed the limit of {} bytes; retry later",
            response_budget::MAX_UNREAD_BYTES
        );
        pprof_error(StatusCode::SERVICE_UNAVAILABLE, &text)
    };
    if response_budget::is_full() {
        return over_budget();
    }
    match request.agent.request_profile(profile_kind, request.client.to_owned()).await {
        Ok(profile) => {
            let Some(bytes) = response_budget::reserve(profile.bytes) else { return over_budget() };
            let mut response = content(kind, file, bytes);
            let cut_short = profile.cut_short.and_then(|reason| HeaderValue::try_from(reason).ok());
            if let Some(reason) = cut_short {
                response
                    .headers_mut()
                    .insert(HeaderName::from_static("x-marple-cut-short"), reason);
            }
            response
        }
        Err(error) => capture_error(failure, &error),
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
