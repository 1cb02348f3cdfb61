//! Actions on many runs with one request.

use std::{str::FromStr, sync::Arc};

use futures::{StreamExt, stream};
use serde::Deserialize;

use crate::{
    api::{SyncJob, syncjob::Phase},
    domain::job::{is_complete, is_finished},
    http::{
        App,
        auth::{Caller, Right},
        cleanup, control,
        extract::ObjectPath,
        jobs,
        pause::CONCURRENT_REQUESTS,
        problem::{Problem, ProblemKind},
        search::SortKey,
        trigger,
    },
};

/// Bulk action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::http::dashboard) enum BulkAction {
    Cancel,
    Retry,
    Delete,
}

/// Result of the action on one run.
pub(super) enum ActionResult {
    Done,
    /// The run was in that state already, or it was too late.
    Unchanged,
    Failed(Problem),
}

impl FromStr for BulkAction {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let found = Self::ALL.into_iter().find(|action| action.word() == text);
        found.ok_or_else(|| Problem::new(ProblemKind::BadRequest, "choose an action: cancel, retry or delete"))
    }
}

impl BulkAction {
    pub const ALL: [Self; 3] = [Self::Cancel, Self::Retry, Self::Delete];

    /// Name of the action in addresses.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Delete => "delete",
        }
    }

    /// Name of the action for users.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cancel => "Cancel",
            Self::Retry => "Retry",
            Self::Delete => "Delete",
        }
    }

    /// Past participle of the action for users.
    pub fn past(self) -> &'static str {
        match self {
            Self::Cancel => "cancelled",
            Self::Retry => "retried",
            Self::Delete => "deleted",
        }
    }

    /// Warning before the action.
    pub fn warning(self) -> &'static str {
        match self {
            Self::Cancel => "A cancelled run ends as failed at its next batch boundary. This cannot be undone.",
            Self::Retry => "A retry creates a new run with the same spec. Runs that were retried before are skipped.",
            Self::Delete => "Deletion removes a run with its failures and its history. This cannot be undone.",
        }
    }

    /// Right that the action needs.
    pub fn right(self, namespace: Option<&str>) -> Right {
        match self {
            Self::Cancel => Right::new("patch", "syncjobs", namespace),
            Self::Retry => trigger::right(namespace),
            Self::Delete => Right::new("delete", "syncjobs", namespace),
        }
    }

    /// Phases of the runs that it suits.
    pub fn phases(self) -> &'static [Phase] {
        match self {
            Self::Cancel => &[Phase::Pending, Phase::Queued, Phase::Running, Phase::Retrying, Phase::Suspended],
            Self::Retry => &[Phase::Failed],
            Self::Delete => &[Phase::Complete, Phase::Failed],
        }
    }

    /// True when the action applies to a run.
    pub fn suits(self, job: &SyncJob) -> bool {
        match self {
            Self::Cancel => !is_finished(job) && !job.spec.cancelled,
            Self::Retry => is_finished(job) && !is_complete(job),
            Self::Delete => is_finished(job),
        }
    }
}

/// Carries out the action for each run, as the caller. Stops when Kubernetes fails, and returns the error: some of
/// the runs after the returned results may be done.
pub(super) async fn carry_out(
    app: &App,
    caller: &Caller,
    action: BulkAction,
    sort_keys: &[SortKey],
) -> (Vec<ActionResult>, Option<Problem>) {
    let mut results = stream::iter(sort_keys.to_vec())
        .map(|sort_key| one(app, caller, action, sort_key))
        .buffered(CONCURRENT_REQUESTS);
    let (mut outcomes, mut deleted, mut stopped) = (Vec::new(), Vec::new(), None);
    while let Some((outcome, gone)) = results.next().await {
        deleted.extend(gone);
        match outcome {
            ActionResult::Failed(problem) if problem.kind() == ProblemKind::Unavailable => {
                stopped = Some(problem);
                break;
            }
            outcome => outcomes.push(outcome),
        }
    }
    drop(results);
    cleanup::record_cleanup(app, caller, &deleted).await;
    (outcomes, stopped)
}

/// Does it to one; with the SyncJob, when that was deleted.
async fn one(
    app: &App,
    caller: &Caller,
    action: BulkAction,
    sort_key: SortKey,
) -> (ActionResult, Option<Arc<SyncJob>>) {
    let path = ObjectPath { namespace: sort_key.namespace.to_string(), name: sort_key.name.to_string() };
    let result = match action {
        BulkAction::Cancel => control::end(app, caller, &path).await.map(|controlled| (controlled.changed, None)),
        BulkAction::Retry => control::start_again(app, caller, &path).await.map(|(_, replayed)| (!replayed, None)),
        BulkAction::Delete => delete(app, caller, &path).await.map(|gone| (gone.is_some(), gone)),
    };
    match result {
        Ok((true, gone)) => (ActionResult::Done, gone),
        Ok((false, _)) => (ActionResult::Unchanged, None),
        Err(problem) if matches!(problem.kind(), ProblemKind::Conflict | ProblemKind::NotFound) => {
            (ActionResult::Unchanged, None)
        }
        Err(problem) => (ActionResult::Failed(problem), None),
    }
}

/// Deletes a run that has ended and that its schedule has counted.
async fn delete(app: &App, caller: &Caller, path: &ObjectPath) -> Result<Option<Arc<SyncJob>>, Problem> {
    app.access.check(caller, BulkAction::Delete.right(Some(&path.namespace)).on(&path.name)).await?;
    let job = jobs::find_job(app, path)?;
    if !is_finished(&job) || cleanup::awaits_accounting(&job, app.listed()?) {
        return Ok(None);
    }
    cleanup::delete(app.listed()?, job).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_action_is_parsed_from_its_word() {
        for action in BulkAction::ALL {
            assert_eq!(action.word().parse(), Ok(action));
            assert_eq!(serde_json::from_value(action.word().into()).ok(), Some(action));
        }
        assert!("suspend".parse::<BulkAction>().is_err());
    }
}
