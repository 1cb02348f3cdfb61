//! Reconciler of SyncJobs: enqueues runs, applies the desired state to the queue, and projects the run onto the status.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{DeleteParams, PatchParams, Preconditions},
    runtime::controller::Action,
};
use tokio::time::Instant;

use super::{
    Context, Error,
    admission::{ObjectKey, Permit},
    ownership, status_patch, trace,
};
use crate::{
    api::conditions::{self, reasons},
    api::{SyncJob, SyncJobStatus},
    cluster::{self, RequestClass, RequestPermit},
    domain::{
        conditions as merged, elapsed, failure, installation,
        job::{self, JobPlan},
        needs,
        run::{DesiredState, Payload, Run, RunSpec, State},
    },
    queue::{self, Control, Entry, NewRun},
    telemetry::{metrics, record_write},
};

/// Requeue while Redis is unavailable. The return of Redis triggers a reconciliation at once, so this is only a safety
/// net.
const QUEUE_UNAVAILABLE_REQUEUE: Duration = Duration::from_secs(30);
/// Shortest and longest requeue of a SyncJob whose end waits for its SyncSchedule to list it as active.
const ACCOUNTING_REQUEUE: Duration = Duration::from_millis(50);
const MAX_ACCOUNTING_REQUEUE: Duration = Duration::from_secs(2);

pub(super) async fn reconcile(job: Arc<SyncJob>, context: Arc<Context>) -> Result<Action, Error> {
    let now = context.clock.now();
    let Some(uid) = job.uid() else { return Ok(Action::await_change()) };
    if job.metadata.deletion_timestamp.is_some() {
        // A finalizer of a user may keep the SyncJob for long. The run does not wait for that.
        context.queue.remove(&uid).await?;
        context.quotas.release(&uid);
        return Ok(Action::await_change());
    }
    if job::is_finished(&job) {
        context.throttle.forget(&uid);
        return expire(&job, &context, now).await;
    }
    if let Some(owner) = other_owner(&job, &context).await {
        return leave(&job, &uid, &owner, &context, now).await;
    }
    let who = ObjectKey::from(&*job);
    let reserved = context.reports.take_permit(&who);
    let plan = match observe_and_decide(&job, &uid, &context, now).await {
        Ok(plan) => plan,
        Err(error) => return wait_for_queue(&job, &uid, &error, reserved, &context, now).await,
    };
    // Act.
    if plan.enqueue {
        return match enqueue(&job, &uid, &context).await {
            Err(Error::Queue(error)) => wait_for_queue(&job, &uid, &error, reserved, &context, now).await,
            enqueued => enqueued.map(|()| Action::await_change()),
        };
    }
    if let Some(desired) = plan.control {
        let end = plan.end.clone().or_else(|| desired.cancelled.then(|| job::cancelled(&job)));
        let cancelled = end.map(|outcome| json(&outcome));
        let DesiredState { suspended, priority, approved, .. } = desired;
        context.queue.control(&uid, Control { suspended, cancelled: cancelled.as_deref(), priority, approved }).await?;
    }
    // Status.
    if job.status.as_ref() == Some(&plan.status) {
        return Ok(next(&plan));
    }
    if let Some(wait) =
        context.throttle.stale_cache_delay(&uid, job.metadata.resource_version.as_deref(), Instant::now())
    {
        return Ok(Action::requeue(wait));
    }
    if let Some(schedule) = context.cluster.schedule_of(&job).filter(|_| job::has_ended(&plan.status)) {
        let waited = context.throttle.since_end(&uid, Instant::now());
        if job::awaits_accounting(&job, &plan.status, &schedule, waited) {
            return Ok(Action::requeue(waited.clamp(ACCOUNTING_REQUEUE, MAX_ACCOUNTING_REQUEUE)));
        }
    }
    if let Some(wait) = context.throttle.initial_delay(&uid).filter(|_| !job::has_ended(&plan.status)) {
        return Ok(Action::requeue(wait));
    }
    let (plan, permit) = if is_progress_only(&job, &plan) {
        if let Some(wait) = context.throttle.progress_delay(&uid) {
            return Ok(Action::requeue(wait));
        }
        (plan, context.cluster.acquire(RequestClass::ReportStatus).await)
    } else {
        let Some(permit) = context.acquire_report(who.clone(), reserved).await else {
            return Ok(Action::await_change());
        };
        (observe_and_decide(&job, &uid, &context, context.clock.now()).await?, permit)
    };
    if plan.enqueue {
        return Ok(Action::requeue(Duration::ZERO));
    }
    let next = next(&plan);
    write_status(&job, &uid, plan.status, &permit, &context).await?;
    drop(permit);
    context.publish_events(&*job, plan.events);
    Ok(next)
}

fn next(plan: &JobPlan) -> Action {
    plan.requeue.map_or_else(Action::await_change, Action::requeue)
}

/// Other installation that owns a SyncJob.
async fn other_owner(job: &SyncJob, context: &Context) -> Option<String> {
    if let Some(schedule) = context.cluster.schedule_of(job) {
        let mark = schedule.status.as_ref().and_then(|status| status.installation.as_deref());
        return context.peers.owner(mark).await;
    }
    let mark = job.status.as_ref().and_then(|status| status.installation.as_deref());
    context.peers.owner_of_job(job.metadata.namespace.as_deref().unwrap_or_default(), mark).await
}

/// Leaves a SyncJob to the installation that owns the SyncJob. Without a schedule that reports the conflict, the status
/// of the SyncJob does.
async fn leave(job: &SyncJob, uid: &str, owner: &str, context: &Context, now: Timestamp) -> Result<Action, Error> {
    let mut status = job.status.clone().unwrap_or_default();
    let event =
        installation::set_conflict(&mut status.conditions, owner, context.peers.me(), job.metadata.generation, now);
    if job.status.as_ref() != Some(&status) && context.cluster.schedule_of(job).is_none() {
        let permit = context.cluster.acquire(RequestClass::ReportStatus).await;
        write_status(job, uid, status, &permit, context).await?;
        context.publish_events(job, vec![event]);
    }
    Ok(Action::requeue(ownership::CHECK_INTERVAL))
}

/// Reads the run from the queue, and decides.
async fn observe_and_decide(
    job: &SyncJob,
    uid: &str,
    context: &Context,
    now: Timestamp,
) -> Result<JobPlan, queue::Error> {
    let entry = context.queue.get(uid).await?;
    let is_asking = |entry: &Entry| entry.state == State::Waiting && entry.needs > needs::FIRST;
    let highest_level = if entry.as_ref().is_some_and(is_asking) { context.queue.highest_level().await? } else { None };
    let has_workers = context.redis.has_workers();
    let refusal = context.refusal(job.metadata.namespace.as_deref().unwrap_or_default(), &job.spec);
    let mut run = entry.as_ref().map(|entry| Run { has_workers, ..parse_run(entry, highest_level) });
    if let Some(run) = run.as_mut().filter(|_| refusal.is_some()) {
        run.checkpoint.hide_keys();
    }
    let restored =
        job::restored_without_status(job, context.cluster.schedule_of(job).is_some()).filter(|_| run.is_none());
    let mut plan = restored
        .map_or_else(|| job::decide(job, run.as_ref(), now), |outcome| job::end_without_run(job, &outcome, now));
    if let Some(outcome) = refusal {
        job::refuse(&mut plan, job, run.as_ref(), (outcome, now));
    }
    if let Some(limit) = context.run_limit(job.metadata.namespace.as_deref().unwrap_or_default()) {
        let use_ = job::queue_use(job, run.as_ref(), &plan, now);
        if !context.quotas.admit((job, uid), use_, limit, (&context.cluster, &context.queue)).await? {
            job::wait_for_quota(&mut plan, job, run.as_ref(), (limit, now));
        }
    }
    // The default database of the installation was changed, or the installation has adopted the queue.
    let is_other = |entry: &Entry| entry.installation.as_ref().is_some_and(|of| *of != context.queue.installation());
    let is_unfinished = |entry: &Entry| !matches!(entry.state, State::Completed | State::Failed);
    if context.leadership.owns_queue() && entry.is_some_and(|entry| is_other(&entry) && is_unfinished(&entry)) {
        plan.control.get_or_insert_with(|| DesiredState::from(job));
    }
    let failure = context.failures.shown(&ObjectKey::from(job)).filter(|_| !job::has_ended(&plan.status));
    if let Some(failure) = failure {
        failure::mark_run(&mut plan.status.conditions, &failure, job.metadata.generation, now);
    }
    if job.status.as_ref() != Some(&plan.status) {
        plan.status.installation = Some(context.peers.me().to_owned());
        installation::clear_conflict(&mut plan.status.conditions, context.peers.me(), now);
    }
    Ok(plan)
}

/// Writes the reason for which the run is not in the queue, or cannot be read, into the status.
async fn wait_for_queue(
    job: &SyncJob,
    uid: &str,
    error: &queue::Error,
    reserved: Option<Permit>,
    context: &Context,
    now: Timestamp,
) -> Result<Action, Error> {
    tracing::debug!(uid, %error, "the run cannot be read");
    let (reason, message) = match error {
        queue::Error::Owned => {
            let owner = context.leadership.queue_owner();
            let message = installation::queue_is_owned(owner.as_deref().unwrap_or("that asserted it first"));
            (reasons::INSTALLATION_CONFLICT, message)
        }
        error => unknown(error),
    };
    let status = job::unknown(job, reason, &message, now);
    let who = ObjectKey::from(job);
    if job.status.as_ref() != Some(&status)
        && let Some(permit) = context.acquire_report(who, reserved).await
    {
        write_status(job, uid, status, &permit, context).await?;
    }
    Ok(Action::requeue(QUEUE_UNAVAILABLE_REQUEUE))
}

fn unknown(error: &queue::Error) -> (&'static str, String) {
    let then = "the run continues, or is queued again, when";
    match (error, error.answer()) {
        (queue::Error::Unreadable { .. }, _) => (
            reasons::UNKNOWN_FORMAT,
            "The run in Redis was written by another release and is not changed; it continues with that release"
                .to_owned(),
        ),
        (_, Some(answer)) => (reasons::QUEUE_UNAVAILABLE, format!("{answer}; {then} Redis accepts the request")),
        (_, None) => (reasons::QUEUE_UNAVAILABLE, format!("Redis does not answer; {then} Redis is available again")),
    }
}

/// Enqueues a run. The cache may be stale, and a finished SyncJob must never run again, so the SyncJob is read first,
/// unless this process has just created the SyncJob.
async fn enqueue(job: &SyncJob, uid: &str, context: &Context) -> Result<(), Error> {
    let live = if context.expectations.is_new(job, Instant::now()) {
        job.clone()
    } else {
        let jobs = context.cluster.namespaced::<SyncJob>(&job.metadata);
        let live =
            context.read(&ObjectKey::from(job), "read a SyncJob", cluster::get_opt(&jobs, &job.name_any())).await?;
        let Some(live) = live else { return Ok(()) };
        live
    };
    if live.uid().as_deref() != Some(uid) || job::is_finished(&live) || live.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let payload =
        Payload { namespace: job.namespace().unwrap_or_default(), name: job.name_any(), spec: live.spec.clone() };
    let trace = trace::root_of(job);
    let recorded = job::recorded(&live, context.clock.now());
    let run = NewRun {
        uid,
        namespace: &payload.namespace,
        payload: &json(&payload),
        priority: live.spec.priority,
        // A cancelled run is enqueued for its rollback, and only a run that has begun is rolled back.
        started: recorded.started.or_else(|| live.spec.cancelled.then(|| context.clock.now())),
        attempts: recorded.attempts,
        recoveries: recorded.recoveries,
        history: &json(&recorded.history),
        suspended: recorded.parked_since,
        parked_for: recorded.parked_for,
        rollback: RunSpec::parse(&live.spec).is_ok_and(|spec| spec.rollback),
        traceparent: trace.map(|root| root.span.to_string()),
        needs: context.queue.level().needed_for(&live.spec, context.policy.get().tenants.is_some()),
    };
    let enqueued = context.queue.enqueue(&run).await;
    if !matches!(enqueued, Err(queue::Error::Owned)) {
        record_write(&enqueued, enqueued.as_ref().is_err_and(|error| error.refusal().is_some()));
    }
    if enqueued? {
        let trace_id = trace::id(trace);
        tracing::info!(namespace = payload.namespace, name = payload.name, uid, trace_id, "run enqueued");
    }
    // The SyncJob may have been deleted meanwhile, and its run removed before the run was in the queue.
    if !context.cluster.has_job(uid) {
        context.queue.remove(uid).await?;
    }
    Ok(())
}

async fn write_status(
    job: &SyncJob,
    uid: &str,
    status: SyncJobStatus,
    permit: &RequestPermit<'_>,
    context: &Context,
) -> Result<(), Error> {
    let ended = job::has_ended(&status);
    let patch = status_patch(&job.metadata, job.status.as_ref(), &status);
    let jobs = context.cluster.namespaced::<SyncJob>(&job.metadata);
    let (action, name, params) = ("write a SyncJob's status", job.name_any(), PatchParams::default());
    context.throttle.begin_write(uid, job.resource_version());
    let written = context.send(&ObjectKey::from(job), permit, action, jobs.patch_status(&name, &params, &patch)).await;
    context.throttle.finish_write(uid, written.is_ok());
    metrics::status_written("SyncJob", written.is_ok());
    written?;
    if ended {
        let mut next = job.clone();
        next.status = Some(status);
        record_end(&next);
    }
    Ok(())
}

/// Records the metrics and the trace of a run whose end was written into the status.
fn record_end(job: &SyncJob) {
    let Some(status) = &job.status else { return };
    let complete = job::is_complete(job);
    let condition = if complete { conditions::COMPLETE } else { conditions::FAILED };
    let reason = merged::find(&status.conditions, condition).map_or("", |condition| condition.reason.as_str());
    let took = status.duration.as_ref().and_then(|duration| duration.parse().ok());
    let trace = trace::root_of(job);
    trace::send(trace, job, status, (!complete).then_some(reason));
    metrics::run_ended(job.spec.type_, complete, reason, took, trace::id(trace));
}

/// True when only progress differs, so that a later write loses nothing.
fn is_progress_only(job: &SyncJob, plan: &JobPlan) -> bool {
    let Some(old) = &job.status else { return false };
    let mut same = plan.status.clone();
    same.progress = old.progress;
    same.counts = old.counts;
    same.failures.clone_from(&old.failures);
    same.changes.clone_from(&old.changes);
    same == *old && plan.status != *old
}

/// Deletes a finished SyncJob whose `ttlAfterFinished` has passed.
async fn expire(job: &SyncJob, context: &Context, now: Timestamp) -> Result<Action, Error> {
    let Some(at) = job::expires_at(job) else { return Ok(Action::await_change()) };
    if at > now {
        return Ok(Action::requeue(elapsed(now, at)));
    }
    let preconditions = Preconditions { uid: job.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    let jobs = context.cluster.namespaced::<SyncJob>(&job.metadata);
    let (who, action) = (ObjectKey::from(job), "delete a SyncJob");
    match context.write(&who, RequestClass::ReportStatus, action, jobs.delete(&job.name_any(), &params)).await {
        Err(Error::Cluster(error)) if error.is_not_found() => Ok(Action::await_change()),
        result => result.map(|_| Action::await_change()),
    }
}

fn parse_run(entry: &Entry, highest_level: Option<u32>) -> Run {
    let or_null = |text: &Option<String>| text.as_deref().unwrap_or("null").to_owned();
    Run {
        state: entry.state,
        worker: entry.worker.clone(),
        attempts: entry.attempts,
        recoveries: entry.recoveries,
        started: entry.started,
        parked_for: entry.parked_for,
        has_workers: true,
        retry_at: entry.retry_at,
        finished: entry.finished,
        checkpoint: serde_json::from_str(&or_null(&entry.checkpoint)).unwrap_or_default(),
        history: serde_json::from_str(&entry.history).unwrap_or_default(),
        outcome: serde_json::from_str(&or_null(&entry.outcome)).unwrap_or_default(),
        desired: DesiredState {
            suspended: entry.suspended,
            cancelled: entry.cancelled,
            priority: entry.priority,
            approved: entry.approved,
        },
        lacks_level: highest_level.filter(|highest| *highest < entry.needs).map(|_| entry.needs),
    }
}

pub(super) fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Payload of a run in the queue.
pub(super) fn payload(entry: &Entry) -> Option<Payload> {
    serde_json::from_str(&entry.payload).ok()
}
