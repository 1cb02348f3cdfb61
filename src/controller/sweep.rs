//! Forgets what is kept of objects that are gone, and repairs the queue.

use std::time::Duration;

use kube::ResourceExt;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{Context, Error, syncjob};
use crate::{
    api::SyncJob,
    cluster::{self, Cluster, Over},
    queue::{self, Queue, Repaired},
};

/// The queue is repaired, and swept of runs that have ended, once in so many sweeps: that reads the whole key space.
const SWEEPS_PER_REPAIR: u32 = 10;

/// Forgets runs whose SyncJob is gone. A worker that has one stops at its next checkpoint.
pub(super) async fn sweep(context: &Context, every: Duration) {
    let Context { cluster, queue, leadership, .. } = context;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    cluster.ready().await;
    for sweep in (0..SWEEPS_PER_REPAIR).cycle() {
        ticks.tick().await;
        if !leadership.is_held() || !leadership.owns_queue() {
            continue;
        }
        // Those that have ended are many, and go by themselves in the end.
        let all = sweep == 0;
        if let Err(error) = sweep_once(cluster, queue, all).await {
            tracing::debug!(%error, "queue not swept");
        }
        if all {
            repair(queue).await;
        }
        forget_alerts(context).await;
    }
}

async fn sweep_once(cluster: &Cluster, queue: &Queue, all: bool) -> Result<(), Error> {
    let mut uids = queue.unfinished().await?;
    if all {
        uids.extend(queue.finished().await?);
    }
    for uid in uids {
        if cluster.has_job(&uid) {
            continue;
        }
        let entry = match queue.get(&uid).await {
            Ok(Some(entry)) => entry,
            Ok(None) | Err(queue::Error::Unreadable { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(payload) = syncjob::payload(&entry) else { continue };
        if !cluster.covers(&payload.namespace) {
            continue;
        }
        // The cache may be behind: ask.
        let jobs = kube::Api::<SyncJob>::namespaced(cluster.client.clone(), &payload.namespace);
        let live = cluster::ask("read a SyncJob", jobs.get_metadata_opt(&payload.name)).await?;
        if live.is_none_or(|job| job.uid().as_deref() != Some(&uid)) {
            queue.remove(&uid).await?;
            tracing::info!(namespace = payload.namespace, name = payload.name, uid, "run of a deleted SyncJob removed");
        }
    }
    Ok(())
}

/// Forgets SyncAlerts that were deleted. What is missed here, Redis forgets by itself in time.
async fn forget_alerts(context: &Context) {
    let alerts = context.cluster.alerts.state();
    let has = |uid: &str| alerts.iter().any(|alert| alert.metadata.uid.as_deref() == Some(uid));
    for uid in context.outbox.sweep(has) {
        if let Err(error) = context.queue.forget_alert(&uid).await {
            tracing::debug!(uid, %error, "what is kept of a deleted SyncAlert not removed yet");
        }
    }
}

async fn repair(queue: &Queue) {
    match queue.repair().await {
        Ok(Repaired { mended, foreign }) => {
            if mended > 0 {
                tracing::warn!(mended, "runs in Redis repaired: part of its data was lost");
            }
            if foreign > 0 {
                tracing::warn!(foreign, "runs in Redis were written by another release and are left alone");
            }
        }
        Err(error) => tracing::debug!(%error, "queue not repaired"),
    }
}

/// Forgets SyncJobs with which it is over, and the runs of those that are deleted, so that their work stops at once. What
/// is missed here is swept.
pub(super) async fn forget(mut over: mpsc::UnboundedReceiver<Over>, queue: &Queue, context: &Context) {
    while let Some(Over { uid, deleted }) = over.recv().await {
        context.pace.forget(&uid);
        if !deleted {
            continue;
        }
        match queue.remove(&uid).await {
            Ok(()) => tracing::debug!(uid, "run of a deleted SyncJob removed"),
            Err(error) => tracing::debug!(uid, %error, "run of a deleted SyncJob not removed yet"),
        }
    }
}
