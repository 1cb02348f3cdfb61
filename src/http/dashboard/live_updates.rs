//! `/ui/events`: notifies open pages of changes, so that they fetch their content again.
//!
//! Changes are collected once for all pages, at most once a second, and each page compares one number. The more pages
//! are open, the less often each of them is notified, so that their requests stay bounded too.

use std::{
    collections::HashMap,
    convert::Infallible,
    str::FromStr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use tokio::{
    select,
    sync::{broadcast, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{Filled, Scope, Visitor};
use crate::http::{
    App,
    events::{KEEP_ALIVE, LAST_EVENT_ID, LONGEST, RETRY},
    limits::{CallerKey, CallerPermit},
    objects::{ObjectChange, Objects},
    problem::Problem,
};

/// Least time between two rounds, and between two events of a page.
const ROUND: Duration = Duration::from_secs(1);
/// Largest number of pages that are notified within a second. Each of them fetches its content again.
const PAGES_A_SECOND: u32 = 100;
/// Proxies such as nginx would keep events back until they have many.
const UNBUFFERED: (&str, &str) = ("x-accel-buffering", "no");

/// Record of changes. Rounds are numbered from 1.
pub(in crate::http) struct LiveUpdates {
    /// Identifier of this process: numbers of another process have no meaning here.
    process: u64,
    round: watch::Sender<u64>,
    changed: RwLock<Changed>,
    pages: AtomicUsize,
    began: Instant,
}

/// Round of the last change: of each namespace, and of all namespaces.
#[derive(Default)]
struct Changed {
    namespaces: HashMap<String, u64>,
    everywhere: u64,
}

impl Changed {
    fn record_change(&mut self, change: Result<ObjectChange, broadcast::error::RecvError>, round: u64) {
        let namespace = match change {
            Ok(ObjectChange::Job(reference, _)) => reference.namespace,
            Ok(ObjectChange::Deleted(gone)) => Some(gone.namespace.clone()),
            Ok(ObjectChange::Schedule(namespace)) => Some(namespace),
            // Single changes are not known.
            Ok(ObjectChange::Listed) | Err(_) => None,
        };
        match namespace {
            Some(namespace) => {
                self.namespaces.insert(namespace, round);
            }
            None => self.everywhere = round,
        }
    }

    /// True when a page that was notified up to a round has changes.
    fn since(&self, round: u64, scope: &Scope) -> bool {
        let newest = match &scope.0 {
            None => self.namespaces.values().max(),
            Some(namespaces) => namespaces.iter().filter_map(|namespace| self.namespaces.get(namespace)).max(),
        };
        newest.copied().unwrap_or(0).max(self.everywhere) > round
    }
}

impl Default for LiveUpdates {
    fn default() -> Self {
        Self {
            process: rand::random(),
            round: watch::Sender::new(0),
            changed: RwLock::default(),
            pages: AtomicUsize::new(0),
            began: Instant::now(),
        }
    }
}

impl LiveUpdates {
    /// Gathers changes for as long as there are any.
    pub async fn run(&self, objects: &Objects) {
        let mut stream = objects.changes();
        loop {
            let first = stream.recv().await;
            if matches!(first, Err(broadcast::error::RecvError::Closed)) {
                return;
            }
            let round = *self.round.borrow() + 1;
            {
                let mut changed = self.changed.write().unwrap_or_else(PoisonError::into_inner);
                changed.record_change(first, round);
                loop {
                    match stream.try_recv() {
                        Ok(change) => changed.record_change(Ok(change), round),
                        Err(broadcast::error::TryRecvError::Lagged(_)) => changed.everywhere = round,
                        Err(_) => break,
                    }
                }
                // Who sees the changes sees the round.
                self.round.send_replace(round);
            }
            sleep(ROUND).await;
        }
    }

    /// Update that a page created now contains.
    pub(super) fn update_id(&self) -> UpdateId {
        UpdateId { process: self.process, round: *self.round.borrow() }
    }

    fn since(&self, round: u64, scope: &Scope) -> bool {
        self.changed.read().unwrap_or_else(PoisonError::into_inner).since(round, scope)
    }
}

/// Position of a page in the sequence of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UpdateId {
    process: u64,
    round: u64,
}

impl std::fmt::Display for UpdateId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{}", self.process, self.round)
    }
}

impl FromStr for UpdateId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (process, round) = text.split_once('-').unwrap_or_default();
        Ok(Self { process: u64::from_str_radix(process, 16)?, round: round.parse()? })
    }
}

/// Updates that a page subscribes to.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Subscription {
    namespace: Option<String>,
    /// Update that the page contained when it was created.
    since: Option<String>,
}

/// Streams `changed` events.
pub(super) async fn events(
    State(app): State<App>,
    visitor: Visitor,
    Extension(caller): Extension<CallerKey>,
    Filled(subscription): Filled<Subscription>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    let scope = visitor.scope(&app, "syncjobs", subscription.namespace.as_deref()).await?;
    let permit = app.limits.page(&caller)?;
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).or(subscription.since.as_deref());
    let here = app.live_updates.update_id();
    // Of another process, or of none: what it knows is not known.
    let seen = last.map_or(here.round, |last| {
        last.parse()
            .ok()
            .filter(|update_id: &UpdateId| update_id.process == here.process)
            .map_or(0, |update_id| update_id.round)
    });
    let page = Page::new(Arc::clone(&app.live_updates), scope, seen, permit);
    let stream = page.stream().take_until(app.stop.clone().cancelled_owned());
    Ok(([UNBUFFERED], Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))))
}

/// An open page.
struct Page {
    live_updates: Arc<LiveUpdates>,
    round: watch::Receiver<u64>,
    scope: Scope,
    seen: u64,
    /// Offset of the page among all pages, from 0 to 1.
    offset: f64,
    has_sent_retry: bool,
    until: Instant,
    _permit: CallerPermit,
}

impl Page {
    fn new(live_updates: Arc<LiveUpdates>, scope: Scope, seen: u64, permit: CallerPermit) -> Self {
        live_updates.pages.fetch_add(1, Ordering::Relaxed);
        let (round, until) = (live_updates.round.subscribe(), Instant::now() + LONGEST);
        Self { round, scope, seen, offset: rand::random(), has_sent_retry: false, until, _permit: permit, live_updates }
    }

    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut page| async {
            let event = page.next().await?;
            Some((Ok(event), page))
        })
    }

    async fn next(&mut self) -> Option<Event> {
        if !std::mem::replace(&mut self.has_sent_retry, true) {
            return Some(Event::default().retry(RETRY));
        }
        loop {
            if self.live_updates.since(self.seen, &self.scope) {
                let pages = self.live_updates.pages.load(Ordering::Relaxed);
                sleep(delay_until(pages, self.live_updates.began.elapsed(), self.offset)).await;
                let update_id = self.live_updates.update_id();
                self.seen = update_id.round;
                return Some(Event::default().event("changed").id(update_id.to_string()).data("{}"));
            }
            select! {
                () = sleep_until(self.until) => return None,
                changed = self.round.changed() => changed.ok()?,
            }
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.live_updates.pages.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Delay of the notification of a page. Few pages are notified at once; many pages are notified one after the other.
fn delay_until(pages: usize, elapsed: Duration, offset: f64) -> Duration {
    let lap = Duration::from_secs(pages as u64) / PAGES_A_SECOND;
    if lap <= ROUND {
        return Duration::ZERO;
    }
    let passed = elapsed.as_secs_f64() / lap.as_secs_f64();
    lap.mul_f64((offset - passed).rem_euclid(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn scope(namespaces: &[&str]) -> Scope {
        Scope(Some(namespaces.iter().map(|it| (*it).to_owned()).collect::<BTreeSet<_>>()))
    }

    #[test]
    fn a_page_is_notified_of_changes_in_its_namespaces() {
        let mut changed = Changed::default();
        assert!(!changed.since(0, &Scope(None)));
        changed.record_change(Ok(ObjectChange::Schedule("a".to_owned())), 3);
        for (round, is_notified) in [(2, true), (3, false)] {
            assert_eq!(changed.since(round, &Scope(None)), is_notified);
            assert_eq!(changed.since(round, &scope(&["b", "a"])), is_notified);
            assert!(!changed.since(round, &scope(&["b"])));
        }
        changed.record_change(Err(broadcast::error::RecvError::Lagged(1)), 4);
        assert!(changed.since(3, &scope(&["b"])), "what was missed may have been anywhere");
    }

    #[test]
    fn many_pages_are_notified_in_sequence() {
        let ms = Duration::from_millis;
        assert_eq!(delay_until(100, ms(300), 0.7), Duration::ZERO, "few need not");
        let wait = |elapsed, offset| (delay_until(500, elapsed, offset).as_secs_f64() * 1000.0).round() as u64;
        assert_eq!(
            [wait(ms(0), 0.5), wait(ms(5000), 0.5), wait(ms(2000), 0.5), wait(ms(3000), 0.5)],
            [2500, 2500, 500, 4500]
        );
    }

    #[test]
    fn only_marks_of_our_own_are_read() {
        let update_id = UpdateId { process: 255, round: 12 };
        assert_eq!((update_id.to_string().as_str(), "ff-12".parse()), ("ff-12", Ok(update_id)));
        for text in ["", "-", "12", "x-1", "1-x"] {
            assert!(text.parse::<UpdateId>().is_err(), "{text}");
        }
    }
}
