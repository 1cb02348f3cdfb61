//! One log line when something goes away, one for each further reason, and one when it is back, instead of one for each
//! failed try.

use std::{
    fmt::Display,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

/// Reasons told of one outage. Others are not.
const MAX_REASONS: usize = 5;

/// Whether something the program depends on is away.
#[derive(Debug)]
pub struct Outage {
    what: &'static str,
    away: Mutex<Option<Away>>,
}

#[derive(Debug)]
struct Away {
    since: Timestamp,
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
        Self { what, away: Mutex::new(None) }
    }

    /// Takes note of an answer, or its absence. Logs only what is news: that it is away, another reason, that it is back.
    pub fn note<T, E: Display>(&self, result: &Result<T, E>) {
        let mut away = self.lock();
        match (result, away.as_mut()) {
            (Ok(_), None) => {}
            (Ok(_), Some(_)) => {
                *away = None;
                tracing::info!("{} is back", self.what);
            }
            (Err(error), None) => {
                tracing::warn!(%error, "{} is away; trying again until it is back", self.what);
                *away = Some(Away { since: Timestamp::now(), told: vec![error.to_string()] });
            }
            (Err(error), Some(away)) => {
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
}
