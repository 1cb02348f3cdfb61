//! Message to a sink: the alerts that are sent together.

use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use crate::{
    api::{
        SyncAlert,
        syncalert::{Alert, AlertType},
    },
    domain::stable_hash,
};

/// Largest number of alerts in one message. The next message has the rest.
const MAX_ITEMS: usize = 50;

/// Message to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Name of the sink.
    pub sink: String,
    /// Identifier, equal for equal messages, by which a receiver recognises a message that arrives twice.
    pub id: String,
    /// Keys of the alerts in the message.
    pub notified: Vec<Key>,
    /// Problems that last, and incidents.
    pub firing: Vec<Item>,
    /// Problems that are over.
    pub resolved: Vec<Item>,
}

/// Identity of an alert of a SyncAlert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Name of the SyncSchedule.
    pub schedule: String,
    /// Type of the alert.
    pub type_: AlertType,
    /// SyncJob, slot or time that began the problem.
    pub occurrence: String,
    /// True when the problem is over.
    pub resolved: bool,
    /// True when an earlier message about the alert may have arrived, whose delivery has no known result.
    pub may_be_known: bool,
}

/// An alert in a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Identifier of the alert, equal in each message.
    pub id: String,
    /// Name of the SyncSchedule.
    pub schedule: String,
    /// Type of the alert.
    #[serde(rename = "type")]
    pub type_: AlertType,
    /// SyncJob, slot or time that began the problem.
    pub occurrence: String,
    /// Begin of the problem.
    pub since: Timestamp,
    /// End of the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// True when the sink was notified of the problem before.
    pub repeated: bool,
    /// Description of the problem, as a sentence.
    pub message: String,
}

impl Key {
    /// True when the key identifies this alert.
    #[must_use]
    pub fn identifies(&self, alert: &Alert) -> bool {
        self.schedule == alert.schedule && self.type_ == alert.type_ && self.occurrence == alert.occurrence
    }
}

impl Message {
    pub(super) fn new<'a>(owner: &SyncAlert, sink: &str, alerts: impl Iterator<Item = &'a Alert>) -> Self {
        let uid = owner.uid().unwrap_or_default();
        let mut whole = format!("{uid}/{sink}");
        let (mut notified, mut firing, mut resolved) = (Vec::new(), Vec::new(), Vec::new());
        for alert in alerts.take(MAX_ITEMS) {
            let (item, before) = item(alert, sink, &uid);
            whole += &format!("/{} {} {}", item.id, item.until.is_some(), before.map_or(0, Timestamp::as_second));
            notified.push(Key {
                schedule: item.schedule.clone(),
                type_: item.type_,
                occurrence: item.occurrence.clone(),
                resolved: item.until.is_some(),
                may_be_known: alert.notified.iter().any(|notified| notified.sink == sink && notified.unsure),
            });
            if item.until.is_some() { &mut resolved } else { &mut firing }.push(item);
        }
        Self { sink: sink.to_owned(), id: format!("{:016x}", stable_hash(&whole)), notified, firing, resolved }
    }
}

/// Item of a message for an alert, and the time at which the sink was last notified of the alert.
fn item(alert: &Alert, sink: &str, uid: &str) -> (Item, Option<Timestamp>) {
    let before = alert
        .notified
        .iter()
        .find(|notified| notified.sink == sink && !notified.unsure)
        .map(|notified| notified.time.0);
    let Alert { schedule, type_, occurrence, since, resolved, message, .. } = alert;
    let item = Item {
        id: format!("{:016x}", stable_hash(&format!("{uid}/{schedule}/{type_:?}/{occurrence}"))),
        schedule: schedule.clone(),
        type_: *type_,
        occurrence: occurrence.clone(),
        since: since.0,
        until: resolved.as_ref().map(|resolved| resolved.0),
        repeated: before.is_some() && resolved.is_none(),
        message: message.clone(),
    };
    (item, before)
}
