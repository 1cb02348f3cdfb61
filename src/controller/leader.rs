//! Leader election: of several controllers, the one that holds the Lease reconciles.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::ownership::Ownership;
use crate::domain::lease::{self, LeaseRecord};

/// Interval between attempts to release the Lease.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Settings of the election.
#[derive(Clone, Debug)]
pub struct ElectionSettings {
    /// Names this process in the Lease. Never used twice.
    pub identity: String,
    /// Namespace of the Lease. The client's own when `None`.
    pub namespace: Option<String>,
    /// Name of the Lease.
    pub name: String,
    /// Length of the Lease, at least 1 s, in whole seconds. A standby takes over when the leader has not renewed the
    /// Lease for this time. A leader stops writing after seven tenths of it without a renewal.
    pub duration: Duration,
}

/// Leadership of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// End of the time in which no other process can have acquired the Lease, by the monotonic clock of this process.
    until: watch::Receiver<Option<Instant>>,
    leader: watch::Receiver<Option<String>>,
    refused: watch::Receiver<bool>,
    ownership: Arc<watch::Sender<Ownership>>,
}

impl Leadership {
    /// True while no other process can lead. Call it directly before each write: after a pause of the process, this
    /// is the first sign that leadership is lost.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until this process is not the leader. Returns at once when it is not.
    pub async fn lost(&self) {
        let mut until = self.until.clone();
        loop {
            let end = *until.borrow_and_update();
            let Some(end) = end.filter(|end| Instant::now() < *end) else { return };
            tokio::select! {
                () = sleep_until(end) => {}
                changed = until.changed() => if changed.is_err() { return sleep_until(end).await },
            }
        }
    }

    /// Identity of the leader, as far as is known.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.leader.borrow().clone()
    }

    /// True while the API server refuses this process the Lease, so that the process can never lead. The log has the
    /// reason, such as missing rights.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        *self.refused.borrow()
    }

    /// Name of the other installation that owns the queue, as far as this process knows. The process does not use the
    /// queue then.
    #[must_use]
    pub fn queue_owner(&self) -> Option<String> {
        match &*self.ownership.borrow() {
            Ownership::Other(owner) => Some(owner.clone()),
            _ => None,
        }
    }

    /// True when the queue is known to be this installation's.
    pub(super) fn owns_queue(&self) -> bool {
        *self.ownership.borrow() == Ownership::Mine
    }

    /// Records the owner of the queue.
    pub(super) fn record_ownership(&self, queue: &str, next: Ownership) {
        let changed = self.ownership.send_if_modified(|ownership| {
            let before = std::mem::replace(ownership, next.clone());
            before != next && [&before, &next].iter().any(|of| matches!(of, Ownership::Other(_)))
        });
        match next {
            Ownership::Other(owner) if changed => tracing::error!(
                queue,
                owner,
                "the queue belongs to another installation: set another QUEUE_NAME, or run sync-operator adopt"
            ),
            Ownership::Mine if changed => tracing::info!(queue, "the queue belongs to this installation"),
            _ => {}
        }
    }

    /// Receiver that is notified when another installation begins or ceases to own the queue.
    pub(super) fn ownership_changes(&self) -> watch::Receiver<Ownership> {
        self.ownership.subscribe()
    }

    /// Receiver that is notified when the leader changes.
    pub(super) fn changes(&self) -> watch::Receiver<Option<String>> {
        self.leader.clone()
    }
}

/// Candidate of the leader election.
pub(super) struct Elector {
    settings: ElectionSettings,
    leases: Api<Lease>,
    until: watch::Sender<Option<Instant>>,
    leader: watch::Sender<Option<String>>,
    refused: watch::Sender<bool>,
    /// The record last seen, and since when it has been the same.
    seen: Option<(LeaseRecord, Instant)>,
    /// A record that names this process was sent, and no other was seen since.
    maybe_mine: bool,
    stop: CancellationToken,
}

impl Elector {
    /// Creates an elector. From `stop` on, the elector renews a Lease that it holds, and acquires none.
    pub fn new(settings: ElectionSettings, client: Client, stop: CancellationToken) -> (Self, Leadership) {
        let leases = match &settings.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::default_namespaced(client),
        };
        let (until, is_held) = watch::channel(None);
        let (leader, leads) = watch::channel(None);
        let (refused, is_refused) = watch::channel(false);
        let leadership = Leadership { until: is_held, leader: leads, refused: is_refused, ownership: Arc::default() };
        (Self { settings, leases, until, leader, refused, seen: None, maybe_mine: false, stop }, leadership)
    }

    /// Renews the Lease, or waits for it, ten times in its length. Never ends.
    pub async fn run(&mut self) {
        let every = self.settings.duration / 10;
        let mut is_failing = false;
        loop {
            let sent = Instant::now();
            // A later answer is not used. The resource version of the Lease makes the write harmless.
            match timeout_at(sent + self.settings.duration / 2, self.attempt()).await {
                Ok(Ok(leads)) => {
                    is_failing = false;
                    self.refused.send_replace(false);
                    if leads {
                        self.renew(sent + self.settings.duration.mul_f64(0.7));
                    }
                }
                Ok(Err(error)) => {
                    // A conflict means that another process was faster. After any other error, this process may still
                    // hold the Lease until it expires.
                    if !is_conflict(&error) && !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(
                            lease = self.settings.name, %error, "could not read or write the Lease; retrying"
                        );
                    }
                    if let kube::Error::Api(status) = &error {
                        self.refused.send_replace(matches!(status.code, 400 | 401 | 403 | 404 | 422));
                    }
                }
                Err(_) => {}
            }
            self.step_down_when_expired();
            sleep(every.mul_f64(0.8 + 0.4 * rand::random::<f64>())).await;
        }
    }

    /// True when this process has the Lease.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let found = self.leases.get_opt(&self.settings.name).await?;
        let record = found.as_ref().map(parse_lease);
        let unchanged = match (&record, &self.seen) {
            (Some(record), Some((seen, since))) if record == seen => since.elapsed(),
            (Some(record), _) => {
                self.seen = Some((record.clone(), Instant::now()));
                Duration::ZERO
            }
            (None, _) => Duration::ZERO,
        };
        let ElectionSettings { identity, duration, .. } = &self.settings;
        let holder = record.as_ref().and_then(|record| record.holder.clone());
        let next = lease::claim(identity, *duration, record.as_ref(), unchanged, Timestamp::now());
        // A process that stops would only keep other processes from leading.
        let next = next.filter(|_| !self.stop.is_cancelled() || holder.as_deref() == Some(identity));
        let Some(next) = next else {
            self.maybe_mine = false;
            self.step_down();
            self.set_leader(holder.as_deref());
            return Ok(false);
        };
        self.maybe_mine = true;
        self.write(found, &next).await?;
        Ok(true)
    }

    async fn write(&self, found: Option<Lease>, next: &LeaseRecord) -> kube::Result<()> {
        let params = PostParams::default();
        if let Some(mut lease) = found {
            // Carries the resource version that was read.
            lease.spec = Some(build_spec(next));
            self.leases.replace(&self.settings.name, &params, &lease).await.map(drop)
        } else {
            let mut lease = Lease { spec: Some(build_spec(next)), ..Lease::default() };
            lease.metadata.name = Some(self.settings.name.clone());
            self.leases.create(&params, &lease).await.map(drop)
        }
    }

    fn renew(&self, until: Instant) {
        // A late renewal begins a new period of leadership: work that was due in between was cancelled.
        self.step_down_when_expired();
        if self.until.send_replace(Some(until)).is_none() {
            tracing::info!(lease = self.settings.name, "acquired leadership");
        }
        self.set_leader(Some(&self.settings.identity));
    }

    fn step_down_when_expired(&self) {
        let over = self.until.borrow().is_some_and(|until| until <= Instant::now());
        if over {
            self.step_down();
        }
    }

    fn step_down(&self) {
        if self.until.send_replace(None).is_some() {
            tracing::warn!(lease = self.settings.name, "lost leadership");
            self.set_leader(None);
        }
    }

    fn set_leader(&self, leader: Option<&str>) {
        self.leader.send_if_modified(|known| std::mem::replace(known, leader.map(str::to_owned)).as_deref() != leader);
    }

    /// Releases the Lease, so that another process leads at once. Call it when all writes have ended.
    pub async fn release(self) {
        self.until.send_replace(None);
        if !self.maybe_mine {
            return;
        }
        let given_up = async {
            loop {
                match self.try_release().await {
                    // A renewal in flight may have changed the Lease in between, or the answer to the release was lost.
                    Err(error) => tracing::debug!(%error, "could not release the Lease; retrying"),
                    Ok(()) => return,
                }
                sleep(RETRY_INTERVAL).await;
            }
        };
        if timeout_at(Instant::now() + self.settings.duration / 2, given_up).await.is_ok() {
            tracing::info!(lease = self.settings.name, "released the Lease");
        } else {
            tracing::warn!(lease = self.settings.name, "the Lease could not be released in time and will expire");
        }
    }

    async fn try_release(&self) -> kube::Result<()> {
        let Some(found) = self.leases.get_opt(&self.settings.name).await? else { return Ok(()) };
        match lease::release(&self.settings.identity, &parse_lease(&found), Timestamp::now()) {
            Some(next) => self.write(Some(found), &next).await,
            None => Ok(()),
        }
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_already_exists())
}

pub(super) fn parse_lease(lease: &Lease) -> LeaseRecord {
    let spec = lease.spec.clone().unwrap_or_default();
    LeaseRecord {
        holder: spec.holder_identity,
        duration: Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0) as u64),
        acquired: spec.acquire_time.map(|time| time.0),
        renewed: spec.renew_time.map(|time| time.0),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

fn build_spec(record: &LeaseRecord) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(record.holder.clone().unwrap_or_default()),
        lease_duration_seconds: Some(record.duration.as_secs().max(1) as i32),
        acquire_time: record.acquired.map(MicroTime),
        renew_time: record.renewed.map(MicroTime),
        lease_transitions: Some(record.transitions),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::{Method, Request, Response};
    use futures::FutureExt;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    fn settings() -> ElectionSettings {
        ElectionSettings {
            identity: "me".to_owned(),
            namespace: None,
            name: "sync-operator".to_owned(),
            duration: Duration::from_secs(10),
        }
    }

    /// An API server whose Lease is this one's, and which answers these codes to writes, and then 200. What was written
    /// is kept.
    fn server(holder: &'static str, codes: &[u16]) -> (Client, Arc<Mutex<Vec<Value>>>) {
        let written = Arc::new(Mutex::new(Vec::new()));
        let (log, codes) = (Arc::clone(&written), codes.to_owned());
        let answer = move |request: Request<Body>| {
            let (log, codes) = (Arc::clone(&log), codes.clone());
            async move {
                let mut lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": "sync-operator", "resourceVersion": "7"},
                    "spec": {"holderIdentity": holder, "leaseDurationSeconds": 10},
                });
                let mut code = 200;
                if request.method() != Method::GET {
                    lease = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
                    let mut log = log.lock().unwrap();
                    code = codes.get(log.len()).copied().unwrap_or(200);
                    log.push(lease.clone());
                }
                if code != 200 {
                    lease = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Conflict"});
                }
                let body = Body::from(serde_json::to_vec(&lease).unwrap());
                Ok::<_, std::io::Error>(Response::builder().status(code).body(body).unwrap())
            }
        };
        (Client::new(tower::service_fn(answer), "default"), written)
    }

    #[tokio::test]
    async fn leadership_ends_by_the_clock_alone() {
        let (elector, leadership) = Elector::new(settings(), server("me", &[]).0, CancellationToken::new());
        let state = || (leadership.is_held(), leadership.lost().now_or_never().is_some());
        assert_eq!(state(), (false, true), "before the first election");
        elector.until.send_replace(Some(Instant::now() + Duration::from_secs(60)));
        assert_eq!(state(), (true, false));
        // The state right after a pause of the process: the Lease has expired, and the elector has not run since.
        elector.until.send_replace(Some(Instant::now()));
        assert_eq!(state(), (false, true));
    }

    #[tokio::test]
    async fn a_late_renewal_is_a_change_of_leadership() {
        let (elector, leadership) = Elector::new(settings(), server("me", &[]).0, CancellationToken::new());
        let mut changes = leadership.changes();
        let later = || Instant::now() + Duration::from_secs(7);
        elector.renew(later());
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        elector.renew(later());
        assert!(!changes.has_changed().unwrap(), "a renewal in time changes nothing");
        elector.until.send_replace(Some(Instant::now()));
        elector.renew(later());
        assert!(changes.has_changed().unwrap());
    }

    #[tokio::test]
    async fn a_lease_is_given_up_though_the_first_tries_fail() {
        let (client, written) = server("me", &[200, 409, 500]);
        let (mut elector, leadership) = Elector::new(settings(), client, CancellationToken::new());
        assert!(elector.attempt().await.unwrap());
        elector.release().await;
        let written = written.lock().unwrap();
        let holders: Vec<_> = written.iter().map(|lease| lease["spec"]["holderIdentity"].as_str().unwrap()).collect();
        assert_eq!(holders, ["me", "", "", ""]);
        assert!(!leadership.is_held());
    }

    #[tokio::test]
    async fn who_stops_keeps_its_lease_and_takes_no_other() {
        for (holder, takes) in [("me", true), ("", false), ("other", false)] {
            let (client, written) = server(holder, &[]);
            let stop = CancellationToken::new();
            let (mut elector, _) = Elector::new(settings(), client, stop.clone());
            stop.cancel();
            assert_eq!(elector.attempt().await.unwrap(), takes, "{holder}");
            elector.release().await;
            let written = written.lock().unwrap().len();
            assert_eq!(written, if takes { 2 } else { 0 }, "{holder}");
        }
    }

    #[tokio::test]
    async fn a_lease_whose_taking_was_not_confirmed_is_given_up_too() {
        let (client, written) = server("me", &[504]);
        let (mut elector, _) = Elector::new(settings(), client, CancellationToken::new());
        elector.attempt().await.unwrap_err();
        elector.release().await;
        assert_eq!(written.lock().unwrap().last().unwrap()["spec"]["holderIdentity"], "");
    }
}
