//! Makes a SyncJob for every due slot of a SyncSchedule, and keeps its books.

use std::sync::Arc;

use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::controller::Action,
};
use serde_json::json;

use super::{Context, Error};
use crate::{
    api::{SyncJob, SyncSchedule, SyncScheduleStatus, syncschedule::ActiveRun},
    cluster,
    domain::{
        Note, elapsed, job,
        schedule::{self, Observed, Parsed},
    },
    telemetry::metrics,
};

pub(super) async fn reconcile(schedule: Arc<SyncSchedule>, context: Arc<Context>) -> Result<Action, Error> {
    if schedule.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    // Observe.
    let jobs = observe(&schedule, &context).await?;
    let queue_available = *context.queue_available.borrow();
    // Decide.
    let observed = Observed { schedule: &schedule, jobs: &jobs, queue_available };
    let plan = schedule::decide(&observed, Timestamp::now());
    // Status. It comes first: a run is in the books before it exists, and out of them before it is deleted.
    let mut written = write_status(&schedule, plan.status, plan.create.is_empty(), &context).await?;
    context.tell(&*schedule, &plan.notes).await;
    for (reason, count) in plan.skipped {
        metrics::skipped(reason, count as u64);
    }
    // Act.
    for name in &plan.cancel {
        cancel(&schedule, name, &jobs, &context).await?;
    }
    for run in &plan.create {
        if !create(&schedule, plan.parsed.as_ref(), run, &context).await? {
            let mut status = written.status.clone().unwrap_or_default();
            schedule::collided(&mut status, run);
            written = write_status(&written, status, false, &context).await?;
            let text = format!("A SyncJob {} exists that is not this schedule's: the slot was skipped", run.name);
            context.tell(&*schedule, &[Note::warning("NameCollision", text)]).await;
            metrics::skipped(schedule::skips::NAME_COLLISION, 1);
        }
    }
    for name in &plan.delete {
        delete(&schedule, name, &jobs, &context).await?;
    }
    Ok(plan.requeue.map_or_else(Action::await_change, Action::requeue))
}

/// The schedule's SyncJobs. The cache may be behind, so those are asked for that it lacks of the books, and those that
/// are unfinished there without being in the books.
async fn observe(schedule: &SyncSchedule, context: &Context) -> Result<Vec<Arc<SyncJob>>, Error> {
    context.cluster.ready().await;
    let active = schedule.status.as_ref().map(|status| status.active.as_slice()).unwrap_or_default();
    let in_books = |job: &SyncJob| active.iter().any(|run| run.name == job.name_any());
    let cached = context.cluster.jobs_of(schedule).into_iter();
    let (mut jobs, stray): (Vec<_>, Vec<_>) = cached.partition(|job| job::is_finished(job) || in_books(job));
    let lacking = active.iter().filter(|run| !jobs.iter().any(|job| job.name_any() == run.name));
    let doubtful: Vec<_> = lacking.map(|run| run.name.clone()).chain(stray.iter().map(|job| job.name_any())).collect();
    let api = context.cluster.beside::<SyncJob>(&schedule.metadata);
    for name in doubtful {
        let live = context.cluster.ask("read a SyncJob", api.get_opt(&name)).await?;
        jobs.extend(live.filter(|job| is_ours(schedule, job)).map(Arc::new));
    }
    Ok(jobs)
}

fn is_ours(schedule: &SyncSchedule, job: &SyncJob) -> bool {
    job.namespace() == schedule.namespace()
        && cluster::controller_of(job).is_some_and(|uid| schedule.metadata.uid.as_deref() == Some(uid))
}

/// Creates the SyncJob of a run. False when its name is taken by one that is not ours.
async fn create(
    schedule: &SyncSchedule,
    parsed: Option<&Parsed>,
    run: &ActiveRun,
    context: &Context,
) -> Result<bool, Error> {
    let jobs = context.cluster.beside::<SyncJob>(&schedule.metadata);
    match context
        .start("create a SyncJob", jobs.create(&PostParams::default(), &schedule::job_for(schedule, parsed, run)))
        .await
    {
        Ok(_) => {
            note_skew(schedule, parsed, run);
            let text = format!("Created SyncJob {}", run.name);
            context.tell(schedule, &[Note::normal("RunCreated", text)]).await;
            Ok(true)
        }
        Err(Error::Cluster(error)) if error.is_already_exists() => {
            let existing = context.cluster.ask("read a SyncJob", jobs.get_opt(&run.name)).await?;
            Ok(existing.is_none_or(|job| is_ours(schedule, &job)))
        }
        Err(error) => Err(error),
    }
}

/// How long after its time a run was made, jitter included in its time.
fn note_skew(schedule: &SyncSchedule, parsed: Option<&Parsed>, run: &ActiveRun) {
    if let Some(parsed) = parsed.filter(|_| run.trigger.is_none()) {
        let start = parsed.slots(&schedule.uid().unwrap_or_default()).start(run.slot.0);
        metrics::SCHEDULE_SKEW.observe(elapsed(start, Timestamp::now()).as_secs_f64());
    }
}

/// Cancels a run that a newer one is to replace. The newer one is created when this one has ended.
async fn cancel(schedule: &SyncSchedule, name: &str, jobs: &[Arc<SyncJob>], context: &Context) -> Result<(), Error> {
    let uid = jobs.iter().find(|job| job.name_any() == name).and_then(|job| job.uid());
    // The uid makes this a conflict for another SyncJob of the same name.
    let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "spec": {"cancelled": true}}));
    let api = context.cluster.beside::<SyncJob>(&schedule.metadata);
    match context.write("cancel a SyncJob", api.patch(name, &PatchParams::default(), &patch)).await {
        Ok(_) => {
            let text = format!("Cancelled SyncJob {name}: a newer run replaces it");
            context.tell(schedule, &[Note::normal("RunReplaced", text)]).await;
            Ok(())
        }
        Err(Error::Cluster(error)) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn delete(schedule: &SyncSchedule, name: &str, jobs: &[Arc<SyncJob>], context: &Context) -> Result<(), Error> {
    let uid = jobs.iter().find(|job| job.name_any() == name).and_then(|job| job.uid());
    let preconditions = Preconditions { uid, resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    let api = context.cluster.beside::<SyncJob>(&schedule.metadata);
    match context.write("delete a SyncJob", api.delete(name, &params)).await {
        Err(Error::Cluster(error)) if error.is_not_found() || error.is_conflict() => Ok(()),
        result => result.map(drop),
    }
}

/// Writes the status, unless it is as it was: `calmly` when it starts no run, and so can wait for its turn. The write
/// carries the resource version it was decided on, so of two controllers that decide on the same state one is refused.
async fn write_status(
    schedule: &SyncSchedule,
    status: SyncScheduleStatus,
    calmly: bool,
    context: &Context,
) -> Result<SyncSchedule, Error> {
    let mut next = schedule.clone();
    if next.status.as_ref() == Some(&status) {
        return Ok(next);
    }
    next.status = Some(status);
    let schedules = context.cluster.beside::<SyncSchedule>(&schedule.metadata);
    let (action, name, params) = ("write a SyncSchedule's status", schedule.name_any(), PostParams::default());
    let request = schedules.replace_status(&name, &params, &next);
    if calmly {
        context.pace.turn().await;
        context.write(action, request).await
    } else {
        context.start(action, request).await
    }
}
