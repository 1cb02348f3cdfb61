//! Makes a SyncJob for every due slot of a SyncSchedule, and keeps its books.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{Context, Error, line::Writer, ownership, status_patch};
use crate::{
    api::{
        REPLACED_BY_ANNOTATION, SUPERSEDED_BY_ANNOTATION, SyncJob, SyncSchedule, SyncScheduleStatus,
        syncschedule::ActiveRun,
    },
    cluster::{self, Lane, Turn},
    domain::{
        Note, elapsed, installation, job,
        schedule::{self, Observed, Parsed, Plan},
    },
    telemetry::metrics,
};

pub(super) async fn reconcile(mut schedule: Arc<SyncSchedule>, context: Arc<Context>) -> Result<Action, Error> {
    if schedule.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let who = Writer::Schedule(ObjectRef::from_obj(&*schedule));
    let (start, report) = (context.starts.kept(&who), context.reports.kept(&who));
    context.cluster.ready().await;
    context.clock.compared().await;
    let mark = schedule.status.as_ref().and_then(|status| status.installation.as_deref());
    let namespace = schedule.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(owner) = context.peers.owner_of_schedule(namespace, mark).await {
        return leave(&schedule, &owner, &context).await;
    }
    if let Some(wait) = context.made.unseen(&schedule, &context, Instant::now()) {
        return Ok(Action::requeue(wait));
    }
    let (mut jobs, mut plan) = look(&schedule, &context).await?;
    let next = || plan.requeue.map_or_else(Action::await_change, Action::requeue);
    let starts = !plan.create.is_empty() || !plan.cancel.is_empty();
    let start = start.filter(|_| starts).or_else(|| starts.then(|| context.starts.enter(who.clone())).flatten());
    if starts && start.is_none() {
        return Ok(next());
    }
    // Status. It comes first: a run is in the books before it exists, and out of them before it is deleted.
    let mut written = SyncSchedule::clone(&schedule);
    if schedule.status.as_ref() != Some(&plan.status) {
        let turn = if starts {
            context.cluster.turn(Lane::Starts).await
        } else {
            // The next slot does not wait behind what this one has to tell.
            let limit = plan.requeue.unwrap_or(Duration::MAX);
            let turn = match timeout(limit, context.report_turn(who, report)).await {
                Ok(Some(turn)) => turn,
                Ok(None) => return Ok(next()),
                Err(_) => return Ok(Action::requeue(Duration::ZERO)),
            };
            let newest = context.cluster.schedules.get(&ObjectRef::from_obj(&*schedule));
            schedule = newest.filter(|newest| newest.uid() == schedule.uid()).unwrap_or(schedule);
            (jobs, plan) = look(&schedule, &context).await?;
            turn
        };
        written = write_status(&schedule, plan.status, &turn, &context).await?;
    }
    context.tell(&*schedule, plan.notes);
    for (reason, count) in plan.skipped {
        metrics::skipped(reason, count as u64);
    }
    // Act.
    for name in &plan.cancel {
        let replacement = plan.replacement.as_deref().unwrap_or_default();
        let text = format!("Cancelled SyncJob {name}: {replacement} replaces it");
        let note = Note::normal("RunReplaced", text);
        cancel(&schedule, name, (REPLACED_BY_ANNOTATION, replacement), note, &jobs, &context).await?;
    }
    for (name, later) in &plan.supersede {
        let note = Note::normal("RunSuperseded", format!("Cancelled the held SyncJob {name}: {later} supersedes it"));
        cancel(&schedule, name, (SUPERSEDED_BY_ANNOTATION, later), note, &jobs, &context).await?;
    }
    for run in &plan.create {
        if !create(&schedule, plan.parsed.as_ref(), run, &context).await? {
            let mut status = written.status.clone().unwrap_or_default();
            schedule::collided(&mut status, run);
            let turn = context.cluster.turn(Lane::Reports).await;
            written = write_status(&written, status, &turn, &context).await?;
            drop(turn);
            let text = format!("A SyncJob {} exists that is not this schedule's: the slot was skipped", run.name);
            context.news.tell(&*schedule, Note::warning("NameCollision", text));
            metrics::skipped(schedule::skips::NAME_COLLISION, 1);
        }
    }
    for name in &plan.delete {
        delete(&schedule, name, &jobs, &context).await?;
    }
    context.made.keep(&written);
    Ok(plan.requeue.map_or_else(Action::await_change, Action::requeue))
}

/// Leaves a schedule to the installation that works on it, and says so.
async fn leave(schedule: &SyncSchedule, owner: &str, context: &Context) -> Result<Action, Error> {
    let (mut status, now) = (schedule.status.clone().unwrap_or_default(), context.clock.now());
    let note = installation::note_conflict(
        &mut status.conditions,
        owner,
        context.peers.me(),
        schedule.metadata.generation,
        now,
    );
    if schedule.status.as_ref() != Some(&status) {
        let turn = context.cluster.turn(Lane::Reports).await;
        write_status(schedule, status, &turn, context).await?;
        context.news.tell(schedule, note);
    }
    Ok(Action::requeue(ownership::LOOK))
}

/// Observes, and decides.
async fn look(schedule: &SyncSchedule, context: &Context) -> Result<(Vec<Arc<SyncJob>>, Plan), Error> {
    let jobs = observe(schedule, context).await?;
    let made = context.made.of(schedule);
    let queue_available = *context.queue_available.borrow();
    let conflicts = context.cluster.field_conflicts(schedule);
    let queue_owner = context.leadership.queue_owner();
    let skew = context.clock.skew();
    let observed = Observed {
        schedule,
        jobs: &jobs,
        made: &made,
        queue_available,
        queue_owner: queue_owner.as_deref(),
        clock_skew: skew.as_deref(),
        conflicts: &conflicts,
    };
    let now = context.clock.now();
    let mut plan = schedule::decide(&observed, now);
    if schedule.status.as_ref() != Some(&plan.status) {
        plan.status.installation = Some(context.peers.me().to_owned());
        installation::forget_conflict(&mut plan.status.conditions, context.peers.me(), now);
    }
    Ok((jobs, plan))
}

/// The schedule's SyncJobs. The cache may be behind, so those are asked for that it lacks of the books, and those that
/// are unfinished there without being in the books. What this process made is waited for before, see [`Made::unseen`].
async fn observe(schedule: &SyncSchedule, context: &Context) -> Result<Vec<Arc<SyncJob>>, Error> {
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
    let (params, job) = (PostParams::default(), schedule::job_for(schedule, parsed, run));
    match context.write(Lane::Starts, "create a SyncJob", jobs.create(&params, &job)).await {
        Ok(created) => {
            context.made.note(schedule, &created, Instant::now());
            note_skew(schedule, parsed, run, context);
            let text = format!("Created SyncJob {}", run.name);
            context.news.tell(schedule, Note::normal("RunCreated", text));
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
fn note_skew(schedule: &SyncSchedule, parsed: Option<&Parsed>, run: &ActiveRun, context: &Context) {
    if let Some(parsed) = parsed.filter(|_| run.trigger.is_none()) {
        let start = parsed.slots(&schedule.uid().unwrap_or_default()).start(run.slot.0);
        let skew = elapsed(start, context.clock.now()).as_secs_f64();
        metrics::SCHEDULE_SKEW.observe(skew);
        tracing::debug!(name = run.name, skew, "SyncJob created");
    }
}

/// Cancels a run since a newer one takes its place, which an annotation names.
async fn cancel(
    schedule: &SyncSchedule,
    name: &str,
    (annotation, newer): (&str, &str),
    note: Note,
    jobs: &[Arc<SyncJob>],
    context: &Context,
) -> Result<(), Error> {
    let uid = jobs.iter().find(|job| job.name_any() == name).and_then(|job| job.uid());
    // The uid makes this a conflict for another SyncJob of the same name.
    let metadata = json!({"uid": uid, "annotations": {annotation: newer}});
    let patch = Patch::Merge(json!({"metadata": metadata, "spec": {"cancelled": true}}));
    let api = context.cluster.beside::<SyncJob>(&schedule.metadata);
    match context.write(Lane::Starts, "cancel a SyncJob", api.patch(name, &PatchParams::default(), &patch)).await {
        Ok(_) => {
            context.news.tell(schedule, note);
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
    match context.write(Lane::Reports, "delete a SyncJob", api.delete(name, &params)).await {
        Err(Error::Cluster(error)) if error.is_not_found() || error.is_conflict() => Ok(()),
        result => result.map(drop),
    }
}

/// Writes the status. It carries the resource version it was decided on, so of two controllers that decide on the same
/// state one is refused.
async fn write_status(
    schedule: &SyncSchedule,
    status: SyncScheduleStatus,
    turn: &Turn<'_>,
    context: &Context,
) -> Result<SyncSchedule, Error> {
    let patch = status_patch(&schedule.metadata, schedule.status.as_ref(), &status);
    let schedules = context.cluster.beside::<SyncSchedule>(&schedule.metadata);
    let (action, name, params) = ("write a SyncSchedule's status", schedule.name_any(), PatchParams::default());
    let written = context.write_now(turn, action, schedules.patch_status(&name, &params, &patch)).await;
    metrics::status_written("SyncSchedule", written.is_ok());
    written
}

/// How long the watch may take to tell of a SyncJob that was made. One that is deleted at once may never be told of.
const LAG: Duration = Duration::from_secs(5);

/// SyncJobs that this process made and that are not noted as seen yet, by the uid of their schedule. One of them that is
/// gone was deleted by somebody, and is not made again.
#[derive(Default)]
pub(super) struct Made(Mutex<HashMap<String, Vec<MadeJob>>>);

struct MadeJob {
    name: String,
    uid: Option<String>,
    at: Instant,
    /// Nothing was done about its run yet.
    new: bool,
}

impl Made {
    fn note(&self, schedule: &SyncSchedule, job: &SyncJob, at: Instant) {
        let made = MadeJob { name: job.name_any(), uid: job.uid(), at, new: true };
        self.lock().entry(schedule.uid().unwrap_or_default()).or_default().push(made);
    }

    /// How long to wait for the watch at most, which has not told of a SyncJob yet and makes its schedule come again when
    /// it does. To ask for it instead would cost a request for each run.
    fn unseen(&self, schedule: &SyncSchedule, context: &Context, now: Instant) -> Option<Duration> {
        let made = self.lock();
        let made = made.get(schedule.metadata.uid.as_deref().unwrap_or_default())?;
        let known = context.cluster.jobs_of(schedule);
        let unseen = made.iter().filter(|made| !known.iter().any(|job| job.name_any() == made.name));
        let waits = unseen.filter_map(|made| LAG.checked_sub(now.saturating_duration_since(made.at)));
        waits.filter(|wait| !wait.is_zero()).min()
    }

    /// True once for a SyncJob that was made a moment ago: nobody can have run it.
    pub fn is_new(&self, job: &SyncJob, now: Instant) -> bool {
        let mut made = self.lock();
        let mut made = cluster::controller_of(job).and_then(|uid| made.get_mut(uid)).into_iter().flatten();
        let made = made.find(|made| made.uid == job.metadata.uid);
        made.is_some_and(|made| std::mem::take(&mut made.new) && now.saturating_duration_since(made.at) < LAG)
    }

    fn of(&self, schedule: &SyncSchedule) -> Vec<String> {
        let made = self.lock();
        let made = made.get(schedule.metadata.uid.as_deref().unwrap_or_default()).into_iter().flatten();
        made.map(|made| made.name.clone()).collect()
    }

    /// Forgets those that are not in the books any more, or are noted there as seen.
    fn keep(&self, schedule: &SyncSchedule) {
        let active = schedule.status.as_ref().map(|status| status.active.as_slice()).unwrap_or_default();
        let uid = schedule.metadata.uid.as_deref().unwrap_or_default();
        let mut made = self.lock();
        if let Some(jobs) = made.get_mut(uid) {
            jobs.retain(|made| active.iter().any(|run| run.uid.is_none() && run.name == made.name));
            if jobs.is_empty() {
                made.remove(uid);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<MadeJob>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
