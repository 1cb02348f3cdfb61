//! Makes a SyncJob for every due slot of a SyncSchedule, and keeps its books.

use std::sync::Arc;

use jiff::Timestamp;
use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
    runtime::{controller::Action, reflector::ObjectRef},
};

use super::{Context, Error};
use crate::{
    api::{SCHEDULE_LABEL, SLOT_ANNOTATION, SyncJob, SyncSchedule, SyncScheduleStatus, syncschedule::ActiveRun},
    cluster::ask,
    domain::{
        Note,
        schedule::{self, Observed, Parsed},
    },
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
    let mut written = write_status(&schedule, plan.status, &context).await?;
    context.tell(&*schedule, &plan.notes).await;
    // Act.
    for run in &plan.create {
        if !create(&schedule, run, &context).await? {
            let mut status = written.status.clone().unwrap_or_default();
            schedule::collided(&mut status, run);
            written = write_status(&written, status, &context).await?;
            let text = format!("A SyncJob {} exists that is not this schedule's: the slot was skipped", run.name);
            context.tell(&*schedule, &[Note::warning("NameCollision", text)]).await;
        }
    }
    for name in &plan.delete {
        delete(&schedule, name, &jobs, &context).await?;
    }
    Ok(plan.requeue.map_or_else(Action::await_change, Action::requeue))
}

/// The schedule's SyncJobs. The cache may be behind: a run in the books that it does not have is asked for.
async fn observe(schedule: &SyncSchedule, context: &Context) -> Result<Vec<Arc<SyncJob>>, Error> {
    context.cluster.ready().await;
    let mut jobs = context.cluster.jobs.state();
    jobs.retain(|job| is_ours(schedule, job));
    let active = schedule.status.as_ref().map(|status| status.active.as_slice()).unwrap_or_default();
    for run in active.iter().filter(|run| run.uid.is_some()) {
        let key = ObjectRef::new(&run.name).within(&schedule.namespace().unwrap_or_default());
        if context.cluster.jobs.get(&key).is_none() {
            let live = context.cluster.beside::<SyncJob>(&schedule.metadata);
            let live = ask("read a SyncJob", live.get_opt(&run.name)).await?;
            jobs.extend(live.filter(|job| is_ours(schedule, job)).map(Arc::new));
        }
    }
    Ok(jobs)
}

fn is_ours(schedule: &SyncSchedule, job: &SyncJob) -> bool {
    let uid = schedule.metadata.uid.as_deref().unwrap_or_default();
    job.namespace() == schedule.namespace()
        && job.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// Creates the SyncJob of a run. False when its name is taken by one that is not ours.
async fn create(schedule: &SyncSchedule, run: &ActiveRun, context: &Context) -> Result<bool, Error> {
    let jobs = context.cluster.beside::<SyncJob>(&schedule.metadata);
    match context.write("create a SyncJob", jobs.create(&PostParams::default(), &build(schedule, run))).await {
        Ok(_) => {
            let text = format!("Created SyncJob {}", run.name);
            context.tell(schedule, &[Note::normal("RunCreated", text)]).await;
            Ok(true)
        }
        Err(Error::Cluster(error)) if error.is_already_exists() => {
            let existing = ask("read a SyncJob", jobs.get_opt(&run.name)).await?;
            Ok(existing.is_none_or(|job| is_ours(schedule, &job)))
        }
        Err(error) => Err(error),
    }
}

fn build(schedule: &SyncSchedule, run: &ActiveRun) -> SyncJob {
    let template = schedule.spec.job_template.clone();
    let mut job = SyncJob::new(&run.name, template.spec);
    if job.spec.stale_after.is_none() {
        job.spec.stale_after = Parsed::new(&schedule.spec).ok().map(|parsed| parsed.stale_after());
    }
    job.metadata.namespace = schedule.namespace();
    job.metadata.owner_references = Some(schedule.controller_owner_ref(&()).into_iter().collect());
    job.metadata.labels = Some(template.metadata.labels);
    job.metadata.annotations = Some(template.metadata.annotations);
    job.labels_mut().insert(SCHEDULE_LABEL.to_owned(), schedule.name_any());
    job.annotations_mut().insert(SLOT_ANNOTATION.to_owned(), run.slot.0.to_string());
    job
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

/// Writes the status, unless it is as it was. The write carries the resource version it was decided on, so of
/// two controllers that decide on the same state one is refused.
async fn write_status(
    schedule: &SyncSchedule,
    status: SyncScheduleStatus,
    context: &Context,
) -> Result<SyncSchedule, Error> {
    let mut next = schedule.clone();
    if next.status.as_ref() == Some(&status) {
        return Ok(next);
    }
    next.status = Some(status);
    context.pace.turn().await;
    let schedules = context.cluster.beside::<SyncSchedule>(&schedule.metadata);
    let name = schedule.name_any();
    context.write("write a SyncSchedule's status", schedules.replace_status(&name, &PostParams::default(), &next)).await
}
