//! Who asked for what: an event and a count for every request.
//!
//! The event's target is `marple::audit`; what changed something, took a capture or was refused is at the
//! level `INFO`, the rest at `DEBUG`, since a scrape a second is no news. It holds the route and never the
//! path, the query or a header. The counts are one table for the process, as is the agent, however many
//! routers stand before it; `/metrics` shows them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::access::Role;
use super::route::Route;

/// The statuses there are; 499 is a client that went away before its answer, as nginx counts it.
const CODES: [u16; 18] =
    [200, 206, 301, 304, 307, 400, 401, 403, 404, 405, 408, 413, 416, 429, 499, 500, 503, 0];

const ROUTES: usize = Route::ALL.len() + 1;

static COUNTS: [[AtomicU64; CODES.len()]; ROUTES] =
    [const { [const { AtomicU64::new(0) }; CODES.len()] }; ROUTES];

/// A request that is being answered.
pub(super) struct Audit {
    route: Route,
    method: String,
    who: String,
    role: Option<Role>,
    since: Instant,
    status: u16,
}

impl Audit {
    pub(super) fn new(route: Route, method: &str, who: &str) -> Self {
        // A method may be any token a client makes up.
        let method = method.chars().take(16).collect();
        let who = who.to_owned();
        Self { route, method, who, role: None, since: Instant::now(), status: 499 }
    }

    pub(super) fn allowed(&mut self, role: Role) {
        self.role = Some(role);
    }

    /// It is answered. Dropped without, its client has gone.
    pub(super) fn answered(mut self, status: u16) {
        self.status = status;
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        let code = CODES.iter().position(|code| *code == self.status).unwrap_or(CODES.len() - 1);
        if let Some(count) = COUNTS.get(self.route.index()).and_then(|codes| codes.get(code)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let Self { method, who, status, .. } = self;
        let route = self.route.name();
        let role = self.role.map_or("none", Role::name);
        let millis = self.since.elapsed().as_millis() as u64;
        let is_news = matches!(self.route, Route::Notify | Route::Pprof) || *status >= 400;
        if is_news {
            tracing::info!(
                target: "marple::audit", method, route, status, who, role, millis, "request"
            );
        } else {
            tracing::debug!(
                target: "marple::audit", method, route, status, who, role, millis, "request"
            );
        }
    }
}

/// What was counted so far: route, status, how often.
pub(super) fn counts() -> impl Iterator<Item = (&'static str, u16, u64)> {
    let names = Route::ALL.iter().map(|(route, _)| route.name()).chain([Route::Unknown.name()]);
    names.zip(&COUNTS).flat_map(|(name, codes)| {
        CODES.iter().zip(codes).filter_map(move |(code, count)| {
            let count = count.load(Ordering::Relaxed);
            (count > 0).then_some((name, *code, count))
        })
    })
}
