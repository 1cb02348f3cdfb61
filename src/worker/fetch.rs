//! Asks a source for a batch, at the rate all workers keep together.

use std::{future::Future, sync::Arc, time::Duration};

use bson::Bson;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    domain::source::{Asking, Pace, Pages},
    queue::{Queue, Turn},
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
        Self { source, queue, gate, clock, trace }
    }

    /// What there is for each of the keys, and when it was asked for.
    pub async fn fetch(&self, keys: Vec<Bson>) -> Result<(Vec<Found>, Timestamp), Error> {
        let span = self.trace.begin("sync.fetch").asking();
        let fetched = self.fetch_all(keys).await;
        end_fetch(span, fetched.as_ref().map(|(found, _)| found.len()));
        fetched
    }

    async fn fetch_all(&self, keys: Vec<Bson>) -> Result<(Vec<Found>, Timestamp), Error> {
        // Of several answers the first question counts: none of them is older.
        let asked = self.clock.now();
        let Asking::PerUser(in_flight) = self.source.spec().asking else { return self.ask(&keys).await };
        let answers = stream::iter(keys).map(|key| async move { self.ask(&[key]).await }).buffered(in_flight);
        let answers: Vec<_> = answers.try_collect().await?;
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
            let page = fetch.insist(|| fetch.source.page(&pages, &at, size)).await;
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

    async fn ask(&self, keys: &[Bson]) -> Result<(Vec<Found>, Timestamp), Error> {
        if keys.is_empty() {
            return Ok((Vec::new(), self.clock.now()));
        }
        self.insist(|| self.source.ask(keys)).await
    }

    /// Asks when it is its turn, and again after a rest when the source wants one.
    async fn insist<T, F>(&self, ask: impl Fn() -> F) -> Result<(T, Timestamp), Error>
    where
        F: Future<Output = Result<Reply<T>, Error>>,
    {
        loop {
            self.wait().await;
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
                Ok(Turn::In(wait)) => {
                    let due = Instant::now() + wait;
                    sleep_until(due).await;
                    if every.is_zero() || due.elapsed() <= slack {
                        return;
                    }
                }
                Ok(Turn::Later(wait)) => sleep(wait.min(ASK_AGAIN)).await,
                Err(error) => {
                    tracing::debug!(%error, "no turn at the source's gate");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn shut(&self, rest: Duration) {
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
