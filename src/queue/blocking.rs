//! Waiting for Redis to say something. Blocking commands use connections of their own, without the
//! client-side time limit that would abandon an answer the server still gives, and with a watchdog above the
//! server-side one.

use std::time::Duration;

use redis::{RedisError, Value, aio::MultiplexedConnection};
use tokio::time::{sleep, timeout};

use super::{Error, connection::Place, read_changes, unavailable};

/// How much longer than the server's own limit an answer may take.
const WATCHDOG: Duration = Duration::from_secs(5);
const RECONNECT: Duration = Duration::from_millis(500);

/// A connection for one blocking command at a time; made when first used and after each error.
struct Line {
    place: Place,
    connection: Option<MultiplexedConnection>,
}

impl Line {
    /// Runs a command that blocks for at most `limit` on the server.
    async fn block(&mut self, command: &redis::Cmd, limit: Duration) -> Result<Value, RedisError> {
        let mut connection =
            if let Some(connection) = self.connection.take() { connection } else { self.place.connect(None).await? };
        let answer = timeout(limit + WATCHDOG, command.query_async::<Value>(&mut connection))
            .await
            .map_err(|_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)))??;
        self.connection = Some(connection);
        Ok(answer)
    }
}

/// Rings when a run can be claimed.
pub struct Doorbell {
    line: Line,
    key: String,
}

impl Doorbell {
    pub(super) fn new(place: Place, key: String) -> Self {
        Self { line: Line { place, connection: None }, key }
    }

    /// Waits for a ring, at most for `limit` (rounded up to 10 ms). One ring wakes one waiter. Cancelling it
    /// may swallow a ring, so look for runs before waiting again.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn wait(&mut self, limit: Duration) -> Result<(), Error> {
        let limit = limit.max(Duration::from_millis(10));
        let mut command = redis::cmd("BLPOP");
        command.arg(&self.key).arg(limit.as_secs_f64());
        self.line.block(&command, limit).await.map(drop).map_err(unavailable("wait for runs"))
    }
}

/// The runs that something happened to, in order. What happened before the first call is not told, and a gap
/// after an outage is possible: whoever follows must also look at everything from time to time.
pub struct Changes {
    line: Line,
    key: String,
    last: Option<String>,
}

impl Changes {
    pub(super) fn new(place: Place, key: String) -> Self {
        Self { line: Line { place, connection: None }, key, last: None }
    }

    /// Waits for the next runs that something happened to. Never fails: while Redis is away it tries again.
    pub async fn next(&mut self) -> Vec<String> {
        const BLOCK: Duration = Duration::from_secs(10);
        loop {
            // Not "$" in every call: what happens between two calls would be lost.
            let last = match &self.last {
                Some(last) => last.clone(),
                None => match self.newest().await {
                    Ok(last) => self.last.insert(last).clone(),
                    Err(error) => {
                        tracing::debug!(error = super::describe(&error), "cannot follow the queue");
                        sleep(RECONNECT).await;
                        continue;
                    }
                },
            };
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(1000).arg("BLOCK").arg(BLOCK.as_millis() as u64);
            command.arg("STREAMS").arg(&self.key).arg(last);
            match self.line.block(&command, BLOCK).await {
                Ok(answer) => {
                    if let Some((last, uids)) = read_changes(answer) {
                        self.last = Some(last);
                        return uids;
                    }
                }
                Err(error) => {
                    tracing::debug!(error = super::describe(&error), "cannot follow the queue");
                    sleep(RECONNECT).await;
                }
            }
        }
    }

    async fn newest(&mut self) -> Result<String, RedisError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&self.key).arg("+").arg("-").arg("COUNT").arg(1);
        let answer = self.line.block(&command, Duration::ZERO).await?;
        let newest: redis::streams::StreamRangeReply = redis::from_redis_value(answer)?;
        Ok(newest.ids.first().map_or_else(|| "0-0".to_owned(), |event| event.id.clone()))
    }
}
