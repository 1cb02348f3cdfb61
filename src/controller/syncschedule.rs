//! Reconciler of SyncSchedules: creates a SyncJob for every due slot and accounts for the runs in the status.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{Context, Error, admission::ObjectKey, ownership, status_patch};
use crate::{
    api::{
        REPLACED_BY_ANNOTATION, SUPERSEDED_BY_ANNOTATION, SyncJob, SyncSchedule, SyncScheduleStatus,
        syncschedule::ActiveRun,
    },
    cluster::{self, ReadResult, RequestClass, RequestPermit},
    domain::{
        ObjectEvent, elapsed,
        failure::{CREATE, Cause},
        installation, job,
        schedule::{self, ObservedSchedule, Parsed, SchedulePlan},
    },
    telemetry::metrics,
};

const READ: &str = "read a SyncJob";

pub(super) async fn reconcile(mut schedule: Arc<SyncSchedule>, context: Arc<Context>) -> Result<Action, Error> {
    if schedule.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let who = ObjectKey::from(&*schedule);
    let (start, report) = (context.starts.take_permit(&who), context.reports.take_permit(&who));
    context.cluster.ready().await;
    context.clock.compared().await;
    let mark = schedule.status.as_ref().and_then(|status| status.installation.as_deref());
    let namespace = schedule.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(owner) = context.peers.owner_of_schedule(namespace, mark).await {
        return leave(&schedule, &owner, &context).await;
    }
    if let Some(wait) = context.expectations.pending(&schedule, &context.cluster, Instant::now()) {
        return Ok(Action::requeue(wait));
    }
    let (mut jobs, mut plan) = observe_and_decide(&schedule, &who, &context).await?;
    let next = || plan.requeue.map_or_else(Action::await_change, Action::requeue);
    let starts = !plan.create.is_empty() || !plan.cancel.is_empty();
    let start = start.filter(|_| starts).or_else(|| starts.then(|| context.starts.enqueue(who.clone())).flatten());
    if starts && start.is_none() {
        return Ok(next());
    }
    // Status, before the actions: a run is in `status.active` before its SyncJob is created, and is removed from there before the SyncJob is
    // deleted.
    let mut written = SyncSchedule::clone(&schedule);
    if schedule.status.as_ref() != Some(&plan.status) {
        let permit = if starts {
            context.cluster.acquire(RequestClass::StartRun).await
        } else {
            // The next slot does not wait for this status write.
            let limit = plan.requeue.unwrap_or(Duration::MAX);
            let permit = match timeout(limit, context.acquire_report(who.clone(), report)).await {
                Ok(Some(permit)) => permit,
                Ok(None) => return Ok(next()),
                Err(_) => return Ok(Action::requeue(Duration::ZERO)),
            };
            let newest = context.cluster.schedules.get(&ObjectRef::from_obj(&*schedule));
            schedule = newest.filter(|newest| newest.uid() == schedule.uid()).unwrap_or(schedule);
            (jobs, plan) = observe_and_decide(&schedule, &who, &context).await?;
            permit
        };
        written = write_status(&schedule, &who, std::mem::take(&mut plan.status), &permit, &context).await?;
    }
    context.publish_events(&*schedule, std::mem::take(&mut plan.events));
    for (reason, count) in std::mem::take(&mut plan.skipped) {
        metrics::skipped(reason, count as u64);
    }
    let acted = Act { schedule: &schedule, who: &who, jobs: &jobs, context: &context }.carry_out(&plan, written).await;
    match acted {
        Ok(()) => Ok(plan.requeue.map_or_else(Action::await_change, Action::requeue)),
        Err(error @ Error::NotLeading) => Err(error),
        Err(error) => Err(Error::Partly { error: Box::new(error), next: plan.requeue }),
    }
}

/// Leaves a schedule to the installation that owns the schedule, and reports the conflict in the status.
async fn leave(schedule: &SyncSchedule, owner: &str, context: &Context) -> Result<Action, Error> {
    let (mut status, now) = (schedule.status.clone().unwrap_or_default(), context.clock.now());
    let event = installation::set_conflict(
        &mut status.conditions,
        owner,
        context.peers.me(),
        schedule.metadata.generation,
        now,
    );
    if schedule.status.as_ref() != Some(&status) {
        let permit = context.cluster.acquire(RequestClass::ReportStatus).await;
        write_status(schedule, &ObjectKey::Schedule(ObjectRef::from_obj(schedule)), status, &permit, context).await?;
        context.publisher.publish(schedule, event);
    }
    Ok(Action::requeue(ownership::CHECK_INTERVAL))
}

/// Reads the SyncJobs of a schedule, and decides.
async fn observe_and_decide(
    schedule: &SyncSchedule,
    who: &ObjectKey,
    context: &Context,
) -> Result<(Vec<Arc<SyncJob>>, SchedulePlan), Error> {
    let jobs = observe(schedule, who, context).await?;
    let made = context.expectations.expected(schedule);
    let queue_available = *context.queue_available.borrow();
    let conflicts = context.cluster.field_conflicts(schedule);
    let queue_owner = context.leadership.queue_owner();
    let skew = context.clock.skew();
    let failure = context.failures.shown(who);
    let namespace = schedule.metadata.namespace.as_deref().unwrap_or_default();
    let refusal = context.refusal(namespace, &schedule.spec.job_template.spec);
    let observed = ObservedSchedule {
        schedule,
        jobs: &jobs,
        made: &made,
        queue_available,
        queue_owner: queue_owner.as_deref(),
        clock_skew: skew.as_deref(),
        conflicts: &conflicts,
        not_allowed: refusal.as_ref().map(|refusal| refusal.message.as_str()),
        failure: failure.as_ref(),
    };
    let now = context.clock.now();
    let mut plan = schedule::decide(&observed, now);
    if let Some(wait) =
        context.failures.remaining_backoff(who, CREATE, Instant::now()).filter(|_| !plan.create.is_empty())
    {
        plan.create.clear();
        plan.requeue = plan.requeue.into_iter().chain([wait]).min();
    }
    if schedule.status.as_ref() != Some(&plan.status) {
        plan.status.installation = Some(context.peers.me().to_owned());
        installation::clear_conflict(&mut plan.status.conditions, context.peers.me(), now);
    }
    Ok((jobs, plan))
}

/// Returns the SyncJobs of the schedule. The cache may be stale, so active runs that the cache lacks are read, and unfinished SyncJobs that
/// are not in `status.active`. The watch has reported all SyncJobs that this process created (`Expectations::pending`). A SyncJob that this
/// release cannot read is returned as an outline.
async fn observe(schedule: &SyncSchedule, who: &ObjectKey, context: &Context) -> Result<Vec<Arc<SyncJob>>, Error> {
    let active = schedule.status.as_ref().map(|status| status.active.as_slice()).unwrap_or_default();
    let active_names: HashSet<&str> = active.iter().map(|run| run.name.as_str()).collect();
    let cached = context.cluster.jobs_of(schedule).into_iter();
    let (mut jobs, stray): (Vec<_>, Vec<_>) = cached.partition(|job| {
        job::is_finished(job) || job.metadata.deletion_timestamp.is_some() || active_names.contains(name(job))
    });
    let doubtful: Vec<String> = {
        let known: HashSet<&str> = jobs.iter().map(|job| name(job)).collect();
        let lacking = active.iter().map(|run| run.name.as_str()).filter(|run| !known.contains(run));
        lacking.chain(stray.iter().map(|job| name(job))).map(str::to_owned).collect()
    };
    let api = context.cluster.namespaced::<SyncJob>(&schedule.metadata);
    for name in doubtful {
        let live = context.read(who, READ, cluster::read_object(&api, &name)).await?;
        jobs.extend(live.map(ReadResult::into_outline).filter(|job| is_ours(schedule, job)).map(Arc::new));
    }
    Ok(jobs)
}

fn name(job: &SyncJob) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

fn is_ours(schedule: &SyncSchedule, job: &SyncJob) -> bool {
    job.namespace() == schedule.namespace()
        && cluster::controller_of(job).is_some_and(|uid| schedule.metadata.uid.as_deref() == Some(uid))
}

/// True when a SyncJob of another owner is about to disappear: the SyncJob is being deleted, or belonged to a deleted schedule of the same
/// name and will be collected.
fn is_leaving(schedule: &SyncSchedule, job: &SyncJob) -> bool {
    let was_of = |name: &str, uid: &str| schedule.name_any() == name && schedule.metadata.uid.as_deref() != Some(uid);
    let owner = job.owner_references().iter().find(|owner| owner.controller == Some(true));
    let is_left_over = owner.is_some_and(|owner| owner.kind == "SyncSchedule" && was_of(&owner.name, &owner.uid));
    job.metadata.deletion_timestamp.is_some() || is_left_over
}

/// Act stage: carries out a plan for a schedule.
struct Act<'a> {
    schedule: &'a SyncSchedule,
    who: &'a ObjectKey,
    jobs: &'a [Arc<SyncJob>],
    context: &'a Context,
}

impl Act<'_> {
    /// Carries out a plan. A failed action does not prevent the other actions. Returns the first error.
    async fn carry_out(&self, plan: &SchedulePlan, mut written: SyncSchedule) -> Result<(), Error> {
        let mut failed = Ok(());
        let mut collect = |result: Result<(), Error>| failed = std::mem::replace(&mut failed, Ok(())).and(result);
        for name in &plan.cancel {
            let replacement = plan.replacement.as_deref().unwrap_or_default();
            let text = format!("Cancelled SyncJob {name}: {replacement} replaces it");
            let event = ObjectEvent::normal("RunReplaced", text);
            collect(self.cancel(name, (REPLACED_BY_ANNOTATION, replacement), event).await);
        }
        for (name, later) in &plan.supersede {
            let text = format!("Cancelled the held SyncJob {name}: {later} supersedes it");
            let event = ObjectEvent::normal("RunSuperseded", text);
            collect(self.cancel(name, (SUPERSEDED_BY_ANNOTATION, later), event).await);
        }
        for run in &plan.create {
            match self.create(plan.parsed.as_ref(), run).await {
                Ok(true) => {}
                Ok(false) => collect(self.skip_foreign(run, &mut written).await),
                Err(error) => collect(Err(error)),
            }
        }
        for name in &plan.delete {
            collect(self.delete(name).await);
        }
        self.context.expectations.observe(&written);
        failed
    }

    /// Creates the SyncJob of a run. False when a SyncJob of that name exists that another owner controls.
    async fn create(&self, parsed: Option<&Parsed>, run: &ActiveRun) -> Result<bool, Error> {
        let Self { schedule, who, context, .. } = *self;
        let jobs = context.cluster.namespaced::<SyncJob>(&schedule.metadata);
        let (params, job) = (PostParams::default(), schedule::build_job(schedule, parsed, run));
        match context.write(who, RequestClass::StartRun, CREATE, jobs.create(&params, &job)).await {
            Ok(created) => {
                context.expectations.expect(schedule, &created, Instant::now());
                record_skew(schedule, parsed, run, context);
                let text = format!("Created SyncJob {}", run.name);
                context.publisher.publish(schedule, ObjectEvent::normal("RunCreated", text));
                Ok(true)
            }
            Err(Error::Cluster(error)) if error.is_already_exists() => {
                let existing = context.read(who, READ, cluster::read_object(&jobs, &run.name)).await?;
                let existing = existing.map(ReadResult::into_outline);
                if existing.as_ref().is_some_and(|job| is_ours(schedule, job)) {
                    return Ok(true);
                }
                if existing.is_some_and(|job| !is_leaving(schedule, &job)) {
                    return Ok(false);
                }
                let error = Error::Occupied(run.name.clone());
                context.fail(who, CREATE, Cause::Busy, &error.to_string(), Duration::ZERO);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a run from `status.active` whose SyncJob cannot be created, since its name is taken.
    async fn skip_foreign(&self, run: &ActiveRun, written: &mut SyncSchedule) -> Result<(), Error> {
        let Self { schedule, who, context, .. } = *self;
        let mut status = written.status.clone().unwrap_or_default();
        schedule::skip_on_name_collision(&mut status, run);
        let permit = context.cluster.acquire(RequestClass::ReportStatus).await;
        *written = write_status(written, who, status, &permit, context).await?;
        drop(permit);
        let text = format!("A SyncJob {} exists that is not this schedule's: the slot was skipped", run.name);
        context.publisher.publish(schedule, ObjectEvent::warning("NameCollision", text));
        metrics::skipped(schedule::skips::NAME_COLLISION, 1);
        Ok(())
    }

    /// Cancels a run that a newer run replaces. An annotation names the newer run.
    async fn cancel(&self, name: &str, (annotation, newer): (&str, &str), event: ObjectEvent) -> Result<(), Error> {
        let Self { schedule, who, context, .. } = *self;
        // The uid causes a conflict for another SyncJob of the same name.
        let metadata = json!({"uid": self.uid(name), "annotations": {annotation: newer}});
        let patch = Patch::Merge(json!({"metadata": metadata, "spec": {"cancelled": true}}));
        let jobs = context.cluster.namespaced::<ReadResult<SyncJob>>(&schedule.metadata);
        let (params, action) = (PatchParams::default(), "cancel a SyncJob");
        match context.write(who, RequestClass::StartRun, action, jobs.patch(name, &params, &patch)).await {
            Ok(_) => {
                context.publisher.publish(schedule, event);
                Ok(())
            }
            Err(Error::Cluster(error)) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, name: &str) -> Result<(), Error> {
        let Self { schedule, who, context, .. } = *self;
        let preconditions = Preconditions { uid: self.uid(name), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        let jobs = context.cluster.namespaced::<SyncJob>(&schedule.metadata);
        match context.write(who, RequestClass::ReportStatus, "delete a SyncJob", jobs.delete(name, &params)).await {
            Err(Error::Cluster(error)) if error.is_not_found() || error.is_conflict() => Ok(()),
            result => result.map(drop),
        }
    }

    fn uid(&self, job_name: &str) -> Option<String> {
        self.jobs.iter().find(|job| name(job) == job_name).and_then(|job| job.uid())
    }
}

/// Records the time between the start time of a run, jitter included, and the creation of its SyncJob.
fn record_skew(schedule: &SyncSchedule, parsed: Option<&Parsed>, run: &ActiveRun, context: &Context) {
    if let Some(parsed) = parsed.filter(|_| run.trigger.is_none()) {
        let start = parsed.start_of(run, &schedule.uid().unwrap_or_default());
        let skew = elapsed(start, context.clock.now()).as_secs_f64();
        metrics::SCHEDULE_SKEW.observe(skew);
        tracing::debug!(name = run.name, skew, "SyncJob created");
    }
}

/// Writes the status with the resource version that was decided on, so of two controllers that decide on the same state one is refused.
async fn write_status(
    schedule: &SyncSchedule,
    who: &ObjectKey,
    status: SyncScheduleStatus,
    permit: &RequestPermit<'_>,
    context: &Context,
) -> Result<SyncSchedule, Error> {
    let patch = status_patch(&schedule.metadata, schedule.status.as_ref(), &status);
    let schedules = context.cluster.namespaced::<SyncSchedule>(&schedule.metadata);
    let (action, name, params) = ("write a SyncSchedule's status", schedule.name_any(), PatchParams::default());
    let written = context.send(who, permit, action, schedules.patch_status(&name, &params, &patch)).await;
    metrics::status_written("SyncSchedule", written.is_ok());
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use serde_json::Value;

    #[test]
    fn a_job_of_a_deleted_schedule_of_the_same_name_is_leaving() {
        let schedule = fixtures::schedule(json!({"metadata": {"name": "s", "namespace": "a", "uid": "new"}}));
        let job = |owner: Value, deleted: Value| {
            let metadata =
                json!({"name": "s-1", "namespace": "a", "ownerReferences": owner, "deletionTimestamp": deleted});
            fixtures::job(json!({"metadata": metadata}))
        };
        let owner = |name: &str, uid: &str| json!([fixtures::owner(name, uid)]);
        for (owner, deleted, leaves) in [
            (owner("s", "old"), json!(null), true),
            (owner("s", "new"), json!(null), false),
            (owner("other", "old"), json!(null), false),
            (json!(null), json!(null), false),
            (json!(null), json!("2026-11-24T10:00:00Z"), true),
        ] {
            assert_eq!(is_leaving(&schedule, &job(owner.clone(), deleted)), leaves, "{owner}");
        }
    }
}
