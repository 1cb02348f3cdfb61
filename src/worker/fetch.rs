//! Asks a source for a batch, at the rate all workers keep together.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bson::Bson;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::unconstrained,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    domain::source::{Asking, Pace, Pages},
    queue::{Queue, Turn as GateTurn},
    sync::{Error, Found, Page, Reply, Source},
    telemetry::{
        metrics,
        traces::{Parent, Span},
    },
};

/// Pause while Redis, which keeps the rate, is away. The lease decides for how long.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for a turn before asking for one again: a gate that is shut may open earlier, for a Redis that lost it.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A source, and the gate before it.
pub(super) struct Fetch {
    source: Source,
    queue: Queue,
    gate: String,
    clock: Clock,
    trace: Parent,
    /// When this run last shut the gate.
    shut: Mutex<Option<Instant>>,
}

/// The gate was open, a moment ago.
pub(super) struct Open(Instant);

/// One batch's right to ask. Given back as soon as the answer has come: another batch asks while it is being read.
pub(super) struct Turn {
    turns: Arc<Semaphore>,
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Turn {
    /// Stands in line from now on, also while nobody awaits it: batches' tasks begin in any order, and progress waits for the
    /// first of them.
    pub fn in_line(turns: &Arc<Semaphore>) -> impl Future<Output = Self> + Send + use<> {
        let turns = Arc::clone(turns);
        let mut permit = Box::pin(unconstrained(Arc::clone(&turns).acquire_owned()));
        let at_once = permit.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        async move {
            let permit = match at_once {
                Poll::Ready(permit) => permit,
                Poll::Pending => permit.await,
            };
            Self { turns, held: Mutex::new(permit.ok()) }
        }
    }

    async fn take(&self) {
        if self.held().is_none() {
            // Fails only when the semaphore was closed, and nobody does that.
            let permit = Arc::clone(&self.turns).acquire_owned().await.ok();
            *self.held() = permit;
        }
    }

    fn give_back(&self) {
        *self.held() = None;
    }

    fn held(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time of the Redis server, which all workers share, as it went on since a claim.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub at: Timestamp,
    pub since: Instant,
}

impl Clock {
    fn now(&self) -> Timestamp {
        self.at.checked_add(self.since.elapsed()).unwrap_or(self.at)
    }
}

impl Fetch {
    pub fn new(source: Source, queue: Queue, clock: Clock, trace: Parent) -> Self {
        let endpoint: [u8; 32] = Sha256::digest(source.spec().endpoint.as_bytes()).into();
        let gate = endpoint.first_chunk().map(|first| format!("{:032x}", u128::from_be_bytes(*first)));
        let gate = gate.unwrap_or_default();
        Self { source, queue, gate, clock, trace, shut: Mutex::default() }
    }

    /// Waits at the gate for a batch that has no turn yet, so that it can ask at once when it has one. `None` where each
    /// request has to wait for itself: a rate counts when requests are sent.
    pub async fn wait_ahead(&self) -> Option<Open> {
        let spec = self.source.spec();
        if spec.pace.is_some() || matches!(spec.asking, Asking::PerUser(_)) {
            return None;
        }
        self.wait().await;
        Some(Open(Instant::now()))
    }

    /// What there is for each of the keys, and when it was asked for.
    pub async fn fetch(
        &self,
        keys: Vec<Bson>,
        turn: Turn,
        open: Option<Open>,
    ) -> Result<(Vec<Found>, Timestamp), Error> {
        let span = self.trace.begin("sync.fetch").asking();
        let fetched = self.fetch_all(keys, turn, open).await;
        end_fetch(span, fetched.as_ref().map(|(found, _)| found.len()));
        fetched
    }

    async fn fetch_all(
        &self,
        keys: Vec<Bson>,
        turn: Turn,
        open: Option<Open>,
    ) -> Result<(Vec<Found>, Timestamp), Error> {
        // Of several answers the first question counts: none of them is older.
        let asked = self.clock.now();
        let Asking::PerUser(in_flight) = self.source.spec().asking else {
            let ask = || self.source.ask(&keys, || turn.give_back());
            return if keys.is_empty() { Ok((Vec::new(), asked)) } else { self.insist(open, Some(&turn), ask).await };
        };
        // Each of them has the turn until all are answered.
        let ask =
            |key| async move { self.insist(None, None, || self.source.ask(std::slice::from_ref(&key), || ())).await };
        let answers: Vec<_> = stream::iter(keys).map(ask).buffered(in_flight).try_collect().await?;
        Ok((answers.into_iter().flat_map(|(found, _)| found).collect(), asked))
    }

    /// Pages of about `size` results from `next` on, and when they were asked for. The stream ends after the first error.
    pub fn walk(
        self: Arc<Self>,
        pages: Pages,
        next: Option<Value>,
        size: usize,
    ) -> impl Stream<Item = Result<(Page, Timestamp), Error>> + Send {
        stream::unfold((self, pages, next), move |(fetch, pages, next)| async move {
            let at = next?;
            let span = fetch.trace.begin("sync.fetch").asking();
            let page = fetch.insist(None, None, || fetch.source.page(&pages, &at, size)).await;
            end_fetch(span, page.as_ref().map(|(page, _)| page.results.len()));
            let next = page.as_ref().ok().and_then(|(page, _)| page.next.clone());
            Some((page, (fetch, pages, next)))
        })
    }

    /// How the source is walked through, when it is.
    pub fn pages(&self) -> Option<&Pages> {
        match &self.source.spec().asking {
            Asking::Pages(pages) => Some(pages),
            _ => None,
        }
    }

    /// Path of one of the source's fields in the spec.
    pub fn field(&self, name: &str) -> String {
        self.source.spec().field(name)
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Asks when the gate is open, and again after a rest when the source wants one: in a turn, if there is one to take.
    async fn insist<T, F>(
        &self,
        mut open: Option<Open>,
        turn: Option<&Turn>,
        ask: impl Fn() -> F,
    ) -> Result<(T, Timestamp), Error>
    where
        F: Future<Output = Result<Reply<T>, Error>>,
    {
        loop {
            if !open.take().is_some_and(|open| self.is_open_since(&open)) {
                self.wait().await;
            }
            if let Some(turn) = turn {
                turn.take().await;
            }
            let (asked, began) = (self.clock.now(), Instant::now());
            let reply = ask().await;
            metrics::source_asked(reply.is_ok(), began.elapsed());
            let reply = reply?;
            if let Some(rest) = reply.rest {
                self.shut(rest).await;
            }
            if let Some(found) = reply.found {
                return Ok((found, asked));
            }
        }
    }

    async fn wait(&self) {
        let Pace { every, slack } = self.source.spec().pace.unwrap_or_default();
        loop {
            match self.queue.turn(&self.gate, every).await {
                Ok(GateTurn::In(wait)) => {
                    let due = Instant::now() + wait;
                    sleep_until(due).await;
                    if every.is_zero() || due.elapsed() <= slack {
                        return;
                    }
                }
                Ok(GateTurn::Later(wait)) => sleep(wait.min(ASK_AGAIN)).await,
                Err(error) => {
                    tracing::debug!(%error, "no turn at the source's gate");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn is_open_since(&self, Open(at): &Open) -> bool {
        self.last_shut().is_none_or(|shut| shut < *at)
    }

    fn last_shut(&self) -> MutexGuard<'_, Option<Instant>> {
        self.shut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn shut(&self, rest: Duration) {
        *self.last_shut() = Some(Instant::now());
        if let Err(error) = self.queue.shut(&self.gate, rest).await {
            tracing::debug!(%error, "the source's gate was not shut");
            sleep(rest.min(PAUSE)).await;
        }
    }
}

fn end_fetch(mut span: Span, fetched: Result<usize, &Error>) {
    match fetched {
        Ok(documents) => span.set("documents", documents as i64),
        Err(error) => span.fail(&error.outcome().reason),
    }
    span.end();
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn turns_are_taken_in_the_order_of_the_line() {
        let turns = Arc::new(Semaphore::new(1));
        let held = Turn::in_line(&turns).now_or_never().unwrap();
        let [mut first, mut second] = [0, 1].map(|_| Box::pin(Turn::in_line(&turns)));
        held.give_back();
        assert!(second.as_mut().now_or_never().is_none(), "it came later");
        let first = first.as_mut().now_or_never().unwrap();
        drop(first);
        assert!(second.now_or_never().is_some());
    }
}
