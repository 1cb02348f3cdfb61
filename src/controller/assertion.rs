//! Assertion of the runs in Redis from the SyncJobs: Redis is a cache, and may lose any of its data or go back to an
//! earlier time. `docs/design/redis-as-cache.md` has the reasons.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, ListParams},
    core::Object,
};
use serde::{Deserialize, de::IgnoredAny};
use tokio::{sync::Notify, time::Instant};

use super::{Context, Error, syncjob};
use crate::{
    api::{
        SyncJob,
        conditions::{COMPLETE, FAILED},
    },
    cluster::{self, Cluster},
    domain::{
        job,
        run::{DesiredState, Recorded},
    },
    queue::{self, Control, KnownRun, Server},
};

/// SyncJobs in one page of a list.
const PAGE: u32 = 500;
/// Number of SyncJobs that are read from the cache at once, so that the asserted values are recent.
const CHUNK: usize = 100;
/// Time after a restore of Redis during which the end of a run is asserted as soon as its SyncJob has the end. The list
/// of SyncJobs may not have had the end yet.
const LATE_END_PERIOD: Duration = Duration::from_mins(1);

/// Last known state of the Redis server.
#[derive(Debug)]
pub(super) struct RedisView {
    /// Called when runs have to be asserted at once.
    pub is_restored: Notify,
    confirmed: Mutex<Option<Instant>>,
    /// Time at which a worker was last known to be connected.
    workers_seen: Mutex<Instant>,
    lease: Duration,
}

impl RedisView {
    pub fn new(lease: Duration) -> Self {
        Self {
            is_restored: Notify::new(),
            confirmed: Mutex::default(),
            workers_seen: Mutex::new(Instant::now()),
            lease,
        }
    }

    /// Records an answer of the server.
    pub fn record(&self, server: &Server) {
        if server.workers > 0 {
            *self.workers_seen.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        if !server.is_asserted {
            self.is_restored.notify_one();
        }
    }

    /// False when no worker was connected for the lease duration. The replacement of a worker takes less time.
    pub fn has_workers(&self) -> bool {
        self.workers_seen.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < self.lease
    }

    /// True shortly after a restore of Redis.
    pub fn was_restored(&self) -> bool {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < LATE_END_PERIOD)
    }
}

/// State of a SyncJob in the API server or a cache of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Absent,
    Unfinished,
    Ended,
}

/// Action for a run that is unfinished in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Remove,
    /// The cache may be behind: ask the API server.
    Ask,
}

/// Decides on the removal of a run from the cache of SyncJobs, and from a new list of them if one was read.
fn decide_removal(cached: Presence, listed: Option<Presence>) -> Verdict {
    match (cached, listed) {
        // An end is final, and nothing is put into the queue that is not in the cache.
        (Presence::Ended, _) | (_, Some(Presence::Ended)) | (Presence::Absent, Some(Presence::Absent)) => {
            Verdict::Remove
        }
        (Presence::Unfinished, None) | (_, Some(Presence::Unfinished)) => Verdict::Keep,
        // A SyncJob that is not in the list was created or deleted since.
        (Presence::Absent, None) | (Presence::Unfinished, Some(Presence::Absent)) => Verdict::Ask,
    }
}

/// Asserts the unfinished runs in Redis. After a restore of Redis, workers may claim runs again after that.
pub(super) async fn assert_runs(context: &Context) -> Result<(), Error> {
    let Context { cluster, queue, redis, .. } = context;
    let (began, server) = (Instant::now(), queue.server().await?);
    let is_restored = !server.is_asserted;
    // An end may be so new that the cache does not have it.
    let listed = if is_restored { Some(list(cluster).await?) } else { None };
    let found = queue.unfinished().await?;
    let was_empty = found.is_empty();
    let removed = remove_ended(context, found, listed.as_ref()).await?;
    let asserted = assert_unfinished(context, is_restored).await?;
    if is_restored && queue.confirm(&server.replication_id).await? {
        *redis.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        // A queue that is new had no runs.
        if !was_empty {
            let millis = began.elapsed().as_millis() as u64;
            tracing::warn!(
                removed,
                asserted,
                millis,
                "Redis was restarted or failed over: its runs now match the SyncJobs, and workers may claim them"
            );
        }
    } else if removed > 0 {
        tracing::warn!(removed, "removed runs from Redis whose SyncJobs have ended or were deleted");
    }
    Ok(())
}

/// Removes the unfinished runs in Redis whose SyncJobs have ended or were deleted.
async fn remove_ended(
    context: &Context,
    found: Vec<String>,
    listed: Option<&HashMap<String, Presence>>,
) -> Result<usize, Error> {
    let Context { cluster, queue, .. } = context;
    let mut ended = Vec::new();
    for uid in found {
        let listed = listed.map(|listed| listed.get(&uid).copied().unwrap_or(Presence::Absent));
        let is_over = match decide_removal(presence(cluster, &uid), listed) {
            Verdict::Keep => false,
            Verdict::Remove => true,
            Verdict::Ask => is_gone(context, &uid).await?,
        };
        if is_over {
            ended.push(uid);
        }
    }
    if !context.leadership.is_held() {
        return Err(Error::NotLeading);
    }
    Ok(queue.remove_unfinished(&ended).await?)
}

async fn assert_unfinished(context: &Context, is_restored: bool) -> Result<usize, Error> {
    let references: Vec<_> =
        context.cluster.jobs.state().iter().map(|job| kube::runtime::reflector::ObjectRef::from_obj(&**job)).collect();
    let mut asserted = 0;
    for some in references.chunks(CHUNK) {
        let jobs = some
            .iter()
            .filter_map(|reference| context.cluster.jobs.get(reference))
            .filter(|job| !job::is_finished(job));
        let known: Vec<_> = jobs
            .map(|job| {
                let waits = context.quotas.is_waiting(&job.uid().unwrap_or_default());
                AssertedRun::from_job(&job, waits, context.clock.now())
            })
            .collect();
        let known: Vec<_> = known.iter().map(AssertedRun::as_run).collect();
        if !context.leadership.is_held() {
            return Err(Error::NotLeading);
        }
        asserted += context.queue.assert(&known, is_restored).await?;
    }
    Ok(asserted)
}

/// State of a run that is asserted from its SyncJob.
struct AssertedRun {
    uid: String,
    desired: DesiredState,
    cancelled: Option<String>,
    recorded: Recorded,
    history: String,
}

impl AssertedRun {
    fn from_job(job: &SyncJob, waits: bool, now: Timestamp) -> Self {
        let (desired, recorded) = (job::asserted_state(job, waits), job::recorded(job, now));
        Self {
            uid: job.uid().unwrap_or_default(),
            desired,
            cancelled: desired.cancelled.then(|| syncjob::json(&job::cancelled(job))),
            history: syncjob::json(&recorded.history),
            recorded,
        }
    }

    fn as_run(&self) -> KnownRun<'_> {
        let (DesiredState { suspended, priority, approved, .. }, recorded) = (self.desired, &self.recorded);
        KnownRun {
            uid: &self.uid,
            control: Control { suspended, cancelled: self.cancelled.as_deref(), priority, approved },
            started: recorded.started,
            attempts: recorded.attempts,
            recoveries: recorded.recoveries,
            history: &self.history,
            parked_for: recorded.parked_for,
            parked_since: recorded.parked_since,
            held: recorded.held,
        }
    }
}

fn presence(cluster: &Cluster, uid: &str) -> Presence {
    match (cluster.has_job(uid), cluster.has_ended(uid)) {
        (_, true) => Presence::Ended,
        (true, false) => Presence::Unfinished,
        (false, false) => Presence::Absent,
    }
}

/// True when the SyncJob of a run does not exist. One in a namespace that is not watched is not.
pub(super) async fn is_gone(context: &Context, uid: &str) -> Result<bool, Error> {
    let Context { cluster, queue, .. } = context;
    let entry = match queue.get(uid).await {
        Ok(Some(entry)) => entry,
        Ok(None) | Err(queue::Error::Unreadable { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let Some(payload) = syncjob::payload(&entry) else { return Ok(false) };
    if !cluster.covers(&payload.namespace) {
        return Ok(false);
    }
    let jobs = Api::<SyncJob>::namespaced(cluster.client.clone(), &payload.namespace);
    let live = cluster::call("read a SyncJob", jobs.get_metadata_opt(&payload.name)).await?;
    Ok(live.is_none_or(|job| job.uid().as_deref() != Some(uid)))
}

/// SyncJob in a list that needs only the uid and the conditions. No other field can make the list unreadable.
type Listed = Object<IgnoredAny, ListedStatus>;

#[derive(Clone, Debug, Default, Deserialize)]
struct ListedStatus {
    #[serde(default)]
    conditions: Vec<ListedCondition>,
}

#[derive(Clone, Debug, Deserialize)]
struct ListedCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

/// Reads from the API server, past the cache, which SyncJobs there are.
async fn list(cluster: &Cluster) -> Result<HashMap<String, Presence>, Error> {
    let kind = ApiResource::erase::<SyncJob>(&());
    let client = cluster.client.clone();
    let jobs: Api<Listed> = match cluster.namespace() {
        Some(namespace) => Api::namespaced_with(client, namespace, &kind),
        None => Api::all_with(client, &kind),
    };
    let mut found = HashMap::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = cluster::call("list SyncJobs", jobs.list(&params)).await?;
        found.extend(page.items.iter().filter_map(|job| Some((job.metadata.uid.clone()?, presence_in_list(job)))));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn presence_in_list(job: &Listed) -> Presence {
    let conditions = job.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let is_end = |found: &ListedCondition| [COMPLETE, FAILED].contains(&found.type_.as_str()) && found.status == "True";
    if conditions.iter().any(is_end) { Presence::Ended } else { Presence::Unfinished }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_kept_while_its_job_is_unfinished() {
        use Presence::{Absent, Ended, Unfinished};
        for (cached, listed, verdict) in [
            (Unfinished, None, Verdict::Keep),
            (Ended, None, Verdict::Remove),
            (Absent, None, Verdict::Ask),
            (Unfinished, Some(Unfinished), Verdict::Keep),
            (Unfinished, Some(Ended), Verdict::Remove),
            (Unfinished, Some(Absent), Verdict::Ask),
            (Ended, Some(Unfinished), Verdict::Remove),
            (Ended, Some(Absent), Verdict::Remove),
            (Absent, Some(Unfinished), Verdict::Keep),
            (Absent, Some(Ended), Verdict::Remove),
            (Absent, Some(Absent), Verdict::Remove),
        ] {
            assert_eq!(decide_removal(cached, listed), verdict, "{cached:?} {listed:?}");
        }
    }

    #[test]
    fn a_listed_job_is_read_whatever_its_spec_is() {
        let deep = "{\"a\":".repeat(500) + "1" + &"}".repeat(500);
        for (status, presence) in [
            ("{}".to_owned(), Presence::Unfinished),
            (r#"{"phase": "New", "conditions": [{"type": "Complete", "status": "True"}]}"#.to_owned(), Presence::Ended),
            (r#"{"conditions": [{"type": "Failed", "status": "False"}]}"#.to_owned(), Presence::Unfinished),
        ] {
            let text = format!(r#"{{"metadata": {{"uid": "u"}}, "spec": {deep}, "status": {status}}}"#);
            assert_eq!(presence_in_list(&serde_json::from_str(&text).unwrap()), presence, "{status}");
        }
    }
}
