//! One log line when something goes away, one for each further reason, and one when it is back, instead of one for each
//! failed try.

use std::{
    collections::BTreeSet,
    fmt::Display,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use jiff::Timestamp;

/// Reasons told of one outage. Others are not.
const MAX_REASONS: usize = 5;

/// Whether something the program depends on is away.
#[derive(Debug)]
pub struct Outage {
    what: &'static str,
    away: Mutex<Option<Away>>,
    witnesses: AtomicUsize,
}

/// One of several who ask the same server, each for something else: it is back when all of them were answered.
#[derive(Debug)]
pub struct Witness {
    outage: &'static Outage,
    number: usize,
}

/// The witness who speaks for all who are not told apart.
const ANYBODY: usize = 0;

#[derive(Debug)]
struct Away {
    since: Timestamp,
    /// Who was not answered since.
    unanswered: BTreeSet<usize>,
    /// The first reason is not always the one to act on: a server that starts refuses connections before passwords.
    told: Vec<String>,
}

/// Redis, for the whole process: controllers and workers notice the same outage.
pub static REDIS: Outage = Outage::new("Redis");

/// MongoDB, before it first answers. Later, each attempt tells for itself.
pub static MONGODB: Outage = Outage::new("MongoDB");

/// The Lease by which the leader is found, for a process that only looks at it.
pub static LEASE: Outage = Outage::new("the Lease");

/// Redis, which answers, but refuses what is to be written: its memory is full, most likely.
static REDIS_WRITES: Outage = Outage::new("writing to Redis");

/// Takes note of the answer of Redis to a write, or its absence. `is_refusal`: Redis did answer, with an error.
pub fn note_write<T, E: Display>(answer: &Result<T, E>, is_refusal: bool) {
    if !is_refusal {
        REDIS.note(answer);
    }
    if is_refusal || answer.is_ok() {
        REDIS_WRITES.note(answer);
    }
}

impl Outage {
    /// Watches over `what`, which is taken to be there.
    #[must_use]
    pub const fn new(what: &'static str) -> Self {
        Self { what, away: Mutex::new(None), witnesses: AtomicUsize::new(ANYBODY + 1) }
    }

    /// One more who asks, and whose answers are told apart from all others'.
    pub fn witness(&'static self) -> Witness {
        Witness { outage: self, number: self.witnesses.fetch_add(1, Ordering::Relaxed) }
    }

    /// Takes note of an answer, or its absence. Logs only what is news: that it is away, another reason, that it is back.
    pub fn note<T, E: Display>(&self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.answered(ANYBODY),
            Err(error) => self.failed(ANYBODY, error),
        }
    }

    fn answered(&self, witness: usize) {
        let mut away = self.lock();
        let Some(outage) = away.as_mut() else { return };
        if outage.unanswered.remove(&witness) && outage.unanswered.is_empty() {
            *away = None;
            tracing::info!("{} is back", self.what);
        }
    }

    fn failed(&self, witness: usize, error: &impl Display) {
        match &mut *self.lock() {
            away @ None => {
                tracing::warn!(%error, "{} is away; trying again until it is back", self.what);
                let (unanswered, told) = ([witness].into(), vec![error.to_string()]);
                *away = Some(Away { since: Timestamp::now(), unanswered, told });
            }
            Some(away) => {
                away.unanswered.insert(witness);
                let error = error.to_string();
                if away.told.len() < MAX_REASONS && !away.told.contains(&error) {
                    tracing::warn!(error, "{} is still away", self.what);
                    away.told.push(error);
                }
            }
        }
    }

    /// Since when it is away. `None` while it is there.
    pub fn since(&self) -> Option<Timestamp> {
        self.lock().as_ref().map(|away| away.since)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Away>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness {
    /// As [`Outage::note`], for this one's own questions.
    pub fn note<T, E: Display>(&self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.outage.answered(self.number),
            Err(error) => self.outage.failed(self.number, error),
        }
    }
}

/// One who asks no more does not keep the others waiting.
impl Drop for Witness {
    fn drop(&mut self) {
        self.outage.answered(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_and_the_outage_is_one() {
        let outage = Outage::new("Test");
        let told = || outage.lock().as_ref().map(|away| away.told.clone());
        outage.note(&Err::<(), _>("refused"));
        let since = outage.since();
        for reason in ["refused", "password", "refused", "password"] {
            outage.note(&Err::<(), _>(reason));
        }
        assert_eq!(told(), Some(vec!["refused".to_owned(), "password".to_owned()]));
        for reason in 0..10 {
            outage.note(&Err::<(), _>(reason));
        }
        assert_eq!((told().unwrap().len(), outage.since()), (MAX_REASONS, since));
        outage.note(&Ok::<_, &str>(()));
        assert_eq!((told(), outage.since()), (None, None));
    }

    #[test]
    fn a_server_is_back_when_all_who_asked_were_answered() {
        static OUTAGE: Outage = Outage::new("Test");
        let [one, two, gone] = [OUTAGE.witness(), OUTAGE.witness(), OUTAGE.witness()];
        for witness in [&one, &two, &gone, &one] {
            witness.note(&Err::<(), _>("refused"));
        }
        let since = OUTAGE.since();
        assert!(since.is_some());
        one.note(&Ok::<_, &str>(()));
        one.note(&Ok::<_, &str>(()));
        assert_eq!(OUTAGE.since(), since, "two of them still have no answer");
        drop(gone);
        assert_eq!(OUTAGE.since(), since);
        two.note(&Ok::<_, &str>(()));
        assert_eq!(OUTAGE.since(), None);
    }
}
