//! The checks after a round.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use futures::{StreamExt, TryStreamExt};
use kube::{ResourceExt, runtime::watcher};
use redis::AsyncCommands;
use sync_operator::{
    api::{SyncJob, SyncJobStatus, source::Batching},
    domain::{conditions::is_true, job::is_finished},
};
use tokio::time::{Instant, sleep};

use super::{
    LEASE, LIMIT, REJECTED, ROLLED_BACK, RUNS, USERS,
    round::{History, Round, rolled_back},
};
use crate::{support::TestEnv, upstream};

impl Round<'_> {
    /// Waits until all runs have ended, and checks everything. Returns how many had not ended at first.
    pub async fn check(&self) -> usize {
        let (unfinished, jobs) = self.wait_for_all_runs().await;
        self.history.note("all runs have ended");
        for job in &jobs {
            if job.name_any() == "rolled-back" {
                self.check_rolled_back(job).await;
            } else if job.spec.source.is_some() {
                self.check_fetching_run(job).await;
            } else {
                self.check_run(job).await;
            }
        }
        self.check_names().await;
        check_slots(&jobs);
        self.statuses.check(&jobs);
        self.check_redis().await;
        self.history.note("Redis has nothing left of ended and deleted runs");
        self.check_no_writes(&jobs).await;
        self.history.note("no process writes any more");
        self.statuses.check(&jobs);
        self.check_last_run().await;
        unfinished
    }

    async fn check_fetching_run(&self, job: &SyncJob) {
        let (name, status) = (job.name_any(), job.status.clone().unwrap());
        let counts = status.counts.unwrap_or_default();
        assert_eq!(counts.processed, counts.updated + counts.unchanged + counts.failed, "{name}: {counts:?}");
        if let Some(failed) = status.conditions.iter().find(|found| found.type_ == "Failed" && found.status == "True") {
            let cancelled = self.cancelled.lock().unwrap().contains(&job.uid().unwrap());
            let redirected = failed.reason == "InvalidSource" && failed.message.contains("with 302, a redirect");
            let ended = redirected || failed.reason == "BudgetExceeded";
            assert!(ended || (failed.reason == "Cancelled" && cancelled), "{name}: {}", failed.message);
            return;
        }
        assert!(counts.failed >= i64::from(REJECTED), "{name}: {counts:?}");
        assert_eq!((status.progress, counts.processed), (Some(100), i64::from(matched(job))), "{name}: {counts:?}");
        let start = DateTime::from_millis(status.start_time.as_ref().unwrap().0.as_millisecond());
        let fetched = self.count(doc! {"_id": {"$lt": matched(job)}, "fetched": {"$gte": start}}).await;
        assert!(fetched >= counts.processed - counts.failed, "{name}: {fetched} fetched since {start}, {counts:?}");
    }

    async fn check_rolled_back(&self, job: &SyncJob) {
        let conditions = &job.status.as_ref().unwrap().conditions;
        let failed = conditions.iter().find(|found| found.type_ == "Failed" && found.status == "True").unwrap();
        let expected = matches!(failed.reason.as_str(), "TooManyFailed" | "InvalidSource" | "BudgetExceeded");
        assert!(expected && !failed.message.contains("could not be"), "rolled-back: {}", failed.message);
        let documents = self.env.database.collection::<RawDocumentBuf>("rolled");
        let found: Vec<_> = documents.find(doc! {}).sort(doc! {"_id": 1}).await.unwrap().try_collect().await.unwrap();
        let before = (0..ROLLED_BACK).map(|id| RawDocumentBuf::try_from(&rolled_back(id)).unwrap());
        let wrong: Vec<_> = found.iter().zip(before.clone()).filter(|(found, before)| *found != before).collect();
        assert!(wrong.is_empty() && found.len() == before.len(), "rolled-back: {} {wrong:?}", found.len());
        let names = self.env.database.list_collection_names().await.unwrap();
        assert!(!names.iter().any(|name| name.starts_with("sync_journal.")), "rolled-back: {names:?}");
    }

    /// Checks that each fetched name is at least as new as the name that the server had at the time of the stamp.
    async fn check_names(&self) {
        let versions = self.upstream.state().versions.clone();
        let mut users = self.users().find(doc! {"fetched": {"$exists": true}}).await.unwrap();
        while let Some(user) = users.next().await {
            let user = user.unwrap();
            let (id, stamp) = (user.get_i32("_id").unwrap(), user.get_datetime("fetched").unwrap().to_system_time());
            let name = user.get_document("profile").unwrap().get_str("name").unwrap();
            let version = name.strip_prefix(&format!("User {id} v")).and_then(|text| text.parse::<usize>().ok());
            // Redis gives the time of a claim. After it, the worker uses its own clock.
            let before = stamp - Duration::from_millis(20);
            let least = versions.iter().filter(|changed| **changed <= before).count();
            assert!(version.is_some_and(|version| version >= least), "{id}, fetched {stamp:?}: {name}, not v{least}");
        }
    }

    /// Runs once more, and checks that every user has the name of the server.
    async fn check_last_run(&self) {
        self.make_run("last", &self.fetching(Batching::PerBatch)).await;
        let (_, jobs) = self.wait_for_all_runs().await;
        let last = jobs.into_iter().find(|job| job.name_any() == "last").unwrap().status.unwrap();
        assert!(is_true(&last.conditions, "Complete"), "last: {:?}", last.conditions);
        let version = self.upstream.state().versions.len();
        let mut wrong = self.users().find(doc! {"_id": {"$gte": REJECTED}}).await.unwrap();
        while let Some(user) = wrong.next().await {
            let user = user.unwrap();
            let id = user.get_i32("_id").unwrap();
            let name = user.get_document("profile").unwrap().get_str("name").unwrap();
            assert_eq!(name, upstream::name(&id.to_string(), version), "user {id} after the last run");
        }
        assert_eq!(last.counts.unwrap().failed, i64::from(REJECTED), "last");
    }

    async fn wait_for_all_runs(&self) -> (usize, Vec<SyncJob>) {
        let began = Instant::now();
        let mut at_first = None;
        loop {
            let jobs = self.jobs().await;
            let unfinished: Vec<_> = jobs.iter().filter(|job| !is_finished(job)).collect();
            let count = *at_first.get_or_insert(unfinished.len());
            if unfinished.is_empty() {
                return (count, jobs);
            }
            let names: Vec<_> = unfinished.iter().map(|job| job.name_any()).collect();
            assert!(
                began.elapsed() < LIMIT,
                "{LIMIT:?} after the last fault these have not ended: {}",
                names.join(" ")
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn check_run(&self, job: &SyncJob) {
        let (name, status) = (job.name_any(), job.status.clone().unwrap());
        let field = job.spec.target.last_synced_field.clone();
        let counts = status.counts.unwrap_or_default();
        assert_eq!(counts.processed, counts.updated + counts.unchanged + counts.failed, "{name}: {counts:?}");
        let incremental = format!("{:?}", job.spec.sync_type) == "Incremental";
        let good = i64::from(matched(job) - REJECTED);
        if is_true(&status.conditions, "Failed") {
            let reason = &status.conditions.iter().find(|found| found.type_ == "Failed").unwrap().reason;
            // Redis lost the run before a status had its start. With its new start an Incremental run leaves out what
            // it stamped, and finds that all the rest is refused.
            let restarted = incremental && reason == "TooManyFailed" && counts.processed == i64::from(REJECTED);
            if restarted && self.count(doc! {&field: {"$exists": true}}).await == good {
                return;
            }
            let cancelled = self.cancelled.lock().unwrap().contains(&job.uid().unwrap());
            assert!(reason == "Cancelled" && cancelled, "{name} failed with {reason}");
            return;
        }
        let refused: Vec<_> = status.failures.iter().map(|failure| failure.key.clone()).collect();
        let expected: Vec<_> = (0..REJECTED).map(|id| id.to_string()).collect();
        assert_eq!(refused, expected, "{name}: the documents it says were refused");
        assert_eq!((status.progress, counts.failed), (Some(100), i64::from(REJECTED)), "{name}: {counts:?}");

        let start = DateTime::from_millis(status.start_time.as_ref().unwrap().0.as_millisecond());
        let matched = matched(job);
        let later = self.count(doc! {&field: {"$gte": start}}).await;
        let by_this_run = self.count(doc! {&field: start}).await;
        let counted = (counts.processed, counts.updated + counts.unchanged);
        if incremental {
            // After a restart, as above, the run need not find all documents again.
            let stamped = self.count(doc! {&field: {"$exists": true}}).await;
            assert_eq!(stamped, good, "{name}: stamped documents");
            assert_eq!(counts.updated, by_this_run, "{name} counts what it stamped: {counts:?}");
            return;
        }
        assert_eq!(counted, (i64::from(matched), good), "{name}: {counts:?}");
        assert_eq!(later, good, "{name}: documents that carry its start, {start}, or a later one");
        if field.starts_with('f') {
            assert_eq!(by_this_run, good, "{name}: documents that carry its start, {start}");
            assert_eq!(counts.updated, good, "{name}: no other run stamps this field: {counts:?}");
        }
    }

    async fn count(&self, filter: Document) -> i64 {
        self.env.count(filter).await as i64
    }

    /// Checks that no ended run is active or waiting in Redis, and that nothing is left of deleted runs.
    async fn check_redis(&self) {
        let key = |name: &str| format!("{{sync:{}}}:{name}", self.env.name);
        let deleted = self.deleted.lock().unwrap().clone();
        let (began, mut redis) = (Instant::now(), self.redis().await);
        loop {
            let mut left: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for set in ["waiting", "delayed", "active", "parked"] {
                let uids: Vec<String> = redis.zrange(key(set), 0, -1).await.unwrap();
                left.entry(set.to_owned()).or_default().extend(uids);
            }
            for (name, uid) in &deleted {
                let exists: bool = redis.exists(key(&format!("run:{uid}"))).await.unwrap();
                let mut places = Vec::from_iter(exists.then(|| "its hash".to_owned()));
                for set in ["completed", "failed"] {
                    let score: Option<f64> = redis.zscore(key(set), uid).await.unwrap();
                    places.extend(score.map(|_| set.to_owned()));
                }
                left.insert(format!("deleted {name} {uid}"), places);
            }
            left.retain(|_, found| !found.is_empty());
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < LIMIT, "left in Redis: {left:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes stamps and waits. A worker that does not know the end of its run would set them again.
    async fn check_no_writes(&self, jobs: &[SyncJob]) {
        let fields: Vec<_> = (0..RUNS)
            .map(|run| format!("f{run}"))
            .chain(["shared", "scheduled", "fetched"].map(str::to_owned))
            .collect();
        let some = doc! {"_id": {"$gte": USERS / 2}};
        let unset: Document = fields.iter().map(|field| (field.clone(), Bson::from(""))).collect();
        let began = Instant::now();
        // A primary that has just been elected may be replaced by another one.
        while let Err(error) = self.users().update_many(some.clone(), doc! {"$unset": unset.clone()}).await {
            assert!(began.elapsed() < LIMIT, "{error}");
            sleep(Duration::from_millis(200)).await;
        }
        sleep(LEASE.mul_f64(1.5)).await;
        let again: Vec<_> = fields.iter().map(|field| doc! {field: {"$exists": true}}).collect();
        let again = self.users().find_one(doc! {"$and": [some, {"$or": again}]}).await.unwrap();
        let again = again.map(|document| document.keys().cloned().collect::<Vec<_>>());
        assert_eq!(again, None, "stamped after the end of the runs: a document with these fields");
        let after: HashMap<_, _> = self.jobs().await.into_iter().map(|job| (job.uid(), job.status)).collect();
        for job in jobs {
            if let Some(status) = after.get(&job.uid()) {
                assert_eq!(&job.status, status, "{} changed after its end", job.name_any());
            }
        }
    }
}

/// Number of documents of a run.
fn matched(job: &SyncJob) -> i32 {
    let filter = serde_json::to_value(&job.spec.target.filter).unwrap();
    filter["_id"]["$lt"].as_i64().map_or(USERS, |limit| limit as i32)
}

fn check_slots(jobs: &[SyncJob]) {
    let mut of_slots: HashMap<&str, Vec<String>> = HashMap::new();
    for job in jobs {
        if let Some(slot) = job.annotations().get("sync.codex.dev/scheduled-at") {
            of_slots.entry(slot).or_default().push(job.name_any());
        }
    }
    of_slots.retain(|_, jobs| jobs.len() > 1);
    assert!(of_slots.is_empty(), "slots with more than one SyncJob: {of_slots:?}");
}

type Seen = HashMap<String, (String, Vec<(f64, SyncJobStatus)>)>;

/// All observed statuses of each SyncJob, by uid, with times.
pub struct Statuses {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Statuses {
    pub fn follow(env: &TestEnv, history: History) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (jobs, kept) = (env.jobs(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(jobs, watcher::Config::default()));
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(job) | watcher::Event::InitApply(job)) => {
                        let (Some(uid), name, Some(status)) = (job.uid(), job.name_any(), job.status) else { continue };
                        let mut kept = kept.lock().unwrap();
                        let (_, statuses) = kept.entry(uid).or_insert_with(|| (name, Vec::new()));
                        if statuses.last().is_none_or(|(_, last)| *last != status) {
                            statuses.push((history.elapsed(), status));
                        }
                    }
                    Ok(_) => {}
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            }
        });
        Self { seen, task }
    }

    pub fn check(&self, jobs: &[SyncJob]) {
        let seen = self.seen.lock().unwrap();
        for job in jobs {
            let name = job.name_any();
            let statuses = seen.get(&job.uid().unwrap()).map(|(_, seen)| seen.as_slice()).unwrap_or_default();
            for pair in statuses.windows(2) {
                let ((at, before), (then, after)) = (&pair[0], &pair[1]);
                let when = format!("{name}, between {at:.3} s and {then:.3} s");
                assert!(before.progress <= after.progress, "{when}: progress went back");
                let processed = |status: &SyncJobStatus| status.counts.unwrap_or_default().processed;
                let cancelled = is_true(&after.conditions, "Failed");
                assert!(cancelled || processed(before) <= processed(after), "{when}: processed went back");
                assert_eq!(terminal(before), (false, false), "{when}: changed after its end");
                let starts = (&before.start_time, &after.start_time);
                assert!(starts.0.is_none() || starts.0 == starts.1, "{when}: its start changed");
            }
            let last = job.status.as_ref().map(terminal);
            assert!(matches!(last, Some((true, false) | (false, true))), "{name}: one terminal condition");
        }
    }

    /// The statuses of the SyncJobs with these names, one status on each line.
    pub fn describe(&self, names: &HashSet<&str>) -> String {
        let mut text = String::new();
        for (uid, (name, statuses)) in &*self.seen.lock().unwrap() {
            if !names.contains(name.as_str()) {
                continue;
            }
            writeln!(text, "\nStatuses of {name}, uid {uid}:").unwrap();
            for (at, status) in statuses {
                let conditions: Vec<_> =
                    status.conditions.iter().map(|found| format!("{}={}", found.type_, found.reason)).collect();
                writeln!(
                    text,
                    "{at:7.3} s  {:?} {:?} {} start {:?} worker {} attempts {:?} recoveries {:?} {:?}",
                    status.phase,
                    status.progress,
                    conditions.join(" "),
                    status.start_time.as_ref().map(|start| start.0),
                    status.worker.as_deref().unwrap_or("-"),
                    status.attempts,
                    status.recoveries,
                    status.counts,
                )
                .unwrap();
            }
        }
        text
    }
}

fn terminal(status: &SyncJobStatus) -> (bool, bool) {
    (is_true(&status.conditions, "Complete"), is_true(&status.conditions, "Failed"))
}

impl Drop for Statuses {
    fn drop(&mut self) {
        self.task.abort();
    }
}
