//! The HTTP sidecar: the calls of the Node service it takes over from, answered from Redis and the watch cache.

mod health;
mod probes;
mod status;

use std::{sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use tokio::{sync::watch, time::timeout};

use crate::{
    cluster::Cluster,
    controller::Leadership,
    queue::{Depth, Queue},
    worker::Pulse,
};

/// Longest wait for Redis or the API server within one request.
const LIMIT: Duration = Duration::from_millis(1500);

/// What handlers answer from.
#[derive(Clone)]
pub struct State {
    /// The queue.
    pub queue: Queue,
    /// The caches; absent until the watches were set up. `None` in a process that watches nothing.
    pub cluster: Option<watch::Receiver<Option<Cluster>>>,
    /// Who leads. Absent in a process without controllers.
    pub leadership: watch::Receiver<Option<Leadership>>,
    /// The workers. Absent in a process without any.
    pub pulse: watch::Receiver<Option<Pulse>>,
}

impl State {
    fn cluster(&self) -> Option<Cluster> {
        self.cluster.as_ref()?.borrow().clone()
    }

    /// What the queue holds. `None` when Redis does not answer in time.
    async fn depth(&self) -> Option<Depth> {
        timeout(LIMIT, self.queue.depth()).await.ok()?.ok()
    }
}

/// Every route of the sidecar.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/health", get(health::health))
        .route("/livez", get(async || StatusCode::OK))
        .route("/readyz", get(probes::readyz))
        .route("/jobs/status", get(status::status))
        .with_state(Arc::new(state))
}

/// What every process serves for its cluster: probes and metrics.
pub fn probes(state: State) -> Router {
    Router::new()
        .route("/livez", get(async || StatusCode::OK))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .with_state(Arc::new(state))
}
