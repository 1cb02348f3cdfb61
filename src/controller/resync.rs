//! Periodic assertion of the runs in Redis, removal of the data of deleted objects, and repair of the queue.

use std::{collections::HashSet, time::Duration};

use jiff::{Timestamp, ToSpan};
use kube::ResourceExt;
use tokio::{
    select,
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{
    Context, Error,
    assertion::{assert_runs, is_gone},
};
use crate::{
    cluster::JobGone,
    queue::{Queue, Repaired},
};

/// Number of sweeps per repair of the queue and removal of ended runs, which read all sets.
const SWEEPS_PER_REPAIR: u32 = 10;
/// Time for which a run stays in Redis after its end, unless its SyncJob is deleted. Journals of runs that Redis does
/// not know any more are dropped later.
const FINISHED_RETENTION_HOURS: i64 = 24;

/// Asserts runs in each resync, and at once after a restore of Redis, while this process leads.
pub(super) async fn sweep(context: &Context, every: Duration) {
    let Context { cluster, queue, leadership, redis, .. } = context;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    cluster.ready().await;
    let mut sweeps = (0..SWEEPS_PER_REPAIR).cycle();
    loop {
        let is_tick = select! {
            _ = ticks.tick() => true,
            () = redis.is_restored.notified() => false,
        };
        if !leadership.is_held() || !leadership.owns_queue() {
            continue;
        }
        if let Err(error) = assert_runs(context).await {
            tracing::debug!(%error, "could not assert the runs in Redis");
        }
        context.quotas.forget_gone(|uid| cluster.has_job(uid) && !cluster.has_ended(uid));
        if !is_tick {
            continue;
        }
        if sweeps.next() == Some(0) {
            if let Err(error) = forget_finished(context).await {
                tracing::debug!(%error, "could not remove ended runs from Redis");
            }
            let known = cluster.jobs.state().iter().filter_map(|job| job.uid()).collect();
            repair(queue, known).await;
            forget_gone(context);
        }
        forget_alerts(context).await;
    }
}

/// Removes runs that ended long ago, or whose SyncJobs were deleted. A run whose SyncJob has no outcome yet stays: it
/// would be executed again.
async fn forget_finished(context: &Context) -> Result<(), Error> {
    let Context { cluster, queue, .. } = context;
    let long_ago = Timestamp::now().saturating_sub(FINISHED_RETENTION_HOURS.hours()).unwrap_or(Timestamp::MIN);
    let old = queue.finished_before(long_ago).await?;
    let old: Vec<String> = old.into_iter().filter(|uid| !cluster.has_job(uid) || cluster.has_ended(uid)).collect();
    queue.remove_finished(&old).await?;
    for uid in queue.finished().await? {
        if !cluster.has_job(&uid) && is_gone(context, &uid).await? {
            queue.remove(&uid).await?;
            tracing::debug!(uid, "run of a deleted SyncJob removed");
        }
    }
    Ok(())
}

/// Forgets objects that were deleted while the watch was interrupted.
fn forget_gone(context: &Context) {
    let Context { cluster, throttle, expectations, .. } = context;
    let schedules: HashSet<_> = cluster.schedules.state().iter().filter_map(|schedule| schedule.uid()).collect();
    throttle.forget_gone(|uid| cluster.has_job(uid));
    expectations.forget_gone(|uid| schedules.contains(uid));
}

/// Forgets SyncAlerts that were deleted. What is missed here, Redis forgets by itself in time.
async fn forget_alerts(context: &Context) {
    let alerts = context.cluster.alerts.state();
    let has = |uid: &str| alerts.iter().any(|alert| alert.metadata.uid.as_deref() == Some(uid));
    for uid in context.deliveries.sweep(has) {
        if let Err(error) = context.queue.forget_alert(&uid).await {
            tracing::debug!(uid, %error, "could not remove the stored status of a deleted SyncAlert");
        }
    }
}

async fn repair(queue: &Queue, known: Vec<String>) {
    match queue.repair(known).await {
        Ok(Repaired { mended, foreign }) => {
            if mended > 0 {
                tracing::warn!(mended, "runs in Redis repaired: Redis has lost a part of its data");
            }
            if foreign > 0 {
                tracing::warn!(foreign, "runs in Redis were written by another release and are not changed");
            }
        }
        Err(error) => tracing::debug!(%error, "could not repair the queue"),
    }
}

/// Forgets ended and deleted SyncJobs, and removes the runs of deleted SyncJobs, so that their workers stop at once.
/// The resync removes the runs that are missed here.
pub(super) async fn forget(mut over: mpsc::UnboundedReceiver<JobGone>, queue: &Queue, context: &Context) {
    while let Some(JobGone { uid, deleted }) = over.recv().await {
        context.throttle.forget(&uid);
        context.quotas.release(&uid);
        let removed = match (deleted, context.redis.was_restored()) {
            (true, _) => queue.remove(&uid).await,
            (false, true) => queue.remove_unfinished(std::slice::from_ref(&uid)).await.map(drop),
            (false, false) => continue,
        };
        match removed {
            Ok(()) => tracing::debug!(uid, "removed a run whose SyncJob has ended or was deleted"),
            Err(error) => tracing::debug!(uid, %error, "could not remove a run whose SyncJob has ended or was deleted"),
        }
    }
}
