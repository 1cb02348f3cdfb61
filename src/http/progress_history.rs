//! History of the progress of runs, as the watch reports it. The history is kept in memory only.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::api::SyncJob;

/// Largest number of samples of a run. A run that has as many keeps every second one.
const MOST: usize = 120;
/// Largest number of runs with samples. The run with the oldest last sample is removed first.
const RUNS: usize = 2000;

/// Number of processed documents at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProgressSample {
    pub at: Timestamp,
    pub processed: i64,
}

/// The samples of runs, by uid.
#[derive(Debug, Default)]
pub(super) struct ProgressHistory(HashMap<String, Vec<ProgressSample>>);

impl ProgressHistory {
    /// Records the progress of a SyncJob. A SyncJob that had ended when it was first seen has no history.
    pub fn record(&mut self, job: &SyncJob, now: Timestamp) {
        let (Some(uid), Some(status)) = (&job.metadata.uid, &job.status) else { return };
        let (Some(start), Some(counts)) = (&status.start_time, &status.counts) else { return };
        let ended = status.completion_time.as_ref().map(|ended| ended.0);
        if !self.0.contains_key(uid) {
            if ended.is_some() {
                return;
            }
            self.make_room();
            self.0.insert(uid.clone(), vec![ProgressSample { at: start.0, processed: 0 }]);
        }
        if let Some(samples) = self.0.get_mut(uid) {
            add(samples, ProgressSample { at: ended.unwrap_or(now), processed: counts.processed });
        }
    }

    /// Forgets a SyncJob that was deleted.
    pub fn forget(&mut self, job: &SyncJob) {
        if let Some(uid) = &job.metadata.uid {
            self.0.remove(uid);
        }
    }

    /// Samples of a run, oldest first. Empty when there are none.
    pub fn of_run(&self, uid: &str) -> Vec<ProgressSample> {
        self.0.get(uid).cloned().unwrap_or_default()
    }

    fn make_room(&mut self) {
        if self.0.len() < RUNS {
            return;
        }
        let last = |samples: &Vec<ProgressSample>| samples.last().map(|sample| sample.at);
        let oldest = self.0.iter().min_by_key(|(_, samples)| last(samples)).map(|(uid, _)| uid.clone());
        if let Some(uid) = oldest {
            self.0.remove(&uid);
        }
    }
}

/// Adds a sample, unless it is no later than the last one: the clocks of two machines.
fn add(samples: &mut Vec<ProgressSample>, sample: ProgressSample) {
    if samples.last().is_some_and(|last| sample.at <= last.at) {
        return;
    }
    if samples.len() >= MOST {
        let mut index = 0;
        samples.retain(|_| {
            index += 1;
            index % 2 == 1
        });
    }
    samples.push(sample);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::from_seconds, fixtures};
    use proptest::prelude::*;
    use serde_json::json;

    fn job(uid: &str, processed: i64, ended: Option<i64>) -> SyncJob {
        let status = json!({
            "startTime": "2026-11-25T10:00:00.000000Z", "counts": {"total": 1000, "processed": processed},
            "completionTime": ended.map(|second| from_seconds(start() + second)),
        });
        fixtures::job(json!({"metadata": {"name": uid, "uid": uid}, "status": status}))
    }

    fn start() -> i64 {
        "2026-11-25T10:00:00Z".parse::<Timestamp>().unwrap().as_second()
    }

    fn at(second: i64) -> Timestamp {
        from_seconds(start() + second)
    }

    fn seen(samples: &ProgressHistory, uid: &str) -> Vec<(i64, i64)> {
        samples.of_run(uid).iter().map(|sample| (sample.at.as_second() - start(), sample.processed)).collect()
    }

    #[test]
    fn a_run_that_is_watched_has_samples_from_its_start_to_its_end() {
        let mut samples = ProgressHistory::default();
        samples.record(&job("a", 100, None), at(2));
        samples.record(&job("a", 200, None), at(4));
        samples.record(&job("a", 200, None), at(4));
        samples.record(&job("a", 300, Some(5)), at(60));
        assert_eq!(seen(&samples, "a"), [(0, 0), (2, 100), (4, 200), (5, 300)]);
        samples.forget(&job("a", 300, Some(5)));
        assert_eq!(seen(&samples, "a"), []);
    }

    #[test]
    fn of_a_run_that_ended_unseen_or_has_not_begun_nothing_is_known() {
        let mut samples = ProgressHistory::default();
        samples.record(&job("a", 300, Some(5)), at(60));
        let mut pending = job("b", 0, None);
        pending.status = None;
        samples.record(&pending, at(1));
        assert_eq!((seen(&samples, "a"), seen(&samples, "b")), (vec![], vec![]));
    }

    #[test]
    fn the_run_with_the_oldest_sample_is_removed() {
        let mut samples = ProgressHistory::default();
        for i in 0..=RUNS {
            samples.record(&job(&format!("run-{i}"), 1, None), at(1 + i as i64));
        }
        assert_eq!((samples.0.len(), seen(&samples, "run-0")), (RUNS, vec![]));
        assert_eq!(seen(&samples, &format!("run-{RUNS}")).len(), 2);
    }

    proptest! {
        #[test]
        fn samples_stay_few_and_in_order_and_span_the_whole_run(steps in prop::collection::vec((-2..50_i64, 0..100_i64), 1..600)) {
            let mut samples = vec![ProgressSample { at: at(0), processed: 0 }];
            let (mut clock, mut last) = (0, samples[0]);
            for (step, processed) in steps {
                clock += step;
                let sample = ProgressSample { at: at(clock), processed: last.processed + processed };
                if sample.at > last.at {
                    last = sample;
                }
                add(&mut samples, sample);
            }
            prop_assert!(samples.len() <= MOST);
            prop_assert!(samples.windows(2).all(|pair| pair[0].at < pair[1].at && pair[0].processed <= pair[1].processed));
            prop_assert_eq!((samples[0].at, *samples.last().unwrap()), (at(0), last));
        }
    }
}
