//! Expectations: SyncJobs that this process created and that the watch may not have reported yet. As in client-go's
//! `ControllerExpectations`, a schedule is not decided on before they are met.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::ResourceExt;
use tokio::time::Instant;

use crate::{
    api::{SyncJob, SyncSchedule},
    cluster::{self, Cluster},
};

/// Longest expected watch lag after a creation. A SyncJob that was deleted at once may never be reported.
const LAG: Duration = Duration::from_secs(5);

/// Created SyncJobs, by the uid of their schedule, until the schedule's status has their uid. When one of these
/// SyncJobs is absent, a user has deleted it, and it is not created again.
#[derive(Default)]
pub(super) struct Expectations(Mutex<HashMap<String, Vec<CreatedJob>>>);

struct CreatedJob {
    name: String,
    uid: Option<String>,
    at: Instant,
    /// True while the run was not enqueued yet.
    is_new: bool,
}

impl Expectations {
    /// Records that a SyncJob was created.
    pub fn expect(&self, schedule: &SyncSchedule, job: &SyncJob, at: Instant) {
        let created = CreatedJob { name: job.name_any(), uid: job.uid(), at, is_new: true };
        self.lock().entry(schedule.uid().unwrap_or_default()).or_default().push(created);
    }

    /// Longest wait for the watch to report the SyncJobs that it has not reported. Their schedule is reconciled again
    /// when it does. `None`: it has reported all of them. To read them instead would cost a request for each run.
    pub fn pending(&self, schedule: &SyncSchedule, cluster: &Cluster, now: Instant) -> Option<Duration> {
        let created = self.lock();
        let created = created.get(schedule.metadata.uid.as_deref().unwrap_or_default())?;
        let known: HashSet<_> = cluster.jobs_of(schedule).iter().map(|job| job.name_any()).collect();
        let pending = created.iter().filter(|created| !known.contains(&created.name));
        let waits = pending.filter_map(|created| LAG.checked_sub(now.saturating_duration_since(created.at)));
        waits.filter(|wait| !wait.is_zero()).min()
    }

    /// True once for a SyncJob that was created a moment ago, whose run no worker can have.
    pub fn is_new(&self, job: &SyncJob, now: Instant) -> bool {
        let mut created = self.lock();
        let mut created = cluster::controller_of(job).and_then(|uid| created.get_mut(uid)).into_iter().flatten();
        let created = created.find(|created| created.uid == job.metadata.uid);
        created.is_some_and(|created| {
            std::mem::take(&mut created.is_new) && now.saturating_duration_since(created.at) < LAG
        })
    }

    /// Names of the SyncJobs that were created for a schedule.
    pub fn expected(&self, schedule: &SyncSchedule) -> Vec<String> {
        let created = self.lock();
        let created = created.get(schedule.metadata.uid.as_deref().unwrap_or_default()).into_iter().flatten();
        created.map(|created| created.name.clone()).collect()
    }

    /// Removes the SyncJobs that the status does not list as active any more, or lists with their uid.
    pub fn observe(&self, schedule: &SyncSchedule) {
        let active = schedule.status.as_ref().map(|status| status.active.as_slice()).unwrap_or_default();
        let uid = schedule.metadata.uid.as_deref().unwrap_or_default();
        let mut created = self.lock();
        if let Some(jobs) = created.get_mut(uid) {
            let without_uid = active.iter().filter(|run| run.uid.is_none());
            let without_uid: HashSet<&str> = without_uid.map(|run| run.name.as_str()).collect();
            jobs.retain(|created| without_uid.contains(created.name.as_str()));
            if jobs.is_empty() {
                created.remove(uid);
            }
        }
    }

    /// Removes the SyncJobs of schedules that do not exist.
    pub fn forget_gone(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| exists(uid));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<CreatedJob>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
