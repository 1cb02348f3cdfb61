//! Events of an object, for users with the right to list events.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use moka::future::Cache;
use tokio::time::timeout;

use super::{Visitor, format::Moment};
use crate::{
    api::SyncJob,
    cluster,
    http::{App, LIMIT, auth::Right, problem::Problem},
};

/// Largest number of events that are read and shown.
const MOST: u32 = 50;
/// Lifetime of a cached answer. An open page reads every second, and Kubernetes has no index for this query.
const CACHE_LIFETIME: Duration = Duration::from_secs(10);
/// Objects whose events are kept at a time.
const OBJECTS: u64 = 200;

/// Events that were just read, by the object's uid. Cheap to clone.
#[derive(Clone)]
pub(in crate::http) struct EventCache(Cache<String, Arc<Vec<ShownEvent>>>);

impl Default for EventCache {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(OBJECTS).time_to_live(CACHE_LIFETIME).build())
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShownEvent {
    at: Timestamp,
    pub reason: String,
    pub text: String,
    pub is_warning: bool,
}

impl ShownEvent {
    fn new(event: Event) -> Option<Self> {
        let created = event.metadata.creation_timestamp.map(|time| time.0);
        Some(Self {
            at: event.event_time.map(|time| time.0).or(created)?,
            reason: event.reason.unwrap_or_default(),
            text: event.note.unwrap_or_default(),
            is_warning: event.type_.as_deref() == Some("Warning"),
        })
    }

    pub fn at(&self, now: &Timestamp) -> Moment {
        Moment::new(self.at, *now)
    }
}

/// Events of an object.
pub(super) enum ObjectEvents {
    /// The visitor may not list events there.
    Hidden,
    /// Kubernetes did not answer in time, or this process may not list events.
    Unknown,
    /// The newest first.
    Known(Arc<Vec<ShownEvent>>),
}

/// The events of a SyncJob, as far as the visitor may see them.
pub(super) async fn load_events(app: &App, visitor: &Visitor, job: &SyncJob) -> Result<ObjectEvents, Problem> {
    let right = Right { group: "", ..Right::new("list", "events", job.metadata.namespace.as_deref()) };
    if !app.access.has(&visitor.caller, &right).await? {
        return Ok(ObjectEvents::Hidden);
    }
    let uid = job.metadata.uid.clone().unwrap_or_default();
    let read = app.object_events.0.try_get_with(uid.clone(), list_events(app, job, &uid));
    Ok(match timeout(LIMIT, read).await {
        Ok(Ok(known)) => ObjectEvents::Known(known),
        Ok(Err(error)) => {
            tracing::debug!(%error, "could not read the events of an object; the page has none");
            ObjectEvents::Unknown
        }
        Err(_) => ObjectEvents::Unknown,
    })
}

async fn list_events(app: &App, job: &SyncJob, uid: &str) -> Result<Arc<Vec<ShownEvent>>, cluster::Error> {
    let events: Api<Event> = app.objects.namespaced(&job.metadata);
    let params = ListParams::default().fields(&format!("regarding.uid={uid}")).limit(MOST);
    let found = app.objects.call("list events", events.list(&params)).await?;
    let mut shown: Vec<_> = found.items.into_iter().filter_map(ShownEvent::new).collect();
    shown.sort_by_key(|event| std::cmp::Reverse(event.at));
    Ok(Arc::new(shown))
}
