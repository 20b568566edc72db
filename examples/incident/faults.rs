//! The service: one working endpoint and three with one fault each. The faulty functions have names
//! that are easy to recognize in a profile.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use marple::AgentHandle;
use marple::task;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tracing::instrument;

/// Size of a leaked block: 40 MiB. glibc unmaps freed blocks above 32 MiB (its largest mmap
/// threshold), so the resident set falls as soon as the leak is repaired.
const REPORT_BYTES: usize = 40 << 20;
/// Bounds the leak, so that a failed run of the example does not exhaust the machine's memory.
const MAX_REPORTS: usize = 24;
/// Tasks that each request leaves behind.
const TASKS: usize = 50;
/// CPU time of a request.
const REQUEST_CPU_TIME: Duration = Duration::from_millis(100);

static REPORTS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
static REPLY: Notify = Notify::const_new();

/// Returns the service's routes, including marple's.
pub(crate) fn router(agent: &AgentHandle) -> Router {
    Router::new()
        .route("/orders", get(orders))
        .route("/report", get(report))
        .route("/proof", get(proof))
        .route("/notices", get(notices))
        .route("/repair", post(repair))
        .merge(marple::http::router(agent))
}

/// The healthy endpoint.
#[instrument]
async fn orders() -> String {
    read_orders().await.iter().map(|order| format!("{order}\n")).collect()
}

#[instrument]
async fn read_orders() -> Vec<u64> {
    tokio::time::sleep(Duration::from_millis(1)).await; // the database
    (0..200).collect()
}

/// Leaks memory.
#[instrument]
async fn report() -> Result<&'static str, StatusCode> {
    keep_every_report_ever_made().then_some("made\n").ok_or(StatusCode::INSUFFICIENT_STORAGE)
}

#[inline(never)]
fn keep_every_report_ever_made() -> bool {
    let mut reports = REPORTS.lock().unwrap_or_else(PoisonError::into_inner);
    let room = reports.len() < MAX_REPORTS;
    if room {
        reports.push(vec![b'.'; REPORT_BYTES]);
    }
    room
}

/// Burns CPU on blocking threads, so that other requests are not delayed.
#[instrument]
async fn proof() -> Result<String, StatusCode> {
    tokio::task::spawn_blocking(search_for_a_proof_of_work)
        .await
        .map(|proof| format!("{proof}\n"))
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

#[inline(never)]
fn search_for_a_proof_of_work() -> u64 {
    let started = Instant::now();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while started.elapsed() < REQUEST_CPU_TIME {
        for _ in 0..10_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state = black_box(state ^ (state << 17));
        }
    }
    state
}

/// Leaks tasks.
#[instrument]
async fn notices() -> &'static str {
    for _ in 0..TASKS {
        // `notified()` is called outside of the task, so that a `notify_waiters` before the task's
        // first poll wakes it too.
        task::spawn(wait_for_a_reply_that_never_comes(REPLY.notified()));
    }
    "sent\n"
}

async fn wait_for_a_reply_that_never_comes(reply: Notified<'static>) {
    reply.await;
}

/// Ends all three faults.
#[instrument]
async fn repair() -> &'static str {
    REPORTS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    REPLY.notify_waiters();
    "repaired\n"
}
