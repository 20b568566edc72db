//! The origin of a request, as a browser states it in `Origin` and `Sec-Fetch-Site`.

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue};

/// Returns `true` if a browser states that a page of the same origin, or the user, caused the
/// request. A prefetch does not count: it runs before the user clicks.
pub(super) fn is_same_origin_or_user(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let is_prefetch = headers.contains_key("sec-purpose") || headers.contains_key("purpose");
    !is_prefetch && matches!(site, Some(b"same-origin" | b"none"))
}

/// Returns `true` if a browser sent the request on behalf of another site.
pub(super) fn is_cross_site(headers: &HeaderMap) -> bool {
    let text =
        |value: &HeaderValue| value.to_str().map(str::to_ascii_lowercase).unwrap_or_default();
    if let Some(site) = headers.get("sec-fetch-site").map(text)
        && !["same-origin", "none"].contains(&site.as_str())
    {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN).map(text) else { return false };
    let host = headers.get(HOST).map(text).unwrap_or_default();
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_none_or(|authority| host.is_empty() || authority != host)
}
