//! `/monitor/notify`: the toggle, as the founding program answered it, and what is running besides.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{failure, refusal};
use crate::agent::{AgentHandle, ToggleAction, Toggled};
use crate::model::Origin;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    #[serde(default)]
    action: Action,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Start,
    Stop,
    #[default]
    Toggle,
    Status,
}

#[derive(Serialize)]
struct Answer {
    code: u16,
    msg: &'static str,
    #[serde(flatten)]
    toggled: Toggled,
}

pub(super) async fn notify(
    State(agent): State<AgentHandle>,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Response {
    let Ok(Query(Parameters { action })) = parameters else {
        let right = "the one parameter is action=start, stop, toggle (without it) or status";
        return refusal(StatusCode::BAD_REQUEST, right);
    };
    let toggled = match action {
        Action::Start => agent.toggle_from(Origin::Http, ToggleAction::Start).await,
        Action::Stop => agent.toggle_from(Origin::Http, ToggleAction::Stop).await,
        Action::Toggle => agent.toggle_from(Origin::Http, ToggleAction::Flip).await,
        Action::Status => agent.status().await.map(|status| status.toggle),
    };
    match toggled {
        Ok(toggled) => Json(Answer { code: 0, msg: "notify success", toggled }).into_response(),
        Err(error) => failure(&error),
    }
}
