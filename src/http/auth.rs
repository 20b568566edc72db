//! Who may ask.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::refusal;
use crate::config::Secret;

/// Lets only those requests through to `routes` that bring `Authorization: Bearer <token>`; the others
/// are answered 401, whatever they asked for.
///
/// Digests of the two tokens are compared in constant time, so that neither their contents nor their
/// lengths show in how long the answer takes.
pub fn require_token(routes: Router, token: Secret) -> Router {
    let digest: Arc<[u8; 32]> = Arc::new(Sha256::digest(token.expose()).into());
    routes.layer(middleware::from_fn_with_state(digest, check))
}

async fn check(State(expected): State<Arc<[u8; 32]>>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .and_then(|value| value.split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
        .map(|(_, token)| token);
    let digest = Sha256::digest(given.unwrap_or_default());
    if given.is_some() & bool::from(digest.as_slice().ct_eq(&expected[..])) {
        return next.run(request).await;
    }
    let mut response =
        refusal(StatusCode::UNAUTHORIZED, "bring the token as Authorization: Bearer");
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
