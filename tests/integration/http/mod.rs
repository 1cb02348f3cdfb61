//! The HTTP sidecar: its router without sockets, on a real API server and Redis; and whole processes under stress.

pub mod auth;
mod browser;
mod dashboard;
mod edit_schedule;
mod endpoints;
mod events;
mod outages;
mod reference;
mod stress;
mod trusted_proxy;
mod ui_events;

use std::{net::SocketAddr, num::NonZeroU32};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderMap, Request, StatusCode},
};
use http_body_util::BodyExt;
use serde_json::Value;
use sync_operator::http::{
    HttpSettings, HttpState, LeaseName, Objects, ReadAccess, RecentDepth, ScheduleHealth, Sessions, router,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::support::TestEnv;

/// A sidecar in this process.
pub struct Sidecar {
    router: Router,
    stop: CancellationToken,
}

pub struct Answer {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The code, and the last part of the type of the problem.
    pub fn problem(&self) -> (u16, &str) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.body);
        assert_eq!(self.body["status"], self.code.as_u16());
        (self.code.as_u16(), self.body["type"].as_str().unwrap().strip_prefix("urn:sync-operator:problem:").unwrap())
    }
}

impl Sidecar {
    /// A sidecar without authentication.
    pub async fn open(env: &TestEnv) -> Self {
        Self::new(env, None, 1_000_000).await
    }

    pub async fn new(env: &TestEnv, reads: Option<ReadAccess>, requests_per_second: u32) -> Self {
        let dashboard = Some(Sessions::new(None, false).unwrap());
        let settings = settings(reads, requests_per_second.try_into().unwrap());
        Self::with(env, HttpSettings { dashboard, ..settings }).await
    }

    pub async fn with(env: &TestEnv, settings: HttpSettings) -> Self {
        let (objects, watches) = Objects::watch(env.client.clone(), Some(&env.name));
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(watches));
        objects.listed().await;
        let state = HttpState {
            queue: env.queue(),
            cluster: None,
            leadership: watch::channel(None).1,
            worker_health: watch::channel(None).1,
            lacks_mongodb: watch::channel(false).1,
            objects: None,
            schedule_health: ScheduleHealth::default(),
            depth: RecentDepth::default(),
        };
        let router = router(state, objects, settings, "test", stop.clone());
        Self { router, stop }
    }

    /// Sends a request from 127.0.0.1.
    pub async fn send(&self, request: Request<Body>) -> axum::response::Response {
        self.send_from([127, 0, 0, 1], request).await
    }

    pub async fn send_from(&self, peer: [u8; 4], mut request: Request<Body>) -> axum::response::Response {
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from((peer, 1))));
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn call(&self, request: Request<Body>) -> Answer {
        let (head, body) = self.send(request).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { code: head.status, headers: head.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// `POST` with a JSON body, or without any.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_with(path, body, &[]).await
    }

    pub async fn post_with(&self, path: &str, body: Value, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = if body.is_null() {
            request.body(Body::empty())
        } else {
            request.header("content-type", "application/json").body(body.to_string().into())
        };
        self.call(request.unwrap()).await
    }
}

/// Settings without a dashboard and without a path.
pub fn settings(reads: Option<ReadAccess>, requests_per_second: NonZeroU32) -> HttpSettings {
    let [requests_at_a_time, requests_per_caller] = [64, 32].map(|count: u32| count.try_into().unwrap());
    let lease = LeaseName { namespace: Some("default".to_owned()), name: "sync-operator".to_owned() };
    HttpSettings {
        reads,
        requests_per_second,
        requests_at_a_time,
        requests_per_caller,
        dashboard: None,
        logs: None,
        proxies: None,
        prefix: None,
        hosts: vec!["sync.example".to_owned()],
        lease,
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
