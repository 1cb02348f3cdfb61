//! The mirror's keys in Redis.

use std::{sync::LazyLock, time::Duration};

use redis::{Pipeline, Script, Value, from_redis_value};
use tokio::time::Instant;

use super::{
    books::Write,
    record::{NEVER, Place},
};
use crate::queue::{self, Call, Connection, Queue, unavailable};

/// Another process may write when this one did not say for so long that it does.
const LEASE: Duration = Duration::from_secs(15);
/// How often it says so.
const HOLD: Duration = Duration::from_secs(5);
/// When a key ends that is not written again: four times as long as that takes.
const EXPIRY: Duration = Duration::from_secs(60 * 60);
/// Things that are written as one. Redis does nothing else meanwhile, about 1 ms.
const TOGETHER: usize = 100;
/// Members of a set that are written as one.
const MEMBERS: usize = 1_000;

static HOLDING: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("hold.lua")));

/// The mirror cannot be written now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis did not do what was asked.
    #[error(transparent)]
    Redis(#[from] queue::Error),
    /// The keys are those of a queue that somebody uses.
    #[error(
        "nothing is written, since {0} belongs to a queue of BullMQ: choose another prefix as BULLMQ_MIRROR, or delete that queue"
    )]
    Foreign(String),
    /// It was another process's turn meanwhile.
    #[error("another process writes it")]
    Lost,
}

/// The keys of one mirror.
pub struct Store {
    connection: Connection,
    /// What every key begins with, up to the last colon.
    prefix: String,
    writer: String,
    /// When it was asked last whether this process may write.
    asked: Option<Instant>,
}

impl Store {
    /// `None` when the keys could be on several servers.
    pub fn new(queue: &Queue, prefix: &str, writer: &str) -> Option<Self> {
        let prefix = format!("{prefix}:{}:", queue.name());
        let connection = queue.connection_for(&format!("{prefix}meta"))?;
        Some(Self { connection, prefix, writer: writer.to_owned(), asked: None })
    }

    /// It is time to say that this process writes, or to ask whether it may.
    pub fn is_due(&self) -> bool {
        self.asked.is_none_or(|asked| asked.elapsed() >= HOLD)
    }

    /// Says that this process writes. Answers with the sizes of lists and sets, or `None` when another one writes.
    ///
    /// # Errors
    /// When Redis does not answer, or the keys are somebody else's.
    pub async fn hold(&mut self) -> Result<Option<[usize; 7]>, Error> {
        self.asked = Some(Instant::now());
        let mut call = HOLDING.prepare_invoke();
        for name in ["meta", "id"].into_iter().chain(Place::ALL.map(Place::name)) {
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

    /// Writes, in this order. Readers see up to 100 of them at once.
    ///
    /// # Errors
    /// When Redis does not answer, or another process writes. Some of it may be written then.
    pub async fn write(&mut self, writes: Vec<Write>) -> Result<(), Error> {
        for some in writes.chunks(TOGETHER) {
            if self.is_due() && self.hold().await?.is_none() {
                return Err(Error::Lost);
            }
            let mut together = redis::pipe();
            together.atomic();
            for write in some {
                if let Write::Replace { place, members } = write {
                    self.prepare(*place, members).await?;
                }
                self.add(&mut together, write);
            }
            self.send(&together).await?;
        }
        Ok(())
    }

    /// The key of a name.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn send(&mut self, commands: &Pipeline) -> Result<(), Error> {
        Ok(commands.exec_async(&mut self.connection).await.map_err(unavailable("write the mirror"))?)
    }

    /// Writes a list or set beside the one that is there.
    async fn prepare(&mut self, place: Place, members: &[(i64, String)]) -> Result<(), Error> {
        let key = self.key(&format!("{}:next", place.name()));
        let mut commands = redis::pipe();
        commands.atomic().del(&key).ignore();
        for some in members.chunks(MEMBERS) {
            let command = if place.is_list() {
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

    fn add(&self, commands: &mut Pipeline, write: &Write) {
        match write {
            Write::Hash { key, fields } => {
                let key = self.key(key);
                commands.del(&key).ignore().hset_multiple(&key, fields).ignore();
                expire(commands, &key);
            }
            Write::Forget { key } => {
                commands.del(self.key(key)).ignore();
            }
            Write::Add { place, id, score } => {
                let key = self.key(place.name());
                commands.cmd("ZADD").arg(&key).arg(number(*score)).arg(id).ignore();
                expire(commands, &key);
            }
            Write::Remove { place, id } => {
                commands.zrem(self.key(place.name()), id).ignore();
            }
            Write::Replace { place, members } if members.is_empty() => {
                commands.del(self.key(place.name())).ignore();
            }
            Write::Replace { place, .. } => {
                commands.rename(self.key(&format!("{}:next", place.name())), self.key(place.name())).ignore();
            }
            Write::Paused(true) => {
                commands.hset(self.key("meta"), "paused", 1).ignore();
            }
            Write::Paused(false) => {
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
    if score == NEVER { "+inf".to_owned() } else { score.to_string() }
}
