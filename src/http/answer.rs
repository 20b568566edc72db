//! Answers that are no content: refusals and failures.

use axum::Json;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::access::{Denied, Role};
use crate::agent::StreamError;
use crate::base::Error;

/// Makes a browser take an answer for what it says it is.
pub(super) const NOSNIFF: (&str, &str) = ("x-content-type-options", "nosniff");

/// A refusal in the form of the answers of `/monitor/notify`: `code` is the status.
pub(super) fn refusal(status: StatusCode, msg: &str) -> Response {
    (status, [NOSNIFF], Json(json!({ "code": status.as_u16(), "msg": msg }))).into_response()
}

/// A value as JSON that people read too: a browser shows it as it comes.
pub(super) fn readable(value: &impl Serialize) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(text) => {
            let kind = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
            ([NOSNIFF], [kind], text).into_response()
        }
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The one answer for whatever is not there: a path, an incident, a file, a name that could not be one.
pub(super) fn not_found() -> Response {
    refusal(StatusCode::NOT_FOUND, "there is nothing here")
}

/// The refusal for what the agent could not do.
pub(super) fn failure(error: &Error) -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
}

pub(super) fn denied(why: Denied) -> Response {
    match why {
        Denied::Host => refusal(
            StatusCode::FORBIDDEN,
            "this host does not answer to that name or address: call it by 127.0.0.1, or put the name into http.hosts",
        ),
        Denied::CrossSite => {
            refusal(StatusCode::FORBIDDEN, "a browser asked on behalf of another site")
        }
        Denied::Token => {
            let mut response =
                refusal(StatusCode::UNAUTHORIZED, "bring the token as Authorization: Bearer");
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
            response
        }
    }
}

pub(super) fn lacks(needed: Role) -> Response {
    let msg = format!("this token is not enough: it takes one with the role `{}`", needed.name());
    refusal(StatusCode::FORBIDDEN, &msg)
}

pub(super) fn wrong_method(allowed: &'static str) -> Response {
    let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("this takes {allowed}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// The refusal of a GET that would change the toggle.
pub(super) fn needs_post() -> Response {
    let msg = "this takes POST (curl -X POST), or a GET with a token; http.compat_get_toggle = true lets every GET do it";
    let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, msg);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// An error as Go's `net/http/pprof` answers it, which is what its client prints: text and the header that
/// says so.
pub(super) fn pprof_error(status: StatusCode, text: &str) -> Response {
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    let headers = [NOSNIFF, ("x-go-pprof", "1")];
    let mut response = (status, headers, format!("{text}\n")).into_response();
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// What went wrong with a capture, with when to ask again where that is known:
///
/// | status | why |
/// |---|---|
/// | 404 | the settings or the build leave it out: Go's answer for a profile that a program does not have |
/// | 429 | the day's captures are spent |
/// | 500 | Go's answer when an engine cannot be started: clients ask again at their next turn |
pub(super) fn stream_error(what: &str, error: &StreamError) -> Response {
    let (status, wait) = match error {
        StreamError::Absent(_) => (StatusCode::NOT_FOUND, None),
        StreamError::Spent { wait, .. } => (StatusCode::TOO_MANY_REQUESTS, Some(*wait)),
        StreamError::Busy { wait, .. } => (StatusCode::INTERNAL_SERVER_ERROR, *wait),
        StreamError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, None),
    };
    let mut response = pprof_error(status, &format!("{what}: {error}"));
    if let Some(wait) = wait {
        let seconds = HeaderValue::from(wait.as_secs() + 1);
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}
