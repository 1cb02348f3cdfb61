//! Watches of a kind, and the availability of the API server.

use std::time::Duration;

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use tokio::sync::watch;

use super::{Kind, ReadResult};
use crate::{
    api::SyncAlert,
    telemetry::{Availability, AvailabilityProbe},
};

/// Annotation with a copy of the whole object, which `kubectl apply` sets.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Longest duration of a watch before it is resumed. Without data for 5 s longer, the connection counts as broken: no
/// error is reported when a network loses a connection. The 290 s of kube would leave the caches stale for too long.
const WATCH: u32 = 30;
/// Number of objects in a part of a list. Each may have 1.5 MiB, and takes several times as much while it is read.
const PAGE: u32 = 10;
const WATCH_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Code of a watch that asks for changes which are no longer kept.
const EXPIRED: u16 = 410;

/// Code of an API server that answers, and asks for the same watch later: the storage of a kind still starts.
const TOO_MANY_REQUESTS: u16 = 429;

/// Status codes of a kind that is not installed, or that the operator has no right to. The operator works without
/// that kind then.
const ABSENT: [u16; 2] = [403, 404];

static API_SERVER: Availability = Availability::new("the Kubernetes API");

static ALERTS: Availability = Availability::new("the kind SyncAlert, or the right to read it,");

/// The changes of SyncAlerts. A cluster that has no such kind yet, as in the middle of an upgrade, is no outage.
pub(super) fn changes_of_alerts(
    api: Api<ReadResult<SyncAlert>>,
) -> impl Stream<Item = watcher::Result<watcher::Event<ReadResult<SyncAlert>>>> + Send {
    let is_absent = |event: &watcher::Result<watcher::Event<ReadResult<SyncAlert>>>| match event {
        Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) => ABSENT.contains(&status.code),
        _ => false,
    };
    let probe = API_SERVER.probe();
    bare(events(api).inspect(move |event| {
        let is_absent = is_absent(event);
        if is_absent || matches!(event, Ok(watcher::Event::InitDone)) {
            ALERTS.record(event);
        }
        if is_absent {
            probe.record(&Ok::<_, watcher::Error>(()));
        } else {
            record_answer(&probe, event);
        }
    }))
}

/// Stream of the changes of a kind, without fields that are not needed.
pub fn changes<K: Kind>(
    api: Api<ReadResult<K>>,
) -> impl Stream<Item = watcher::Result<watcher::Event<ReadResult<K>>>> + Send {
    let probe = API_SERVER.probe();
    bare(events(api).inspect(move |event| record_answer(&probe, event)))
}

/// Converts changes for caches: an object that cannot be read any more counts as deleted.
pub fn readable<K: Kind>(event: watcher::Event<ReadResult<K>>) -> Option<watcher::Event<K>> {
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    match event {
        Init => Some(Init),
        InitApply(ReadResult::Object(object)) => Some(InitApply(object)),
        InitApply(ReadResult::Unreadable(_)) => None,
        InitDone => Some(InitDone),
        Apply(ReadResult::Object(object)) => Some(Apply(object)),
        Apply(ReadResult::Unreadable(unreadable)) => Some(Delete(unreadable.outline)),
        Delete(object) => Some(Delete(object.into_outline())),
    }
}

fn events<K: Kind>(
    api: Api<ReadResult<K>>,
) -> impl Stream<Item = watcher::Result<watcher::Event<ReadResult<K>>>> + Send {
    watcher(api, watcher::Config::default().timeout(WATCH).page_size(PAGE)).backoff(Retry(WATCH_RETRY.0))
}

fn record_answer<K>(probe: &AvailabilityProbe, event: &watcher::Result<watcher::Event<K>>) {
    match event {
        // The watcher emits this event before it sends a list request, so the event is no answer of the API server.
        Ok(watcher::Event::Init) => {}
        Err(watcher::Error::WatchError(status)) if status.code == EXPIRED => {}
        // No outage: the watch is started again within seconds, and of a kind in which nothing changes no event would
        // end it.
        Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) if status.code == TOO_MANY_REQUESTS => {}
        _ => probe.record(event),
    }
}

fn bare<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Resource<DynamicType = ()>,
{
    events.modify(|object: &mut K| {
        let meta = object.meta_mut();
        meta.managed_fields = None;
        if let Some(annotations) = &mut meta.annotations {
            annotations.remove(LAST_APPLIED);
        }
    })
}

/// Time since which the API server has not answered a watch. `None`: the API server answers all watches, and the
/// caches are up to date.
#[must_use]
pub fn stale_since() -> Option<Timestamp> {
    API_SERVER.since()
}

/// Handles each event of a watch after its cache was updated, and counts the watch once it has listed its objects.
pub async fn drain<K: Resource>(
    watch: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    listing: &watch::Sender<usize>,
    handle_event: impl Fn(&watcher::Event<K>),
) {
    let mut watch = std::pin::pin!(watch);
    let mut listed = false;
    while let Some(event) = watch.next().await {
        let Ok(event) = event else { continue };
        handle_event(&event);
        if matches!(event, watcher::Event::InitDone) && !std::mem::replace(&mut listed, true) {
            listing.send_modify(|kinds| *kinds += 1);
        }
    }
}

/// Backoff that doubles. The backoff of the watcher goes up to 30 s, which would prolong a short outage.
struct Retry(Duration);

impl Iterator for Retry {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(WATCH_RETRY.1);
        Some(wait.mul_f64(1.0 + rand::random::<f64>() / 4.0))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = WATCH_RETRY.0;
    }
}
