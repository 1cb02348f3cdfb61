//! `GET /events`: state and progress of runs as server-sent events.
//!
//! Events always contain the newest state, so a slow or interrupted client misses steps and never the end.

mod backlog;
mod throttle;

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, stream};
use kube::runtime::reflector::ObjectRef;
use serde::Serialize;
use tokio::{
    select,
    sync::broadcast,
    time::{Instant, sleep_until},
};
use utoipa::ToSchema;

use super::{
    App,
    extract::{Query, Reader},
    job_view::Job,
    limits::{CallerKey, CallerPermit},
    objects::{DeletedJob, ObjectChange, Objects},
    pause::RunFilter,
    problem::Problem,
};
use crate::api::SyncJob;
use backlog::{Backlog, BacklogEntry, DeletionsForgotten};
use throttle::Throttle;

pub(super) const LAST_EVENT_ID: &str = "last-event-id";
/// Longest duration of a stream. Clients reconnect by themselves, and their right is checked again.
pub(super) const LONGEST: Duration = Duration::from_mins(15);
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Delay before a client reconnects.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// A run that was deleted.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Deleted {
    namespace: String,
    name: String,
    job_id: String,
}

/// Streams changes of runs as server-sent events.
///
/// The stream begins with all unfinished runs. `job`: state of a run, at most once per second for each run. `deleted`:
/// a run was deleted. `reset`: drop all state; the unfinished runs follow. A client that reconnects with Last-Event-ID
/// receives the events that it missed.
#[utoipa::path(
    get, path = "/events", tag = "jobs",
    params(RunFilter, ("Last-Event-ID" = Option<String>, Header, description = "Id of the last received event")),
    responses((status = 200, content_type = "text/event-stream", body = String)),
)]
pub(super) async fn events(
    State(app): State<App>,
    Reader(reader): Reader,
    Extension(caller): Extension<CallerKey>,
    Query(filter): Query<RunFilter>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    app.access.check_read(&reader, filter.namespace.as_deref()).await?;
    let permit = app.limits.stream(&caller)?;
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.parse().ok());
    let listener = Listener::new(app.listed()?.clone(), filter, last, permit);
    let stop = app.stop.clone().cancelled_owned();
    let stream = futures::StreamExt::take_until(listener.stream(), stop);
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Position of a client in the stream: a listing of the cluster, and a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    listing: u64,
    version: u64,
}

impl std::str::FromStr for Id {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (listing, version) = text.split_once('-').unwrap_or_default();
        Ok(Self { listing: u64::from_str_radix(listing, 16)?, version: version.parse()? })
    }
}

/// Stream of one client.
struct Listener {
    objects: Objects,
    filter: RunFilter,
    changes: broadcast::Receiver<ObjectChange>,
    listing: u64,
    throttle: Throttle<ObjectRef<SyncJob>>,
    /// Events that precede the backlog.
    ready: VecDeque<Event>,
    backlog: Option<Backlog>,
    until: Instant,
    _permit: CallerPermit,
}

impl Listener {
    fn new(objects: Objects, filter: RunFilter, last: Option<Id>, permit: CallerPermit) -> Self {
        // Subscribed before anything is read, so nothing falls in between.
        let changes = objects.changes();
        let mut listener = Self {
            listing: objects.listing(),
            changes,
            filter,
            throttle: Throttle::default(),
            ready: VecDeque::new(),
            backlog: None,
            until: Instant::now() + LONGEST,
            _permit: permit,
            objects,
        };
        listener.ready.push_back(Event::default().retry(RETRY));
        match last {
            None => listener.send_unfinished(),
            Some(last) => listener.send_changes_since(last),
        }
        listener
    }

    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut listener| async {
            let event = listener.next().await?;
            Some((Ok(event), listener))
        })
    }

    /// Creates the next event. Each event is created when the client has read the one before.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if Instant::now() >= self.until {
                return None;
            }
            if let Some(event) = self.ready.pop_front().or_else(|| self.next_of_backlog()) {
                return Some(event);
            }
            // The backlog was not known any more.
            if !self.ready.is_empty() {
                continue;
            }
            if let Some(reference) = self.throttle.take_due(Instant::now()) {
                let version = self.throttle.sent_version();
                self.ready.extend(self.job(&reference, version));
                continue;
            }
            let due = self.throttle.due().unwrap_or(self.until).min(self.until);
            select! {
                () = sleep_until(due) => {}
                change = self.changes.recv() => match change {
                    Ok(ObjectChange::Job(reference, version)) => self.throttle.enqueue(reference, version, Instant::now()),
                    Ok(ObjectChange::Deleted(gone)) => {
                        self.throttle.observe_version(gone.version);
                        if self.filter.matches(Some(&gone.namespace), gone.schedule.as_ref()) {
                            self.ready.push_back(self.deleted(&gone, self.throttle.sent_version()));
                        }
                    }
                    Ok(ObjectChange::Listed) => self.reset(),
                    Ok(ObjectChange::Schedule(_)) => {}
                    // It was too slow for single changes.
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.send_changes_since(Id { listing: self.listing, version: self.throttle.sent_version() });
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            }
        }
    }

    /// Event of the next entry of the backlog that still exists.
    fn next_of_backlog(&mut self) -> Option<Event> {
        while let Some(backlog) = &mut self.backlog {
            match backlog.next(&self.objects, &self.filter) {
                Ok(Some(BacklogEntry::Job(reference, version))) => {
                    // Of a run that was deleted meanwhile, the deletion follows.
                    if let Some(event) = self.job(&reference, version) {
                        return Some(event);
                    }
                }
                Ok(Some(BacklogEntry::Deleted(gone))) => return Some(self.deleted(&gone, gone.version)),
                Ok(None) => {
                    self.throttle.observe_version(backlog.last);
                    self.backlog = None;
                }
                Err(DeletionsForgotten) => {
                    self.reset();
                    return None;
                }
            }
        }
        None
    }

    fn reset(&mut self) {
        self.ready.push_back(Event::default().event("reset").data("{}"));
        self.send_unfinished();
    }

    fn send_unfinished(&mut self) {
        self.listing = self.objects.listing();
        self.backlog = Some(Backlog::unfinished(&self.objects));
    }

    /// Sends the changes since an event, or all unfinished runs when the changes are not known any more.
    fn send_changes_since(&mut self, last: Id) {
        let is_known = last.listing == self.objects.listing();
        match Backlog::changes(last.version, &self.objects) {
            Ok(backlog) if is_known => self.backlog = Some(backlog),
            _ => self.reset(),
        }
    }

    /// Event with the newest state of a run. `None` when it does not exist, or is not selected.
    fn job(&self, reference: &ObjectRef<SyncJob>, version: u64) -> Option<Event> {
        let job = self.objects.jobs.get(reference).filter(|job| self.filter.matches_job(job))?;
        Some(self.event("job", &Job::from(&*job), version))
    }

    fn deleted(&self, gone: &DeletedJob, version: u64) -> Event {
        let DeletedJob { namespace, name, uid, .. } = gone.clone();
        self.event("deleted", &Deleted { namespace, name, job_id: uid }, version)
    }

    /// Event with the version up to which the client has received all events.
    fn event(&self, kind: &str, data: &impl Serialize, version: u64) -> Event {
        let data = serde_json::to_string(data).unwrap_or_default();
        Event::default().event(kind).id(format!("{:x}-{version}", self.listing)).data(data)
    }
}

#[cfg(test)]
mod tests {
    use super::Id;

    #[test]
    fn only_ids_of_our_own_are_read() {
        assert_eq!("ff-12".parse(), Ok(Id { listing: 255, version: 12 }));
        for text in ["", "-", "12", "x-1", "1-x", "1-2-3"] {
            assert!(text.parse::<Id>().is_err(), "{text}");
        }
    }
}
