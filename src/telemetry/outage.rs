//! One log line when something goes away, and one when it is back, instead of one for each failed try.

use std::{
    fmt::Display,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

/// Whether something the program depends on is away.
#[derive(Debug)]
pub struct Outage {
    what: &'static str,
    since: Mutex<Option<Timestamp>>,
}

/// Redis, for the whole process: controllers and workers notice the same outage.
pub static REDIS: Outage = Outage::new("Redis");

/// MongoDB, before it first answers. Later, each attempt tells for itself.
pub static MONGODB: Outage = Outage::new("MongoDB");

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
        Self { what, since: Mutex::new(None) }
    }

    /// Takes note of an answer, or its absence. Logs only when that is news.
    pub fn note<T, E: Display>(&self, result: &Result<T, E>) {
        let mut since = self.lock();
        match result {
            Ok(_) if since.take().is_some() => tracing::info!("{} is back", self.what),
            Err(error) if since.is_none() => {
                *since = Some(Timestamp::now());
                tracing::warn!(error = %error, "{} is away; trying again until it is back", self.what);
            }
            _ => {}
        }
    }

    /// Since when it is away. `None` while it is there.
    pub fn since(&self) -> Option<Timestamp> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
