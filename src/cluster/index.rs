//! Index of the reference and the owner of each SyncJob, in addition to the watch cache. The index alone has the ended
//! SyncJobs, with the few fields that are still needed: there may be many of them, and a whole object takes ten times
//! the memory.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::{
    ResourceExt,
    api::ObjectMeta,
    runtime::reflector::{ObjectRef, Store},
};

use super::ReadResult;
use crate::{
    api::{
        GoDuration, SyncJob, SyncJobSpec, SyncJobStatus, SyncSchedule,
        conditions::{COMPLETE, FAILED},
        syncjob::{Counts, Phase},
    },
    domain::{
        conditions,
        job::{expires_at, is_complete, is_finished, is_held},
        schedule::slot_of,
    },
};

/// The object that controls a SyncJob.
pub(super) fn controller(job: &SyncJob) -> Option<&OwnerReference> {
    controlling(&job.metadata)
}

/// The object that controls the one with this metadata.
pub(super) fn controlling(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The SyncSchedule that controls a SyncJob.
pub(super) fn schedule_of(job: &SyncJob) -> Option<ObjectRef<SyncSchedule>> {
    ObjectRef::from_owner_ref(job.metadata.namespace.as_deref(), controller(job)?, ())
}

/// True when a SyncJob needs no further action, and only its result is kept.
pub(super) fn is_history(job: &SyncJob) -> bool {
    is_finished(job) && expires_at(job).is_none()
}

/// SyncJobs by their uid. The old entries stay while the SyncJobs are listed again.
#[derive(Default)]
pub(super) struct JobIndex {
    known: Known,
    listing: Known,
}

#[derive(Default)]
struct Known {
    jobs: HashMap<Arc<str>, Job>,
    /// Owners, by the uid of the object that controls the SyncJobs.
    owners: HashMap<Arc<str>, Owner>,
}

struct Job {
    owner: Option<Arc<str>>,
    state: State,
}

struct Owner {
    schedule: Option<ObjectRef<SyncSchedule>>,
    jobs: Vec<Arc<str>>,
}

enum State {
    /// Unfinished SyncJob in the watch cache.
    UnderWay {
        reference: Box<ObjectRef<SyncJob>>,
        is_held: bool,
    },
    /// Outline of a SyncJob that cannot be read, and has not ended as far as is known.
    Unreadable(Arc<SyncJob>),
    Ended(Ended),
}

/// Fields that are kept of an ended SyncJob.
struct Ended {
    name: Box<str>,
    slot: Timestamp,
    at: Option<Timestamp>,
    duration: Option<GoDuration>,
    /// Numbers of handled documents and of failed documents.
    counts: (i64, i64),
    recoveries: i32,
    /// Reason and message. `None` when it completed.
    failure: Option<Box<(String, String)>>,
}

impl JobIndex {
    /// Begins a list of all SyncJobs.
    pub fn begin(&mut self) {
        self.listing = Known::default();
    }

    /// Adds a SyncJob of the list.
    pub fn list(&mut self, job: &ReadResult<SyncJob>) {
        self.listing.apply(job);
    }

    /// The end of the list. Returns the schedules that have SyncJobs, or had.
    pub fn listed(&mut self) -> Vec<ObjectRef<SyncSchedule>> {
        let before = std::mem::replace(&mut self.known, std::mem::take(&mut self.listing));
        let owners = before.owners.into_values().chain(self.known.owners.values().map(Owner::without_jobs));
        owners.filter_map(|owner| owner.schedule).collect()
    }

    /// Records a created or changed SyncJob. True when its schedule has to be reconciled: the SyncJob was created,
    /// has ended, or its hold has changed.
    pub fn apply(&mut self, job: &ReadResult<SyncJob>) -> bool {
        self.known.apply(job)
    }

    /// A SyncJob was deleted.
    pub fn delete(&mut self, uid: &str) {
        self.known.remove(uid);
    }

    /// True when a SyncJob with this uid exists.
    pub fn has(&self, uid: &str) -> bool {
        self.known.jobs.contains_key(uid)
    }

    /// Reference to an unfinished SyncJob.
    pub fn under_way(&self, uid: &str) -> Option<&ObjectRef<SyncJob>> {
        match &self.known.jobs.get(uid)?.state {
            State::UnderWay { reference, .. } => Some(reference),
            State::Unreadable(_) | State::Ended(_) => None,
        }
    }

    /// SyncJobs that an object controls.
    pub fn jobs_of(&self, owner: &str, cache: &Store<SyncJob>) -> Vec<Arc<SyncJob>> {
        let uids = self.known.owners.get(owner).map(|owner| owner.jobs.as_slice()).unwrap_or_default();
        uids.iter()
            .filter_map(|uid| match &self.known.jobs.get(uid)?.state {
                State::UnderWay { reference, .. } => {
                    cache.get(reference).filter(|job| job.metadata.uid.as_deref() == Some(uid))
                }
                State::Unreadable(outline) => Some(Arc::clone(outline)),
                State::Ended(ended) => Some(Arc::new(ended.to_job(uid))),
            })
            .collect()
    }
}

impl Known {
    fn apply(&mut self, read: &ReadResult<SyncJob>) -> bool {
        let (job, state) = match read {
            ReadResult::Object(job) => (job, State::from_job(job)),
            ReadResult::Unreadable(unreadable) => (&unreadable.outline, State::from_outline(&unreadable.outline)),
        };
        let Some(uid) = job.metadata.uid.as_deref() else { return false };
        let owner = controller(job);
        if let Some(known) = self.jobs.get_mut(uid)
            && known.owner.as_deref() == owner.map(|owner| owner.uid.as_str())
        {
            let is_relevant = match (&known.state, &state) {
                (State::UnderWay { is_held: before, .. }, State::UnderWay { is_held: now, .. }) => before != now,
                (State::UnderWay { .. } | State::Unreadable(_), State::Ended(_)) => true,
                (State::Ended(_) | State::Unreadable(_), _) | (_, State::Unreadable(_)) => false,
            };
            known.state = state;
            return is_relevant;
        }
        self.remove(uid);
        let uid: Arc<str> = uid.into();
        let owner = owner.map(|owner| {
            let by_uid: Arc<str> = owner.uid.as_str().into();
            let entry = self.owners.entry(by_uid.clone());
            entry.or_insert_with(|| Owner { schedule: schedule_of(job), jobs: Vec::new() }).jobs.push(uid.clone());
            by_uid
        });
        self.jobs.insert(uid, Job { owner, state });
        true
    }

    fn remove(&mut self, uid: &str) {
        let Some(owner) = self.jobs.remove(uid).and_then(|job| job.owner) else { return };
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.jobs.retain(|job| **job != *uid);
            if entry.jobs.is_empty() {
                self.owners.remove(&owner);
            }
        }
    }
}

impl Owner {
    fn without_jobs(&self) -> Self {
        Self { schedule: self.schedule.clone(), jobs: Vec::new() }
    }
}

impl State {
    /// The state of one that cannot be read.
    fn from_outline(job: &SyncJob) -> Self {
        if is_finished(job) { Self::from_job(job) } else { Self::Unreadable(Arc::new(job.clone())) }
    }

    fn from_job(job: &SyncJob) -> Self {
        if !is_history(job) {
            return Self::UnderWay { reference: Box::new(ObjectRef::from_obj(job)), is_held: is_held(job) };
        }
        let status = job.status.as_ref();
        let failed = status.and_then(|status| conditions::find(&status.conditions, FAILED));
        let counts = status.and_then(|status| status.counts);
        Self::Ended(Ended {
            name: job.name_any().into(),
            slot: slot_of(job).0,
            at: status.and_then(|status| status.completion_time.as_ref()).map(|time| time.0),
            duration: status.and_then(|status| status.duration.clone()),
            counts: counts.map_or((0, 0), |counts| (counts.processed, counts.failed)),
            recoveries: status.and_then(|status| status.recoveries).unwrap_or_default(),
            failure: failed
                .filter(|_| !is_complete(job))
                .map(|condition| Box::new((condition.reason.clone(), condition.message.clone()))),
        })
    }
}

impl Ended {
    /// SyncJob with only the kept fields.
    fn to_job(&self, uid: &str) -> SyncJob {
        let mut job = SyncJob::new(&self.name, SyncJobSpec::default());
        job.metadata.uid = Some(uid.to_owned());
        // Where no annotation names its slot, this is it.
        job.metadata.creation_timestamp = Some(Time(self.slot));
        let (type_, reason, message) = match self.failure.as_deref() {
            Some((reason, message)) => (FAILED, reason.as_str(), message.as_str()),
            None => (COMPLETE, "Completed", ""),
        };
        let mut status = SyncJobStatus {
            phase: Some(if self.failure.is_some() { Phase::Failed } else { Phase::Complete }),
            completion_time: self.at.map(Time),
            duration: self.duration.clone(),
            counts: Some(Counts { processed: self.counts.0, failed: self.counts.1, ..Counts::default() }),
            recoveries: Some(self.recoveries),
            ..SyncJobStatus::default()
        };
        let at = self.at.unwrap_or(Timestamp::UNIX_EPOCH);
        conditions::set(&mut status.conditions, type_, true, reason, message, None, at);
        job.status = Some(status);
        job
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use kube::runtime::{reflector, watcher::Event};
    use serde_json::{Value, json};

    fn job(number: i64, owner: Option<&str>, status: &Value) -> SyncJob {
        let owners: Vec<_> = owner.map(|uid| fixtures::owner(uid, uid)).into_iter().collect();
        fixtures::job(json!({
            "metadata": {"name": format!("job-{number}"), "namespace": "default", "uid": format!("uid-{number}"),
                         "ownerReferences": owners},
            "spec": {"priority": 7}, "status": status,
        }))
    }

    fn read(number: i64, owner: Option<&str>, status: &Value) -> ReadResult<SyncJob> {
        ReadResult::Object(job(number, owner, status))
    }

    fn ended(type_: &str) -> Value {
        let at = "2026-11-24T10:00:00Z";
        json!({"completionTime": at, "duration": "12ms", "recoveries": 2, "counts": {"processed": 9, "failed": 3},
               "conditions": [fixtures::condition(type_, "Why", "because", at)]})
    }

    fn held() -> Value {
        json!({"conditions": [fixtures::condition("Held", "GuardExceeded", "", "2026-11-24T10:00:00Z")]})
    }

    fn names(index: &JobIndex, owner: &str, cache: &Store<SyncJob>) -> Vec<String> {
        index.jobs_of(owner, cache).iter().map(|job| job.name_any()).collect()
    }

    #[test]
    fn of_a_job_that_has_ended_what_its_schedule_asks_is_kept() {
        let (cache, _writer) = reflector::store();
        let mut index = JobIndex::default();
        assert!(index.apply(&read(1, Some("s"), &json!({}))));
        assert!(!index.apply(&read(1, Some("s"), &json!({"progress": 10}))), "progress does not requeue the schedule");
        let held = held();
        assert!(index.apply(&read(1, Some("s"), &held)));
        assert!(!index.apply(&read(1, Some("s"), &held)));
        assert!(index.apply(&read(1, Some("s"), &json!({}))), "it was approved");
        assert!(index.apply(&read(1, Some("s"), &ended("Failed"))));
        assert!(!index.apply(&read(1, Some("s"), &ended("Failed"))));
        assert!(index.apply(&read(2, Some("s"), &ended("Complete"))));
        let jobs = index.jobs_of("s", &cache);
        let failed = conditions::find(&jobs[0].status.as_ref().unwrap().conditions, FAILED).unwrap();
        assert_eq!((failed.reason.as_str(), failed.message.as_str()), ("Why", "because"));
        assert!(is_complete(&jobs[1]));
        for job in &jobs {
            let status = job.status.as_ref().unwrap();
            assert_eq!(status.completion_time.as_ref().unwrap().0.to_string(), "2026-11-24T10:00:00Z");
            assert_eq!(status.duration.as_ref().unwrap().as_str(), "12ms");
            let counts = status.counts.unwrap();
            assert_eq!((counts.processed, counts.failed, status.recoveries), (9, 3, Some(2)));
            assert!(job.metadata.uid.is_some());
        }
        assert!(index.has("uid-1") && index.under_way("uid-1").is_none());
    }

    #[test]
    fn a_job_that_is_held_or_approved_requeues_its_schedule() {
        let held = held();
        let mut index = JobIndex::default();
        index.apply(&read(1, Some("s"), &json!({})));
        for (status, requeues) in [(&held, true), (&held, false), (&json!({}), true), (&json!({}), false)] {
            assert_eq!(index.apply(&read(1, Some("s"), status)), requeues);
        }
    }

    #[test]
    fn of_a_job_that_has_ended_its_slot_is_known() {
        let (cache, _writer) = reflector::store();
        let mut index = JobIndex::default();
        for (number, slot) in [(1, Some("2026-11-24T09:50:00Z")), (2, None)] {
            let mut job = job(number, Some("s"), &ended("Complete"));
            job.metadata.creation_timestamp = Some(Time("2026-11-24T09:55:00Z".parse().unwrap()));
            job.metadata.annotations =
                slot.map(|slot| [(crate::api::SLOT_ANNOTATION.to_owned(), slot.to_owned())].into());
            index.apply(&ReadResult::Object(job.clone()));
            let known = index.jobs_of("s", &cache).pop().unwrap();
            assert_eq!(slot_of(&known), slot_of(&job));
        }
    }

    #[test]
    fn those_under_way_are_in_the_cache_alone() {
        let (cache, mut writer) = reflector::store();
        let mut index = JobIndex::default();
        let first = job(1, Some("s"), &json!({}));
        index.apply(&ReadResult::Object(first.clone()));
        assert!(names(&index, "s", &cache).is_empty(), "the cache does not have it yet");
        writer.apply_watcher_event(&Event::Apply(first));
        assert_eq!(names(&index, "s", &cache), ["job-1"]);
        assert_eq!(index.jobs_of("s", &cache)[0].spec.priority, 7);
        index.delete("uid-1");
        assert!(names(&index, "s", &cache).is_empty() && index.known.owners.is_empty());
    }

    #[test]
    fn a_schedule_knows_its_jobs_that_cannot_be_read() {
        let (cache, _writer) = reflector::store();
        let mut index = JobIndex::default();
        let unreadable = |number, status: &Value| {
            let outline = job(number, Some("s"), status);
            ReadResult::Unreadable(Box::new(super::super::Unreadable { outline, reason: "why".to_owned() }))
        };
        index.list(&unreadable(1, &json!({})));
        index.listed();
        assert_eq!(names(&index, "s", &cache), ["job-1"], "it is not in the cache, and takes its place all the same");
        assert!(index.has("uid-1") && index.under_way("uid-1").is_none());
        assert!(index.apply(&unreadable(1, &ended("Complete"))), "it has ended");
        assert!(is_complete(&index.jobs_of("s", &cache)[0]));
        index.apply(&unreadable(2, &json!({})));
        index.delete("uid-2");
        assert_eq!(names(&index, "s", &cache), ["job-1"]);
    }

    #[test]
    fn an_ended_job_with_a_ttl_stays_in_the_cache() {
        let mut own = job(1, None, &ended("Complete"));
        assert!(is_history(&own));
        own.spec.ttl_after_finished = Some(GoDuration::new("1h"));
        assert!(!is_history(&own));
        let mut index = JobIndex::default();
        index.apply(&ReadResult::Object(own));
        assert!(index.under_way("uid-1").is_some());
    }

    #[test]
    fn what_was_known_stays_until_the_list_is_whole() {
        let (cache, _writer) = reflector::store();
        let mut index = JobIndex::default();
        index.apply(&read(1, Some("old"), &ended("Complete")));
        index.begin();
        index.list(&read(2, Some("new"), &ended("Complete")));
        assert_eq!((names(&index, "old", &cache), names(&index, "new", &cache)), (vec!["job-1".to_owned()], vec![]));
        let mut schedules: Vec<_> = index.listed().into_iter().map(|schedule| schedule.name).collect();
        schedules.sort();
        assert_eq!(schedules, ["new", "old"]);
        assert_eq!((names(&index, "old", &cache), names(&index, "new", &cache)), (vec![], vec!["job-2".to_owned()]));
    }

    #[test]
    fn a_job_that_changes_hands_is_its_new_owners() {
        let (cache, _writer) = reflector::store();
        let mut index = JobIndex::default();
        index.apply(&read(1, Some("a"), &ended("Complete")));
        assert!(index.apply(&read(1, Some("b"), &ended("Complete"))));
        assert_eq!((names(&index, "a", &cache), names(&index, "b", &cache)), (vec![], vec!["job-1".to_owned()]));
        assert!(index.apply(&read(1, None, &ended("Complete"))));
        assert!(index.known.owners.is_empty() && index.has("uid-1"));
    }
}
