//! Availability of the services that the program depends on. The log has one line when a service becomes unavailable,
//! one for each further reason, and one when it is available again, instead of one for each failed request.

use std::{
    collections::BTreeSet,
    fmt::Display,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use jiff::Timestamp;

/// Limit of reasons that are logged for one outage.
const MAX_REASONS: usize = 5;

/// Availability of a service that the program depends on.
#[derive(Debug)]
pub struct Availability {
    what: &'static str,
    away: Mutex<Option<Away>>,
    probes: AtomicUsize,
}

/// Probe of a service, one of several. The service is available again when each probe was answered.
#[derive(Debug)]
pub struct AvailabilityProbe {
    service: &'static Availability,
    number: usize,
}

/// Number of the probe that all callers without a probe of their own share.
const SHARED: usize = 0;

#[derive(Debug)]
struct Away {
    since: Timestamp,
    /// Probes that were not answered since.
    unanswered: BTreeSet<usize>,
    /// The first reason is not always the one to act on: a server that starts refuses connections before passwords.
    logged: Vec<String>,
}

/// Redis, for the whole process: controllers and workers notice the same outage.
pub static REDIS: Availability = Availability::new("Redis");

/// MongoDB, before it first answers. Later, each attempt reports its own failures.
pub static MONGODB: Availability = Availability::new("MongoDB");

/// Lease of the leader election, for a process that only reads it.
pub static LEASE: Availability = Availability::new("the Lease");

/// Availability of writes to Redis. Redis answers, but refuses writes, most likely because its memory is full.
static REDIS_WRITES: Availability = Availability::new("writing to Redis");

/// Records the answer of Redis to a write, or its absence. `is_refusal`: Redis did answer, with an error.
pub fn record_write<T, E: Display>(answer: &Result<T, E>, is_refusal: bool) {
    if !is_refusal {
        REDIS.record(answer);
    }
    if is_refusal || answer.is_ok() {
        REDIS_WRITES.record(answer);
    }
}

impl Availability {
    /// Creates the availability of `what`, which is available at first.
    #[must_use]
    pub const fn new(what: &'static str) -> Self {
        Self { what, away: Mutex::new(None), probes: AtomicUsize::new(SHARED + 1) }
    }

    /// Adds a probe, whose answers are recorded separately.
    pub fn probe(&'static self) -> AvailabilityProbe {
        AvailabilityProbe { service: self, number: self.probes.fetch_add(1, Ordering::Relaxed) }
    }

    /// Records an answer, or its absence. Logs a change: unavailable, another reason, available again.
    pub fn record<T, E: Display>(&self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.answered(SHARED),
            Err(error) => self.failed(SHARED, error),
        }
    }

    fn answered(&self, probe: usize) {
        let mut away = self.lock();
        let Some(outage) = away.as_mut() else { return };
        if outage.unanswered.remove(&probe) && outage.unanswered.is_empty() {
            *away = None;
            tracing::info!("{} is available again", self.what);
        }
    }

    fn failed(&self, probe: usize, error: &impl Display) {
        match &mut *self.lock() {
            away @ None => {
                tracing::warn!(%error, "{} is unavailable; retrying", self.what);
                let (unanswered, logged) = ([probe].into(), vec![error.to_string()]);
                *away = Some(Away { since: Timestamp::now(), unanswered, logged });
            }
            Some(away) => {
                away.unanswered.insert(probe);
                let error = error.to_string();
                if away.logged.len() < MAX_REASONS && !away.logged.contains(&error) {
                    tracing::warn!(error, "{} is still unavailable", self.what);
                    away.logged.push(error);
                }
            }
        }
    }

    /// Start of the outage. `None` while the service is available.
    pub fn since(&self) -> Option<Timestamp> {
        self.lock().as_ref().map(|away| away.since)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Away>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AvailabilityProbe {
    /// Records an answer to this probe, as [`Availability::note`] does.
    pub fn record<T, E: Display>(&self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.service.answered(self.number),
            Err(error) => self.service.failed(self.number, error),
        }
    }
}

/// A probe that is dropped no longer keeps the service unavailable.
impl Drop for AvailabilityProbe {
    fn drop(&mut self) {
        self.service.answered(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_of_an_outage_is_logged_once() {
        let outage = Availability::new("Test");
        let logged = || outage.lock().as_ref().map(|away| away.logged.clone());
        outage.record(&Err::<(), _>("refused"));
        let since = outage.since();
        for reason in ["refused", "password", "refused", "password"] {
            outage.record(&Err::<(), _>(reason));
        }
        assert_eq!(logged(), Some(vec!["refused".to_owned(), "password".to_owned()]));
        for reason in 0..10 {
            outage.record(&Err::<(), _>(reason));
        }
        assert_eq!((logged().unwrap().len(), outage.since()), (MAX_REASONS, since));
        outage.record(&Ok::<_, &str>(()));
        assert_eq!((logged(), outage.since()), (None, None));
    }

    #[test]
    fn a_server_is_back_when_all_who_asked_were_answered() {
        static OUTAGE: Availability = Availability::new("Test");
        let [one, two, gone] = [OUTAGE.probe(), OUTAGE.probe(), OUTAGE.probe()];
        for probe in [&one, &two, &gone, &one] {
            probe.record(&Err::<(), _>("refused"));
        }
        let since = OUTAGE.since();
        assert!(since.is_some());
        one.record(&Ok::<_, &str>(()));
        one.record(&Ok::<_, &str>(()));
        assert_eq!(OUTAGE.since(), since, "two of them still have no answer");
        drop(gone);
        assert_eq!(OUTAGE.since(), since);
        two.record(&Ok::<_, &str>(()));
        assert_eq!(OUTAGE.since(), None);
    }
}
