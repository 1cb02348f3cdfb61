//! Builder of the SyncJob of a run, from the template of its schedule.

use kube::{Resource, ResourceExt};

use super::{Parsed, triggered_mode};
use crate::api::{
    SCHEDULE_LABEL, SLOT_ANNOTATION, STARTING_DEADLINE_ANNOTATION, SyncJob, SyncSchedule, TRIGGER_ANNOTATION,
    syncschedule::ActiveRun,
};

/// Builds the SyncJob of a run. `parsed` supplies the fields that the template leaves to the schedule; without `parsed`, the SyncJob's
/// defaults apply.
#[must_use]
pub fn build_job(schedule: &SyncSchedule, parsed: Option<&Parsed>, run: &ActiveRun) -> SyncJob {
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
