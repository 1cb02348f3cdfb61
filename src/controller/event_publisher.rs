//! Publisher of Kubernetes events. Events have the lower request class, so no run waits for one.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use tokio::sync::mpsc;

use crate::{
    cluster::{Cluster, RequestClass},
    domain::ObjectEvent,
    telemetry::events::Events,
};

use super::Leadership;

/// Events that may wait. Beyond that, the newest ones are dropped: conditions have the lasting record.
const MOST: usize = 20_000;

/// Publisher of events. Does not wait until they are sent.
pub(super) struct EventPublisher(mpsc::Sender<Item>);

/// Queue of events that are not sent yet.
pub(super) struct PendingEvents(mpsc::Receiver<Item>);

struct Item {
    object: ObjectReference,
    event: ObjectEvent,
    at: Timestamp,
}

pub(super) fn channel() -> (EventPublisher, PendingEvents) {
    let (sender, receiver) = mpsc::channel(MOST);
    (EventPublisher(sender), PendingEvents(receiver))
}

impl EventPublisher {
    /// Publishes an event about an object, with the time of now.
    pub fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, event: ObjectEvent) {
        self.publish_about(object.object_ref(&()), event);
    }

    /// Publishes an event about the object of a reference.
    pub fn publish_about(&self, object: ObjectReference, event: ObjectEvent) {
        let item = Item { object, event, at: Timestamp::now() };
        if let Err(lost) = self.0.try_send(item) {
            tracing::debug!(%lost, "event dropped: too many events wait, or the process stops");
        }
    }
}

impl PendingEvents {
    /// Sends events one after the other while this process leads. Ends when all are sent and the last publisher is dropped.
    pub async fn send(mut self, events: Events, cluster: Cluster, leadership: Leadership) {
        while let Some(Item { object, event, at }) = self.0.recv().await {
            let _permit = cluster.acquire(RequestClass::ReportStatus).await;
            if leadership.is_held() {
                events.publish(&object, &event, at).await;
            }
        }
    }
}
