//! One log line when something goes away, and one when it is back, instead of one for each failed try.

use std::{
    fmt::Display,
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether something the program depends on is away.
#[derive(Debug)]
pub struct Outage {
    what: &'static str,
    away: AtomicBool,
}

/// Redis, for the whole process: controllers and workers notice the same outage.
pub static REDIS: Outage = Outage::new("Redis");

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
        Self { what, away: AtomicBool::new(false) }
    }

    /// Takes note of an answer, or its absence. Logs only when that is news.
    pub fn note<T, E: Display>(&self, result: &Result<T, E>) {
        match result {
            Ok(_) if self.away.swap(false, Ordering::Relaxed) => tracing::info!("{} is back", self.what),
            Err(error) if !self.away.swap(true, Ordering::Relaxed) => {
                tracing::warn!(error = %error, "{} is away; trying again until it is back", self.what);
            }
            _ => {}
        }
    }

    /// True while it is away.
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }
}
