//! Kubernetes events on the objects.

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::timeout;

use crate::domain::ObjectEvent;

/// Longest wait for the delivery of an event. Events are best effort: a lost event is not repeated.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Writer of Kubernetes events, one for each [`ObjectEvent`]. The recorder of kube combines events of one reason and
/// object into one with a count, which keeps the text of the first, and remembers every event for six minutes.
#[derive(Clone)]
pub struct Events {
    client: Client,
    instance: String,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// Events reported by this process.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> Self {
        Self { client, instance: instance.to_owned() }
    }

    /// Publishes an event about an object. Failures are logged and otherwise ignored.
    pub async fn publish(&self, object: &ObjectReference, event: &ObjectEvent, at: Timestamp) {
        let namespace = object.namespace.as_deref().unwrap_or("default");
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let object = self.build(object, namespace, event, at);
        match timeout(LIMIT, events.create(&PostParams::default(), &object)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, reason = event.reason, "could not write an event"),
            Err(_) => tracing::debug!(reason = event.reason, "could not write an event in time"),
        }
    }

    fn build(&self, object: &ObjectReference, namespace: &str, event: &ObjectEvent, at: Timestamp) -> Event {
        let name = object.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", at.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            action: Some(event.reason.to_owned()),
            reason: Some(event.reason.to_owned()),
            note: Some(event.text.clone()),
            type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
            event_time: Some(MicroTime(at)),
            regarding: Some(object.clone()),
            reporting_controller: Some("sync-operator".to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }
}
