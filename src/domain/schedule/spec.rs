//! Parsed spec of a SyncSchedule, checked and with every default filled in.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    api::{GoDuration, SyncScheduleSpec, syncschedule::ActiveRun},
    domain::{
        cron::Cron,
        free_form,
        run::{SpecError, duration, range},
        slots::{Grid, Slots, stable_offset},
    },
};

const DEFAULT_INTERVAL: &str = "20m";

/// A spec that was checked, with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// Text for `status.schedule`.
    pub(super) text: String,
    grid: Grid,
    jitter: Duration,
    pub(super) starting_deadline: Option<Duration>,
    /// Completed and failed SyncJobs that are kept.
    pub(super) history_limits: (usize, usize),
    /// Largest number of active runs with `concurrencyPolicy: Allow`.
    pub(super) max_active: usize,
    /// Failures in a row that stop the schedule.
    pub(super) failure_threshold: Option<i32>,
}

impl Parsed {
    /// Checks a spec. The CRD's rules check the same; an object stored under an older CRD did not pass them.
    ///
    /// # Errors
    /// The first thing found that stops the schedule.
    pub fn new(spec: &SyncScheduleSpec) -> Result<Self, SpecError> {
        free_form::check(&spec.job_template.spec).map_err(|error| SpecError::Template(Box::new(error)))?;
        let (text, grid) = grid(spec)?;
        let limit = |field, value| range(field, value, 0, 1000).map(|limit| limit as usize);
        Ok(Self {
            text,
            grid,
            jitter: duration("jitter", &spec.jitter)?,
            starting_deadline: spec
                .starting_deadline
                .as_ref()
                .map(|value| duration("startingDeadline", value))
                .transpose()?,
            history_limits: (
                limit("successfulJobsHistoryLimit", spec.successful_jobs_history_limit)?,
                limit("failedJobsHistoryLimit", spec.failed_jobs_history_limit)?,
            ),
            max_active: range("maxActive", spec.max_active, 1, 1000)? as usize,
            failure_threshold: spec.failure_threshold.map(threshold).transpose()?,
        })
    }

    /// Description of the slots, in English.
    #[must_use]
    pub fn description(&self) -> String {
        match &self.grid {
            Grid::Cron(cron) => cron.description(),
            Grid::Every(seconds) => every(*seconds),
        }
    }

    /// `staleAfter` of SyncJobs whose template has none: half the least time from one slot to the next.
    #[must_use]
    pub fn stale_after(&self) -> GoDuration {
        GoDuration::from(self.shortest_gap() / 2)
    }

    /// The least time from one slot to the next.
    pub(super) fn shortest_gap(&self) -> Duration {
        self.grid.shortest_gap()
    }

    /// The slots of a schedule with this uid.
    #[must_use]
    pub fn slots(&self, uid: &str) -> Slots<'_> {
        Slots::new(&self.grid, stable_offset(uid, self.jitter))
    }

    /// Start of a run of a schedule with this uid: a triggered run starts at once, any other run when its slot
    /// starts.
    #[must_use]
    pub fn start_of(&self, run: &ActiveRun, uid: &str) -> Timestamp {
        match run.trigger {
            None => self.slots(uid).start(run.slot.0),
            Some(_) => run.slot.0,
        }
    }

    /// Time until which the SyncJob of a run may be created: for `startingDeadline`, or until the next slot starts.
    #[must_use]
    pub fn starts_until(&self, run: &ActiveRun, uid: &str) -> Option<Timestamp> {
        let (start, slots) = (self.start_of(run, uid), self.slots(uid));
        match self.starting_deadline {
            Some(deadline) => start.checked_add(deadline).ok(),
            None => slots.next(run.slot.0, start).map(|next| slots.start(next)),
        }
    }
}

fn threshold(failures: i32) -> Result<i32, SpecError> {
    range("failureThreshold", failures, 1, 100).map(|_| failures)
}

fn every(seconds: i64) -> String {
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    let (size, unit) = units.into_iter().find(|(size, _)| seconds % size == 0).unwrap_or((1, "second"));
    match seconds / size {
        1 => format!("Every {unit}"),
        number => format!("Every {number} {unit}s"),
    }
}

fn grid(spec: &SyncScheduleSpec) -> Result<(String, Grid), SpecError> {
    let Some(expression) = &spec.schedule else {
        if spec.time_zone.is_some() {
            return Err(SpecError::Needs("timeZone", "schedule"));
        }
        let text = spec.interval.as_ref().map_or(DEFAULT_INTERVAL.to_owned(), ToString::to_string);
        return Ok((text, Grid::every(interval(spec)?)));
    };
    if spec.interval.is_some() {
        return Err(SpecError::Exclusive("interval", "schedule"));
    }
    let zone = spec.time_zone.as_deref();
    let cron = Cron::new(expression, zone)?;
    Ok((zone.map_or_else(|| expression.clone(), |zone| format!("{expression} {zone}")), Grid::Cron(Box::new(cron))))
}

/// Time from one slot to the next, for a spec without a cron expression.
///
/// # Errors
/// When `interval` cannot be read, or is shorter than a second.
pub fn interval(spec: &SyncScheduleSpec) -> Result<Duration, SpecError> {
    let parsed = match &spec.interval {
        Some(interval) => duration("interval", interval)?,
        None => duration("interval", &GoDuration::new(DEFAULT_INTERVAL))?,
    };
    if parsed < Duration::from_secs(1) {
        return Err(SpecError::Range { field: "interval", min: 1, max: 8760 * 3600, value: 0 });
    }
    Ok(parsed)
}
