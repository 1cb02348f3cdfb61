//! Blocking commands of Redis. They use connections of their own, without the
//! client-side time limit that would abandon an answer the server still gives, and with a watchdog above the
//! server-side one.

use std::time::Duration;

use redis::{RedisError, Value, aio::MultiplexedConnection, from_redis_value};
use tokio::time::{sleep, timeout};

use super::{Error, connection::Topology, parse_changes, unavailable};

/// Additional time beyond the timeout of the server before an answer counts as missing.
const WATCHDOG: Duration = Duration::from_secs(5);
const RECONNECT: Duration = Duration::from_millis(500);

/// Connection for one blocking command at a time. Opened at the first use and after each error.
struct BlockingConnection {
    topology: Topology,
    connection: Option<MultiplexedConnection>,
}

impl BlockingConnection {
    /// Runs a command that blocks for at most `limit` on the server.
    async fn block(&mut self, command: &redis::Cmd, limit: Duration) -> Result<Value, RedisError> {
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            self.topology.connect(None).await?
        };
        let answer = timeout(limit + WATCHDOG, command.query_async::<Value>(&mut connection))
            .await
            .map_err(|_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)))??;
        self.connection = Some(connection);
        Ok(answer)
    }
}

/// Notifier of runs that can be claimed.
pub struct WorkNotifier {
    connection: BlockingConnection,
    key: String,
}

impl WorkNotifier {
    pub(super) fn new(topology: Topology, key: String) -> Self {
        Self { connection: BlockingConnection { topology, connection: None }, key }
    }

    /// Waits for a notification, at most for `limit` (rounded up to 10 ms), and returns the run that it names, if any.
    /// One notification wakes one waiter. Dropping this future may lose a notification, so claim before waiting again.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn wait(&mut self, limit: Duration) -> Result<Option<String>, Error> {
        let limit = limit.max(Duration::from_millis(10));
        let mut command = redis::cmd("BLPOP");
        command.arg(&self.key).arg(limit.as_secs_f64());
        let answer = self.connection.block(&command, limit).await.and_then(|answer| Ok(from_redis_value(answer)?));
        // An item of release 0.1.0 is the number 1, which no run has as its id.
        let item: Option<(String, String)> = answer.map_err(unavailable("wait for runs"))?;
        Ok(item.map(|(_, uid)| uid).filter(|uid| !uid.is_empty()))
    }
}

/// Stream of the runs that changed, in order. It begins at the first call, and an outage may leave a gap: a reader must
/// also list all runs from time to time.
pub struct RunChanges {
    connection: BlockingConnection,
    key: String,
    last: Option<String>,
}

impl RunChanges {
    pub(super) fn new(topology: Topology, key: String) -> Self {
        Self { connection: BlockingConnection { topology, connection: None }, key, last: None }
    }

    /// Waits for the next runs that changed. Never fails: retries while Redis is unavailable.
    pub async fn next(&mut self) -> Vec<String> {
        const BLOCK: Duration = Duration::from_secs(10);
        loop {
            // Not "$" in every call: what happens between two calls would be lost.
            let last = match &self.last {
                Some(last) => last.clone(),
                None => match self.newest().await {
                    Ok(last) => self.last.insert(last).clone(),
                    Err(error) => {
                        tracing::debug!(error = super::describe(&error), "cannot read the changes of the queue");
                        sleep(RECONNECT).await;
                        continue;
                    }
                },
            };
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(1000).arg("BLOCK").arg(BLOCK.as_millis() as u64);
            command.arg("STREAMS").arg(&self.key).arg(last);
            match self.connection.block(&command, BLOCK).await {
                Ok(answer) => {
                    if let Some((last, uids)) = parse_changes(answer) {
                        self.last = Some(last);
                        return uids;
                    }
                }
                Err(error) => {
                    tracing::debug!(error = super::describe(&error), "cannot read the changes of the queue");
                    sleep(RECONNECT).await;
                }
            }
        }
    }

    async fn newest(&mut self) -> Result<String, RedisError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&self.key).arg("+").arg("-").arg("COUNT").arg(1);
        let answer = self.connection.block(&command, Duration::ZERO).await?;
        let newest: redis::streams::StreamRangeReply = from_redis_value(answer)?;
        Ok(newest.ids.first().map_or_else(|| "0-0".to_owned(), |event| event.id.clone()))
    }
}
