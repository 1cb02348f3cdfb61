//! What can be done to many runs at a time.

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
        extract::Place,
        jobs,
        pause::AT_A_TIME,
        problem::{Kind, Problem},
        search::Rank,
        trigger,
    },
};

/// What is to become of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::http::dashboard) enum Deed {
    Cancel,
    Retry,
    Delete,
}

/// What became of one.
pub(super) enum Outcome {
    Done,
    /// It was so already, or it was too late.
    Needless,
    Failed(Problem),
}

impl FromStr for Deed {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let found = Self::ALL.into_iter().find(|deed| deed.word() == text);
        found.ok_or_else(|| Problem::new(Kind::BadRequest, "say what to do: cancel, retry or delete"))
    }
}

impl Deed {
    pub const ALL: [Self; 3] = [Self::Cancel, Self::Retry, Self::Delete];

    /// As it stands in addresses.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Delete => "delete",
        }
    }

    /// As people say it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cancel => "Cancel",
            Self::Retry => "Retry",
            Self::Delete => "Delete",
        }
    }

    /// As people say it when it was done.
    pub fn past(self) -> &'static str {
        match self {
            Self::Cancel => "cancelled",
            Self::Retry => "retried",
            Self::Delete => "deleted",
        }
    }

    /// What to know before.
    pub fn warning(self) -> &'static str {
        match self {
            Self::Cancel => "A cancelled run ends as failed at its next batch boundary. This cannot be undone.",
            Self::Retry => "A retry creates a new run with the same spec. Runs that were retried before are skipped.",
            Self::Delete => "Deletion removes a run with its failures and its history. This cannot be undone.",
        }
    }

    /// What it takes.
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

    /// Whether something can come of it.
    pub fn suits(self, job: &SyncJob) -> bool {
        match self {
            Self::Cancel => !is_finished(job) && !job.spec.cancelled,
            Self::Retry => is_finished(job) && !is_complete(job),
            Self::Delete => is_finished(job),
        }
    }
}

/// Does it to each, as the caller. Stops when Kubernetes does not do its part, and says why: of the runs after those that
/// it tells of, some may be done.
pub(super) async fn carry_out(
    app: &App,
    caller: &Caller,
    deed: Deed,
    ranks: &[Rank],
) -> (Vec<Outcome>, Option<Problem>) {
    let mut turns = stream::iter(ranks.to_vec()).map(|rank| one(app, caller, deed, rank)).buffered(AT_A_TIME);
    let (mut outcomes, mut deleted, mut stopped) = (Vec::new(), Vec::new(), None);
    while let Some((outcome, gone)) = turns.next().await {
        deleted.extend(gone);
        match outcome {
            Outcome::Failed(problem) if problem.kind() == Kind::Unavailable => {
                stopped = Some(problem);
                break;
            }
            outcome => outcomes.push(outcome),
        }
    }
    drop(turns);
    cleanup::note(app, caller, &deleted).await;
    (outcomes, stopped)
}

/// Does it to one; with the SyncJob, when that was deleted.
async fn one(app: &App, caller: &Caller, deed: Deed, rank: Rank) -> (Outcome, Option<Arc<SyncJob>>) {
    let place = Place { namespace: rank.namespace.to_string(), name: rank.name.to_string() };
    let result = match deed {
        Deed::Cancel => control::end(app, caller, &place).await.map(|controlled| (controlled.changed, None)),
        Deed::Retry => control::start_again(app, caller, &place).await.map(|(_, replayed)| (!replayed, None)),
        Deed::Delete => delete(app, caller, &place).await.map(|gone| (gone.is_some(), gone)),
    };
    match result {
        Ok((true, gone)) => (Outcome::Done, gone),
        Ok((false, _)) => (Outcome::Needless, None),
        Err(problem) if matches!(problem.kind(), Kind::Conflict | Kind::NotFound) => (Outcome::Needless, None),
        Err(problem) => (Outcome::Failed(problem), None),
    }
}

/// Deletes a run that has ended and that its schedule has counted.
async fn delete(app: &App, caller: &Caller, place: &Place) -> Result<Option<Arc<SyncJob>>, Problem> {
    app.access.check(caller, Deed::Delete.right(Some(&place.namespace)).on(&place.name)).await?;
    let job = jobs::find(app, place)?;
    if !is_finished(&job) || cleanup::is_in_books(&job, app.listed()?) {
        return Ok(None);
    }
    cleanup::delete(app.listed()?, job).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_deed_is_known_by_its_word() {
        for deed in Deed::ALL {
            assert_eq!(deed.word().parse(), Ok(deed));
            assert_eq!(serde_json::from_value(deed.word().into()).ok(), Some(deed));
        }
        assert!("suspend".parse::<Deed>().is_err());
    }
}
