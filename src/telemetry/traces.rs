//! Traces by OTLP. This module creates the spans of a run, and the SDK sends them from its own thread. Without a
//! recording, because traces are off or the run is not sampled, no spans exist.

use std::{
    env,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use opentelemetry::{
    InstrumentationScope, KeyValue, Value,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor},
};

use super::Availability;
use crate::domain::trace::{Root, Sampler, TraceParent, root};

/// Longest wait for unsent spans when the program stops. Kubernetes waits for 30 s, most of which runs may take.
const FLUSH: Duration = Duration::from_secs(3);
/// Either names the receiver.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// File with the namespace of a pod.
const NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

static TRACES: OnceLock<Traces> = OnceLock::new();
static RECEIVER: Availability = Availability::new("the receiver of traces");

struct Traces {
    processor: BatchSpanProcessor,
    sampler: Sampler,
    scope: InstrumentationScope,
}

/// Traces cannot be sent as the environment asks for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address of the receiver is none.
    #[error("{0}: must begin with http:// or https://, such as http://collector:4318")]
    Endpoint(&'static str),
    /// The settings of the exporter cannot be used. The exact mistake could contain a password.
    #[error(
        "OTEL_EXPORTER_OTLP_*: traces cannot be sent with these settings: check that the endpoint is a valid address, and that no compression is set"
    )]
    Exporter(#[from] ExporterBuildError),
    /// The sampler is not known, or its argument is no share.
    #[error("OTEL_TRACES_SAMPLER: not known, or OTEL_TRACES_SAMPLER_ARG is no number from 0 to 1")]
    Sampler,
}

/// Starts to send traces when the environment names a receiver. `instance` names this process.
///
/// # Errors
/// When a setting of the environment cannot be used.
pub fn init(instance: &str) -> Result<(), Error> {
    if !is_wanted(variable) {
        return Ok(());
    }
    for name in ENDPOINTS {
        let is_address = |value: &String| ["http://", "https://"].iter().any(|scheme| value.starts_with(scheme));
        if variable(name).is_some_and(|value| !is_address(&value)) {
            return Err(Error::Endpoint(name));
        }
    }
    let sampler = match variable("OTEL_TRACES_SAMPLER") {
        Some(name) => Sampler::parse(&name, variable("OTEL_TRACES_SAMPLER_ARG").as_deref()).ok_or(Error::Sampler)?,
        None => Sampler::default(),
    };
    let exporter = SpanExporter::builder().with_http().build()?;
    let mut processor = BatchSpanProcessor::builder(MonitoredExporter(exporter)).build();
    processor.set_resource(&resource(instance, variable("OTEL_SERVICE_NAME")));
    let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME")).with_version(env!("CARGO_PKG_VERSION")).build();
    if TRACES.set(Traces { processor, sampler, scope }).is_ok() {
        tracing::info!("sending traces");
    }
    Ok(())
}

/// Sends the remaining spans, for at most 3 s. Blocks meanwhile.
pub fn shutdown() {
    let Some(traces) = TRACES.get() else { return };
    if let Err(error) = traces.processor.shutdown_with_timeout(FLUSH) {
        tracing::debug!(%error, "could not send the last spans");
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    let is = |name, value: &str| variable(name).is_some_and(|given| given.eq_ignore_ascii_case(value));
    ENDPOINTS.into_iter().any(|name| variable(name).is_some())
        && !is("OTEL_SDK_DISABLED", "true")
        && !is("OTEL_TRACES_EXPORTER", "none")
}

/// Attributes that all spans of this process share. The environment overrides other sources.
fn resource(instance: &str, name: Option<String>) -> Resource {
    let namespace = std::fs::read_to_string(NAMESPACE).ok();
    let pod = namespace.as_ref().and_then(|_| variable("HOSTNAME"));
    let known = [
        ("service.name", Some(env!("CARGO_PKG_NAME").to_owned())),
        ("service.version", Some(env!("CARGO_PKG_VERSION").to_owned())),
        ("service.instance.id", Some(instance.to_owned())),
        ("k8s.namespace.name", namespace),
        ("k8s.pod.name", pod),
    ];
    let known = known.into_iter().filter_map(|(key, value)| Some(KeyValue::new(key, value?)));
    Resource::builder_empty()
        .with_attributes(known)
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())])
        .with_attributes(name.map(|name| KeyValue::new("service.name", name)))
        .build()
}

/// Exporter that reports an outage of the receiver once, instead of for each attempt.
#[derive(Debug)]
struct MonitoredExporter(SpanExporter);

impl opentelemetry_sdk::trace::SpanExporter for MonitoredExporter {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.0.export(spans).await;
        RECEIVER.record(&sent);
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// The root span of a run, in the trace of the caller whose `traceparent` is given, if any. `None` while traces are
/// off.
#[must_use]
pub fn root_of(uid: &str, caller: Option<&str>) -> Option<Root> {
    TRACES.get().and_then(|traces| root(uid, caller, &traces.sampler))
}

/// Parent of the spans of a run. Empty when the run is not recorded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parent(Option<TraceParent>);

impl Parent {
    /// Root span of the run, from the hash of the run, or else derived from the uid.
    #[must_use]
    pub fn for_run(uid: &str, traceparent: Option<&str>) -> Self {
        if TRACES.get().is_none() {
            return Self(None);
        }
        let known = traceparent.and_then(TraceParent::parse);
        Self::from(known.or_else(|| root_of(uid, None).map(|root| root.span)))
    }

    /// The id of the trace, for logs and exemplars.
    #[must_use]
    pub fn trace_id(self) -> Option<String> {
        self.0.map(|parent| parent.trace_id())
    }

    /// Begins a span below this one, now.
    pub fn begin(self, name: &'static str) -> Span {
        let span = self.0.map(|parent| TraceParent { span: rand::random::<u64>().max(1), ..parent });
        Span::new(name, span, self.0.map(|parent| parent.span))
    }
}

impl From<Option<TraceParent>> for Parent {
    fn from(span: Option<TraceParent>) -> Self {
        Self(span.filter(|span| span.is_sampled))
    }
}

/// A span that has begun. It is sent when it ends; one that is dropped is not.
#[derive(Debug)]
#[must_use = "a span is sent when it ends"]
pub struct Span(Option<Box<SpanData>>);

impl Span {
    /// The root span of a run.
    pub fn root(root: Option<Root>) -> Self {
        Self::new("sync.run", root.map(|root| root.span), root.and_then(|root| root.caller))
    }

    fn new(name: &'static str, span: Option<TraceParent>, parent: Option<u64>) -> Self {
        let span = span.filter(|span| span.is_sampled).zip(TRACES.get());
        Self(span.map(|(span, traces)| Box::new(begun(name, span, parent, traces.scope.clone()))))
    }

    /// True when nothing is recorded, and nothing needs to be looked up for it.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.0.is_none()
    }

    /// Parent of the spans below this one.
    pub fn parent(&self) -> Parent {
        Parent(self.0.as_ref().map(|span| TraceParent {
            trace: u128::from_be_bytes(span.span_context.trace_id().to_bytes()),
            span: u64::from_be_bytes(span.span_context.span_id().to_bytes()),
            is_sampled: true,
        }))
    }

    /// Sets the start of the span.
    pub fn since(mut self, start: Timestamp) -> Self {
        if let Some(span) = &mut self.0 {
            span.start_time = start.into();
        }
        self
    }

    /// Marks the span as a request to another server.
    pub fn asking(mut self) -> Self {
        if let Some(span) = &mut self.0 {
            span.span_kind = SpanKind::Client;
        }
        self
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.attributes.push(KeyValue::new(key, value));
        }
    }

    /// Marks the span as failed, with one CamelCase word.
    pub fn fail(&mut self, reason: &str) {
        if let Some(span) = &mut self.0 {
            span.status = Status::error(reason.to_owned());
            span.attributes.push(KeyValue::new("error.type", reason.to_owned()));
        }
    }

    /// Ends the span now.
    pub fn end(self) {
        self.end_at(SystemTime::now());
    }

    /// Ends the span at a time. A span that would end before its start ends at its start.
    pub fn end_at(self, end: impl Into<SystemTime>) {
        let (Some(mut span), Some(traces)) = (self.0, TRACES.get()) else { return };
        span.end_time = end.into().max(span.start_time);
        traces.processor.on_end(*span);
    }
}

fn begun(name: &'static str, span: TraceParent, parent: Option<u64>, scope: InstrumentationScope) -> SpanData {
    let (trace, id) = (TraceId::from(span.trace), SpanId::from(span.span));
    let now = SystemTime::now();
    SpanData {
        span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: now,
        end_time: now,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_sent_to_a_configured_receiver() {
        const RECEIVER: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        for (given, wanted) in [
            (vec![], false),
            (vec![RECEIVER], true),
            (vec![("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces")], true),
            (vec![RECEIVER, ("OTEL_SDK_DISABLED", "True")], false),
            (vec![RECEIVER, ("OTEL_SDK_DISABLED", "false")], true),
            (vec![RECEIVER, ("OTEL_TRACES_EXPORTER", "none")], false),
        ] {
            let variable =
                |name: &str| given.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(is_wanted(variable), wanted, "{given:?}");
        }
    }

    /// No test of this process starts traces.
    #[test]
    fn while_traces_are_off_there_are_no_spans() {
        let uid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(root_of(uid, Some(traceparent)), None);
        let parent = Parent::for_run(uid, Some(traceparent));
        assert_eq!(parent.trace_id(), None);
        let span = parent.begin("sync.attempt");
        assert!(span.0.is_none() && span.parent().0.is_none());
    }

    #[test]
    fn spans_say_which_process_sent_them() {
        for (name, expected) in [(None, "sync-operator"), (Some("mine".to_owned()), "mine")] {
            let resource = resource("worker-1", name);
            let of = |key: &'static str| resource.get(&key.into()).map(|value| value.to_string());
            assert_eq!(of("service.name").as_deref(), Some(expected));
            assert_eq!(of("service.instance.id").as_deref(), Some("worker-1"));
        }
    }
}
