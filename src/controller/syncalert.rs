//! Tells the sinks of a SyncAlert what there is to tell of schedules.

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
        alert::{self, Delivery, Message, Observed, Plan},
        failure,
    },
    telemetry::metrics,
};

/// Least time between two looks at one SyncAlert, unless a delivery has ended: with many schedules, something happens all
/// the time, and each look goes through all of them.
const LOOK: Duration = Duration::from_millis(500);

pub(super) async fn reconcile(alert: Arc<SyncAlert>, context: Arc<Context>) -> Result<Action, Error> {
    let uid = alert.uid().unwrap_or_default();
    if alert.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    context.cluster.ready().await;
    if let Some(wait) = context.deliveries.too_early(&uid) {
        return Ok(Action::requeue(wait));
    }
    let who = ObjectKey::from(&*alert);
    let reserved = context.reports.take_permit(&who);
    // Observe. Without Redis, what this process remembers and the status are what there is.
    let kept = context.queue.kept_alert(&uid).await;
    let is_redis_away = kept.is_err();
    let kept = kept.ok().flatten().and_then(|kept| serde_json::from_str(&kept).ok());
    let Plan { status, messages, notes, requeue } = decide(&alert, kept, &uid, &context);
    // Keep, before anything more is sent.
    let is_kept = !is_redis_away && keep(&uid, &status, &context).await;
    // Act.
    for message in messages {
        send(&alert, message, &context);
    }
    context.publish_events(&*alert, notes);
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
    let retry = (!is_kept).then_some(AFTER_ERROR);
    Ok(requeue.into_iter().chain(retry).min().map_or_else(Action::await_change, Action::requeue))
}

/// Decides on the newest of what is kept. No waiting in here: what has ended is taken and noted at once.
fn decide(alert: &SyncAlert, kept: Option<SyncAlertStatus>, uid: &str, context: &Context) -> Plan {
    let schedules = context.cluster.schedules.state();
    let beside: Vec<_> =
        schedules.into_iter().filter(|schedule| schedule.metadata.namespace == alert.metadata.namespace).collect();
    let unusable_template = alert.spec.template.as_ref().and_then(check_template);
    let mut deliveries = context.deliveries.lock();
    let entry = deliveries.entry(uid.to_owned()).or_default();
    entry.looked = Some(Instant::now());
    let known = [kept, entry.kept.take(), alert.status.clone()];
    // Of those that are equally new, the first one: the last one has not all.
    let kept = known.into_iter().flatten().rev().max_by_key(|kept| kept.revision).unwrap_or_default();
    let ended = std::mem::take(&mut entry.ended);
    let plan = alert::decide(
        Observed { alert, kept, schedules: &beside, ended: &ended, busy: &entry.busy, unusable_template },
        context.clock.now(),
    );
    entry.kept = Some(plan.status.clone());
    plan
}

/// Writes into Redis what is kept. True when it is there, or something newer.
async fn keep(uid: &str, status: &SyncAlertStatus, context: &Context) -> bool {
    if context.deliveries.lock().get(uid).is_some_and(|entry| entry.stored == Some(status.revision)) {
        return true;
    }
    // These are texts, numbers and times.
    let text = serde_json::to_string(status).unwrap_or_default();
    let is_kept = context.leadership.is_held() && context.queue.keep_alert(uid, status.revision, &text).await.is_ok();
    if is_kept && let Some(entry) = context.deliveries.lock().get_mut(uid) {
        entry.stored = Some(status.revision);
    }
    is_kept
}

/// Sends a message on a task of its own, so that a sink that stalls holds back nobody. What comes of it is looked at when the
/// SyncAlert is reconciled again. One that no longer leads gives up: another one sends it.
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
                tracing::debug!(namespace, name = alert.name_any(), sink = name, %error, "alert not sent; trying again");
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

/// What this process knows of SyncAlerts, by their uid: messages under way, and what was decided last.
pub(super) struct DeliveryTracker {
    entries: Mutex<HashMap<String, Entry>>,
    ended: mpsc::UnboundedSender<ObjectRef<SyncAlert>>,
}

#[derive(Default)]
struct Entry {
    kept: Option<SyncAlertStatus>,
    /// Revision that Redis has.
    stored: Option<i64>,
    busy: Vec<String>,
    ended: Vec<Delivery>,
    looked: Option<Instant>,
}

impl DeliveryTracker {
    /// An empty one, and where it tells of SyncAlerts one of whose deliveries has ended.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<ObjectRef<SyncAlert>>) {
        let (ended, heard) = mpsc::unbounded_channel();
        (Self { entries: Mutex::default(), ended }, heard)
    }

    /// How long to wait before the next look. `None`: it is time.
    fn too_early(&self, uid: &str) -> Option<Duration> {
        let entries = self.lock();
        let entry = entries.get(uid).filter(|entry| entry.ended.is_empty())?;
        LOOK.checked_sub(entry.looked?.elapsed()).filter(|wait| !wait.is_zero())
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

    /// Forgets SyncAlerts that are gone. Returns their uids.
    pub fn sweep(&self, has: impl Fn(&str) -> bool) -> Vec<String> {
        self.lock().extract_if(|uid, _| !has(uid)).map(|(uid, _)| uid).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
