//! What is sent to a sink at a time.

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

/// Alerts in one message. The rest goes out in the next one.
const MAX_ITEMS: usize = 50;

/// What is sent to a sink at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Name of the sink.
    pub sink: String,
    /// The same for the same message, so that one that arrives twice can be known.
    pub id: String,
    /// The alerts of which it notifies.
    pub notified: Vec<Key>,
    /// Problems there are, and news.
    pub firing: Vec<Item>,
    /// Problems that are over.
    pub resolved: Vec<Item>,
}

/// Tells alerts of a SyncAlert apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Name of the SyncSchedule.
    pub schedule: String,
    /// What it is about.
    pub type_: AlertType,
    /// What it began with.
    pub occurrence: String,
    /// It is over.
    pub resolved: bool,
    /// An earlier message about it may have arrived, of which nothing was heard.
    pub may_be_known: bool,
}

/// An alert in a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// The same in each message about it.
    pub id: String,
    /// Name of the SyncSchedule.
    pub schedule: String,
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: AlertType,
    /// What it began with: a SyncJob, a slot or a time.
    pub occurrence: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The sink was told before.
    pub repeated: bool,
    /// How it stands, in a sentence.
    pub message: String,
}

impl Key {
    /// True when it is that alert's.
    #[must_use]
    pub fn is_of(&self, alert: &Alert) -> bool {
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

/// An alert for a message, and when the sink was last told of it.
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
