//! The endpoint: a few routes over an [`AgentHandle`], on a listener of marple's own or inside the
//! service's router.
//!
//! | route | answer |
//! |---|---|
//! | `GET`, `POST /monitor/notify` | flips the toggle; `?action=start\|stop\|toggle\|status` says it outright |
//! | `GET /status` | how the agent stands, as [`Status`](crate::agent::Status) |
//!
//! The own listener runs on the agent's thread, so it answers when the service's runtime is stuck. It is
//! on loopback or a Unix socket of mode 0600, or it asks for a token. A nested router asks for nothing
//! by itself, since only the service knows what stands before it: put [`require_token`] around it when
//! the outer one is public.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let agent = marple::Agent::builder().start()?;
//! use marple::http;
//!
//! let monitor = http::require_token(http::router(&agent.handle()), http::Secret::new("a long random text"));
//! let app: axum::Router = axum::Router::new().nest("/internal", monitor);
//! # Ok(())
//! # }
//! ```

mod auth;
mod listener;
mod notify;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::agent::AgentHandle;
use crate::base::Error;

pub use crate::config::Secret;
pub use auth::require_token;
pub(crate) use listener::Listener;

/// The routes, to be nested into the service's own router under any prefix.
pub fn router(agent: &AgentHandle) -> Router {
    Router::new()
        .route("/monitor/notify", get(notify::notify).post(notify::notify))
        .route("/status", get(status))
        .with_state(agent.clone())
}

async fn status(State(agent): State<AgentHandle>) -> Response {
    match agent.status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => failure(&error),
    }
}

/// A refusal in the form of the answers of `/monitor/notify`: `code` is the status.
fn refusal(status: StatusCode, msg: &str) -> Response {
    (status, Json(json!({ "code": status.as_u16(), "msg": msg }))).into_response()
}

/// The refusal for what the agent could not do.
fn failure(error: &Error) -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
}
