//! The Redis work list. Knows runs by uid, as opaque payloads; nothing of Kubernetes or MongoDB.
//!
//! Each transition is one script that runs as a whole or not at all. A claim raises the epoch of the run. Every later
//! write of that worker carries the epoch, and is refused once the epoch is not the current one. The time is the
//! Redis server's, so the clocks of the pods do not matter.

mod alerts;
mod blocking;
mod connection;
mod keys;
mod rate_limit;
mod scripts;
mod types;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use redis::{AsyncCommands, ErrorKind, FromRedisValue, RedisError, Script, ScriptInvocation, Value, from_redis_value};
use tokio::sync::watch;

pub use blocking::{RunChanges, WorkNotifier};
pub(crate) use connection::Connection;
pub(crate) use scripts::Call;
pub use types::{
    Attempts, Candidates, Claim, Control, Depth, Disposition, Entry, FencedWrite, KnownRun, NewRun, Release, Renewed,
    Repaired, Server,
};

use crate::{
    connection_error::{self, LOGIN},
    domain::{
        from_millis,
        installation::{Fingerprint, OWNERSHIP, Owner},
        needs::{self, Level},
        run::LeaseState,
    },
};
use connection::Topology;
use keys::Keys;

/// Format of a run's hash that each release reads.
const FORMAT: &str = "1";
/// Format of the hash of a run with `needs`, which workers of release 0.1.0 do not claim.
const FORMAT_WITH_NEEDS: &str = "2";
/// Number of runs that one reap checks.
const BATCH: usize = 16;
/// Largest number of runs in one claim. Redis is blocked meanwhile, for about 1 ms.
const MAX_CLAIMS: usize = 32;
/// A run that loses its worker more often than this without a checkpoint in between ends as failed.
const MAX_STALLS: u32 = 5;
/// Largest number of runs in a call that takes Redis some microseconds for each run.
const CHUNK: usize = 100;
/// Answer of a claim while no run may be claimed.
const UNASSERTED: i64 = -2;
/// Answer of a claim when more delayed runs are due than one call handles.
const MORE_DUE: i64 = -3;
/// Longest wait for an answer. The default of redis-rs, 500 ms, is too short for a busy server.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Failure of a request to Redis. Worth another try later.
    #[error("could not {action}: {}", describe(source))]
    Unavailable {
        /// The command, as a verb phrase.
        action: &'static str,
        /// Error of Redis or of the connection.
        source: RedisError,
    },
    /// The queue is another installation's.
    #[error("the queue belongs to another installation")]
    Owned,
    /// Redis did not answer within the time limit of the caller.
    #[error("Redis does not answer")]
    Silent,
    /// Redis was restarted or failed over, and may not know which runs have ended since.
    #[error("no run is claimed until a controller has compared the runs in Redis with the SyncJobs")]
    Unasserted,
    /// A run's hash cannot be read.
    #[error("run {uid} in Redis is not readable: {what}")]
    Unreadable {
        /// The run.
        uid: String,
        /// Description of the mistake.
        what: &'static str,
    },
}

impl Error {
    /// Error code of a Redis server that can be reached but does not execute the command, such as OOM when its memory
    /// is full.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        let Self::Unavailable { source, .. } = self else { return None };
        source.code().filter(|code| !connection::WRONG_SERVER.contains(code))
    }

    /// Description of the answer of a Redis server that accepts no writes.
    #[must_use]
    pub fn answer(&self) -> Option<String> {
        let Self::Unavailable { source, .. } = self else { return None };
        source.code().filter(|code| *code != "LOADING").map(|_| describe(source))
    }
}

/// The address of a Redis server that cannot be used. The text holds no part of it.
#[derive(Debug, thiserror::Error)]
#[error("the Redis address is not valid: {0}")]
pub struct InvalidAddress(String);

/// Meaning of an error code of a Redis server that can be reached but does not execute commands.
fn meaning(code: &str) -> Option<&'static str> {
    Some(match code {
        "NOPERM" => "its user lacks a right that the program needs",
        "READONLY" => "it is a replica, which accepts no writes",
        "OOM" => "its memory is full",
        "MISCONF" => "it cannot write to its disk",
        "NOREPLICAS" => "it has too few replicas",
        _ => return None,
    })
}

/// Description of a Redis error, without details that could contain an address or a password.
fn describe(error: &RedisError) -> String {
    // What the user may not do in a script is an error like any other.
    let in_script = error.detail().is_some_and(|detail| detail.starts_with("The user executing the script"));
    match error.code().map(|code| if in_script { "NOPERM" } else { code }) {
        Some(code @ ("WRONGPASS" | "NOAUTH")) => format!("Redis answered {code}: {LOGIN}"),
        Some(code) => match meaning(code) {
            Some(meaning) => format!("Redis answered {code}: {meaning}"),
            None => format!("Redis answered {code}"),
        },
        None if error.kind() == ErrorKind::AuthenticationFailed => format!("Redis refuses the login: {LOGIN}"),
        None if error.kind() == ErrorKind::Parse => {
            "the server does not use the Redis protocol: check the port, and whether the server needs TLS".to_owned()
        }
        None if error.is_connection_refusal() => "connection refused".to_owned(),
        None if error.is_timeout() => "no answer in time".to_owned(),
        None if error.is_io_error() => {
            connection_error::known_cause(&error.to_string()).unwrap_or_else(|| "the connection was lost".to_owned())
        }
        None => error.category().to_owned(),
    }
}

/// A time as scripts take it. None is empty.
fn millis(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, |at| at.as_millisecond().to_string())
}

pub(crate) fn unavailable(action: &'static str) -> impl FnOnce(RedisError) -> Error {
    move |source| Error::Unavailable { action, source }
}

/// A run's id, the values of [`types::FIELDS`], and the milliseconds since it was due.
type Claimed = (String, Vec<Option<String>>, u64);

/// Queue of runs in Redis. Cheap to clone; clones share a connection. All calls may be cancelled at any point: a
/// script that was sent still runs as a whole.
#[derive(Clone)]
pub struct Queue {
    topology: Topology,
    connection: Connection,
    keys: Keys,
    lease: Duration,
    /// Fingerprint of this installation. `None`: not determined yet.
    installation: Arc<watch::Sender<Option<Fingerprint>>>,
    level: Level,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("keys", &self.keys.run("*")).finish_non_exhaustive()
    }
}

impl Queue {
    /// A queue on a Redis server, behind Sentinel (`redis+sentinel://host:port,host:port/master`) or in a Cluster
    /// (`redis+cluster://host:port,host:port`). Connects when first used, and again whenever the connection breaks.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub fn new(url: &str, name: &str, lease: Duration) -> Result<Self, InvalidAddress> {
        Self::trusting(None, url, name, lease)
    }

    /// Opens a queue on servers whose certificates are verified with `ca` (PEM) instead of the system roots.
    ///
    /// # Errors
    /// When the address cannot be used, the certificates cannot be read, or the address is not one of TLS.
    pub fn trusting(ca: Option<Vec<u8>>, url: &str, name: &str, lease: Duration) -> Result<Self, InvalidAddress> {
        let keys = Keys::new(name);
        let topology =
            Topology::parse(url, ca, keys.wake()).map_err(|_| match Topology::parse(url, None, keys.wake()) {
                Ok(_) => InvalidAddress("REDIS_CA_FILE needs rediss:// and certificates in PEM".to_owned()),
                Err(_) => InvalidAddress(connection_error::connection_string_mistake(url, &connection::SCHEMES)),
            })?;
        let (connection, installation) = (Connection::new(topology.clone()), Arc::new(watch::Sender::new(None)));
        Ok(Self { connection, topology, keys, lease, installation, level: Level::default() })
    }

    /// Returns the queue for a program of another level.
    #[must_use]
    pub fn at_level(self, level: Level) -> Self {
        Self { level, ..self }
    }

    /// Level of this program.
    #[must_use]
    pub fn level(&self) -> &Level {
        &self.level
    }

    /// Sets the fingerprint of this installation, for all clones.
    pub fn identify(&self, fingerprint: Fingerprint) {
        self.installation.send_replace(Some(fingerprint));
    }

    /// Waits for the fingerprint of this installation.
    pub async fn identified(&self) -> Fingerprint {
        let mut installation = self.installation.subscribe();
        // Fails only without a sender, and this has one.
        let found = installation.wait_for(Option::is_some).await;
        found.ok().and_then(|found| found.clone()).unwrap_or_default()
    }

    /// The fingerprint of this installation. Empty until it is determined.
    #[must_use]
    pub fn installation(&self) -> Fingerprint {
        self.installation.borrow().clone().unwrap_or_default()
    }

    /// Reads the owner of the queue. `None`: the queue has no owner, or the owner has not renewed its ownership.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn owner(&self) -> Result<Option<Owner>, Error> {
        let fields: (Option<String>, Option<String>) = self
            .connection
            .clone()
            .hmget(self.keys.owner(), &["fingerprint", "lease"])
            .await
            .map_err(unavailable("read the owner of the queue"))?;
        let (fingerprint, lease) = fields;
        let read = |text: String| Owner { fingerprint: Fingerprint::parse(&text), lease: lease.unwrap_or_default() };
        Ok(fingerprint.map(read))
    }

    /// Records for 10 minutes that `owner` owns the queue, unless the recorded owner is not `expected` any more.
    /// Returns whether it was recorded.
    ///
    /// # Errors
    /// When Redis does not answer; the owner may or may not be recorded.
    pub async fn own(&self, owner: &Owner, expected: Option<&Owner>) -> Result<bool, Error> {
        let expected = expected.map_or_else(String::new, |owner| format!("{}\n{}", owner.fingerprint, owner.lease));
        let mut call = self.script(&scripts::OWN);
        call.arg(owner.fingerprint.to_string()).arg(&owner.lease).arg(OWNERSHIP.as_millis() as u64).arg(expected);
        Ok(self.call::<u8>(&call, "record the owner of the queue").await? == 1)
    }

    /// Name of the queue.
    #[must_use]
    pub fn name(&self) -> &str {
        self.keys.name()
    }

    /// A connection to the server that has other keys than the queue's. `key`: any of them; in a Cluster it needs a
    /// hash tag, so that they are all on one server.
    pub(crate) fn connection_for(&self, key: &str) -> Option<Connection> {
        match self.topology.for_key(key) {
            None => Some(self.connection.clone()),
            Some(topology) => keys::has_tag(key).then(|| Connection::new(topology)),
        }
    }

    /// Time for which a claim holds without a renewal.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Pings Redis.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn ping(&self) -> Result<(), Error> {
        redis::cmd("PING").exec_async(&mut self.connection.clone()).await.map_err(unavailable("reach Redis"))
    }

    /// Reads the clock of Redis.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn time(&self) -> Result<Timestamp, Error> {
        let time: (i64, i64) = redis::cmd("TIME")
            .query_async(&mut self.connection.clone())
            .await
            .map_err(unavailable("read the clock of Redis"))?;
        Ok(from_millis(time.0.saturating_mul(1000).saturating_add(time.1 / 1000)))
    }

    /// Reads a setting that decides whether runs can get lost: `maxmemory-policy`. `None` when the
    /// user may not read the setting.
    pub async fn eviction_policy(&self) -> Option<String> {
        let mut connection = self.connection.clone();
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg("maxmemory-policy");
        let answer: HashMap<String, String> = command.query_async(&mut connection).await.ok()?;
        answer.into_values().next()
    }

    /// Returns the secret of the sessions of the dashboard, which all processes share. The first process stores its
    /// proposal.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn dashboard_key(&self, proposal: &[u8]) -> Result<Vec<u8>, Error> {
        let (mut connection, key) = (self.connection.clone(), self.keys.dashboard_key());
        let failed = || unavailable("read the key of the dashboard");
        let mut read = redis::cmd("GET");
        read.arg(&key);
        if let Some(stored) = read.query_async::<Option<Vec<u8>>>(&mut connection).await.map_err(failed())? {
            return Ok(stored);
        }
        // Another process may be faster. Its secret is then the one of all.
        redis::cmd("SET").arg(&key).arg(proposal).arg("NX").exec_async(&mut connection).await.map_err(failed())?;
        let stored: Option<Vec<u8>> = read.query_async(&mut connection).await.map_err(failed())?;
        Ok(stored.unwrap_or_else(|| proposal.to_vec()))
    }

    /// A script call with the keys every script knows; those of runs follow.
    fn script<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        for key in &self.keys.shared {
            call.key(key);
        }
        call
    }

    /// A script call about one run.
    fn script_on<'a>(&self, script: &'a Script, uid: &str) -> ScriptInvocation<'a> {
        let mut call = self.script(script);
        call.key(self.keys.run(uid)).arg(uid);
        call
    }

    /// Enqueues a run. Does nothing when the queue has the run already, in whatever state. True when the run was
    /// enqueued.
    ///
    /// # Errors
    /// When Redis does not answer; the run may or may not be in the queue.
    pub async fn enqueue(&self, run: &NewRun<'_>) -> Result<bool, Error> {
        let mut call = self.script_on(&scripts::ENQUEUE, run.uid);
        let format = if run.needs > needs::FIRST { FORMAT_WITH_NEEDS } else { FORMAT };
        call.arg(format).arg(run.payload).arg(run.priority).arg(millis(run.started));
        call.arg(run.attempts)
            .arg(run.recoveries)
            .arg(run.history)
            .arg(millis(run.suspended))
            .arg(u8::from(run.rollback))
            .arg(run.traceparent.as_deref().unwrap_or_default())
            .arg(run.parked_for.as_millis() as u64)
            .arg(self.installation().to_string())
            .arg(run.needs)
            .arg(self.level.number)
            .arg(run.namespace);
        match self.call::<Option<String>>(&call, "enqueue a run").await {
            Err(error) if error.refusal() == Some("OWNED") => Err(Error::Owned),
            existing => Ok(existing?.is_none()),
        }
    }

    async fn call<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>, action: &'static str) -> Result<T, Error> {
        call.call(&mut self.connection.clone()).await.map_err(unavailable(action))
    }

    /// Claims the next runs: highest priority first, then alternating between the namespaces, then first come, first
    /// served. At most `most` (and at most 32), and no more than an equal share for each living worker. Without a run to
    /// claim, returns the time until a delayed run is due. `candidates` is kept from one call to the next, which saves a
    /// call.
    ///
    /// # Errors
    /// When Redis does not answer. The run of a claim whose answer got lost is recovered when its lease expires.
    /// [`Error::Unasserted`] after a restart or failover of Redis, until a controller has called [`Queue::confirm`].
    pub async fn claim(
        &self,
        worker: &str,
        most: usize,
        candidates: &mut Candidates,
    ) -> Result<Result<Vec<Claim>, Option<Duration>>, Error> {
        let most = most.clamp(1, MAX_CLAIMS);
        let (window, installation) = (2 * most.max(2), self.installation().to_string());
        // The first call may only return which runs wait now.
        let (mut offset, mut is_fresh) = (0, false);
        loop {
            let mut call = self.script(&scripts::CLAIM);
            call.arg(self.level.number).arg(worker).arg(self.lease.as_millis() as u64);
            call.arg(most).arg(offset).arg(window).arg(u8::from(is_fresh)).arg(&installation);
            for uid in &candidates.0 {
                call.key(self.keys.run(uid)).arg(uid);
            }
            let (claimed, now, next_due): (Vec<Claimed>, i64, i64);
            (claimed, now, candidates.0, next_due) = self.call(&call, "claim runs").await?;
            if !claimed.is_empty() {
                return Ok(Ok(parse_claims(claimed, now)));
            }
            if next_due == UNASSERTED {
                return Err(Error::Unasserted);
            }
            if candidates.0.is_empty() {
                let next_due = u64::try_from(next_due).ok().map(Duration::from_millis);
                // Others may have emptied the first page meanwhile, and runs moved up into it.
                let soon = (offset > 0).then_some(Duration::from_secs(1));
                return Ok(Err(next_due.into_iter().chain(soon).min()));
            }
            // Skipped runs stay in the set, so the runs behind them have to be checked as well.
            if is_fresh && next_due != MORE_DUE {
                offset += window;
            }
            is_fresh = !is_fresh || next_due == MORE_DUE;
        }
    }

    /// Extends the leases of a worker's runs, and shows that the worker lives.
    ///
    /// # Errors
    /// When Redis does not answer: nothing is known about the leases then.
    pub async fn renew(&self, worker: &str, held: &[(String, u64)]) -> Result<Renewed, Error> {
        let mut call = self.script(&scripts::RENEW);
        call.arg(self.member(worker)).arg(self.lease.as_millis() as u64);
        for (uid, epoch) in held {
            call.key(self.keys.run(uid)).arg(uid).arg(epoch);
        }
        let (lost, recalled) = self.call(&call, "renew leases").await?;
        Ok(Renewed { lost, recalled })
    }

    /// Member of the set of living workers, with the level of the worker.
    fn member(&self, worker: &str) -> String {
        format!("{worker} {}", self.level.number)
    }

    /// Returns the highest level of the workers that live. `None`: none lives.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn highest_level(&self) -> Result<Option<u32>, Error> {
        let mut connection = self.connection.clone();
        let workers: Vec<String> =
            connection.zrange(self.keys.workers(), 0, -1).await.map_err(unavailable("list the workers"))?;
        // Release 0.1.0 names its workers alone.
        let level = |worker: &String| worker.rsplit_once(' ').and_then(|(_, level)| level.parse().ok());
        Ok(workers.iter().map(|worker| level(worker).unwrap_or(needs::FIRST)).max())
    }

    /// Removes a worker that stops from the list of the workers.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn retire(&self, worker: &str) -> Result<(), Error> {
        let mut connection = self.connection.clone();
        connection.zrem(self.keys.workers(), self.member(worker)).await.map_err(unavailable("retire the worker"))
    }

    /// Records the progress of a run.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn checkpoint(&self, uid: &str, epoch: u64, checkpoint: &str) -> Result<LeaseState, Error> {
        let mut call = self.script_on(&scripts::CHECKPOINT, uid);
        let answer: u8 = self.call(call.arg(epoch).arg(checkpoint), "record a checkpoint").await?;
        Ok(match answer {
            0 => LeaseState::Lost,
            1 => LeaseState::Held,
            _ => LeaseState::Recalled,
        })
    }

    /// Records the release of runs by a worker in one call, and returns for each run whether the worker still held
    /// it. Redis is blocked meanwhile: for about 1 ms with 32 runs.
    ///
    /// # Errors
    /// When Redis does not answer; each release may or may not be recorded. A run whose release is not recorded returns
    /// to the queue when its lease ends.
    pub async fn release(&self, runs: impl IntoIterator<Item = &Release>) -> Result<Vec<FencedWrite>, Error> {
        let mut call = self.script(&scripts::RELEASE);
        for Release { uid, epoch, disposition, checkpoint, attempts } in runs {
            call.key(self.keys.run(uid)).arg(uid).arg(epoch);
            match disposition {
                Disposition::Completed => call.arg("completed").arg(""),
                Disposition::Failed(outcome) => call.arg("failed").arg(outcome),
                Disposition::Retry(delay) => call.arg("delayed").arg(delay.as_millis() as u64),
                Disposition::Paused(pause) => call.arg("paused").arg(pause.as_millis() as u64),
                Disposition::Held(number) => call.arg("held").arg(number),
                Disposition::Unsupported(level) => call.arg("unsupported").arg(level),
                Disposition::Released => call.arg("released").arg(""),
            };
            call.arg(checkpoint);
            match attempts {
                Some(Attempts { count, history }) => call.arg(count).arg(history),
                None => call.arg("").arg(""),
            };
        }
        let answers: Vec<u8> = self.call(&call, "release runs").await?;
        Ok(answers.into_iter().map(FencedWrite::from).collect())
    }

    /// Writes the desired state of an unfinished run. The state takes effect at once when no worker holds the run,
    /// otherwise when its worker releases the run; a run that ends before that has ended. False when there is no such
    /// run, or the run has ended.
    ///
    /// # Errors
    /// When Redis does not answer. Doing it again does no harm.
    pub async fn control(&self, uid: &str, control: Control<'_>) -> Result<bool, Error> {
        self.assert(&[KnownRun::new(uid, control)], false).await.map(|runs| runs == 1)
    }

    /// Asserts unfinished runs from their SyncJobs where Redis has another state, and returns how many of them Redis
    /// has. `is_restored`: Redis may have gone back to an earlier time, so the time since which a run is parked is
    /// asserted, too. The state takes effect as in [`Queue::control`].
    ///
    /// # Errors
    /// When Redis does not answer. Doing it again does no harm.
    pub async fn assert(&self, runs: &[KnownRun<'_>], is_restored: bool) -> Result<usize, Error> {
        let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
        let mut found = 0;
        for some in runs.chunks(CHUNK) {
            let mut call = self.script(&scripts::ASSERT);
            call.arg(self.installation().to_string()).arg(u8::from(is_restored));
            for run in some {
                let Control { suspended, cancelled, priority, approved } = run.control;
                call.key(self.keys.run(run.uid)).arg(run.uid);
                call.arg(u8::from(suspended)).arg(cancelled.unwrap_or_default()).arg(priority).arg(number(approved));
                call.arg(millis(run.started)).arg(run.attempts).arg(run.recoveries).arg(run.history);
                call.arg(run.parked_for.as_millis() as u64).arg(millis(run.parked_since)).arg(number(run.held));
            }
            found += self.call::<Vec<usize>>(&call, "control runs").await?.into_iter().sum::<usize>();
        }
        Ok(found)
    }

    /// The server that has the queue now.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn server(&self) -> Result<Server, Error> {
        let call = self.script(&scripts::SERVER);
        let (replication_id, is_asserted, workers) = self.call(&call, "inspect the Redis server").await?;
        Ok(Server { replication_id, is_asserted, workers })
    }

    /// Allows workers to claim runs, after all runs were asserted on the server with this replication id. False when
    /// another server has the queue now.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn confirm(&self, replication_id: &str) -> Result<bool, Error> {
        let mut call = self.script(&scripts::CONFIRM);
        self.call(call.arg(replication_id), "allow workers to claim runs").await
    }

    /// Returns runs whose lease has ended to the queue. A run that keeps losing its worker
    /// without getting any further ends as failed, with `stalled` as its outcome; while it is rolled back, it waits for
    /// a minute instead. Returns how many were found.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn reap(&self, stalled: &str) -> Result<usize, Error> {
        for offset in (0..).step_by(BATCH) {
            let mut call = self.script(&scripts::EXPIRED);
            let expired: Vec<String> = self.call(call.arg(offset).arg(BATCH), "find ended leases").await?;
            let reaped = if expired.is_empty() { 0 } else { self.reap_all_of(&expired, stalled).await? };
            if reaped > 0 || expired.len() < BATCH {
                return Ok(reaped);
            }
        }
        Ok(0)
    }

    async fn reap_all_of(&self, expired: &[String], stalled: &str) -> Result<usize, Error> {
        let mut call = self.script(&scripts::REAP);
        call.arg(MAX_STALLS).arg(stalled);
        for uid in expired {
            call.key(self.keys.run(uid)).arg(uid);
        }
        self.call(&call, "return runs to the queue").await
    }

    /// Checks all runs that Redis or the caller knows, and repairs runs whose hash and set do not agree. This happens
    /// after a restore of a part of the data, or an eviction. Reads all sets, so it is too slow for a call every few
    /// seconds.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn repair(&self, known: impl IntoIterator<Item = String>) -> Result<Repaired, Error> {
        // In order, because runs that wait again get their ranks in this order.
        let mut uids: BTreeSet<String> = self.members(0..7).await?.into_iter().collect();
        uids.extend(known);
        let mut found = Repaired::default();
        let uids: Vec<String> = uids.into_iter().collect();
        for some in uids.chunks(CHUNK) {
            let mut call = self.script(&scripts::REPAIR);
            call.arg(self.lease.as_millis() as u64);
            for uid in some {
                call.key(self.keys.run(uid)).arg(uid);
            }
            let (mended, foreign): (u64, u64) = self.call(&call, "repair the queue").await?;
            found = Repaired { mended: found.mended + mended, foreign: found.foreign + foreign };
        }
        Ok(found)
    }

    /// Reads a run. `None` when the queue does not have it.
    ///
    /// # Errors
    /// When Redis does not answer, or the run's hash cannot be read.
    pub async fn get(&self, uid: &str) -> Result<Option<Entry>, Error> {
        let mut connection = self.connection.clone();
        let values: Vec<Option<String>> =
            connection.hmget(self.keys.run(uid), &types::FIELDS).await.map_err(unavailable("read a run"))?;
        if values.iter().all(Option::is_none) { Ok(None) } else { Entry::parse(uid, &values).map(Some) }
    }

    /// Forgets a run. A worker that has it stops at its next checkpoint.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn remove(&self, uid: &str) -> Result<(), Error> {
        self.remove_all(&[uid.to_owned()], true).await.map(drop)
    }

    /// Removes the runs that are unfinished in Redis, because their SyncJobs have ended or were deleted. Returns their
    /// number.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn remove_unfinished(&self, uids: &[String]) -> Result<usize, Error> {
        self.remove_all(uids, false).await
    }

    /// Forgets runs that have ended.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn remove_finished(&self, uids: &[String]) -> Result<usize, Error> {
        self.remove_all(uids, true).await
    }

    async fn remove_all(&self, uids: &[String], is_any: bool) -> Result<usize, Error> {
        let mut removed = 0;
        for some in uids.chunks(CHUNK) {
            let mut call = self.script(&scripts::REMOVE);
            call.arg(u8::from(is_any));
            for uid in some {
                call.key(self.keys.run(uid)).arg(uid);
            }
            removed += self.call::<usize>(&call, "remove runs").await?;
        }
        Ok(removed)
    }

    /// Ids of every run that has not ended.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn unfinished(&self) -> Result<Vec<String>, Error> {
        self.members(0..4).await
    }

    /// Ids of every run that is waiting, delayed or active, so that workers execute it without further calls.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn claimable_or_active(&self) -> Result<Vec<String>, Error> {
        self.members(0..3).await
    }

    /// Ids of every run that has ended, and is not forgotten yet.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn finished(&self) -> Result<Vec<String>, Error> {
        self.members(4..6).await
    }

    /// Ids of the runs that ended before a time.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn finished_before(&self, time: Timestamp) -> Result<Vec<String>, Error> {
        let mut pipeline = redis::pipe();
        for set in &self.keys.shared[4..6] {
            pipeline.zrangebyscore(set, "-inf", time.as_millisecond());
        }
        let sets: Vec<Vec<String>> =
            pipeline.query_async(&mut self.connection.clone()).await.map_err(unavailable("list the runs"))?;
        Ok(sets.into_iter().flatten().collect())
    }

    async fn members(&self, sets: std::ops::Range<usize>) -> Result<Vec<String>, Error> {
        let mut pipeline = redis::pipe();
        for set in &self.keys.shared[sets] {
            pipeline.zrange(set, 0, -1);
        }
        let sets: Vec<Vec<String>> =
            pipeline.query_async(&mut self.connection.clone()).await.map_err(unavailable("list the runs"))?;
        Ok(sets.into_iter().flatten().collect())
    }

    /// Counts runs by state, and workers, and returns the waiting time of the oldest run. Redis reads the heads of
    /// two sets for that, whatever their sizes.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn depth(&self) -> Result<Depth, Error> {
        let call = self.script(&scripts::DEPTH);
        let (waiting, delayed, active, parked, workers, oldest) = self.call(&call, "count the runs").await?;
        Ok(Depth { active, waiting, delayed, parked, workers, oldest: Duration::from_millis(oldest) })
    }

    /// Notifier of runs that can be claimed.
    #[must_use]
    pub fn work_notifier(&self) -> WorkNotifier {
        WorkNotifier::new(self.topology.clone(), self.keys.wake().to_owned())
    }

    /// Returns a subscription to the changes of runs. See [`RunChanges`].
    #[must_use]
    pub fn changes(&self) -> RunChanges {
        RunChanges::new(self.topology.clone(), self.keys.events().to_owned())
    }
}

/// A run that cannot be read is left to its lease: after some recoveries it ends as failed.
fn parse_claims(claimed: Vec<Claimed>, now: i64) -> Vec<Claim> {
    let read = |(uid, values, waited): Claimed| match Entry::parse(&uid, &values) {
        Ok(entry) => Some(Claim { uid, at: from_millis(now), waited: Duration::from_millis(waited), entry }),
        Err(error) => {
            tracing::warn!(%error, "skipping a claimed run");
            None
        }
    };
    claimed.into_iter().filter_map(read).collect()
}

/// Reads the ids out of an `XREAD` answer, and the id of the last event.
fn parse_changes(answer: Value) -> Option<(String, Vec<String>)> {
    let streams: redis::streams::StreamReadReply = from_redis_value(answer).ok()?;
    let events = streams.keys.into_iter().next()?.ids;
    let last = events.last()?.id.clone();
    let uids = events.iter().filter_map(|event| event.get("uid")).collect();
    Some((last, uids))
}
