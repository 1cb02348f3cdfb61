//! Runs and deletions that a client has not received yet, in the order of their versions. A listener keeps the names of
//! a few of them only, so that clients that read slowly cost little memory.

use std::{collections::VecDeque, sync::Arc};

use kube::runtime::reflector::ObjectRef;

use crate::{
    api::SyncJob,
    domain::job::is_finished,
    http::{
        objects::{DeletedJob, Objects, version_of},
        pause::RunFilter,
    },
};

/// Entries that are collected at once.
const CHUNK: usize = 256;

/// Backlog of a client.
#[derive(Debug)]
pub(super) struct Backlog {
    kind: BacklogKind,
    /// Version up to which all entries were collected.
    collected: u64,
    /// Last version of the backlog. Changes after it are received one by one.
    pub last: u64,
    chunk: VecDeque<BacklogEntry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BacklogKind {
    /// All unfinished runs, for a client that has no state.
    Unfinished,
    /// All changes and deletions since a version.
    Changes,
}

/// Entry with its version.
#[derive(Clone, Debug)]
pub(super) enum BacklogEntry {
    Job(ObjectRef<SyncJob>, u64),
    Deleted(Arc<DeletedJob>),
}

impl BacklogEntry {
    pub fn version(&self) -> u64 {
        match self {
            Self::Job(_, version) => *version,
            Self::Deleted(gone) => gone.version,
        }
    }
}

/// Some deletions of the backlog are not known any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DeletionsForgotten;

impl Backlog {
    /// All unfinished runs.
    pub fn unfinished(objects: &Objects) -> Self {
        Self::new(BacklogKind::Unfinished, 0, objects, &[])
    }

    /// All changes since a version.
    pub fn changes(since: u64, objects: &Objects) -> Result<Self, DeletionsForgotten> {
        let deletions = objects.deletions_since(since).ok_or(DeletionsForgotten)?;
        Ok(Self::new(BacklogKind::Changes, since, objects, &deletions))
    }

    fn new(kind: BacklogKind, since: u64, objects: &Objects, deletions: &[Arc<DeletedJob>]) -> Self {
        let jobs = objects.jobs.state();
        let versions = jobs.iter().map(|job| version_of(job)).chain(deletions.iter().map(|gone| gone.version));
        Self { kind, collected: since, last: versions.max().unwrap_or(since), chunk: VecDeque::new() }
    }

    /// Takes the next entry. `None` at the end of the backlog.
    pub fn next(&mut self, objects: &Objects, filter: &RunFilter) -> Result<Option<BacklogEntry>, DeletionsForgotten> {
        if self.chunk.is_empty() && self.collected < self.last {
            self.chunk = self.collect(objects, filter)?;
            // A full chunk may be followed by further entries.
            self.collected = match self.chunk.back() {
                Some(entry) if self.chunk.len() == CHUNK => entry.version(),
                _ => self.last,
            };
        }
        Ok(self.chunk.pop_front())
    }

    fn collect(&self, objects: &Objects, filter: &RunFilter) -> Result<VecDeque<BacklogEntry>, DeletionsForgotten> {
        let range = self.collected + 1..=self.last;
        let is_wanted = |job: &SyncJob| self.kind == BacklogKind::Changes || !is_finished(job);
        let jobs = objects.jobs.state();
        let jobs = jobs.iter().map(|job| (version_of(job), job)).filter(|(version, _)| range.contains(version));
        let jobs = jobs.filter(|(_, job)| is_wanted(job) && filter.matches_job(job));
        let mut entries: Vec<_> =
            jobs.map(|(version, job)| BacklogEntry::Job(ObjectRef::from_obj(&**job), version)).collect();
        if self.kind == BacklogKind::Changes {
            let deletions = objects.deletions_since(self.collected).ok_or(DeletionsForgotten)?;
            let deletions = deletions.into_iter().filter(|gone| range.contains(&gone.version));
            let deletions = deletions.filter(|gone| filter.matches(Some(&gone.namespace), gone.schedule.as_ref()));
            entries.extend(deletions.map(BacklogEntry::Deleted));
        }
        if entries.len() > CHUNK {
            entries.select_nth_unstable_by_key(CHUNK, BacklogEntry::version);
            entries.truncate(CHUNK);
        }
        entries.sort_unstable_by_key(BacklogEntry::version);
        Ok(entries.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(version: usize, phase: &str) -> SyncJob {
        let condition = json!({"type": phase, "status": "True", "reason": "", "message": "", "lastTransitionTime": "2026-11-25T10:00:00Z"});
        let job = json!({
            "apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "spec": {},
            "metadata": {"name": format!("run-{version}"), "namespace": "a", "resourceVersion": version.to_string()},
            "status": {"phase": phase, "conditions": [condition]},
        });
        serde_json::from_value(job).unwrap()
    }

    fn objects(jobs: Vec<SyncJob>) -> Objects {
        rustls::crypto::ring::default_provider().install_default().ok();
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Objects::from_objects(kube::Client::try_from(config).unwrap(), Vec::new(), jobs)
    }

    fn versions(mut backlog: Backlog, objects: &Objects) -> Vec<u64> {
        let mut versions = Vec::new();
        while let Some(entry) = backlog.next(objects, &RunFilter::default()).unwrap() {
            assert!(backlog.chunk.len() < CHUNK);
            versions.push(entry.version());
        }
        versions
    }

    #[tokio::test]
    async fn a_backlog_has_every_run_once_in_order() {
        let count = 3 * CHUNK + 7;
        let phase = |version: usize| if version.is_multiple_of(3) { "Complete" } else { "Running" };
        let objects = objects((1..=count).rev().map(|version| job(version, phase(version))).collect());
        let all: Vec<u64> = (1..=count as u64).collect();
        let unfinished: Vec<_> = all.iter().copied().filter(|version| !version.is_multiple_of(3)).collect();
        assert_eq!(versions(Backlog::unfinished(&objects), &objects), unfinished);
        for since in [0, 1, CHUNK, 2 * CHUNK, count - 1, count, count + 5] {
            let backlog = Backlog::changes(since as u64, &objects).unwrap();
            assert_eq!(versions(backlog, &objects), all[since.min(count)..], "{since}");
        }
    }

    #[tokio::test]
    async fn later_changes_are_no_part_of_a_backlog() {
        let objects = objects(vec![job(1, "Running"), job(5, "Running")]);
        let backlog = Backlog { last: 4, ..Backlog::unfinished(&objects) };
        assert_eq!(versions(backlog, &objects), [1]);
    }
}
