//! A receiver of traces, as a collector.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::eventually;

/// A span that was sent.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.instance.id` of the process that sent it.
    pub process: String,
    pub trace: String,
    pub id: String,
    /// Empty: none.
    pub parent: String,
    pub name: String,
    /// Nanoseconds.
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    pub is_error: bool,
}

impl Span {
    pub fn number(&self, key: &str) -> i64 {
        self.attributes[key].parse().unwrap()
    }
}

#[derive(Default)]
pub struct Received {
    pub spans: Vec<Span>,
    /// Values of the header `authorization`.
    pub tokens: Vec<String>,
    pub requests: usize,
}

type Shared = Arc<Mutex<Received>>;

/// Stops when dropped.
pub struct Receiver {
    pub url: String,
    received: Shared,
    server: JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        Self::start_on(0, Router::new().route("/v1/traces", post(take))).await
    }

    /// Starts a receiver on this port.
    pub async fn answering_on(port: u16) -> Self {
        Self::start_on(port, Router::new().route("/v1/traces", post(take))).await
    }

    /// Starts a receiver that never answers.
    pub async fn stalling() -> Self {
        Self::start_on(0, Router::new().route("/v1/traces", post(stall))).await
    }

    async fn start_on(port: u16, routes: Router<Shared>) -> Self {
        let received = Shared::default();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = routes.with_state(Arc::clone(&received));
        Self { url, received, server: tokio::spawn(async { axum::serve(listener, router).await.unwrap() }) }
    }

    pub fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap()
    }

    pub fn named(&self, name: &str) -> Vec<Span> {
        self.received().spans.iter().filter(|span| span.name == name).cloned().collect()
    }

    /// Waits for spans with a name.
    pub async fn await_spans(&self, name: &str, count: usize) -> Vec<Span> {
        eventually(&format!("{count} spans {name} are received"), async || {
            Some(self.named(name)).filter(|spans| spans.len() >= count)
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(received): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut received = received.lock().unwrap();
    received.requests += 1;
    received.tokens.extend(headers.get("authorization").map(|token| token.to_str().unwrap().to_owned()));
    for resource in request.resource_spans {
        let known = read(&resource.resource.unwrap().attributes);
        assert_eq!(known["service.name"], "sync-operator", "{known:?}");
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        received.spans.extend(spans.map(|span| Span {
            process: known["service.instance.id"].clone(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            name: span.name,
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
            attributes: read(&span.attributes),
            is_error: span.status.is_some_and(|status| status.code == 2),
        }));
    }
    StatusCode::OK
}

async fn stall(State(received): State<Shared>, _body: Bytes) {
    received.lock().unwrap().requests += 1;
    std::future::pending::<()>().await;
}

fn read(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        value => format!("{value:?}"),
    };
    let value = |attribute: &KeyValue| text(attribute.value.as_ref().unwrap().value.as_ref().unwrap());
    attributes.iter().map(|attribute| (attribute.key.clone(), value(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
