//! Reconciler of SyncAlerts: notifies sinks of problems and incidents of schedules.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{
    ResourceExt,
    api::PatchParams,
    runtime::{controller::Action, reflector::ObjectRef},
};
use tokio::{select, sync::mpsc, time::Instant};

use super::{AFTER_ERROR, Context, Error, admission::ObjectKey, status_patch};
use crate::{
    alerts::check_template,
    api::{SyncAlert, SyncAlertStatus},
    cluster::RequestPermit,
    domain::{
        alert::{self, AlertPlan, Delivery, Message, ObservedAlert},
        failure,
    },
    telemetry::metrics,
};

/// Least time between two reconciliations of one SyncAlert, unless a delivery has ended: with many schedules, one of
/// them changes all the time, and each reconciliation reads all of them.
const RECONCILE_INTERVAL: Duration = Duration::from_millis(500);

pub(super) async fn reconcile(alert: Arc<SyncAlert>, context: Arc<Context>) -> Result<Action, Error> {
    let uid = alert.uid().unwrap_or_default();
    if alert.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    context.cluster.ready().await;
    if let Some(wait) = context.deliveries.remaining_delay(&uid) {
        return Ok(Action::requeue(wait));
    }
    let who = ObjectKey::from(&*alert);
    let reserved = context.reports.take_permit(&who);
    // Observe. Without Redis, the last decision of this process and the status of the object remain.
    let stored = context.queue.load_alert_status(&uid).await;
    let is_redis_away = stored.is_err();
    let stored = stored.ok().flatten().and_then(|stored| serde_json::from_str(&stored).ok());
    let AlertPlan { status, messages, events, requeue } = decide(&alert, stored, &uid, &context);
    // Store, before another message is sent.
    let is_stored = !is_redis_away && store_status(&uid, &status, &context).await;
    // Act.
    for message in messages {
        send(&alert, message, &context);
    }
    context.publish_events(&*alert, events);
    // Status.
    let mut bounded = alert::bounded(status);
    if let Some(failure) = context.failures.shown(&who) {
        failure::mark_ready(&mut bounded.conditions, &failure, alert.metadata.generation, context.clock.now());
    }
    let is_same =
        |written: &SyncAlertStatus| *written == SyncAlertStatus { revision: written.revision, ..bounded.clone() };
    if !alert.status.as_ref().is_some_and(is_same)
        && let Some(permit) = context.acquire_report(who.clone(), reserved).await
    {
        write_status(&alert, &who, bounded, &permit, &context).await?;
    }
    let retry = (!is_stored).then_some(AFTER_ERROR);
    Ok(requeue.into_iter().chain(retry).min().map_or_else(Action::await_change, Action::requeue))
}

/// Decides on the newest stored status. Does not wait: deliveries that have ended are taken and recorded at once.
fn decide(alert: &SyncAlert, stored: Option<SyncAlertStatus>, uid: &str, context: &Context) -> AlertPlan {
    let schedules = context.cluster.schedules.state();
    let beside: Vec<_> =
        schedules.into_iter().filter(|schedule| schedule.metadata.namespace == alert.metadata.namespace).collect();
    let unusable_template = alert.spec.template.as_ref().and_then(check_template);
    let mut deliveries = context.deliveries.lock();
    let entry = deliveries.entry(uid.to_owned()).or_default();
    entry.reconciled = Some(Instant::now());
    let known = [stored, entry.decided.take(), alert.status.clone()];
    // Of equally new statuses, the first one counts: the last one is incomplete.
    let stored = known.into_iter().flatten().rev().max_by_key(|stored| stored.revision).unwrap_or_default();
    let ended = std::mem::take(&mut entry.ended);
    let plan = alert::decide(
        ObservedAlert { alert, stored, schedules: &beside, ended: &ended, busy: &entry.busy, unusable_template },
        context.clock.now(),
    );
    entry.decided = Some(plan.status.clone());
    plan
}

/// Stores the status in Redis. True when Redis has this status or a newer one.
async fn store_status(uid: &str, status: &SyncAlertStatus, context: &Context) -> bool {
    if context.deliveries.lock().get(uid).is_some_and(|entry| entry.redis_revision == Some(status.revision)) {
        return true;
    }
    // These are texts, numbers and times.
    let text = serde_json::to_string(status).unwrap_or_default();
    let is_stored =
        context.leadership.is_held() && context.queue.store_alert_status(uid, status.revision, &text).await.is_ok();
    if is_stored && let Some(entry) = context.deliveries.lock().get_mut(uid) {
        entry.redis_revision = Some(status.revision);
    }
    is_stored
}

/// Sends a message on a task of its own, so that a sink that stalls delays no other sink. The next reconciliation of
/// the SyncAlert records the result. A process that no longer leads cancels the delivery: the new leader sends the
/// message.
fn send(alert: &Arc<SyncAlert>, message: Message, context: &Arc<Context>) {
    let (alert, context) = (Arc::clone(alert), Arc::clone(context));
    context.deliveries.begin(&alert, &message.sink);
    tokio::spawn(async move {
        let Message { sink: name, notified, .. } = &message;
        let sink = alert.spec.sinks.iter().find(|sink| sink.name == *name);
        let result = select! {
            biased;
            () = context.leadership.lost() => None,
            result = async { Some(context.notifier.deliver(&alert, sink?, &message).await) } => result,
        };
        let (namespace, counts) = (alert.namespace(), (message.firing.len(), message.resolved.len()));
        match &result {
            Some(Ok(())) => {
                tracing::info!(
                    namespace,
                    name = alert.name_any(),
                    sink = name,
                    firing = counts.0,
                    resolved = counts.1,
                    "alert sent"
                );
            }
            Some(Err(error)) => {
                tracing::debug!(namespace, name = alert.name_any(), sink = name, %error, "alert not sent; retrying");
            }
            None => {}
        }
        let ended = result.map(|result| Delivery {
            sink: name.clone(),
            notified: notified.clone(),
            result,
            at: context.clock.now(),
        });
        context.deliveries.end(&alert, name, ended);
    });
}

async fn write_status(
    alert: &SyncAlert,
    who: &ObjectKey,
    status: SyncAlertStatus,
    permit: &RequestPermit<'_>,
    context: &Context,
) -> Result<(), Error> {
    let patch = status_patch(&alert.metadata, alert.status.as_ref(), &status);
    let alerts = context.cluster.namespaced::<SyncAlert>(&alert.metadata);
    let (action, name, params) = ("write a SyncAlert's status", alert.name_any(), PatchParams::default());
    let written = context.send(who, permit, action, alerts.patch_status(&name, &params, &patch)).await;
    metrics::status_written("SyncAlert", written.is_ok());
    written.map(drop)
}

/// Deliveries in progress and last decisions of this process, by the uid of the SyncAlert.
pub(super) struct DeliveryTracker {
    entries: Mutex<HashMap<String, Entry>>,
    ended: mpsc::UnboundedSender<ObjectRef<SyncAlert>>,
}

#[derive(Default)]
struct Entry {
    /// Status that was decided last.
    decided: Option<SyncAlertStatus>,
    /// Revision that Redis has.
    redis_revision: Option<i64>,
    busy: Vec<String>,
    ended: Vec<Delivery>,
    reconciled: Option<Instant>,
}

impl DeliveryTracker {
    /// Creates an empty tracker, and the channel of SyncAlerts one of whose deliveries has ended.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<ObjectRef<SyncAlert>>) {
        let (ended, heard) = mpsc::unbounded_channel();
        (Self { entries: Mutex::default(), ended }, heard)
    }

    /// Time until the next reconciliation may begin. `None`: the reconciliation may begin now.
    fn remaining_delay(&self, uid: &str) -> Option<Duration> {
        let entries = self.lock();
        let entry = entries.get(uid).filter(|entry| entry.ended.is_empty())?;
        RECONCILE_INTERVAL.checked_sub(entry.reconciled?.elapsed()).filter(|wait| !wait.is_zero())
    }

    fn begin(&self, alert: &SyncAlert, sink: &str) {
        let mut entries = self.lock();
        entries.entry(alert.uid().unwrap_or_default()).or_default().busy.push(sink.to_owned());
    }

    fn end(&self, alert: &SyncAlert, sink: &str, ended: Option<Delivery>) {
        if let Some(entry) = self.lock().get_mut(alert.metadata.uid.as_deref().unwrap_or_default()) {
            entry.busy.retain(|busy| busy != sink);
            entry.ended.extend(ended);
        }
        // The reader is gone only when the process ends.
        self.ended.send(ObjectRef::from_obj(alert)).ok();
    }

    /// Removes SyncAlerts that no longer exist, and returns their uids.
    pub fn sweep(&self, has: impl Fn(&str) -> bool) -> Vec<String> {
        self.lock().extract_if(|uid, _| !has(uid)).map(|(uid, _)| uid).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
