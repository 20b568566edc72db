//! Serves `/monitor/notify`: the toggle and the running captures. The fields `code` and `msg` of
//! the response are fixed for existing clients.

use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::query::QueryParams;
use crate::agent::{AgentHandle, ToggleAction, Toggled};
use crate::http::responses::{failure, needs_post, refusal};
use crate::model::Origin;

/// The action that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Do(ToggleAction),
    Tell,
}

impl Action {
    /// Parses the action in `query`. Returns `None` for an unknown action or any other parameter.
    pub(super) fn parse(query: &QueryParams) -> Option<Self> {
        if query.keys().any(|key| key != "action") || query.keys().count() > 1 {
            return None;
        }
        let named = query.keys().next().is_some();
        match query.first("action") {
            "start" => Some(Self::Do(ToggleAction::Start)),
            "stop" => Some(Self::Do(ToggleAction::Stop)),
            "toggle" => Some(Self::Do(ToggleAction::Flip)),
            "" if !named => Some(Self::Do(ToggleAction::Flip)),
            "status" => Some(Self::Tell),
            _ => None,
        }
    }
}

#[derive(Serialize)]
struct NotifyResponse {
    code: u16,
    msg: &'static str,
    #[serde(flatten)]
    toggled: Toggled,
}

/// Handles a request. `may_get` permits a GET of this caller to change the toggle.
pub(super) async fn notify(
    agent: &AgentHandle,
    method: &Method,
    action: Option<Action>,
    may_get: bool,
) -> Response {
    let Some(action) = action else {
        let right = "the one parameter is action=start, stop, toggle (without it) or status";
        return refusal(StatusCode::BAD_REQUEST, right);
    };
    let toggled = match action {
        Action::Do(_) if method != Method::POST && !may_get => {
            // A link, an image or a prefetch on any page sends a GET.
            return needs_post();
        }
        Action::Do(action) => agent.toggle_from(Origin::Http, action).await,
        Action::Tell => agent.status().await.map(|status| status.toggle),
    };
    match toggled {
        Ok(toggled) => {
            Json(NotifyResponse { code: 0, msg: "notify success", toggled }).into_response()
        }
        Err(error) => failure(&error),
    }
}
