//! Kubernetes events on the objects.

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::timeout;

use crate::domain::Note;

/// Longest wait for an event to be taken. Events are news, not records: one that is lost is lost.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Writes events. Clones share what makes repeats one event with a count.
#[derive(Clone)]
pub struct Events(Recorder);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// Events reported by this process.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter { controller: "sync-operator".to_owned(), instance: Some(instance.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Publishes what there is to tell about an object. Failures are logged and otherwise ignored.
    pub async fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, notes: &[Note]) {
        for note in notes {
            let event = Event {
                type_: if note.warning { EventType::Warning } else { EventType::Normal },
                reason: note.reason.to_owned(),
                note: Some(note.text.clone()),
                action: note.reason.to_owned(),
                secondary: None,
            };
            match timeout(LIMIT, self.0.publish(&event, &object.object_ref(&()))).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, reason = note.reason, "event not written"),
                Err(_) => tracing::debug!(reason = note.reason, "event not written in time"),
            }
        }
    }
}
