//! The path of a request through its checks to the handler of its route.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, OriginalUri, Path, Request};
use axum::http::header::{CONNECTION, CONTENT_TYPE, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use super::access::{Access, AccessRole, RequestOrigin};
use super::audit::AuditRecord;
use super::connection_slots::SlotState;
use super::notify::{self, Action};
use super::query::QueryParams;
use super::rate_limit::{self, RateLimiter, RefusalPenalty};
use super::route::Route;
use super::{Peer, incidents, index, metrics, pprof, responses};
use crate::agent::AgentHandle;

/// The agent that requests are for, and the conditions under which they are served.
pub(super) struct HttpEndpoint {
    pub(super) agent: AgentHandle,
    pub(super) access: Access,
    /// `None` for a nested router: its service has other limits, and its runtime may have no timer.
    pub(super) limits: Option<HttpLimits>,
}

/// Rate limits of the listener.
pub(super) struct HttpLimits {
    pub(super) rate_limiter: RateLimiter,
    pub(super) refusals: RefusalPenalty,
}

/// Returns the routes.
pub(super) fn routes(endpoint: &Arc<HttpEndpoint>) -> Router {
    Route::ALL.into_iter().fold(Router::new(), |router, (route, path)| {
        let endpoint = Arc::clone(endpoint);
        router
            .route(path, any(move |request| handle_request(Arc::clone(&endpoint), route, request)))
    })
}

/// Returns the routes, and the same checks for every other path.
pub(super) fn router_with_fallback(endpoint: HttpEndpoint) -> Router {
    let endpoint = Arc::new(endpoint);
    let fallback_endpoint = Arc::clone(&endpoint);
    routes(&endpoint).fallback(move |request| {
        handle_request(Arc::clone(&fallback_endpoint), Route::Unknown, request)
    })
}

/// Serves a request within the limits of the endpoint.
async fn handle_request(
    endpoint: Arc<HttpEndpoint>,
    route: Route,
    mut request: Request,
) -> Response {
    let Some(limits) = &endpoint.limits else { return dispatch(&endpoint, route, request).await };
    let slot = request.extensions_mut().remove::<Arc<SlotState>>();
    let peer =
        request.extensions().get().map_or(String::new(), |Peer(peer)| rate_limit::peer_key(peer));
    // The body of a POST has yet to arrive from the client.
    let is_request_complete = matches!(*request.method(), Method::GET | Method::HEAD);
    let set_waiting = |is_waiting: bool| match &slot {
        Some(slot) if is_waiting => slot.mark_waiting(),
        Some(slot) if is_request_complete => slot.mark_busy(),
        _ => {}
    };
    set_waiting(true);
    limits.rate_limiter.acquire().await;
    set_waiting(false);
    let mut response = dispatch(&endpoint, route, request).await;
    let is_refusal = response.status().is_client_error() || response.status().is_server_error();
    if is_refusal && limits.refusals.record_refusal(&peer) {
        set_waiting(true);
        tokio::time::sleep(limits.rate_limiter.refusal_delay()).await;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn dispatch(endpoint: &HttpEndpoint, route: Route, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let client = client_name(&parts);
    let mut audit = AuditRecord::new(route, parts.method.as_str(), &client);
    // A path whose escapes are not UTF-8 has no parameters, and no resource has such a name.
    let path_params = Path::<HashMap<String, String>>::from_request_parts(&mut parts, &()).await;
    let path_params = path_params.map(|Path(names)| names).unwrap_or_default();
    let name = |key: &str| path_params.get(key).map_or("", String::as_str);
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let action = Action::parse(&QueryParams::parse(&query));

    let required_role = route.role(name("name"), action == Some(Action::Status));
    let caller = match authorize(&endpoint.access, &parts, route, required_role, &mut audit) {
        Ok(caller) => caller,
        Err(refusal) => {
            audit.finish(refusal.status().as_u16());
            return *refusal;
        }
    };
    let location = endpoint.agent.location();
    let response = match route {
        Route::Notify => {
            let allow_get = caller.is_proven || endpoint.agent.http_settings().compat_get_toggle;
            notify::notify(&endpoint.agent, &parts.method, action, allow_get).await
        }
        Route::Status => status(&endpoint.agent).await,
        Route::Metrics => metrics(&endpoint.agent).await,
        Route::Incidents => incidents::list(location).await,
        Route::Incident => {
            incidents::manifest_or_archive(location, name("id"), &parts.headers).await
        }
        Route::Artifact => {
            incidents::file(location, name("id"), name("file"), &parts.headers).await
        }
        Route::PprofRoot => redirect_to_index(&parts),
        Route::Index => index::page(endpoint.agent.status().await.ok().as_deref(), &parts),
        Route::Pprof => {
            let pprof_request = pprof::PprofRequest {
                agent: &endpoint.agent,
                method: &parts.method,
                name: name("name"),
                query: &query,
                client: &client,
            };
            pprof::profile(pprof_request, body).await
        }
        Route::Unknown => responses::not_found(),
    };
    audit.finish(response.status().as_u16());
    response
}

/// Checks the caller, then its role, then the method. A caller that fails one check gets no
/// information about the later ones.
fn authorize(
    access: &Access,
    parts: &Parts,
    route: Route,
    required_role: AccessRole,
    audit: &mut AuditRecord,
) -> Result<RequestOrigin, Box<Response>> {
    let caller = access.check(parts).map_err(responses::access_denied)?;
    audit.set_role(caller.role);
    if route == Route::Unknown {
        return Ok(caller);
    }
    if caller.role < required_role {
        return Err(responses::insufficient_role(required_role).into());
    }
    if !route.allows_method(&parts.method) {
        return Err(responses::method_not_allowed(route.methods()).into());
    }
    Ok(caller)
}

/// Returns the name of the client, shown to other clients while it uses an engine.
fn client_name(parts: &Parts) -> String {
    use axum::extract::ConnectInfo;
    use std::net::SocketAddr;

    if let Some(Peer(peer)) = parts.extensions.get() {
        return peer.clone();
    }
    match parts.extensions.get::<ConnectInfo<SocketAddr>>() {
        Some(ConnectInfo(address)) => address.to_string(),
        None => "another request".to_owned(),
    }
}

async fn status(agent: &AgentHandle) -> Response {
    match agent.status().await {
        Ok(status) => responses::pretty_json(&status),
        Err(error) => responses::agent_error(&error),
    }
}

async fn metrics(agent: &AgentHandle) -> Response {
    match agent.status().await {
        Ok(status) => {
            let mut response = ([responses::NOSNIFF], metrics::render(&status)).into_response();
            let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => responses::agent_error(&error),
    }
}

/// Redirects `/debug/pprof` to `/debug/pprof/` with the text of Go's mux. Relative links on the
/// page need the slash.
fn redirect_to_index(parts: &Parts) -> Response {
    let path = parts.extensions.get::<OriginalUri>().map_or(parts.uri.path(), |uri| uri.path());
    let Ok(target) = HeaderValue::try_from(format!("{path}/")) else {
        return responses::not_found();
    };
    let text = format!("<a href=\"{}/\">Temporary Redirect</a>.\n\n", index::EscapedHtml(path));
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let headers = [(LOCATION, target), (CONTENT_TYPE, kind)];
    (StatusCode::TEMPORARY_REDIRECT, headers, text).into_response()
}
