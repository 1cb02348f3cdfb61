//! `GET /jobs` and `GET /jobs/{namespace}/{name}`.

use std::{cmp::Reverse, collections::BTreeSet, sync::Arc};

use axum::{Json, extract::State};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    extract::{self, ObjectPath, Path, Reader},
    job_view::{Job, JobDetails},
    objects::Objects,
    problem::{Problem, ProblemKind},
    search::{RunIndex, RunQuery, SortKey},
};
use crate::{
    api::{
        SyncJob,
        syncjob::{Phase, SyncType},
    },
    cluster,
    domain::job::is_finished,
};

/// Default and largest number of runs in a page.
const PAGE: (usize, usize) = (100, 500);

/// Selection of the runs to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RunSelection {
    /// Namespace of the runs.
    pub namespace: Option<String>,
    /// Name of the SyncSchedule of the runs.
    pub schedule: Option<String>,
    /// Phase of the runs.
    #[param(inline)]
    pub phase: Option<Phase>,
    /// Type of the runs.
    #[serde(rename = "type")]
    #[param(inline)]
    pub type_: Option<SyncType>,
    /// Text in the name of the runs.
    pub text: Option<String>,
    /// Beginnings of words in an error of the run, its attempts or its documents. All of them must match.
    pub error: Option<String>,
    /// Beginning of the key of a failed document. The first 20 documents of each run can be found.
    pub key: Option<String>,
    /// Largest number of runs in the answer. Default: 100.
    #[param(minimum = 1, maximum = 500)]
    pub limit: Option<usize>,
    /// `nextCursor` of the page before.
    #[param(pattern = "^-?[0-9]{1,18}~[^~]*~[^~]*$")]
    pub cursor: Option<String>,
}

/// A page of runs, the newest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page {
    pub items: Vec<Job>,
    /// Value of `?cursor=` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Lists runs.
#[utoipa::path(get, path = "/jobs", tag = "jobs", params(RunSelection), responses((status = 200, body = Page)))]
pub(super) async fn list(
    State(app): State<App>,
    Reader(reader): Reader,
    extract::Query(selection): extract::Query<RunSelection>,
) -> Result<Json<Page>, Problem> {
    app.access.check_read(&reader, selection.namespace.as_deref()).await?;
    page(app.listed()?, &selection, None).map(Json)
}

/// Returns the matching runs of these namespaces.
pub(super) fn page(
    objects: &Objects,
    selection: &RunSelection,
    namespaces: Option<&BTreeSet<String>>,
) -> Result<Page, Problem> {
    let (found, next_cursor) = search(&objects.index(), selection, namespaces)?;
    let jobs = found.iter().filter_map(|sort_key| objects.jobs.get(&sort_key.reference()));
    Ok(Page { items: jobs.map(|job| Job::from(&*job)).collect(), next_cursor })
}

fn search(
    index: &RunIndex,
    selection: &RunSelection,
    namespaces: Option<&BTreeSet<String>>,
) -> Result<(Vec<SortKey>, Option<String>), Problem> {
    let limit = selection.limit.unwrap_or(PAGE.0);
    if !(1..=PAGE.1).contains(&limit) {
        return Err(Problem::new(ProblemKind::BadRequest, format!("limit must be from 1 to {}", PAGE.1)));
    }
    let after = selection.cursor.as_deref().map(read_cursor).transpose()?;
    let query = selection.query(namespaces);
    let mut found = index.page(&query, after.as_ref(), limit + 1);
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(write_cursor);
    Ok((found, next_cursor))
}

impl RunSelection {
    /// Query of the index, in these namespaces only.
    pub fn query<'a>(&'a self, namespaces: Option<&'a BTreeSet<String>>) -> RunQuery<'a> {
        RunQuery {
            namespaces,
            namespace: self.namespace.as_deref(),
            schedule: self.schedule.as_deref(),
            phases: self.phase.as_ref().map(std::slice::from_ref),
            type_: self.type_,
            text: self.text.as_deref(),
            error: self.error.as_deref(),
            key: self.key.as_deref(),
        }
    }
}

/// Formats a cursor. No part of it contains `~`, and none needs to be escaped in a URL.
pub(super) fn write_cursor(SortKey { created, namespace, name }: &SortKey) -> String {
    format!("{}~{namespace}~{name}", created.0)
}

pub(super) fn read_cursor(text: &str) -> Result<SortKey, Problem> {
    let sort_key = || {
        let (created, object) = text.split_once('~')?;
        let (namespace, name) = object.split_once('~')?;
        Some(SortKey { created: Reverse(created.parse().ok()?), namespace: namespace.into(), name: name.into() })
    };
    sort_key().ok_or_else(|| Problem::new(ProblemKind::BadRequest, "cursor must be the nextCursor of an earlier page"))
}

/// Shows a run, with its failed attempts and refused documents.
#[utoipa::path(
    get, path = "/jobs/{namespace}/{name}", tag = "jobs", params(ObjectPath), responses((status = 200, body = JobDetails)),
)]
pub(super) async fn read(
    State(app): State<App>,
    Reader(reader): Reader,
    Path(path): Path<ObjectPath>,
) -> Result<Json<JobDetails>, Problem> {
    app.access.check_read(&reader, Some(&path.namespace)).await?;
    Ok(Json((&*load_whole(&app, &path).await?).into()))
}

/// A SyncJob with all that is known of it.
pub(super) async fn load_whole(app: &App, path: &ObjectPath) -> Result<Arc<SyncJob>, Problem> {
    let job = find_job(app, path)?;
    // The cache does not keep everything of a run that has ended.
    if is_finished(&job) { load_live(app, &job).await.map(Arc::new) } else { Ok(job) }
}

/// A SyncJob as last seen.
pub(super) fn find_job(app: &App, ObjectPath { namespace, name }: &ObjectPath) -> Result<Arc<SyncJob>, Problem> {
    let found = app.listed()?.jobs.get(&ObjectRef::new(name).within(namespace));
    found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no SyncJob {namespace}/{name}")))
}

/// Returns the current SyncJob.
pub(super) async fn load_live(app: &App, job: &SyncJob) -> Result<SyncJob, Problem> {
    let jobs = app.listed()?.namespaced::<SyncJob>(&job.metadata);
    let found = cluster::call("read a SyncJob", cluster::get_opt(&jobs, &job.name_any())).await?;
    found.ok_or_else(|| {
        let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
        Problem::new(ProblemKind::NotFound, format!("there is no SyncJob {namespace}/{name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use jiff::Timestamp;
    use serde_json::{from_value, json};

    fn job(name: &str, created: i64, phase: &str) -> Arc<SyncJob> {
        let created = Timestamp::from_second(created).unwrap();
        Arc::new(fixtures::job(json!({
            "metadata": {"name": name, "namespace": "default", "creationTimestamp": created,
                         "labels": {"sync.codex.dev/schedule": name.split('-').next().unwrap()}},
            "status": {"phase": phase},
        })))
    }

    fn index(jobs: &[Arc<SyncJob>]) -> RunIndex {
        let mut index = RunIndex::default();
        for job in jobs {
            index.apply(job);
        }
        index
    }

    fn names(found: &[SortKey]) -> Vec<String> {
        found.iter().map(|sort_key| sort_key.name.to_string()).collect()
    }

    #[test]
    fn pages_have_no_gap_or_repetition_though_jobs_change() {
        let mut jobs: Vec<_> = (0..10).map(|i| job(&format!("a-{i}"), 100 + i / 2, "Complete")).collect();
        let mut seen = Vec::new();
        let mut selection = RunSelection { limit: Some(3), ..RunSelection::default() };
        loop {
            let (found, next) = search(&index(&jobs), &selection, None).unwrap();
            seen.extend(names(&found));
            let Some(next) = next else { break };
            selection.cursor = Some(next);
            jobs.push(job(&format!("new-{}", jobs.len()), 1000, "Running"));
            jobs.retain(|job| job.name_any() != seen[0]);
        }
        assert_eq!(seen, ["a-8", "a-9", "a-6", "a-7", "a-4", "a-5", "a-2", "a-3", "a-0", "a-1"]);
    }

    #[test]
    fn each_filter_leaves_out_what_does_not_fit() {
        let jobs = [job("a-1", 1, "Complete"), job("b-2", 2, "Running"), job("b-3", 3, "Complete")];
        let found = |selection: serde_json::Value| -> Vec<String> {
            names(&search(&index(&jobs), &from_value(selection).unwrap(), None).unwrap().0)
        };
        assert_eq!(found(json!({})), ["b-3", "b-2", "a-1"]);
        assert_eq!(found(json!({"phase": "Complete"})), ["b-3", "a-1"]);
        assert_eq!(found(json!({"schedule": "b", "phase": "Complete"})), ["b-3"]);
        assert_eq!(found(json!({"namespace": "elsewhere"})), [""; 0]);
        assert_eq!(found(json!({"type": "Issue"})), [""; 0]);
        assert_eq!(found(json!({"text": "-2"})), ["b-2"]);
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for text in ["", "x", "1~a", "x~a~b"] {
            assert!(read_cursor(text).is_err(), "{text}");
        }
        let sort_key = SortKey { created: Reverse(5), namespace: "a".into(), name: "b".into() };
        assert_eq!(read_cursor(&write_cursor(&sort_key)), Ok(sort_key));
    }
}
