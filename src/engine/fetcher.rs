//! Fetches what the documents of a batch should be, within the rate limit that all attempts share.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bson::Bson;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Coordinator, request_slot::RequestSlot};
use crate::{
    domain::{
        rate_limit::Reservation,
        source::{Asking, Pace, Pages},
    },
    sync::{Error, Found, Page, Reply, Source},
    telemetry::{
        metrics,
        traces::{Parent, Span},
    },
};

/// Pause while the state of the rate limit cannot be reached. The lease decides for how long.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest wait before a rejected reservation is tried again: a Redis that lost a pause allows requests earlier.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Client of a source that heeds its rate limit.
pub(super) struct SourceFetcher {
    source: Source,
    coordinator: Arc<dyn Coordinator>,
    /// Name of the rate limit: a hash of the endpoint.
    limit: String,
    trace: Parent,
    /// When this attempt last paused the requests.
    paused: Mutex<Option<Instant>>,
}

/// Proof that the rate limit let a request pass at this time.
pub(super) struct RatePassed(Instant);

impl SourceFetcher {
    pub fn new(source: Source, coordinator: Arc<dyn Coordinator>, trace: Parent) -> Self {
        let endpoint: [u8; 32] = Sha256::digest(source.spec().endpoint.as_bytes()).into();
        let limit = endpoint.first_chunk().map(|first| format!("{:032x}", u128::from_be_bytes(*first)));
        Self { source, coordinator, limit: limit.unwrap_or_default(), trace, paused: Mutex::default() }
    }

    /// Waits for the rate limit on behalf of a batch that has no request slot yet, so that it can send its request as soon
    /// as it has one. Returns `None` where each request waits for itself: a rate counts when requests are sent.
    pub async fn wait_ahead(&self) -> Option<RatePassed> {
        let spec = self.source.spec();
        if spec.pace.is_some() || matches!(spec.asking, Asking::PerUser(_)) {
            return None;
        }
        self.wait().await;
        Some(RatePassed(Instant::now()))
    }

    /// Fetches what the source has for each of the keys. Returns it with the time of the request.
    pub async fn fetch(
        &self,
        keys: Vec<Bson>,
        slot: RequestSlot,
        passed: Option<RatePassed>,
    ) -> Result<(Vec<Found>, Timestamp), Error> {
        let span = self.trace.begin("sync.fetch").asking();
        let fetched = self.fetch_all(keys, slot, passed).await;
        end_fetch(span, fetched.as_ref().map(|(found, _)| found.len()));
        fetched
    }

    async fn fetch_all(
        &self,
        keys: Vec<Bson>,
        slot: RequestSlot,
        passed: Option<RatePassed>,
    ) -> Result<(Vec<Found>, Timestamp), Error> {
        // Of several requests the first one counts: no answer is older.
        let asked = self.now();
        let Asking::PerUser(in_flight) = self.source.spec().asking else {
            let ask = || self.source.ask(&keys, || slot.release());
            return if keys.is_empty() {
                Ok((Vec::new(), asked))
            } else {
                self.fetch_with_retry(passed, Some(&slot), ask).await
            };
        };
        // The batch holds its slot until all of them are answered.
        let ask = |key| async move {
            self.fetch_with_retry(None, None, || self.source.ask(std::slice::from_ref(&key), || ())).await
        };
        let answers: Vec<_> = stream::iter(keys).map(ask).buffered(in_flight).try_collect().await?;
        Ok((answers.into_iter().flat_map(|(found, _)| found).collect(), asked))
    }

    /// Walks pages of about `size` results from `next` on. Each page comes with the time of its request. The stream ends
    /// after the first error.
    pub fn walk(
        self: Arc<Self>,
        pages: Pages,
        next: Option<Value>,
        size: usize,
    ) -> impl Stream<Item = Result<(Page, Timestamp), Error>> + Send {
        stream::unfold((self, pages, next), move |(fetch, pages, next)| async move {
            let at = next?;
            let span = fetch.trace.begin("sync.fetch").asking();
            let page = fetch.fetch_with_retry(None, None, || fetch.source.page(&pages, &at, size)).await;
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
        self.coordinator.now()
    }

    /// Sends a request when the rate limit lets it pass, and again after each pause that the source asks for. Holds `slot`
    /// while it does, where there is one.
    async fn fetch_with_retry<T, F>(
        &self,
        mut passed: Option<RatePassed>,
        slot: Option<&RequestSlot>,
        ask: impl Fn() -> F,
    ) -> Result<(T, Timestamp), Error>
    where
        F: Future<Output = Result<Reply<T>, Error>>,
    {
        loop {
            if !passed.take().is_some_and(|passed| self.is_valid(&passed)) {
                self.wait().await;
            }
            if let Some(slot) = slot {
                slot.acquire().await;
            }
            let (asked, began) = (self.now(), Instant::now());
            let reply = ask().await;
            metrics::source_asked(reply.is_ok(), began.elapsed());
            let reply = reply?;
            if let Some(rest) = reply.rest {
                self.pause(rest).await;
            }
            if let Some(found) = reply.found {
                return Ok((found, asked));
            }
        }
    }

    async fn wait(&self) {
        let Pace { every, slack } = self.source.spec().pace.unwrap_or_default();
        loop {
            match self.coordinator.reserve_request(&self.limit, every).await {
                Ok(Reservation::After(wait)) => {
                    let due = Instant::now() + wait;
                    sleep_until(due).await;
                    if every.is_zero() || due.elapsed() <= slack {
                        return;
                    }
                }
                Ok(Reservation::RetryAfter(wait)) => sleep(wait.min(ASK_AGAIN)).await,
                Err(error) => {
                    tracing::debug!(%error, "request to the source not reserved");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn is_valid(&self, RatePassed(at): &RatePassed) -> bool {
        self.last_pause().is_none_or(|pause| pause < *at)
    }

    fn last_pause(&self) -> MutexGuard<'_, Option<Instant>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pause(&self, rest: Duration) {
        *self.last_pause() = Some(Instant::now());
        if let Err(error) = self.coordinator.pause_requests(&self.limit, rest).await {
            tracing::debug!(%error, "requests to the source not paused");
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
