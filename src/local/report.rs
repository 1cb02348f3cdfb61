//! Output of a local run: a progress bar on a terminal, and its result as a summary or as one line of JSON.

use std::{fmt::Write as _, io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use kube::ResourceExt;
use serde_json::json;

use super::run::Observer;
use crate::{
    api::{
        GoDuration, SyncJob, SyncJobStatus,
        conditions::{COMPLETE, FAILED, HELD, REMOVAL_SKIPPED},
        syncjob::Phase,
    },
    domain::{
        conditions,
        run::{Checkpoint, Outcome},
    },
};

/// Format of the result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// One line of JSON for each run.
    Json,
    /// The SyncJob with the status that it would have on a cluster, as YAML.
    Yaml,
    /// A summary as text.
    Text,
}

impl Output {
    /// Returns the default format: a summary on a terminal, otherwise JSON.
    pub fn detect() -> Self {
        if std::io::stdout().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// Progress bar of one run. Hidden where standard error is no terminal.
pub(super) struct Bar {
    name: String,
    bar: ProgressBar,
}

impl Bar {
    /// Shows the bar of the run `name` with the progress of `checkpoint`.
    pub fn new(name: String, checkpoint: &Checkpoint) -> Self {
        let target =
            if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style("{prefix} {spinner} counting the documents"));
        bar.set_prefix(name.clone());
        bar.set_position(checkpoint.counts.processed.max(0) as u64);
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { name, bar }
    }

    /// Prints a line above the bar, to standard error.
    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Removes the bar.
    pub fn remove(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let rate = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        write!(text, "{:.0}/s", state.per_sec()).ok();
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("rate", rate)
}

impl Observer for Bar {
    fn checkpoint(&self, checkpoint: &Checkpoint) {
        let counts = &checkpoint.counts;
        if self.bar.length().is_none() {
            self.bar
                .set_style(style("{prefix} [{wide_bar}] {human_pos}/{human_len} documents, {rate}, {eta} left{msg}"));
        }
        self.bar.set_length(counts.total.max(counts.processed).max(0) as u64);
        self.bar.set_position(counts.processed.max(0) as u64);
        if counts.failed > 0 {
            self.bar.set_message(format!(", {} failed", counts.failed));
        }
    }

    fn retry(&self, attempt: u32, outcome: &Outcome, delay: Duration) {
        let (name, Outcome { reason, message }) = (&self.name, outcome);
        let delay = GoDuration::from(Duration::from_millis(delay.as_millis() as u64));
        self.say(&format!(
            "{name}: attempt {attempt} failed with {reason}: {message}. The next attempt starts in {delay}"
        ));
    }

    fn rollback(&self, outcome: &Outcome) {
        let (name, Outcome { reason, message }) = (&self.name, outcome);
        self.say(&format!("{name}: the run failed with {reason}: {message}. Its documents are restored"));
    }
}

/// Returns the result of a run in the selected format.
pub(super) fn result(output: Output, job: &SyncJob, status: &SyncJobStatus) -> String {
    match output {
        Output::Json => json!({
            "name": job.name_any(),
            "namespace": job.namespace().unwrap_or_else(|| "default".to_owned()),
            "dryRun": job.spec.dry_run,
            "status": status,
        })
        .to_string(),
        Output::Yaml => {
            let job = SyncJob { status: Some(status.clone()), ..job.clone() };
            let yaml = serde_yaml_ng::to_string(&job).unwrap_or_default();
            format!("---\n{}", yaml.trim_end())
        }
        Output::Text => summary(&job.name_any(), job.spec.dry_run, status),
    }
}

/// Returns the result of a run as text.
fn summary(name: &str, dry_run: bool, status: &SyncJobStatus) -> String {
    let counts = status.counts.unwrap_or_default();
    let phase = match status.phase {
        Some(Phase::Complete) => "Complete",
        Some(Phase::Failed) => "Failed",
        Some(Phase::Held) => "Held",
        _ => "Interrupted",
    };
    let after = status.duration.as_ref().map_or_else(String::new, |duration| format!(" after {duration}"));
    let mut text = format!("{name}: {phase}{after}");
    let condition = |type_| conditions::find(&status.conditions, type_);
    if let Some(condition) = condition(FAILED).or_else(|| condition(HELD)) {
        write!(text, ": {}: {}", condition.reason, condition.message).ok();
    }
    let (updated, of) = if dry_run { ("would be updated", " (dry run)") } else { ("updated", "") };
    write!(
        text,
        "\n  {} of {} documents processed{of}: {} {updated}, {} unchanged, {} failed",
        counts.processed, counts.total, counts.updated, counts.unchanged, counts.failed
    )
    .ok();
    if let Some(restored) = counts.rolled_back {
        write!(text, "\n  {restored} documents restored").ok();
    }
    if let Some(held) = counts.held.filter(|_| dry_run) {
        write!(text, "\n  the guard would hold {held} documents").ok();
    }
    // The message of a complete run begins with the counts, and further information follows.
    if let Some((_, rest)) = condition(COMPLETE).and_then(|complete| complete.message.split_once(". ")) {
        write!(text, "\n  Note: {rest}").ok();
    }
    if let Some(skipped) = condition(REMOVAL_SKIPPED) {
        write!(text, "\n  Note: nothing was removed: {}: {}", skipped.reason, skipped.message).ok();
    }
    for key in &status.changes {
        write!(text, "\n  would change {key}").ok();
    }
    for failure in &status.failures {
        write!(text, "\n  failed {}: {}: {}", failure.key, failure.reason, failure.message).ok();
    }
    let more = counts.failed - status.failures.len() as i64;
    if more > 0 {
        write!(text, "\n  and {more} more failed documents").ok();
    }
    text
}
