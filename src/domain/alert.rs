//! Decisions about a SyncAlert: which message goes to which sink, and when.
//!
//! **Delivery at least once, and hardly ever twice.** Alerts are derived from the statuses of the schedules, so they
//! are found again after a restart. The notification of a sink is stored in Redis and in the status before another
//! message goes to that sink. A crash in between sends that one message again.
//!
//! **No stale messages.** A message is rendered when it is sent, and rendered again for each retry. A sink is notified
//! that a problem is over only when it was notified of the problem, or may have been: the intent to send is stored
//! before each message.

mod findings;
mod message;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};

use super::{ObjectEvent, backoff::Backoff, conditions, elapsed, from_seconds, stable_hash};
use crate::api::{
    GoDuration, SyncAlert, SyncAlertSpec, SyncAlertStatus, SyncSchedule, TEST_ANNOTATION,
    conditions::{READY, STALLED, reasons},
    syncalert::{Alert, AlertType, Notification, SinkStatus},
    truncate, truncate_to,
};
use findings::{AlertFinding, evaluate};
pub use message::{Item, Key, Message};

/// Largest number of alerts in the status of the object. Redis has all of them.
const MAX_ALERTS: usize = 30;
/// Longest text of an alert, in bytes.
const MAX_MESSAGE: usize = 240;
/// Longest time for which a resolved alert waits for a sink that does not answer. After that, the sink is not notified.
const RESOLVED_RETENTION: Duration = Duration::from_hours(7 * 24);
/// Backoff of a sink that does not answer.
const OUTAGE: Backoff =
    Backoff { initial: Duration::from_secs(5), factor: 2, max: Duration::from_secs(300), jitter: 0.1 };
/// Backoff of a sink that refuses messages: a user has to correct the configuration first.
const MISTAKE: Backoff =
    Backoff { initial: Duration::from_secs(60), factor: 2, max: Duration::from_secs(3600), jitter: 0.1 };

/// Input of a decision.
#[derive(Debug)]
pub struct ObservedAlert<'a> {
    /// The SyncAlert as stored.
    pub alert: &'a SyncAlert,
    /// Stored status: the newest one that is known.
    pub stored: SyncAlertStatus,
    /// Every SyncSchedule of its namespace.
    pub schedules: &'a [Arc<SyncSchedule>],
    /// Deliveries that have ended since the last decision.
    pub ended: &'a [Delivery],
    /// Sinks with a delivery in progress.
    pub busy: &'a [String],
    /// Mistake in the template of the SyncAlert.
    pub unusable_template: Option<String>,
}

/// A delivery that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Name of the sink.
    pub sink: String,
    /// The alerts of the message.
    pub notified: Vec<Key>,
    /// Result of the delivery.
    pub result: Result<(), Refusal>,
    /// End of the delivery.
    pub at: Timestamp,
}

/// Error of a sink that did not accept a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// True when a user has to correct the configuration, false when the sink does not answer.
    pub is_mistake: bool,
    /// Reason, as a sentence without addresses, names of users or secrets.
    pub message: String,
    /// Time for which the sink asks for no more messages.
    pub rest: Option<Duration>,
    /// True when the sink may have accepted the message in spite of the error.
    pub may_have_arrived: bool,
}

/// Actions of a decision, in this order: store the status, send, publish, write the status.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertPlan {
    /// Status to store. The object has only the [`bounded`] part of the alerts.
    pub status: SyncAlertStatus,
    /// Messages to send now, at most one to each sink.
    pub messages: Vec<Message>,
    /// Events to publish.
    pub events: Vec<ObjectEvent>,
    /// Time until the next reconciliation without a change.
    pub requeue: Option<Duration>,
}

/// Status as the object has it.
#[must_use]
pub fn bounded(mut status: SyncAlertStatus) -> SyncAlertStatus {
    status.alerts.truncate(MAX_ALERTS);
    status.alerts.iter_mut().for_each(|alert| alert.notified.retain(|notified| !notified.unsure));
    status
}

/// Decides on a SyncAlert.
#[must_use]
pub fn decide(observed: ObservedAlert<'_>, now: Timestamp) -> AlertPlan {
    let ObservedAlert { alert, stored, schedules, ended, busy, unusable_template } = observed;
    // The API server keeps no finer times.
    let at = from_seconds(now.as_second());
    let mut status = stored.clone();
    let mut events = Vec::new();
    update_sinks(&mut status, alert);
    for delivery in ended {
        record_delivery(&mut status, delivery, &alert.uid().unwrap_or_default(), &mut events);
    }
    let selector = Selector::try_from(alert.spec.selector.clone());
    let mut next = None;
    if let Ok(selector) = &selector {
        let selected: Vec<_> = schedules.iter().filter(|schedule| selector.matches(schedule.labels())).collect();
        let created = alert.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |created| created.0);
        let evaluation = evaluate(&alert.spec.when, &selected, created, at);
        next = evaluation.next;
        update_alerts(&mut status, evaluation.findings, at);
        status
            .alerts
            .retain(|alert| !is_notified_once(alert.type_) || alert.resolved.is_none() || is_among(&selected, alert));
    }
    add_test(&mut status, alert, at);
    resolve_incidents(&mut status, &alert.spec, at);
    status.alerts.sort_by_key(|alert| (alert.resolved.is_some(), std::cmp::Reverse(alert.noticed.0)));
    let is_firing = |alert: &&Alert| alert.resolved.is_none() && !is_notified_once(alert.type_);
    status.firing = Some(status.alerts.iter().filter(is_firing).count() as i32);
    status.last_sent_time = status.sinks.iter().filter_map(|sink| sink.last_sent_time.clone()).max();
    status.observed_generation = alert.metadata.generation;
    set_conditions(&mut status, alert, selector.as_ref().err().map(ToString::to_string), unusable_template, at);
    let (messages, due) = messages(&status, alert, busy, at);
    for message in &messages {
        record_intent(&mut status, message, at);
    }
    if status != stored {
        status.revision += 1;
    }
    let requeue = next.into_iter().chain(due).min().map(|next| elapsed(now, next).max(Duration::from_millis(1)));
    AlertPlan { status, messages, events, requeue }
}

/// True for an incident, as opposed to a problem that lasts: each sink is notified of an incident once.
fn is_notified_once(type_: AlertType) -> bool {
    matches!(type_, AlertType::RunRecovered | AlertType::RunSkipped | AlertType::Test)
}

fn is_among(schedules: &[&Arc<SyncSchedule>], alert: &Alert) -> bool {
    schedules.iter().any(|schedule| schedule.metadata.name.as_ref() == Some(&alert.schedule))
}

/// Updates the sinks of the status from the spec. A sink of a changed spec is tried at once.
fn update_sinks(status: &mut SyncAlertStatus, alert: &SyncAlert) {
    let is_changed = status.observed_generation != alert.metadata.generation;
    let known = std::mem::take(&mut status.sinks);
    for sink in &alert.spec.sinks {
        let stored = known.iter().find(|known| known.name == sink.name).cloned();
        let mut stored = stored.unwrap_or_else(|| SinkStatus { name: sink.name.clone(), ..SinkStatus::default() });
        if is_changed {
            stored.failed_tries = 0;
            stored.next_try_time = None;
        }
        status.sinks.push(stored);
    }
    let is_there = |notified: &Notification| alert.spec.sinks.iter().any(|sink| sink.name == notified.sink);
    status.alerts.iter_mut().for_each(|alert| alert.notified.retain(is_there));
}

fn record_delivery(status: &mut SyncAlertStatus, delivery: &Delivery, uid: &str, events: &mut Vec<ObjectEvent>) {
    let at = from_seconds(delivery.at.as_second());
    let Some(sink) = status.sinks.iter_mut().find(|sink| sink.name == delivery.sink) else { return };
    let was_ready = conditions::find(&sink.conditions, READY).map(|ready| ready.status == "True");
    let name = &sink.name;
    match &delivery.result {
        Ok(()) => {
            conditions::set(
                &mut sink.conditions,
                READY,
                true,
                reasons::DELIVERED,
                "Delivered the last message",
                None,
                at,
            );
            if was_ready == Some(false) {
                events.push(ObjectEvent::normal("SinkRecovered", format!("Sink {name} accepts messages again")));
            }
            if delivery.notified.iter().any(|key| key.type_ == AlertType::Test) {
                events.push(ObjectEvent::normal("TestDelivered", format!("Sink {name} accepted the test message")));
            }
            sink.last_sent_time = Some(Time(at));
            sink.failed_tries = 0;
            sink.next_try_time = None;
        }
        Err(refusal) => {
            let (reason, backoff) =
                if refusal.is_mistake { (reasons::INVALID_SINK, MISTAKE) } else { (reasons::SINK_UNAVAILABLE, OUTAGE) };
            if was_ready != Some(false) {
                events.push(ObjectEvent::warning("SinkFailing", format!("Sink {name}: {refusal}")));
            }
            conditions::set(&mut sink.conditions, READY, false, reason, &refusal.message, None, at);
            sink.failed_tries += 1;
            let random = stable_hash(&format!("{uid}/{name}/{}", sink.failed_tries)) % 1000;
            let wait = backoff.delay(sink.failed_tries as u32, random as f64 / 1000.0);
            sink.last_error_time = Some(Time(at));
            sink.last_error = Some(truncate(&refusal.message));
            sink.next_try_time = Some(Time(after(at, wait.max(refusal.rest.unwrap_or_default()))));
            if refusal.may_have_arrived {
                return;
            }
        }
    }
    for key in &delivery.notified {
        let Some(alert) = status.alerts.iter_mut().find(|alert| key.identifies(alert)) else { continue };
        let is_sinks = |notified: &Notification| notified.sink == delivery.sink;
        if delivery.result.is_err() {
            alert.notified.retain(|notified| !(is_sinks(notified) && notified.unsure) || key.may_be_known);
            continue;
        }
        alert.notified.retain(|notified| !is_sinks(notified));
        let (sink, resolved) = (delivery.sink.clone(), key.resolved);
        alert.notified.push(Notification { sink, time: Time(at), resolved, unsure: false });
    }
}

/// Records that a message is about to be sent. Without a result of the delivery, the sink may have been notified.
fn record_intent(status: &mut SyncAlertStatus, message: &Message, at: Timestamp) {
    for key in message.notified.iter().filter(|key| !key.resolved) {
        let Some(alert) = status.alerts.iter_mut().find(|alert| key.identifies(alert)) else { continue };
        if !alert.notified.iter().any(|notified| notified.sink == message.sink) {
            alert.notified.push(Notification {
                sink: message.sink.clone(),
                time: Time(at),
                resolved: false,
                unsure: true,
            });
        }
    }
}

/// Updates the alerts from the findings: adds new alerts, updates the lasting ones, and resolves the ended ones.
fn update_alerts(status: &mut SyncAlertStatus, findings: Vec<AlertFinding>, at: Timestamp) {
    let mut found: HashMap<(String, AlertType), AlertFinding> =
        findings.into_iter().map(|finding| ((finding.schedule.clone(), finding.type_), finding)).collect();
    let is_known = |alert: &Alert, finding: &AlertFinding| alert.occurrence == finding.occurrence;
    let mut superseded = Vec::new();
    for (index, alert) in status.alerts.iter_mut().enumerate() {
        let key = (alert.schedule.clone(), alert.type_);
        match found.get(&key) {
            Some(finding) if is_notified_once(alert.type_) => {
                if is_known(alert, finding) {
                    found.remove(&key);
                } else if alert.notified.iter().all(|notified| notified.unsure) && alert.resolved.is_none() {
                    alert.replace_incident(finding);
                    found.remove(&key);
                } else if alert.resolved.is_some() {
                    superseded.push(index);
                }
            }
            Some(finding) if alert.resolved.is_none() => {
                alert.message = truncate_to(&finding.message, MAX_MESSAGE);
                found.remove(&key);
            }
            Some(finding) if is_known(alert, finding) => {
                alert.resolved = None;
                alert.notified.iter_mut().for_each(|notified| notified.resolved = false);
                alert.message = truncate_to(&finding.message, MAX_MESSAGE);
                found.remove(&key);
            }
            None if alert.resolved.is_none() && !is_notified_once(alert.type_) => alert.resolved = Some(Time(at)),
            Some(_) | None => {}
        }
    }
    for index in superseded.into_iter().rev() {
        status.alerts.remove(index);
    }
    status.alerts.extend(found.into_values().map(|finding| Alert::from_finding(&finding, at)));
}

impl Alert {
    fn from_finding(finding: &AlertFinding, at: Timestamp) -> Self {
        Self {
            schedule: finding.schedule.clone(),
            type_: finding.type_,
            occurrence: finding.occurrence.clone(),
            since: Time(finding.since),
            noticed: Time(at),
            resolved: None,
            message: truncate_to(&finding.message, MAX_MESSAGE),
            notified: Vec::new(),
        }
    }

    /// Replaces the incident of this alert with a newer one of the same type.
    fn replace_incident(&mut self, finding: &AlertFinding) {
        self.occurrence.clone_from(&finding.occurrence);
        self.since = Time(finding.since);
        self.message = truncate_to(&finding.message, MAX_MESSAGE);
        self.notified.clear();
    }
}

/// Adds the test alert that a user requested. The test is sent at once, also to sinks that failed.
fn add_test(status: &mut SyncAlertStatus, alert: &SyncAlert, at: Timestamp) {
    let token = alert.annotations().get(TEST_ANNOTATION).map(|token| truncate_to(token, MAX_MESSAGE));
    let Some(token) = token.filter(|token| !token.is_empty() && status.last_handled_test.as_ref() != Some(token))
    else {
        return;
    };
    status.sinks.iter_mut().for_each(|sink| sink.next_try_time = None);
    let test = AlertFinding {
        schedule: String::new(),
        type_: AlertType::Test,
        occurrence: token.clone(),
        since: at,
        message: "This is a test. Nothing is wrong.".to_owned(),
    };
    status.alerts.retain(|alert| alert.type_ != AlertType::Test);
    status.alerts.push(Alert::from_finding(&test, at));
    status.last_handled_test = Some(token);
}

/// Resolves incidents that all sinks were notified of, and removes problems that no sink waits for.
fn resolve_incidents(status: &mut SyncAlertStatus, spec: &SyncAlertSpec, at: Timestamp) {
    for alert in status.alerts.iter_mut().filter(|alert| is_notified_once(alert.type_) && alert.resolved.is_none()) {
        if spec
            .sinks
            .iter()
            .all(|sink| alert.notified.iter().any(|notified| notified.sink == sink.name && !notified.unsure))
        {
            alert.resolved = Some(Time(at));
        }
    }
    status.alerts.retain(|alert| match &alert.resolved {
        None => true,
        Some(_) if alert.type_ == AlertType::Test => false,
        Some(_) if is_notified_once(alert.type_) => true,
        Some(resolved) => {
            let is_pending = spec.send_resolved && alert.notified.iter().any(|notified| !notified.resolved);
            is_pending && elapsed(resolved.0, at) < RESOLVED_RETENTION
        }
    });
}

fn after(at: Timestamp, wait: Duration) -> Timestamp {
    from_seconds(at.as_second().saturating_add(wait.as_secs_f64().ceil() as i64))
}

fn parsed(duration: &GoDuration, default: Duration) -> Duration {
    duration.parse().unwrap_or(default)
}

/// Time at which a sink is notified of an alert, and whether the notification is a repetition. `None`: there is nothing
/// to send.
fn due(alert: &Alert, sink: &str, spec: &SyncAlertSpec) -> Option<(Timestamp, bool)> {
    let window = parsed(&spec.group_window, Duration::from_secs(30));
    let repeat = parsed(&spec.repeat_interval, Duration::from_hours(4));
    let notified =
        alert.notified.iter().find(|notified| notified.sink == sink && !(notified.unsure && alert.resolved.is_none()));
    match (notified, &alert.resolved) {
        (None, None) if alert.type_ == AlertType::Test => Some((alert.noticed.0, false)),
        (None, None) => Some((after(alert.noticed.0, window), false)),
        _ if is_notified_once(alert.type_) => None,
        (Some(notified), None) => Some((after(notified.time.0, repeat), true)),
        (Some(notified), Some(resolved)) if spec.send_resolved && !notified.resolved => {
            Some((after(resolved.0, window), false))
        }
        (_, Some(_)) => None,
    }
}

/// Returns the messages to send now, and the time of the next ones. Waiting alerts are sent with a message
/// that is due.
fn messages(
    status: &SyncAlertStatus,
    alert: &SyncAlert,
    busy: &[String],
    at: Timestamp,
) -> (Vec<Message>, Option<Timestamp>) {
    let (mut messages, mut next) = (Vec::new(), None);
    for sink in status.sinks.iter().filter(|sink| !busy.contains(&sink.name)) {
        let dues = || status.alerts.iter().filter_map(|it| due(it, &sink.name, &alert.spec).map(|due| (it, due)));
        let Some(first) = dues().map(|(_, (due, _))| due).min() else { continue };
        let first = sink.next_try_time.as_ref().map_or(first, |next| next.0.max(first));
        if first > at {
            next = next.into_iter().chain([first]).min();
            continue;
        }
        let goes = dues().filter(|(_, (due, is_repeated))| !is_repeated || *due <= at).map(|(alert, _)| alert);
        messages.push(Message::new(alert, &sink.name, goes));
    }
    (messages, next)
}

fn set_conditions(
    status: &mut SyncAlertStatus,
    alert: &SyncAlert,
    invalid: Option<String>,
    unusable_template: Option<String>,
    at: Timestamp,
) {
    let failing = status.sinks.iter().find_map(|sink| {
        let ready = conditions::find(&sink.conditions, READY).filter(|ready| ready.status == "False")?;
        Some((ready.reason.clone(), format!("Sink {}: {}", sink.name, ready.message)))
    });
    let generation = alert.metadata.generation;
    let wrong = invalid.map(|why| (reasons::INVALID_SPEC, format!("selector: {why}")));
    if let Some((reason, message)) = &wrong {
        conditions::set(&mut status.conditions, STALLED, true, reason, message, generation, at);
    } else {
        conditions::clear(&mut status.conditions, STALLED);
    }
    let template = unusable_template.map(|why| (reasons::INVALID_TEMPLATE.to_owned(), format!("template: {why}")));
    let wrong = wrong.map(|(reason, message)| (reason.to_owned(), message)).or(failing).or(template);
    let (is_ready, (reason, message)) = match wrong {
        Some(wrong) => (false, wrong),
        None => (true, (reasons::DELIVERING.to_owned(), "Every sink accepts messages, as far as is known".to_owned())),
    };
    conditions::set(&mut status.conditions, READY, is_ready, &reason, message, generation, at);
}

#[cfg(test)]
mod tests;
