//! `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::{
    Json, extract,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{HttpState, LIMIT};
use crate::{
    controller::Leadership,
    telemetry::metrics::{self, Metrics, WorkerSlots},
};

/// The body of `/readyz`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    ready: bool,
    /// Conditions that this process waits for. `kubernetes`: its objects are not listed yet. `lease`: the process may
    /// not use the Lease of the leader election. `installation`: the queue belongs to another installation. `mongodb`:
    /// MongoDB has not answered yet, and workers start when it has. `workers`: the queue has not answered the workers
    /// recently. `redis`: Redis does not answer. Absent when the process is ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    missing: Vec<&'static str>,
    /// True when this process is the leader. Absent in a process without controllers.
    #[serde(skip_serializing_if = "Option::is_none")]
    leading: Option<bool>,
    /// Identity of the leader, when it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<String>,
}

/// Returns 200 while this process runs.
#[utoipa::path(get, path = "/livez", tag = "probes", responses((status = 200)))]
pub(super) async fn livez() -> StatusCode {
    StatusCode::OK
}

/// Returns 200 when this process is ready. It does not have to be the leader.
#[utoipa::path(
    get, path = "/readyz", tag = "probes",
    responses((status = 200, body = Readiness), (status = 503, body = Readiness)),
)]
pub(super) async fn readyz(extract::State(state): extract::State<Arc<HttpState>>) -> (StatusCode, Json<Readiness>) {
    let worker_health = state.worker_health.borrow().clone();
    let leadership = state.leadership.borrow().clone();
    let listed = timeout(LIMIT, state.listed());
    let (depth, listed) = tokio::join!(state.depth(), listed);
    let alive = worker_health.is_none_or(|worker_health| worker_health.is_alive());
    let may_lead = leadership.as_ref().is_none_or(|leadership| !leadership.is_refused());
    let owns_queue = leadership.as_ref().is_none_or(|leadership| leadership.queue_owner().is_none());
    let mongodb = !*state.lacks_mongodb.borrow();
    let checks = [
        ("redis", depth.is_some()),
        ("kubernetes", listed.is_ok()),
        ("lease", may_lead),
        ("installation", owns_queue),
        ("mongodb", mongodb),
        ("workers", alive),
    ];
    let missing: Vec<_> = checks.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect();
    let code = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let leading = leadership.as_ref().map(Leadership::is_held);
    let leader = leadership.and_then(|leadership| leadership.leader());
    (code, Json(Readiness { ready: missing.is_empty(), missing, leading, leader }))
}

/// Metrics as OpenMetrics text.
pub(super) async fn metrics(extract::State(state): extract::State<Arc<HttpState>>) -> impl IntoResponse {
    let leading = state.leadership.borrow().as_ref().map(Leadership::is_held);
    let workers = state
        .worker_health
        .borrow()
        .as_ref()
        .map(|worker_health| WorkerSlots { slots: worker_health.slots(), busy: worker_health.busy() });
    let queue = state.depth().await;
    let schedules = (leading == Some(true)).then(|| state.schedule_health()).flatten();
    let policy_invalid = metrics::policy_invalid();
    let metrics = Metrics { leading, serving: state.objects.is_some(), workers, queue, schedules, policy_invalid };
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode())
}
