//! The runs that manifests describe.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::{
    api::{SyncJob, SyncSchedule, syncschedule::ActiveRun},
    domain::{
        run::{RunSpec, SpecError, Subset},
        schedule::{Parsed, build_job},
    },
    manifest::{Manifest, Object},
};

/// A run to be executed.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub job: SyncJob,
    pub spec: RunSpec,
}

/// Runs of manifests, and warnings about objects that give no run or are run in spite of a field.
#[derive(Debug, Default)]
pub(super) struct LocalPlan {
    pub runs: Vec<Planned>,
    pub warnings: Vec<String>,
}

/// Error of a manifest without a run.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {source}")]
pub(super) struct InvalidManifest {
    name: String,
    source: SpecError,
}

/// Plans the runs of `manifests`: each SyncJob, and one run of each SyncSchedule's template.
pub(super) fn plan(
    manifests: Vec<Manifest>,
    dry_run: bool,
    subset: &Subset,
    now: Timestamp,
) -> Result<LocalPlan, InvalidManifest> {
    let mut plan = LocalPlan::default();
    for Manifest { object, .. } in manifests {
        let mut job = match object {
            Object::SyncJob(job) => *job,
            Object::SyncSchedule(schedule) => {
                if schedule.spec.suspended {
                    plan.warnings.push(format!(
                        "SyncSchedule {} is suspended; its template is run nevertheless",
                        schedule.name_any()
                    ));
                }
                job_of(&schedule, now)?
            }
            Object::SyncAlert(alert) => {
                plan.warnings.push(format!("SyncAlert {} is skipped: a local run sends no alerts", alert.name_any()));
                continue;
            }
            Object::Other { kind, name, .. } => {
                plan.warnings.push(format!("{kind} {name} is skipped: only SyncJobs and SyncSchedules are run"));
                continue;
            }
        };
        let name = name_of(&mut job);
        if job.spec.suspended {
            plan.warnings.push(format!("SyncJob {name} is suspended; it is run nevertheless"));
        }
        job.spec.dry_run |= dry_run;
        let mut spec = RunSpec::parse(&job.spec).map_err(|source| InvalidManifest { name, source })?;
        spec.subset = subset.clone();
        plan.runs.push(Planned { job, spec });
    }
    Ok(plan)
}

/// The SyncJob that a schedule would create now.
fn job_of(schedule: &SyncSchedule, now: Timestamp) -> Result<SyncJob, InvalidManifest> {
    let name = schedule.name_any();
    let parsed = Parsed::new(&schedule.spec).map_err(|source| InvalidManifest { name: name.clone(), source })?;
    let run = ActiveRun { name, uid: None, slot: Time(now), trigger: None };
    Ok(build_job(schedule, Some(&parsed), &run))
}

/// The name of a SyncJob. One with `generateName` gets a name as the API server would give it.
fn name_of(job: &mut SyncJob) -> String {
    let metadata = &mut job.metadata;
    metadata
        .name
        .get_or_insert_with(|| format!("{}local", metadata.generate_name.as_deref().unwrap_or_default()))
        .clone()
}
