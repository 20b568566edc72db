//! Responses without content: refusals and failures.

use axum::Json;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::access::{AccessDenied, AccessRole};
use crate::agent::ProfileError;
use crate::base::Error;

/// Header that keeps a browser from guessing another content type.
pub(super) const NOSNIFF: (&str, &str) = ("x-content-type-options", "nosniff");

/// Returns an error response in the JSON form of `/monitor/notify`; `code` is the HTTP status.
pub(super) fn error_response(status: StatusCode, msg: &str) -> Response {
    (status, [NOSNIFF], Json(json!({ "code": status.as_u16(), "msg": msg }))).into_response()
}

/// Returns `value` as indented JSON, which a browser shows unchanged.
pub(super) fn pretty_json(value: &impl Serialize) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(text) => {
            let kind = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
            ([NOSNIFF], [kind], text).into_response()
        }
        Err(error) => error_response(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Returns the 404 for any path, incident or file that does not exist, and for invalid names.
pub(super) fn not_found() -> Response {
    error_response(StatusCode::NOT_FOUND, "not found; see /incidents and /debug/pprof/")
}

/// Returns the 503 for a request that the agent could not serve.
pub(super) fn agent_error(error: &Error) -> Response {
    error_response(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
}

pub(super) fn access_denied(reason: AccessDenied) -> Response {
    match reason {
        AccessDenied::Host => error_response(
            StatusCode::FORBIDDEN,
            "Host header not allowed; connect to 127.0.0.1, or add the name to http.allowed_hosts",
        ),
        AccessDenied::CrossSite => {
            error_response(StatusCode::FORBIDDEN, "cross-site request of a browser rejected")
        }
        AccessDenied::Token => {
            let mut response = error_response(
                StatusCode::UNAUTHORIZED,
                "missing or invalid token; send Authorization: Bearer TOKEN",
            );
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
            response
        }
    }
}

pub(super) fn insufficient_role(required: AccessRole) -> Response {
    let msg = format!("insufficient role; use a token with the role `{}`", required.name());
    error_response(StatusCode::FORBIDDEN, &msg)
}

pub(super) fn method_not_allowed(allowed: &'static str) -> Response {
    let mut response = error_response(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("method not allowed; use {allowed}"),
    );
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// Returns the 405 for a GET that would change the toggle.
pub(super) fn post_required() -> Response {
    let msg = "GET may not change the toggle; use POST (curl -X POST) or a GET with a token, \
               or set http.compat_get_toggle = true";
    let mut response = error_response(StatusCode::METHOD_NOT_ALLOWED, msg);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// Returns an error in the form of Go's `net/http/pprof`: plain text and the header `X-Go-Pprof:
/// 1`. Its client prints the text.
pub(super) fn pprof_error(status: StatusCode, text: &str) -> Response {
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    let headers = [NOSNIFF, ("x-go-pprof", "1")];
    let mut response = (status, headers, format!("{text}\n")).into_response();
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Returns the error response for a failed capture, with `Retry-After` if the wait is known:
///
/// | status | reason |
/// |---|---|
/// | 404 | disabled by the settings or the build; in Go a profile that does not exist |
/// | 429 | the daily quota of on-demand captures is used up |
/// | 500 | Go's status if a profiler cannot be started; scrapers retry at their next interval |
pub(super) fn capture_error(context: &str, error: &ProfileError) -> Response {
    let (status, wait) = match error {
        ProfileError::Unavailable(_) => (StatusCode::NOT_FOUND, None),
        ProfileError::QuotaExhausted { wait, .. } => (StatusCode::TOO_MANY_REQUESTS, Some(*wait)),
        ProfileError::Busy { retry_after: wait, .. } => (StatusCode::INTERNAL_SERVER_ERROR, *wait),
        ProfileError::Failed(_) | ProfileError::Stopped => {
            (StatusCode::INTERNAL_SERVER_ERROR, None)
        }
    };
    let mut response = pprof_error(status, &format!("{context}: {error}"));
    if let Some(wait) = wait {
        let seconds = HeaderValue::from(wait.as_secs() + 1);
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}
