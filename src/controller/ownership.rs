//! Ownership of the queue and of objects by this installation or another one. See
//! `docs/design/installations-and-versions.md`.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::{
    select,
    sync::watch,
    time::{Instant, sleep},
};

use super::leader::{self, Leadership};
use crate::{
    cluster,
    domain::installation::{Owner, is_over},
    queue::{self, Queue},
};

/// Interval between assertions of the ownership of the queue.
const EVERY: Duration = Duration::from_secs(30);
/// Interval between checks of the Lease of another installation.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_mins(1);

/// Owner of the queue, as far as this process knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Ownership {
    /// The ownership is not asserted yet: this process does not lead, or Redis does not answer.
    #[default]
    Unknown,
    /// This installation owns the queue.
    Mine,
    /// Another installation owns the queue: its name.
    Other(String),
}

/// Asserts that the queue is this installation's: when this process begins to lead, when Redis is available again, and
/// each 30 s. `lease`: that of the controllers, as `<namespace>/<name>`.
pub(super) async fn assert_regularly(
    queue: &Queue,
    leadership: &Leadership,
    lease: &str,
    mut available: watch::Receiver<bool>,
) {
    let me = Owner { fingerprint: queue.identified().await, lease: lease.to_owned() };
    let mut leader = leadership.changes();
    loop {
        let ownership = if leadership.is_held() { assert(queue, &me).await } else { Ownership::Unknown };
        let pause = if leadership.is_held() && ownership == Ownership::Unknown { EVERY / 30 } else { EVERY };
        leadership.record_ownership(queue.name(), ownership);
        let changed = async {
            select! {
                Ok(()) = leader.changed() => {}
                Ok(()) = available.changed() => {}
                else => std::future::pending().await,
            }
        };
        select! {
            () = sleep(pause) => {}
            () = changed => {}
        }
    }
}

async fn assert(queue: &Queue, me: &Owner) -> Ownership {
    let asserted = async {
        let recorded = queue.owner().await?;
        if let Some(other) = recorded.as_ref().filter(|recorded| !me.may_succeed(recorded)) {
            return Ok(Ownership::Other(other.to_string()));
        }
        let is_mine = queue.own(me, recorded.as_ref()).await?;
        Ok::<_, queue::Error>(if is_mine { Ownership::Mine } else { Ownership::Unknown })
    };
    asserted.await.unwrap_or_else(|error| {
        tracing::debug!(%error, "could not assert the ownership of the queue");
        Ownership::Unknown
    })
}

/// Other installations that work on the same objects.
pub(super) struct Peers {
    client: Client,
    /// Lease of this process, as `<namespace>/<name>`.
    me: String,
    /// Result of the last check of each other Lease: its time, and true when the controllers were active.
    at_work: Mutex<HashMap<String, (Instant, bool)>>,
    /// Namespaces with a SyncSchedule of another installation, and the Lease of that.
    namespaces: Mutex<HashMap<String, String>>,
}

impl Peers {
    pub fn new(client: Client, me: String) -> Self {
        Self { client, me, at_work: Mutex::default(), namespaces: Mutex::default() }
    }

    /// Lease of this process.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Returns the other installation that a SyncSchedule belongs to. `mark` is the Lease in its status.
    pub async fn owner_of_schedule(&self, namespace: &str, mark: Option<&str>) -> Option<String> {
        let owner = self.owner(mark).await;
        let mut namespaces = lock(&self.namespaces);
        match &owner {
            Some(owner) => drop(namespaces.insert(namespace.to_owned(), owner.clone())),
            None if mark.is_some_and(|mark| mark != self.me) => drop(namespaces.remove(namespace)),
            None => {}
        }
        owner
    }

    /// Returns the other installation that a SyncJob without a SyncSchedule belongs to.
    pub async fn owner_of_job(&self, namespace: &str, mark: Option<&str>) -> Option<String> {
        let of_namespace = lock(&self.namespaces).get(namespace).cloned();
        self.owner(mark.or(of_namespace.as_deref())).await
    }

    /// Returns the other installation that has a Lease, while its controllers are active.
    pub async fn owner(&self, mark: Option<&str>) -> Option<String> {
        let lease = mark.filter(|mark| *mark != self.me)?;
        let known = lock(&self.at_work).get(lease).copied().filter(|(at, _)| at.elapsed() < CHECK_INTERVAL);
        let is_at_work = if let Some((_, is_at_work)) = known {
            is_at_work
        } else {
            let is_at_work = self.is_at_work(lease).await;
            lock(&self.at_work).insert(lease.to_owned(), (Instant::now(), is_at_work));
            is_at_work
        };
        is_at_work.then(|| lease.to_owned())
    }

    async fn is_at_work(&self, lease: &str) -> bool {
        let Some((namespace, name)) = lease.split_once('/') else { return false };
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
        match cluster::call("read the Lease of another installation", leases.get_opt(name)).await {
            Ok(found) => !is_over(found.as_ref().map(leader::parse_lease).as_ref(), Timestamp::now()),
            Err(error) => {
                tracing::warn!(
                    lease, %error, "the Lease of another installation cannot be read, so the installation counts as active"
                );
                true
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
