//! Quotas of runs of the policy, as the leader applies them: which runs may enter the queue now.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::sync::{mpsc, watch};

use crate::{
    api::SyncJob,
    cluster::Cluster,
    domain::{
        job::{self, QueueUse},
        policy::Policy,
        run_quota::{RunQuota, WaitingRun},
    },
    queue::{self, Queue},
};

/// Numbers of the runs in the queue, by namespace. The numbers are in memory only: a new leader reads the queue.
pub(super) struct RunQuotas {
    state: Mutex<State>,
    /// Held while the queue is read, so that the queue is read once.
    reading: tokio::sync::Mutex<()>,
    next: mpsc::UnboundedSender<ObjectRef<SyncJob>>,
}

struct State {
    quota: RunQuota,
    /// True when the runs in the queue are counted.
    is_counted: bool,
    leader: watch::Receiver<Option<String>>,
    policy: watch::Receiver<Arc<Policy>>,
}

impl State {
    fn forget_outdated(&mut self) {
        // Another process may have enqueued runs.
        if self.leader.has_changed().unwrap_or(false) {
            self.leader.borrow_and_update();
            (self.quota, self.is_counted) = (RunQuota::default(), false);
        }
        // Runs of namespaces without a limit are not counted.
        if self.policy.has_changed().unwrap_or(false) {
            self.policy.borrow_and_update();
            self.is_counted = false;
        }
    }
}

impl RunQuotas {
    /// Creates the quotas of a process, and the stream of SyncJobs whose runs may enter the queue next.
    pub fn new(
        leader: watch::Receiver<Option<String>>,
        policy: watch::Receiver<Arc<Policy>>,
    ) -> (Self, mpsc::UnboundedReceiver<ObjectRef<SyncJob>>) {
        let (next, admitted) = mpsc::unbounded_channel();
        let state = State { quota: RunQuota::default(), is_counted: false, leader, policy };
        (Self { state: Mutex::new(state), reading: tokio::sync::Mutex::default(), next }, admitted)
    }

    /// Returns false when a run has to wait, because its namespace has `limit` runs in the queue. The SyncJob of the
    /// run is reconciled again when one of them has left the queue.
    ///
    /// # Errors
    /// When the runs in the queue are not counted yet, and Redis does not answer.
    pub async fn admit(
        &self,
        (job, uid): (&SyncJob, &str),
        use_: QueueUse,
        limit: u32,
        (cluster, queue): (&Cluster, &Queue),
    ) -> Result<bool, queue::Error> {
        let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
        let mut state = self.counted(cluster, queue).await?;
        match use_ {
            QueueUse::None => {
                drop(state);
                self.release(uid);
            }
            QueueUse::Present => state.quota.count(namespace, uid),
            QueueUse::Entering => {
                let run = WaitingRun {
                    namespace: namespace.to_owned(),
                    rank: -job.spec.priority,
                    created: job.creation_timestamp().map_or(0, |time| time.0.as_second()),
                    name: job.name_any(),
                    uid: uid.to_owned(),
                };
                return Ok(state.quota.request(&run, limit));
            }
        }
        Ok(true)
    }

    /// True while a run waits for the quota, although its SyncJob may not report this yet.
    pub fn is_waiting(&self, uid: &str) -> bool {
        self.lock().quota.is_waiting(uid)
    }

    /// Forgets a run that has left the queue, and sends the next run of its namespace.
    pub fn release(&self, uid: &str) {
        let next = self.lock().quota.release(uid);
        if let Some(WaitingRun { namespace, name, .. }) = next {
            self.next.send(ObjectRef::new(&name).within(&namespace)).ok();
        }
    }

    /// Forgets the runs whose SyncJobs have ended, or were deleted, unseen.
    pub fn forget_gone(&self, is_unfinished: impl Fn(&str) -> bool) {
        let uids = self.lock().quota.uids();
        for uid in uids.iter().filter(|uid| !is_unfinished(uid)) {
            self.release(uid);
        }
    }

    /// Returns the numbers, once the runs in the queue are counted, which happens once for each leadership and policy.
    async fn counted(&self, cluster: &Cluster, queue: &Queue) -> Result<MutexGuard<'_, State>, queue::Error> {
        loop {
            if let Some(state) = self.state_if_counted() {
                return Ok(state);
            }
            let _reading = self.reading.lock().await;
            if self.state_if_counted().is_none() {
                let uids = queue.claimable_or_active().await?;
                let mut state = self.lock();
                let jobs = uids.iter().filter_map(|uid| cluster.job(uid)).filter(|job| !job::is_finished(job));
                for job in jobs {
                    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
                    state.quota.count(namespace, &job.uid().unwrap_or_default());
                }
                state.is_counted = true;
            }
        }
    }

    fn state_if_counted(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.lock()).filter(|state| state.is_counted)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.forget_outdated();
        state
    }
}
