//! `/health`.

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{App, LIMIT};

/// The body of `/health`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `OK` or `DEGRADED`.
    status: &'static str,
    jobs: HealthOfJobs,
    /// Unavailable services: `redis`, `kubernetes`, `workers`. Absent when all are available.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    missing: Vec<&'static str>,
}

#[derive(Debug, Serialize, ToSchema)]
struct HealthOfJobs {
    /// Runs can be started and executed.
    initialized: bool,
}

/// Returns 200 when runs can be started and executed, otherwise 503 with the missing parts.
#[utoipa::path(
    get, path = "/health", tag = "probes",
    responses((status = 200, body = Health), (status = 503, body = Health)),
)]
pub(super) async fn health(State(app): State<App>) -> (StatusCode, Json<Health>) {
    let (depth, kubernetes) = tokio::join!(app.state.depth(), app.kubernetes.get(kubernetes_answers(&app)));
    let checks = [
        ("redis", depth.is_some()),
        ("kubernetes", kubernetes),
        ("workers", depth.is_none_or(|depth| depth.workers > 0)),
    ];
    let missing: Vec<_> = checks.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect();
    let (code, status) =
        if missing.is_empty() { (StatusCode::OK, "OK") } else { (StatusCode::SERVICE_UNAVAILABLE, "DEGRADED") };
    (code, Json(Health { status, jobs: HealthOfJobs { initialized: missing.is_empty() }, missing }))
}

async fn kubernetes_answers(app: &App) -> bool {
    matches!(timeout(LIMIT, app.objects.client.apiserver_version()).await, Ok(Ok(_)))
}
