//! Keys of the mirror in Redis, and the lease of its writer.

use std::{sync::LazyLock, time::Duration};

use redis::{Pipeline, Script, Value, from_redis_value};
use tokio::time::Instant;

use super::{
    record::{JobSet, NO_NEXT_SLOT},
    snapshot::MirrorWrite,
};
use crate::queue::{self, Call, Connection, Queue, unavailable};

/// Length of the lease: another process takes over when the writer does not renew the lease in time.
const LEASE: Duration = Duration::from_secs(15);
/// Interval between renewals of the lease.
const LEASE_RENEWAL: Duration = Duration::from_secs(5);
/// Expiry of a key that is not written again: four times the interval between writes of the whole mirror.
const EXPIRY: Duration = Duration::from_secs(60 * 60);
/// Writes in one transaction. Redis is blocked meanwhile, for about 1 ms.
const TRANSACTION_SIZE: usize = 100;
/// Members of a set in one command.
const MEMBERS_PER_COMMAND: usize = 1_000;

static RENEW_LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew_lease.lua")));

/// Error of a write to the mirror.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis did not execute a command.
    #[error(transparent)]
    Redis(#[from] queue::Error),
    /// The keys belong to a queue of BullMQ that is in use.
    #[error(
        "nothing is written, since {0} belongs to a queue of BullMQ: choose another prefix as BULLMQ_MIRROR, or delete that queue"
    )]
    Foreign(String),
    /// Another process holds the lease.
    #[error("another process writes the mirror")]
    Lost,
}

/// Keys of one mirror.
pub struct Store {
    connection: Connection,
    /// Prefix of every key, up to the last colon.
    prefix: String,
    writer: String,
    /// Time of the last attempt to renew the lease.
    renewed: Option<Instant>,
}

impl Store {
    /// Returns `None` when the keys could be on several servers.
    pub fn new(queue: &Queue, prefix: &str, writer: &str) -> Option<Self> {
        let prefix = format!("{prefix}:{}:", queue.name());
        let connection = queue.connection_for(&format!("{prefix}meta"))?;
        Some(Self { connection, prefix, writer: writer.to_owned(), renewed: None })
    }

    /// True when the lease has to be taken or renewed.
    pub fn is_renewal_due(&self) -> bool {
        self.renewed.is_none_or(|renewed| renewed.elapsed() >= LEASE_RENEWAL)
    }

    /// Acquires or renews the lease. Returns the sizes of lists and sets, or `None` when another process holds the
    /// lease.
    ///
    /// # Errors
    /// When Redis does not answer, or the keys belong to a queue of BullMQ.
    pub async fn renew_lease(&mut self) -> Result<Option<[usize; 7]>, Error> {
        self.renewed = Some(Instant::now());
        let mut call = RENEW_LEASE.prepare_invoke();
        for name in ["meta", "id"].into_iter().chain(JobSet::ALL.map(JobSet::name)) {
            call.key(self.key(name));
        }
        call.arg(&self.writer).arg(LEASE.as_millis() as u64).arg(EXPIRY.as_millis() as u64);
        let failed = unavailable("take the mirror");
        let answer: Vec<Value> = call.call(&mut self.connection).await.map_err(failed)?;
        match answer.as_slice() {
            [Value::Int(-1), key] => Err(Error::Foreign(from_redis_value(key.clone()).unwrap_or_default())),
            [Value::Int(1), sizes @ ..] => {
                let sizes = sizes.iter().map(|size| from_redis_value(size.clone()).unwrap_or_default());
                Ok(sizes.collect::<Vec<usize>>().try_into().ok())
            }
            _ => Ok(None),
        }
    }

    /// Applies the writes in order. Readers see up to 100 writes at once.
    ///
    /// # Errors
    /// When Redis does not answer, or another process holds the lease. Some writes may be applied then.
    pub async fn write(&mut self, writes: Vec<MirrorWrite>) -> Result<(), Error> {
        for some in writes.chunks(TRANSACTION_SIZE) {
            if self.is_renewal_due() && self.renew_lease().await?.is_none() {
                return Err(Error::Lost);
            }
            let mut transaction = redis::pipe();
            transaction.atomic();
            for write in some {
                if let MirrorWrite::Replace { set, members } = write {
                    self.prepare(*set, members).await?;
                }
                self.add(&mut transaction, write);
            }
            self.send(&transaction).await?;
        }
        Ok(())
    }

    /// Key of a name.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn send(&mut self, commands: &Pipeline) -> Result<(), Error> {
        Ok(commands.exec_async(&mut self.connection).await.map_err(unavailable("write the mirror"))?)
    }

    /// Writes the new list or set to a temporary key, which replaces the old one later.
    async fn prepare(&mut self, set: JobSet, members: &[(i64, String)]) -> Result<(), Error> {
        let key = self.key(&format!("{}:next", set.name()));
        let mut commands = redis::pipe();
        commands.atomic().del(&key).ignore();
        for some in members.chunks(MEMBERS_PER_COMMAND) {
            let command = if set.is_list() {
                commands.cmd("LPUSH").arg(&key).arg(some.iter().map(|(_, id)| id).collect::<Vec<_>>())
            } else {
                let members = some.iter().map(|(score, id)| (number(*score), id));
                commands.cmd("ZADD").arg(&key).arg(members.collect::<Vec<_>>())
            };
            command.ignore();
            expire(&mut commands, &key);
            self.send(&commands).await?;
            commands.clear();
        }
        if members.is_empty() { self.send(&commands).await } else { Ok(()) }
    }

    fn add(&self, commands: &mut Pipeline, write: &MirrorWrite) {
        match write {
            MirrorWrite::Hash { key, fields } => {
                let key = self.key(key);
                commands.del(&key).ignore().hset_multiple(&key, fields).ignore();
                expire(commands, &key);
            }
            MirrorWrite::Forget { key } => {
                commands.del(self.key(key)).ignore();
            }
            MirrorWrite::Add { set, id, score } => {
                let key = self.key(set.name());
                commands.cmd("ZADD").arg(&key).arg(number(*score)).arg(id).ignore();
                expire(commands, &key);
            }
            MirrorWrite::Remove { set, id } => {
                commands.zrem(self.key(set.name()), id).ignore();
            }
            MirrorWrite::Replace { set, members } if members.is_empty() => {
                commands.del(self.key(set.name())).ignore();
            }
            MirrorWrite::Replace { set, .. } => {
                commands.rename(self.key(&format!("{}:next", set.name())), self.key(set.name())).ignore();
            }
            MirrorWrite::Paused(true) => {
                commands.hset(self.key("meta"), "paused", 1).ignore();
            }
            MirrorWrite::Paused(false) => {
                commands.hdel(self.key("meta"), "paused").ignore();
            }
        }
    }
}

fn expire(commands: &mut Pipeline, key: &str) {
    commands.pexpire(key, EXPIRY.as_millis() as i64).ignore();
}

/// A score as Redis reads it.
fn number(score: i64) -> String {
    if score == NO_NEXT_SLOT { "+inf".to_owned() } else { score.to_string() }
}
