//! Throughput of runs in the last hour. It is counted from their changes, since the objects of ended runs are soon
//! deleted, so it covers only the lifetime of this process.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use kube::{ResourceExt, runtime::watcher::Event};

use crate::{
    api::SyncJob,
    domain::job::{is_complete, is_finished},
};

const MINUTES: usize = 60;
const MINUTE_S: i64 = 60;

/// Counts, by namespace and minute. The clock is an argument.
pub(super) struct Throughput {
    since: Timestamp,
    /// True once all runs were listed: runs that appear after that are new.
    listed: bool,
    /// Documents that each unfinished run has processed so far, by uid.
    processed: HashMap<String, i64>,
    minutes: HashMap<String, [Minute; MINUTES]>,
}

/// Counts of a minute.
#[derive(Clone, Copy, Default)]
struct Minute {
    /// Minutes since the epoch.
    number: i64,
    counts: ThroughputCounts,
}

/// Counts of a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ThroughputCounts {
    /// Documents processed.
    pub documents: i64,
    /// Runs that ended as complete.
    pub complete: i64,
    /// Runs that failed.
    pub failed: i64,
}

impl std::ops::AddAssign for ThroughputCounts {
    fn add_assign(&mut self, other: Self) {
        self.documents += other.documents;
        self.complete += other.complete;
        self.failed += other.failed;
    }
}

/// The last hour.
#[derive(Debug, PartialEq)]
pub(super) struct LastHour {
    /// Start of the data, where it is less than an hour ago.
    pub since: Option<Timestamp>,
    pub counts: ThroughputCounts,
    /// Documents per second in the last whole minute.
    pub per_second: f64,
    /// Documents in each minute, the newest last.
    pub minutes: Vec<i64>,
}

impl Throughput {
    pub fn new(now: Timestamp) -> Self {
        Self { since: now, listed: false, processed: HashMap::new(), minutes: HashMap::new() }
    }

    /// Records an event of the watch.
    pub fn record(&mut self, event: &Event<SyncJob>, now: Timestamp) {
        match event {
            Event::Init => {}
            Event::InitDone => self.listed = true,
            Event::InitApply(job) | Event::Apply(job) => self.record_job(job, now),
            Event::Delete(job) => {
                self.processed.remove(&job.uid().unwrap_or_default());
            }
        }
    }

    fn record_job(&mut self, job: &SyncJob, now: Timestamp) {
        let uid = job.uid().unwrap_or_default();
        let counts = job.status.as_ref().and_then(|status| status.counts.as_ref());
        let processed = counts.map_or(0, |counts| counts.processed);
        let known = self.processed.get(&uid).copied();
        let is_over = is_finished(job);
        let before = match known {
            Some(before) => before,
            // It ended before, and something else of it changed.
            None if is_over => return,
            None if self.listed => 0,
            None => processed,
        };
        let complete = i64::from(is_over && is_complete(job));
        let failed = i64::from(is_over) - complete;
        // After a crash, a run may continue from an earlier point.
        let documents = (processed - before).max(0);
        self.add(&job.namespace().unwrap_or_default(), ThroughputCounts { documents, complete, failed }, now);
        if is_over {
            self.processed.remove(&uid);
        } else {
            self.processed.insert(uid, processed);
        }
    }

    fn add(&mut self, namespace: &str, counts: ThroughputCounts, now: Timestamp) {
        if counts == ThroughputCounts::default() {
            return;
        }
        let number = minute(now);
        let minutes = self.minutes.entry(namespace.to_owned()).or_insert_with(|| [Minute::default(); MINUTES]);
        let minute = &mut minutes[minute_index(number)];
        if minute.number != number {
            *minute = Minute { number, counts: ThroughputCounts::default() };
        }
        minute.counts += counts;
    }

    /// The last hour in some namespaces, or in all.
    pub fn last_hour(&self, namespaces: Option<&BTreeSet<String>>, now: Timestamp) -> LastHour {
        let newest = minute(now);
        let first = newest - MINUTES as i64 + 1;
        let mut minutes = [ThroughputCounts::default(); MINUTES];
        let wanted = self.minutes.iter().filter(|(name, _)| namespaces.is_none_or(|wanted| wanted.contains(*name)));
        for minute in wanted.flat_map(|(_, minutes)| minutes).filter(|minute| (first..=newest).contains(&minute.number))
        {
            minutes[(minute.number - first) as usize] += minute.counts;
        }
        let mut counts = ThroughputCounts::default();
        for minute in &minutes {
            counts += *minute;
        }
        LastHour {
            since: Some(self.since).filter(|since| minute(*since) >= first),
            counts,
            per_second: minutes[MINUTES - 2].documents as f64 / MINUTE_S as f64,
            minutes: minutes.iter().map(|minute| minute.documents).collect(),
        }
    }
}

fn minute(at: Timestamp) -> i64 {
    at.as_second().div_euclid(MINUTE_S)
}

fn minute_index(minute: i64) -> usize {
    minute.rem_euclid(MINUTES as i64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use serde_json::json;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_020 + 60 * minute).unwrap()
    }

    fn job(namespace: &str, uid: &str, processed: i64, end: Option<&str>) -> SyncJob {
        let ended = |end| fixtures::condition(end, "Test", "", "2026-11-25T10:00:00Z");
        let counts = json!({"total": 100, "processed": processed, "updated": 0, "unchanged": 0, "failed": 0});
        fixtures::job(json!({
            "metadata": {"name": uid, "namespace": namespace, "uid": uid},
            "status": {"counts": counts, "conditions": end.map(ended).into_iter().collect::<Vec<_>>()},
        }))
    }

    fn listed(jobs: Vec<SyncJob>) -> Throughput {
        let mut throughput = Throughput::new(at(0));
        for event in [Event::Init].into_iter().chain(jobs.into_iter().map(Event::InitApply)).chain([Event::InitDone]) {
            throughput.record(&event, at(0));
        }
        throughput
    }

    fn counts(throughput: &Throughput, now: i64) -> (i64, i64, i64) {
        let ThroughputCounts { documents, complete, failed } = throughput.last_hour(None, at(now)).counts;
        (documents, complete, failed)
    }

    #[test]
    fn what_was_done_before_the_beginning_is_not_counted() {
        let old = vec![job("a", "going", 40, None), job("a", "over", 90, Some("Complete"))];
        let mut throughput = listed(old);
        assert_eq!(counts(&throughput, 0), (0, 0, 0));
        throughput.record(&Event::Apply(job("a", "going", 60, None)), at(1));
        throughput.record(&Event::Apply(job("a", "over", 90, Some("Complete"))), at(1));
        throughput.record(&Event::Apply(job("b", "new", 0, None)), at(1));
        throughput.record(&Event::Apply(job("b", "new", 30, None)), at(2));
        assert_eq!(counts(&throughput, 2), (50, 0, 0));
        throughput.record(&Event::Apply(job("a", "going", 70, Some("Complete"))), at(3));
        throughput.record(&Event::Apply(job("a", "going", 70, Some("Complete"))), at(3));
        throughput.record(&Event::Apply(job("b", "new", 30, Some("Failed"))), at(3));
        assert_eq!(counts(&throughput, 3), (60, 1, 1));
        // All of them again, after the watch broke.
        for event in [Event::Init, Event::InitApply(job("a", "going", 70, Some("Complete"))), Event::InitDone] {
            throughput.record(&event, at(4));
        }
        assert_eq!(counts(&throughput, 4), (60, 1, 1));
        let here = BTreeSet::from(["b".to_owned()]);
        assert_eq!(
            throughput.last_hour(Some(&here), at(4)).counts,
            ThroughputCounts { documents: 30, complete: 0, failed: 1 }
        );
    }

    #[test]
    fn it_is_the_last_hour_and_no_more() {
        let mut throughput = listed(vec![]);
        throughput.record(&Event::Apply(job("a", "run", 10, None)), at(1));
        throughput.record(&Event::Apply(job("a", "run", 610, None)), at(30));
        let hour = throughput.last_hour(None, at(31));
        assert_eq!((hour.since, hour.per_second), (Some(at(0)), 10.0));
        assert_eq!((hour.minutes.len(), hour.minutes[58], hour.minutes[29]), (60, 600, 10));
        assert_eq!(counts(&throughput, 60).0, 610);
        assert_eq!((counts(&throughput, 61).0, throughput.last_hour(None, at(61)).since), (600, None));
        assert_eq!(counts(&throughput, 90).0, 0);
        // The entry of a minute is reused after an hour.
        throughput.record(&Event::Apply(job("a", "run", 615, None)), at(90));
        assert_eq!(counts(&throughput, 90).0, 5);
    }

    #[test]
    fn work_that_is_done_again_is_work() {
        let mut throughput = listed(vec![]);
        for processed in [50, 20, 60] {
            throughput.record(&Event::Apply(job("a", "run", processed, None)), at(1));
        }
        assert_eq!(counts(&throughput, 1).0, 90);
        throughput.record(&Event::Delete(job("a", "run", 60, None)), at(1));
        assert!(throughput.processed.is_empty(), "nothing is kept of runs that are gone");
    }
}
