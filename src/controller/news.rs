//! Events on their way to the API server: nothing that a run waits for stands behind them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use tokio::sync::mpsc;

use crate::{
    cluster::{Cluster, Lane},
    domain::Note,
    telemetry::events::Events,
};

use super::Leadership;

/// Notes that may wait. Events are news, not records: with more than that the newest ones are lost.
const MOST: usize = 20_000;

/// Where there is something to tell.
pub(super) struct News(mpsc::Sender<Item>);

/// What was told and is not sent yet.
pub(super) struct Waiting(mpsc::Receiver<Item>);

struct Item {
    object: ObjectReference,
    note: Note,
    at: Timestamp,
}

pub(super) fn channel() -> (News, Waiting) {
    let (sender, receiver) = mpsc::channel(MOST);
    (News(sender), Waiting(receiver))
}

impl News {
    /// Tells something about an object, as of now. Does not wait for it to be sent.
    pub fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, note: Note) {
        self.tell_of(object.object_ref(&()), note);
    }

    /// The same about the object that is named.
    pub fn tell_of(&self, object: ObjectReference, note: Note) {
        let item = Item { object, note, at: Timestamp::now() };
        if let Err(lost) = self.0.try_send(item) {
            tracing::debug!(%lost, "event not sent: too many wait, or the process ends");
        }
    }
}

impl Waiting {
    /// Sends what was told, one after the other, while this process leads. Ends when all of it is sent and nobody is left
    /// to tell more.
    pub async fn send(mut self, events: Events, cluster: Cluster, leadership: Leadership) {
        while let Some(Item { object, note, at }) = self.0.recv().await {
            let _turn = cluster.turn(Lane::Reports).await;
            if leadership.is_held() {
                events.publish(&object, &note, at).await;
            }
        }
    }
}
