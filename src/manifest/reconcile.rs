//! The checks that reconcilers and workers make after the API server has accepted an object.

use kube::core::Selector;
use lettre::message::Mailbox;
use serde_json::json;

use super::{Object, finding::Report, metadata};
use crate::{
    alerts::check_template,
    api::{SyncAlertSpec, SyncJobSpec, SyncScheduleSpec},
    domain::{
        run::{RunSpec, SpecError},
        schedule::Parsed,
    },
    sync::SourceClient,
};

const SPEC: &str = "spec";
const TEMPLATE: &str = "spec.jobTemplate";
/// Path of the SyncJobs' spec in a SyncSchedule.
pub(super) const TEMPLATE_SPEC: &str = "spec.jobTemplate.spec";

/// Reports values that the operator refuses.
pub(super) fn check(object: &Object, report: &mut Report<'_>) {
    match object {
        Object::SyncJob(job) => check_job(&job.spec, SPEC, report),
        Object::SyncSchedule(schedule) => check_schedule(&schedule.spec, report),
        Object::SyncAlert(alert) => check_alert(&alert.spec, report),
        Object::Other { .. } => {}
    }
}

fn check_job(spec: &SyncJobSpec, base: &str, report: &mut Report<'_>) {
    let run = match RunSpec::parse(spec) {
        Ok(run) => run,
        Err(error) => {
            let message = error.to_string();
            match mapped_field(spec, &message) {
                Some(index) => report.error(&format!("{base}.mapping[{index}].to"), message),
                None => report.error_naming(base, message),
            }
            return;
        }
    };
    if let Some(Err(error)) = run.source.as_ref().map(SourceClient::check_endpoint) {
        report.error_naming(base, error.to_string());
    }
}

/// Index of the mapped field whose path a message quotes.
fn mapped_field(spec: &SyncJobSpec, message: &str) -> Option<usize> {
    let quoted = message.strip_prefix("mapping[].to ")?;
    let is_quoted = |to: &str| quoted.strip_prefix(to).is_some_and(|rest| rest.starts_with(' '));
    spec.mapping.iter().rposition(|field| is_quoted(&field.to))
}

fn check_schedule(spec: &SyncScheduleSpec, report: &mut Report<'_>) {
    // The template is checked below.
    if let Err(error) = Parsed::new(spec)
        && !matches!(error, SpecError::Template(_))
    {
        report.error_naming(SPEC, error.to_string());
    }
    check_job(&spec.job_template.spec, TEMPLATE_SPEC, report);
    // The API server checks these fields when a SyncJob is created from the template.
    metadata::check_labels(&format!("{TEMPLATE}.metadata"), &json!(spec.job_template.metadata), report);
}

fn check_alert(spec: &SyncAlertSpec, report: &mut Report<'_>) {
    if let Err(error) = Selector::try_from(spec.selector.clone()) {
        report.error("spec.selector", format!("selector: {error}: correct it"));
    }
    if let Some(error) = spec.template.as_ref().and_then(check_template) {
        report.error_naming("spec.template", format!("{error}: correct the template"));
    }
    for (index, smtp) in spec.sinks.iter().enumerate().filter_map(|(index, sink)| Some((index, sink.smtp.as_ref()?))) {
        let base = format!("spec.sinks[{index}].smtp");
        let to = smtp.to.iter().enumerate().map(|(at, address)| (format!("{base}.to[{at}]"), address));
        for (field, address) in to.chain([(format!("{base}.from"), &smtp.from)]) {
            if address.parse::<Mailbox>().is_err() {
                report.error(&field, format!("{address:?} is not a mail address: write it as Name <user@example.com>"));
            }
        }
    }
}
