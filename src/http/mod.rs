//! The HTTP sidecar: the calls of the Node service it takes over from, answered from Redis and the watch cache.

mod health;
mod status;

use std::{sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use tokio::{sync::watch, time::timeout};

use crate::{
    cluster::Cluster,
    queue::{Depth, Queue},
};

/// Longest wait for Redis or the API server within one request.
const LIMIT: Duration = Duration::from_millis(1500);

/// What handlers answer from.
#[derive(Clone)]
pub struct State {
    queue: Queue,
    /// Absent until the watches were set up.
    cluster: watch::Receiver<Option<Cluster>>,
}

impl State {
    /// Answers from a queue, and from the caches of a cluster as soon as there are some.
    #[must_use]
    pub fn new(queue: Queue, cluster: watch::Receiver<Option<Cluster>>) -> Self {
        Self { queue, cluster }
    }

    fn cluster(&self) -> Option<Cluster> {
        self.cluster.borrow().clone()
    }

    /// What the queue holds. `None` when Redis does not answer in time.
    async fn depth(&self) -> Option<Depth> {
        timeout(LIMIT, self.queue.depth()).await.ok()?.ok()
    }
}

/// Every route.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/health", get(health::health))
        .route("/livez", get(async || StatusCode::OK))
        .route("/readyz", get(health::readyz))
        .route("/jobs/status", get(status::status))
        .with_state(Arc::new(state))
}
