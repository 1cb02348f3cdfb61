//! The SyncJob that a schedule's template gives for a run.

use kube::{Resource, ResourceExt};

use super::{Parsed, triggered_mode};
use crate::api::{
    SCHEDULE_LABEL, SLOT_ANNOTATION, STARTING_DEADLINE_ANNOTATION, SyncJob, SyncSchedule, TRIGGER_ANNOTATION,
    syncschedule::ActiveRun,
};

/// The SyncJob of a run. `parsed` gives what the template leaves to the schedule; without it, the SyncJob's own default
/// holds.
#[must_use]
pub fn job_for(schedule: &SyncSchedule, parsed: Option<&Parsed>, run: &ActiveRun) -> SyncJob {
    let template = schedule.spec.job_template.clone();
    let mut job = SyncJob::new(&run.name, template.spec);
    if job.spec.stale_after.is_none() {
        job.spec.stale_after = parsed.map(Parsed::stale_after);
    }
    if let Some(source) = &mut job.spec.source {
        source.name.get_or_insert_with(|| schedule.name_any());
    }
    job.metadata.namespace = schedule.namespace();
    job.metadata.owner_references = Some(schedule.controller_owner_ref(&()).into_iter().collect());
    job.metadata.labels = Some(template.metadata.labels);
    job.metadata.annotations = Some(template.metadata.annotations);
    job.labels_mut().insert(SCHEDULE_LABEL.to_owned(), schedule.name_any());
    job.annotations_mut().insert(SLOT_ANNOTATION.to_owned(), run.slot.0.to_string());
    if let Some(until) = parsed.and_then(|parsed| parsed.starts_until(run, &schedule.uid().unwrap_or_default())) {
        job.annotations_mut().insert(STARTING_DEADLINE_ANNOTATION.to_owned(), until.to_string());
    }
    if let Some(token) = &run.trigger {
        job.annotations_mut().insert(TRIGGER_ANNOTATION.to_owned(), token.clone());
        job.spec.sync_type = triggered_mode(token).unwrap_or(job.spec.sync_type);
    }
    job
}
