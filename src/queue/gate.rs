//! Gates that all workers go through one after the other: what keeps them together to a rate.

use std::time::Duration;

use super::{Error, Queue, scripts};

/// When to go through a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// After this time, at most 1 s.
    In(Duration),
    /// Not so soon: ask for a turn again after this time.
    Later(Duration),
}

impl Queue {
    /// Takes the next turn at a gate through which one goes `every` so often. A turn that is not used is lost.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn turn(&self, gate: &str, every: Duration) -> Result<Turn, Error> {
        self.gate(gate, every, Duration::ZERO).await
    }

    /// Lets nobody through a gate for a time, but those who have their turn already.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn shut(&self, gate: &str, rest: Duration) -> Result<(), Error> {
        self.gate(gate, Duration::ZERO, rest).await.map(drop)
    }

    async fn gate(&self, gate: &str, every: Duration, rest: Duration) -> Result<Turn, Error> {
        let mut call = self.script(&scripts::GATE);
        call.key(self.keys.gate(gate)).arg(every.as_micros() as u64).arg(rest.as_micros() as u64);
        let (is_taken, wait): (bool, u64) = self.call(&call, "take a turn at a gate").await?;
        let wait = Duration::from_micros(wait);
        Ok(if is_taken { Turn::In(wait) } else { Turn::Later(wait) })
    }
}
