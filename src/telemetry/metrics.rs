//! Metrics, as OpenMetrics text. Those of the process count up in statics; the rest is read at the time of a scrape.

use std::{
    sync::{LazyLock, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use crate::{
    api::{
        conditions::{COMPLETE, FAILED, reasons},
        syncjob::SyncType,
    },
    domain::clock::Clocks,
    queue::Depth,
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, exemplar::HistogramWithExemplars, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// The content type of OpenMetrics text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, &'static str)>;
/// Labels with values of a small set: routes, codes, and the reasons of conditions.
type OwnedLabels = Vec<(&'static str, String)>;
/// Shows for each bucket the trace of one run that fell into it, where there are traces.
type Traced = HistogramWithExemplars<OwnedLabels>;

static SKIPPED: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);

/// Seconds from the time of a slot, jitter included, until its SyncJob was created.
pub static SCHEDULE_SKEW: LazyLock<Histogram> =
    LazyLock::new(|| Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]));

static HTTP_REQUESTS: LazyLock<Family<OwnedLabels, Counter>> = LazyLock::new(Family::default);
static HTTP_DURATION: LazyLock<Family<OwnedLabels, Histogram>> = LazyLock::new(|| Family::new_with_constructor(quick));

static RUNS: LazyLock<Family<OwnedLabels, Counter>> = LazyLock::new(|| {
    let runs = Family::default();
    // Prometheus sees only that a counter rises: one that begins with the first failure hides it.
    for type_ in [SyncType::User, SyncType::Project, SyncType::Issue, SyncType::Pipeline] {
        for reason in reasons::FAILURES {
            drop(runs.get_or_create(&run_labels(type_, FAILED, reason)));
        }
    }
    runs
});
static RUN_DURATION: LazyLock<Family<Labels, Traced>> = LazyLock::new(|| {
    Family::new_with_constructor(|| {
        Traced::new([0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0].into_iter())
    })
});
static RECONCILED: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);
static RECONCILE_DURATION: LazyLock<Family<Labels, Histogram>> = LazyLock::new(|| Family::new_with_constructor(quick));
static STATUS_WRITES: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);

static ALERT_MESSAGES: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);

static DOCUMENTS: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);
static BATCH_DURATION: LazyLock<Family<Labels, Traced>> =
    LazyLock::new(|| Family::new_with_constructor(|| Traced::new(QUICK.into_iter())));
static SOURCE_REQUESTS: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);
static SOURCE_DURATION: LazyLock<Histogram> = LazyLock::new(quick);
static CLAIM_LATENCY: LazyLock<Traced> =
    LazyLock::new(|| Traced::new([0.005, 0.025, 0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 1800.0].into_iter()));
static LEASES_LOST: LazyLock<Counter> = LazyLock::new(Counter::default);
static RECOVERIES: LazyLock<Counter> = LazyLock::new(Counter::default);

static CLOCK_SKEW: LazyLock<Family<Labels, Gauge<f64, AtomicU64>>> = LazyLock::new(Family::default);

/// True when the policy file is invalid. `None`: the process has no policy file.
static POLICY_INVALID: Mutex<Option<bool>> = Mutex::new(None);

/// Buckets of durations of some milliseconds.
const QUICK: [f64; 7] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0];

fn quick() -> Histogram {
    Histogram::new(QUICK)
}

fn observe(histogram: &Traced, took: Duration, trace_id: Option<String>) {
    let exemplar = trace_id.map(|id| vec![("trace_id", id)]);
    let at = exemplar.is_some().then(SystemTime::now);
    histogram.observe(took.as_secs_f64(), exemplar, at);
}

fn type_label(type_: SyncType) -> &'static str {
    match type_ {
        SyncType::User => "User",
        SyncType::Project => "Project",
        SyncType::Issue => "Issue",
        SyncType::Pipeline => "Pipeline",
    }
}

fn run_labels(type_: SyncType, result: &str, reason: &str) -> OwnedLabels {
    vec![("type", type_label(type_).to_owned()), ("result", result.to_owned()), ("reason", reason.to_owned())]
}

/// Counts a finished run. `reason`: of its condition. `trace_id`: where the run is traced.
pub fn run_ended(type_: SyncType, complete: bool, reason: &str, took: Option<Duration>, trace_id: Option<String>) {
    let result = if complete { COMPLETE } else { FAILED };
    RUNS.get_or_create(&run_labels(type_, result, reason)).inc();
    if let Some(took) = took {
        let labels = vec![("type", type_label(type_)), ("result", result)];
        observe(&RUN_DURATION.get_or_create(&labels), took, trace_id);
    }
}

/// Counts a reconciliation of an object of a kind.
pub fn reconciled(kind: &'static str, well: bool, took: Duration) {
    RECONCILED.get_or_create(&vec![("kind", kind), ("result", result_label(well))]).inc();
    RECONCILE_DURATION.get_or_create(&vec![("kind", kind)]).observe(took.as_secs_f64());
}

/// Counts a status that was written, or could not be.
pub fn status_written(kind: &'static str, well: bool) {
    STATUS_WRITES.get_or_create(&vec![("kind", kind), ("result", result_label(well))]).inc();
}

/// Counts a message to a sink of an alert. `sink` is the kind.
pub fn alert_sent(sink: &'static str, well: bool) {
    ALERT_MESSAGES.get_or_create(&vec![("sink", sink), ("result", result_label(well))]).inc();
}

fn result_label(well: bool) -> &'static str {
    if well { "ok" } else { "error" }
}

/// Records the documents of a batch by outcome, and the duration of their writes.
pub fn batch(type_: SyncType, outcomes: [(&'static str, u64); 3], took: Duration, trace_id: Option<String>) {
    let type_ = type_label(type_);
    for (outcome, count) in outcomes {
        DOCUMENTS.get_or_create(&vec![("type", type_), ("outcome", outcome)]).inc_by(count);
    }
    observe(&BATCH_DURATION.get_or_create(&vec![("type", type_)]), took, trace_id);
}

/// Counts a request to a source.
pub fn source_asked(well: bool, took: Duration) {
    SOURCE_REQUESTS.get_or_create(&vec![("result", result_label(well))]).inc();
    SOURCE_DURATION.observe(took.as_secs_f64());
}

/// Records the time from when a run could be claimed until a worker of this process claimed it.
pub fn claimed(waited: Duration, trace_id: Option<String>) {
    observe(&CLAIM_LATENCY, waited, trace_id);
}

/// Counts a run that a worker of this process lost, since it could not renew its lease in time.
pub fn lease_lost() {
    LEASES_LOST.inc();
}

/// Counts runs of lost workers that this process returned to the queue.
pub fn recovered(count: u64) {
    RECOVERIES.inc_by(count);
}

/// Counts a call that was answered. `route` is the path with its parameters unnamed, so there are few of them.
pub fn http(route: &str, code: u16, took: Duration) {
    let of_route = vec![("route", route.to_owned())];
    HTTP_DURATION.get_or_create(&of_route).observe(took.as_secs_f64());
    let labels = of_route.into_iter().chain([("code", code.to_string())]).collect();
    HTTP_REQUESTS.get_or_create(&labels).inc();
}

/// Records the time by which clocks are ahead of the clock of the API server.
pub fn clock_skew(clocks: &Clocks) {
    let Some(api_server) = clocks.api_server else { return };
    for (clock, time) in [("controller", Some(clocks.local)), ("redis", clocks.redis)] {
        if let Some(time) = time {
            let seconds = time.duration_since(api_server).as_secs_f64();
            CLOCK_SKEW.get_or_create(&vec![("clock", clock)]).set(seconds);
        }
    }
}

/// Counts slots that were skipped. `reason` is one of [`crate::domain::schedule::skips`].
pub fn skipped(reason: &'static str, count: u64) {
    SKIPPED.get_or_create(&vec![("reason", reason)]).inc_by(count);
}

/// Records whether the content of the policy file is valid.
pub fn policy_read(is_valid: bool) {
    *POLICY_INVALID.lock().unwrap_or_else(PoisonError::into_inner) = Some(!is_valid);
}

/// Returns true when the policy file is invalid. `None`: the process has no policy file.
#[must_use]
pub fn policy_invalid() -> Option<bool> {
    *POLICY_INVALID.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The workers of a process.
#[derive(Clone, Copy, Debug)]
pub struct WorkerSlots {
    /// Runs they can work on at a time.
    pub slots: usize,
    /// Runs they work on.
    pub busy: usize,
}

/// Values that are read at the time of a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Metrics {
    /// True when this process reconciles. `None` in a process without controllers.
    pub leading: Option<bool>,
    /// True when this process serves HTTP calls.
    pub serving: bool,
    /// The workers of this process. `None` in one without any.
    pub workers: Option<WorkerSlots>,
    /// Depth of the queue. `None` where the queue is not read, or does not answer.
    pub queue: Option<Depth>,
    /// Number of schedules in each state of health. `None` in a process that does not reconcile.
    pub schedules: Option<[(&'static str, u64); 4]>,
    /// True when the policy file is invalid. `None` in a process without a policy file.
    pub policy_invalid: Option<bool>,
}

impl Metrics {
    /// The text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut registry = Registry::default();
        if let Some(leading) = self.leading {
            let help = "1 when this process is the leader, 0 when another process is";
            registry.register("sync_leader", help, gauge(u64::from(leading)));
            registry.register("sync_schedule_skipped", "Skipped slots, by reason", SKIPPED.clone());
            registry.register_with_unit(
                "sync_schedule_skew",
                "Time from a slot, with its jitter, until its SyncJob was created",
                Unit::Seconds,
                SCHEDULE_SKEW.clone(),
            );
            registry.register("sync_runs", "Finished runs, by type, result and reason", RUNS.clone());
            let help = "Time from the start of a run to its end";
            registry.register_with_unit("sync_run_duration", help, Unit::Seconds, RUN_DURATION.clone());
            let help = "Messages to the sinks of alerts, by kind of sink and result";
            registry.register("sync_alert_messages", help, ALERT_MESSAGES.clone());
            registry.register("sync_reconcile", "Reconciliations, by kind and result", RECONCILED.clone());
            let help = "Duration of a reconciliation, including the wait for a permit";
            registry.register_with_unit("sync_reconcile_duration", help, Unit::Seconds, RECONCILE_DURATION.clone());
            registry.register("sync_status_writes", "Status writes, by kind and result", STATUS_WRITES.clone());
            let help = "Time by which a clock is ahead of the API server's, whose clock has whole seconds";
            registry.register_with_unit("sync_clock_skew", help, Unit::Seconds, CLOCK_SKEW.clone());
        }
        if let Some(schedules) = self.schedules {
            registry.register("sync_schedules", "Schedules, by state", by_state(schedules));
        }
        if let Some(WorkerSlots { slots, busy }) = self.workers {
            let help = "Number of runs that this process can work on at the same time";
            registry.register("sync_worker_slots", help, gauge(slots as u64));
            registry.register("sync_worker_busy", "Number of runs that this process works on", gauge(busy as u64));
            let help = "Time from when a run could be claimed until its claim";
            registry.register_with_unit("sync_queue_claim_latency", help, Unit::Seconds, CLAIM_LATENCY.clone());
            registry.register("sync_documents", "Documents handled, by type and outcome", DOCUMENTS.clone());
            let help = "Time that the writes of a batch took";
            registry.register_with_unit("sync_batch_duration", help, Unit::Seconds, BATCH_DURATION.clone());
            registry.register("sync_source_requests", "Requests to sources, by result", SOURCE_REQUESTS.clone());
            let help = "Time until the answer of a source arrived, without the wait for its rate limit";
            registry.register_with_unit("sync_source_request_duration", help, Unit::Seconds, SOURCE_DURATION.clone());
            registry.register("sync_lease_lost", "Runs lost because a lease ended", LEASES_LOST.clone());
            registry.register("sync_recoveries", "Runs of lost workers returned to the queue", RECOVERIES.clone());
        }
        if let Some(Depth { active, waiting, delayed, parked, oldest, .. }) = self.queue {
            let runs = [("active", active), ("waiting", waiting), ("delayed", delayed), ("parked", parked)];
            registry.register("sync_queue_runs", "Unfinished runs in the queue, by state", by_state(runs));
            let help = "Time since the longest waiting run could be claimed, 0 when no run waits";
            let age = Gauge::<f64, AtomicU64>::default();
            age.set(oldest.as_secs_f64());
            registry.register_with_unit("sync_queue_oldest_waiting", help, Unit::Seconds, age);
        }
        if let Some(is_invalid) = self.policy_invalid {
            let help = "1 when the policy file is invalid, and the policy before it applies";
            registry.register("sync_policy_invalid", help, gauge(u64::from(is_invalid)));
        }
        if self.serving {
            let help = "Calls that were answered, by route and status code";
            registry.register("sync_http_requests", help, HTTP_REQUESTS.clone());
            let help = "Time until the answer of a call began, by route";
            registry.register_with_unit("sync_http_request_duration", help, Unit::Seconds, HTTP_DURATION.clone());
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        encode(&mut text, &registry).ok();
        text
    }
}

fn by_state(counts: [(&'static str, u64); 4]) -> Family<Labels, Gauge> {
    let family = Family::<Labels, Gauge>::default();
    for (state, count) in counts {
        family.get_or_create(&vec![("state", state)]).set(count as i64);
    }
    family
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value as i64);
    gauge
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use super::*;

    /// Values for every metric. The other values are counted once for all tests of this process.
    pub(crate) fn everything() -> Metrics {
        static COUNTED: LazyLock<()> = LazyLock::new(|| {
            skipped("Deadline", 2);
            SCHEDULE_SKEW.observe(0.2);
            http("/jobs", 200, Duration::from_millis(3));
            let trace = Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned());
            run_ended(SyncType::User, false, "DeadlineExceeded", Some(Duration::from_secs(70)), trace);
            alert_sent("slack", true);
            reconciled("SyncJob", true, Duration::from_millis(2));
            status_written("SyncJob", false);
            let at = jiff::Timestamp::UNIX_EPOCH;
            clock_skew(&Clocks { local: at, api_server: Some(at), redis: Some(at) });
            batch(SyncType::Issue, [("updated", 99), ("unchanged", 0), ("failed", 1)], Duration::from_millis(20), None);
            source_asked(true, Duration::from_millis(20));
            claimed(Duration::from_secs(3), None);
            lease_lost();
            recovered(3);
        });
        LazyLock::force(&COUNTED);
        let oldest = Duration::from_millis(1500);
        Metrics {
            leading: Some(true),
            serving: true,
            workers: Some(WorkerSlots { slots: 4, busy: 2 }),
            queue: Some(Depth { active: 1, waiting: 2, delayed: 3, parked: 4, workers: 5, oldest }),
            schedules: Some([("ok", 9), ("overdue", 1), ("suspended", 0), ("invalid", 0)]),
            policy_invalid: Some(false),
        }
    }

    #[test]
    fn a_process_without_controllers_says_nothing_about_the_leader() {
        assert_eq!(Metrics::default().encode(), "# EOF\n");
        let text = Metrics { leading: Some(true), ..Metrics::default() }.encode();
        assert!(text.contains("sync_leader 1\n") && !text.contains("sync_worker"), "{text}");
    }

    #[test]
    fn names_are_those_of_the_documentation() {
        let text = everything().encode();
        for line in [
            "sync_runs_total{type=\"User\",result=\"Failed\",reason=\"DeadlineExceeded\"} 1\n",
            "sync_runs_total{type=\"Pipeline\",result=\"Failed\",reason=\"TooManyFailed\"} 0\n",
            "sync_run_duration_seconds_count{type=\"User\",result=\"Failed\"} 1\n",
            "sync_alert_messages_total{sink=\"slack\",result=\"ok\"} 1\n",
            "sync_reconcile_total{kind=\"SyncJob\",result=\"ok\"} 1\n",
            "sync_reconcile_duration_seconds_count{kind=\"SyncJob\"} 1\n",
            "sync_status_writes_total{kind=\"SyncJob\",result=\"error\"} 1\n",
            "sync_documents_total{type=\"Issue\",outcome=\"updated\"} 99\n",
            "sync_batch_duration_seconds_count{type=\"Issue\"} 1\n",
            "sync_run_duration_seconds_bucket{le=\"300.0\",type=\"User\",result=\"Failed\"} 1 # {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"} 70.0 ",
            "sync_lease_lost_total 1\n",
            "sync_recoveries_total 3\n",
            "sync_worker_slots 4\n",
            "sync_worker_busy 2\n",
            "sync_queue_claim_latency_seconds_bucket{le=\"5.0\"} 1\n",
            "sync_queue_oldest_waiting_seconds 1.5\n",
            "sync_schedules{state=\"overdue\"} 1\n",
            "sync_queue_runs{state=\"parked\"} 4\n",
            "sync_schedule_skipped_total{reason=\"Deadline\"} 2\n",
            "sync_schedule_skew_seconds_count 1\n",
            "sync_policy_invalid 0\n",
            "sync_http_requests_total{route=\"/jobs\",code=\"200\"} 1\n",
            "sync_http_request_duration_seconds_count{route=\"/jobs\"} 1\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    /// About what a controller counts of one run: `cargo test --release --lib -- --ignored --nocapture speed`.
    #[test]
    #[ignore = "measures: docs/operations/performance.md"]
    fn speed() {
        const RUNS: u32 = 10_000;
        let (began, took) = (Instant::now(), Duration::from_millis(3));
        for _ in 0..RUNS {
            SCHEDULE_SKEW.observe(0.2);
            run_ended(SyncType::User, true, "Completed", Some(took), None);
            for kind in ["SyncSchedule", "SyncJob"] {
                for _ in 0..5 {
                    reconciled(kind, true, took);
                    status_written(kind, true);
                }
            }
        }
        println!("what one run counts: {:.2?}", began.elapsed() / RUNS);
        let (everything, began) = (everything(), Instant::now());
        for _ in 0..RUNS {
            assert!(everything.encode().len() > 1000);
        }
        println!("the text of a scrape: {:.2?}", began.elapsed() / RUNS);
    }
}
