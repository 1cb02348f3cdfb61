//! Leader, from the Lease. The Lease is read on demand, and cached for a short time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, Client};
use moka::future::Cache;

use super::objects::Objects;
use crate::telemetry::LEASE;

/// Lifetime of a cached answer.
const FRESH: Duration = Duration::from_secs(5);
/// A leader renews its Lease ten times in its length. The clocks of two pods may differ by some seconds.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);

/// Name of the Lease.
#[derive(Clone, Debug)]
pub struct LeaseName {
    /// Namespace of the Lease. `None`: the namespace of the client.
    pub namespace: Option<String>,
    /// Name of the Lease.
    pub name: String,
}

impl LeaseName {
    /// `<namespace>/<name>`.
    #[must_use]
    pub fn path(&self, client: &Client) -> String {
        format!("{}/{}", self.namespace.as_deref().unwrap_or(client.default_namespace()), self.name)
    }
}

/// Reads the Lease.
pub(super) struct Leader {
    leases: Api<Lease>,
    name: String,
    answer: Cache<(), Leads>,
}

/// Holder of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// The process with this identity leads, since this time.
    Process(String, Option<Timestamp>),
    /// No process leads. The time is that of the last renewal.
    Nobody(Option<Timestamp>),
    /// The API server does not answer, or does not let the Lease be read.
    Unknown,
}

impl Leader {
    pub fn new(client: Client, lease: LeaseName) -> Self {
        let leases = match &lease.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::default_namespaced(client),
        };
        Self { leases, name: lease.name, answer: Cache::builder().time_to_live(FRESH).build() }
    }

    pub async fn load(&self, objects: &Objects, now: Timestamp) -> Leads {
        let read = async {
            let answer = objects.call("read the Lease", self.leases.get_opt(&self.name)).await;
            LEASE.record(&answer);
            answer.map_or(Leads::Unknown, |lease| leads(lease.and_then(|lease| lease.spec), now))
        };
        self.answer.get_with((), read).await
    }
}

fn leads(lease: Option<LeaseSpec>, now: Timestamp) -> Leads {
    let lease = lease.unwrap_or_default();
    let renewed = lease.renew_time.map(|time| time.0);
    let length = SignedDuration::from_secs(lease.lease_duration_seconds.unwrap_or(0).into());
    let is_alive = renewed.is_some_and(|renewed| now.duration_since(renewed) < length + PATIENCE);
    match lease.holder_identity.filter(|holder| is_alive && !holder.is_empty()) {
        Some(holder) => Leads::Process(holder, lease.acquire_time.map(|time| time.0)),
        None => Leads::Nobody(renewed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    #[test]
    fn a_leader_that_shows_no_sign_of_life_leads_no_more() {
        let at = |second: i64| Timestamp::from_second(1_795_000_000 + second).unwrap();
        let lease = |holder: Option<&str>| LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: Some(10),
            acquire_time: Some(MicroTime(at(0))),
            renew_time: Some(MicroTime(at(100))),
            ..LeaseSpec::default()
        };
        let one = Leads::Process("one".to_owned(), Some(at(0)));
        for (seen, now, expected) in [
            (Some(lease(Some("one"))), 101, one.clone()),
            (Some(lease(Some("one"))), 119, one.clone()),
            // Another clock is ahead.
            (Some(lease(Some("one"))), 95, one),
            (Some(lease(Some("one"))), 120, Leads::Nobody(Some(at(100)))),
            (Some(lease(Some(""))), 101, Leads::Nobody(Some(at(100)))),
            (Some(lease(None)), 101, Leads::Nobody(Some(at(100)))),
            (None, 101, Leads::Nobody(None)),
        ] {
            assert_eq!(leads(seen.clone(), at(now)), expected, "{seen:?} at {now}");
        }
    }
}
