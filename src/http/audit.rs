//! Writes a log line and increments a counter for every request.
//!
//! The target of the line is `marple::audit`. Toggle requests, captures and refusals are logged at
//! `INFO`, the rest at `DEBUG`. A line holds the route, but neither the path, the query nor a
//! header.
//!
//! A client in a loop must not fill the log. Refusals are aggregated by peer, route and status. The
//! first one and those numbered by powers of two are logged at `INFO`, with their number in
//! `refusals`. Other lines at `INFO` are limited to a burst of [`log_limit::BURST_LINES`] and a
//! rate. Excess lines go to `DEBUG`.
//!
//! The counts are one table for the process, shared by all routers, and appear in `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::access::AccessRole;
use super::rate_limit::peer_key;
use super::route::Route;
use crate::base::log::{LogEvent, LogLevel};
use log_limit::LogLimit;

mod log_limit;

/// Status codes that are counted. 499 means the client went away before its response, as in nginx.
/// `0` counts any other status.
const STATUS_CODES: [u16; 19] =
    [200, 206, 301, 304, 307, 400, 401, 403, 404, 405, 408, 413, 416, 429, 499, 500, 503, 505, 0];

const ROUTE_COUNT: usize = Route::ALL.len() + 1;

static REQUEST_COUNTS: [[AtomicU64; STATUS_CODES.len()]; ROUTE_COUNT] =
    [const { [const { AtomicU64::new(0) }; STATUS_CODES.len()] }; ROUTE_COUNT];

static LOG_LIMIT: LogLimit = LogLimit::new();

/// A request in progress. Dropping it logs and counts the request.
pub(super) struct AuditRecord {
    route: Route,
    method: String,
    client: String,
    role: Option<AccessRole>,
    started_at: Instant,
    status: u16,
}

impl AuditRecord {
    pub(super) fn new(route: Route, method: &str, client: &str) -> Self {
        // A client can send any token as the method.
        let method = method.chars().take(16).collect();
        let client = client.to_owned();
        Self { route, method, client, role: None, started_at: Instant::now(), status: 499 }
    }

    pub(super) fn set_role(&mut self, role: AccessRole) {
        self.role = Some(role);
    }

    /// Sets the status of the response. If it is not called, the client went away (499).
    pub(super) fn finish(mut self, status: u16) {
        self.status = status;
    }
}

impl Drop for AuditRecord {
    fn drop(&mut self) {
        let code_index = STATUS_CODES
            .iter()
            .position(|code| *code == self.status)
            .unwrap_or(STATUS_CODES.len() - 1);
        if let Some(count) =
            REQUEST_COUNTS.get(self.route.index()).and_then(|codes| codes.get(code_index))
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let Self { method, client, status, .. } = self;
        let route = self.route.name();
        let role = self.role.map_or("none", AccessRole::name);
        let millis = self.started_at.elapsed().as_millis() as u64;
        let log_at_info = if *status >= 400 {
            LOG_LIMIT.record_refusal(&peer_key(client), route, *status).map(Some)
        } else if matches!(self.route, Route::Notify | Route::Pprof) {
            LOG_LIMIT.try_acquire().then_some(None)
        } else {
            None
        };
        let level = if log_at_info.is_some() { LogLevel::Info } else { LogLevel::Debug };
        if level.is_enabled() {
            let event = LogEvent::audit(level, "request").method(method).route(route);
            let event = event.status(*status).who(client).role(role).millis(millis);
            match log_at_info.flatten() {
                Some(refusals) => event.refusals(refusals).send(),
                None => event.send(),
            }
        }
    }
}

/// Returns the non-zero counts as `(route, status, count)`.
pub(super) fn request_counts() -> impl Iterator<Item = (&'static str, u16, u64)> {
    let names = Route::ALL.iter().map(|(route, _)| route.name()).chain([Route::Unknown.name()]);
    names.zip(&REQUEST_COUNTS).flat_map(|(name, codes)| {
        STATUS_CODES.iter().zip(codes).filter_map(move |(code, count)| {
            let count = count.load(Ordering::Relaxed);
            (count > 0).then_some((name, *code, count))
        })
    })
}
