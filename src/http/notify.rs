//! Serves `/monitor/notify`: the toggle and the running captures. The fields `code` and `msg` of
//! the response are fixed for existing clients.

use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::query::QueryParams;
use crate::agent::{AgentHandle, ToggleAction, ToggleStatus};
use crate::http::responses::{agent_error, error_response, post_required};
use crate::model::Origin;

/// The action that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Apply(ToggleAction),
    Status,
}

impl Action {
    /// Parses the action in `query`. Returns `None` for an unknown action or any other parameter.
    pub(super) fn parse(query: &QueryParams) -> Option<Self> {
        if query.keys().any(|key| key != "action") || query.keys().count() > 1 {
            return None;
        }
        let has_action = query.keys().next().is_some();
        match query.first("action") {
            "start" => Some(Self::Apply(ToggleAction::Start)),
            "stop" => Some(Self::Apply(ToggleAction::Stop)),
            "toggle" => Some(Self::Apply(ToggleAction::Flip)),
            "" if !has_action => Some(Self::Apply(ToggleAction::Flip)),
            "status" => Some(Self::Status),
            _ => None,
        }
    }
}

#[derive(Serialize)]
struct NotifyResponse {
    code: u16,
    msg: &'static str,
    #[serde(flatten)]
    toggled: ToggleStatus,
}

/// Handles a request. `allow_get` permits a GET of this caller to change the toggle.
pub(super) async fn notify(
    agent: &AgentHandle,
    method: &Method,
    action: Option<Action>,
    allow_get: bool,
) -> Response {
    let Some(action) = action else {
        let message = "invalid query; use action=start, stop, toggle (the default) or status";
        return error_response(StatusCode::BAD_REQUEST, message);
    };
    let toggled = match action {
        Action::Apply(_) if method != Method::POST && !allow_get => {
            // A link, an image or a prefetch on any page sends a GET.
            return post_required();
        }
        Action::Apply(action) => agent.toggle_from(Origin::Http, action).await,
        Action::Status => agent.status().await.map(|status| status.toggle),
    };
    match toggled {
        Ok(toggled) => {
            Json(NotifyResponse { code: 0, msg: "notify success", toggled }).into_response()
        }
        Err(error) => agent_error(&error),
    }
}
