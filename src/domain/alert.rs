//! What is to be told about the schedules of a SyncAlert, to whom, and when.
//!
//! **Told at least once, and hardly ever twice.** What there is to tell follows from how the schedules stand, so it is found
//! again after a restart. Who was told of it is kept, in Redis and in the status, before anything else is sent to that sink.
//! A crash in between tells that one message once more.
//!
//! **Nothing that is over.** A message is made when it is sent, and made anew for each further try. A sink hears that a
//! problem is over only when it was told of it, or may have been: that a message is about to be sent is kept, too.

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
use findings::{Finding, look};
pub use message::{Item, Key, Message};

/// Alerts in the status of the object. All of them are kept in Redis.
const MAX_ALERTS: usize = 30;
/// Longest text of an alert, in bytes.
const MAX_MESSAGE: usize = 240;
/// A sink that was away for longer is not told any more that something is over.
const KEEP_RESOLVED: Duration = Duration::from_hours(7 * 24);
/// Between tries of a sink that does not answer.
const OUTAGE: Backoff =
    Backoff { initial: Duration::from_secs(5), factor: 2, max: Duration::from_secs(300), jitter: 0.1 };
/// Between tries of one that refuses: somebody has to correct something first.
const MISTAKE: Backoff =
    Backoff { initial: Duration::from_secs(60), factor: 2, max: Duration::from_secs(3600), jitter: 0.1 };

/// What a decision is made from.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The SyncAlert as stored.
    pub alert: &'a SyncAlert,
    /// What is kept of it: the newest of what is known.
    pub kept: SyncAlertStatus,
    /// Every SyncSchedule of its namespace.
    pub schedules: &'a [Arc<SyncSchedule>],
    /// Deliveries that have ended and were not decided on yet.
    pub ended: &'a [Delivery],
    /// Sinks to which a message is under way.
    pub busy: &'a [String],
    /// Why its template cannot be used.
    pub unusable_template: Option<String>,
}

/// A delivery that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Name of the sink.
    pub sink: String,
    /// The alerts of the message.
    pub notified: Vec<Key>,
    /// What became of it.
    pub result: Result<(), Refusal>,
    /// When it ended.
    pub at: Timestamp,
}

/// Why a sink did not take a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// True when somebody has to correct something, false when the sink is away.
    pub is_mistake: bool,
    /// Why, in a sentence without addresses, names of users or secrets.
    pub message: String,
    /// For how long it wants no more messages.
    pub rest: Option<Duration>,
    /// It may have taken the message all the same.
    pub may_have_arrived: bool,
}

/// What is to be done, in this order: keep the status, send, publish, write the status.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What is kept from now on. Of its alerts, the object has [`bounded`] only.
    pub status: SyncAlertStatus,
    /// What is sent now, at most one message to each sink.
    pub messages: Vec<Message>,
    /// What to tell people.
    pub notes: Vec<ObjectEvent>,
    /// When to look again without being asked.
    pub requeue: Option<Duration>,
}

/// The status as the object has it.
#[must_use]
pub fn bounded(mut status: SyncAlertStatus) -> SyncAlertStatus {
    status.alerts.truncate(MAX_ALERTS);
    status.alerts.iter_mut().for_each(|alert| alert.notified.retain(|notified| !notified.unsure));
    status
}

/// Decides on a SyncAlert.
#[must_use]
pub fn decide(observed: Observed<'_>, now: Timestamp) -> Plan {
    let Observed { alert, kept, schedules, ended, busy, unusable_template } = observed;
    // The API server keeps no finer times.
    let at = from_seconds(now.as_second());
    let mut status = kept.clone();
    let mut notes = Vec::new();
    keep_sinks(&mut status, alert);
    for delivery in ended {
        note_delivery(&mut status, delivery, &alert.uid().unwrap_or_default(), &mut notes);
    }
    let selector = Selector::try_from(alert.spec.selector.clone());
    let mut next = None;
    if let Ok(selector) = &selector {
        let selected: Vec<_> = schedules.iter().filter(|schedule| selector.matches(schedule.labels())).collect();
        let created = alert.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |created| created.0);
        let found = look(&alert.spec.when, &selected, created, at);
        next = found.next;
        settle(&mut status, found.findings, at);
        status
            .alerts
            .retain(|alert| !is_notified_once(alert.type_) || alert.resolved.is_none() || is_among(&selected, alert));
    }
    take_up_test(&mut status, alert, at);
    close(&mut status, &alert.spec, at);
    status.alerts.sort_by_key(|alert| (alert.resolved.is_some(), std::cmp::Reverse(alert.noticed.0)));
    let is_firing = |alert: &&Alert| alert.resolved.is_none() && !is_notified_once(alert.type_);
    status.firing = Some(status.alerts.iter().filter(is_firing).count() as i32);
    status.last_sent_time = status.sinks.iter().filter_map(|sink| sink.last_sent_time.clone()).max();
    status.observed_generation = alert.metadata.generation;
    set_conditions(&mut status, alert, selector.as_ref().err().map(ToString::to_string), unusable_template, at);
    let (messages, due) = messages(&status, alert, busy, at);
    for message in &messages {
        note_sending(&mut status, message, at);
    }
    if status != kept {
        status.revision += 1;
    }
    let requeue = next.into_iter().chain(due).min().map(|next| elapsed(now, next).max(Duration::from_millis(1)));
    Plan { status, messages, notes, requeue }
}

/// True for what is news rather than a problem that lasts.
fn is_notified_once(type_: AlertType) -> bool {
    matches!(type_, AlertType::RunRecovered | AlertType::RunSkipped | AlertType::Test)
}

fn is_among(schedules: &[&Arc<SyncSchedule>], alert: &Alert) -> bool {
    schedules.iter().any(|schedule| schedule.metadata.name.as_ref() == Some(&alert.schedule))
}

/// Those of the spec. One that was changed is tried at once.
fn keep_sinks(status: &mut SyncAlertStatus, alert: &SyncAlert) {
    let is_changed = status.observed_generation != alert.metadata.generation;
    let known = std::mem::take(&mut status.sinks);
    for sink in &alert.spec.sinks {
        let kept = known.iter().find(|known| known.name == sink.name).cloned();
        let mut kept = kept.unwrap_or_else(|| SinkStatus { name: sink.name.clone(), ..SinkStatus::default() });
        if is_changed {
            kept.failed_tries = 0;
            kept.next_try_time = None;
        }
        status.sinks.push(kept);
    }
    let is_there = |notified: &Notification| alert.spec.sinks.iter().any(|sink| sink.name == notified.sink);
    status.alerts.iter_mut().for_each(|alert| alert.notified.retain(is_there));
}

fn note_delivery(status: &mut SyncAlertStatus, delivery: &Delivery, uid: &str, notes: &mut Vec<ObjectEvent>) {
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
                notes.push(ObjectEvent::normal("SinkRecovered", format!("Sink {name} takes messages again")));
            }
            if delivery.notified.iter().any(|key| key.type_ == AlertType::Test) {
                notes.push(ObjectEvent::normal("TestDelivered", format!("Sink {name} took the test message")));
            }
            sink.last_sent_time = Some(Time(at));
            sink.failed_tries = 0;
            sink.next_try_time = None;
        }
        Err(refusal) => {
            let (reason, backoff) =
                if refusal.is_mistake { (reasons::INVALID_SINK, MISTAKE) } else { (reasons::SINK_UNAVAILABLE, OUTAGE) };
            if was_ready != Some(false) {
                notes.push(ObjectEvent::warning("SinkFailing", format!("Sink {name}: {refusal}")));
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
        let Some(alert) = status.alerts.iter_mut().find(|alert| key.is_of(alert)) else { continue };
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

/// Notes that a message is about to be sent. If nothing is heard of it again, the sink may have been told.
fn note_sending(status: &mut SyncAlertStatus, message: &Message, at: Timestamp) {
    for key in message.notified.iter().filter(|key| !key.resolved) {
        let Some(alert) = status.alerts.iter_mut().find(|alert| key.is_of(alert)) else { continue };
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

/// Brings the alerts up to what was found: notes what is new, what goes on, and what is over.
fn settle(status: &mut SyncAlertStatus, findings: Vec<Finding>, at: Timestamp) {
    let mut found: HashMap<(String, AlertType), Finding> =
        findings.into_iter().map(|finding| ((finding.schedule.clone(), finding.type_), finding)).collect();
    let is_known = |alert: &Alert, finding: &Finding| alert.occurrence == finding.occurrence;
    let mut superseded = Vec::new();
    for (index, alert) in status.alerts.iter_mut().enumerate() {
        let key = (alert.schedule.clone(), alert.type_);
        match found.get(&key) {
            Some(finding) if is_notified_once(alert.type_) => {
                if is_known(alert, finding) {
                    found.remove(&key);
                } else if alert.notified.iter().all(|notified| notified.unsure) && alert.resolved.is_none() {
                    alert.take(finding);
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
    fn from_finding(finding: &Finding, at: Timestamp) -> Self {
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

    /// Becomes news of the same kind that is newer.
    fn take(&mut self, finding: &Finding) {
        self.occurrence.clone_from(&finding.occurrence);
        self.since = Time(finding.since);
        self.message = truncate_to(&finding.message, MAX_MESSAGE);
        self.notified.clear();
    }
}

/// Somebody asked for a test: it goes out at once, also to sinks that failed.
fn take_up_test(status: &mut SyncAlertStatus, alert: &SyncAlert, at: Timestamp) {
    let token = alert.annotations().get(TEST_ANNOTATION).map(|token| truncate_to(token, MAX_MESSAGE));
    let Some(token) = token.filter(|token| !token.is_empty() && status.last_handled_test.as_ref() != Some(token))
    else {
        return;
    };
    status.sinks.iter_mut().for_each(|sink| sink.next_try_time = None);
    let test = Finding {
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

/// Ends what everybody was told that is told once, and forgets problems with which everybody is done.
fn close(status: &mut SyncAlertStatus, spec: &SyncAlertSpec, at: Timestamp) {
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
            is_pending && elapsed(resolved.0, at) < KEEP_RESOLVED
        }
    });
}

fn after(at: Timestamp, wait: Duration) -> Timestamp {
    from_seconds(at.as_second().saturating_add(wait.as_secs_f64().ceil() as i64))
}

fn parsed(duration: &GoDuration, default: Duration) -> Duration {
    duration.parse().unwrap_or(default)
}

/// When a sink is to be told of an alert, and whether it was told before. `None`: it knows all there is.
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

/// What to send now, and when there is more to send. What waits goes along with what is due.
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
        None => (true, (reasons::DELIVERING.to_owned(), "Every sink takes messages, as far as is known".to_owned())),
    };
    conditions::set(&mut status.conditions, READY, is_ready, &reason, message, generation, at);
}

#[cfg(test)]
mod tests;
