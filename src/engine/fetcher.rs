//! Requests for the desired content of the documents of a batch, within the rate limit that all attempts share.

use std::{
    future::Future,
    iter,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bson::Bson;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Coordinator, request_slot::RequestSlot, sources::OpenSource};
use crate::{
    domain::{
        backoff::Backoff,
        rate_limit::{self, Reservation, SharedRateLimit},
        source::{Asking, Pages, RequestRate},
    },
    sync::{BatchMemory, Error, Found, Reply, RequestFailure, SourceClient, SourcePage, Walk},
    telemetry::{
        metrics,
        traces::{Parent, Span},
    },
};

/// Pause while the state of the rate limit cannot be reached. The lease decides for how long.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest wait before a rejected reservation is tried again: a Redis that lost a pause allows requests earlier.
const RESERVATION_RETRY: Duration = Duration::from_secs(5);
/// Longest pause that a run waits for with its worker. After a longer one it is claimed again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Backoff of the retries of a request, with a jitter of up to a half.
const RETRY_BACKOFF: Backoff =
    Backoff { initial: Duration::from_millis(500), factor: 2, max: Duration::from_secs(30), jitter: 0.5 };
/// Backoff of the pauses for a server that rejects requests for their rate without a duration.
const UNSPECIFIED_PAUSE: Backoff =
    Backoff { initial: Duration::from_secs(10), factor: 2, max: Duration::from_mins(15), jitter: 0.0 };
/// Largest number of these pauses in a row before the attempt fails.
const MAX_UNSPECIFIED: u32 = 8;
/// Reason of an attempt whose source rejected a page after the first one.
pub(super) const CURSOR_EXPIRED: &str = "CursorExpired";
/// Documents whose requests fail, one after the other, that end the attempt: an outage is no matter of documents.
const MAX_FAILED_IN_A_ROW: u32 = 20;

/// Client of a source that heeds its rate limit.
pub(super) struct SourceFetcher {
    source: OpenSource,
    coordinator: Arc<dyn Coordinator>,
    /// Name of the rate limit.
    limit: String,
    trace: Parent,
    /// Time at which this attempt last paused the requests.
    paused: Mutex<Option<Instant>>,
    /// True once the source has answered a request of this run.
    has_answered: AtomicBool,
    /// Requests for one document that failed since the last one that did not.
    failed_in_a_row: AtomicU32,
    /// Pauses of the run without progress before this attempt.
    pauses: u32,
}

/// Results of the source for a batch, or a page of them.
pub(super) struct Fetched<T> {
    pub found: T,
    /// Time of the request.
    pub at: Timestamp,
    /// Memory of the results. Dropped when they are written.
    pub memory: BatchMemory,
}

/// Proof that the rate limit let a request pass at this time.
pub(super) struct RatePassed(Instant);

impl SourceFetcher {
    /// Creates a client for an attempt of a run with `pauses` pauses since its last progress.
    pub fn new(
        namespace: &str,
        source: OpenSource,
        coordinator: Arc<dyn Coordinator>,
        trace: Parent,
        pauses: i64,
    ) -> Self {
        Self {
            limit: rate_limit::name(namespace, source.origin(), source.spec()),
            source,
            coordinator,
            trace,
            paused: Mutex::default(),
            has_answered: AtomicBool::new(false),
            failed_in_a_row: AtomicU32::new(0),
            pauses: u32::try_from(pauses).unwrap_or_default(),
        }
    }

    /// Waits for the rate limit on behalf of a batch that has no request slot yet, so that it can send its request as
    /// soon as it has one. Returns `None` where each request waits for itself: a rate counts when requests are sent.
    pub async fn wait_ahead(&self) -> Option<RatePassed> {
        let spec = self.source.spec();
        if spec.rate.is_some() || self.source.host_rate().is_some() || matches!(spec.asking, Asking::PerUser(_)) {
            return None;
        }
        // The request finds a long pause again before it is sent.
        self.wait().await.ok()?;
        Some(RatePassed(Instant::now()))
    }

    /// Requests the results for the keys.
    pub async fn fetch(
        &self,
        keys: Vec<Bson>,
        slot: RequestSlot,
        passed: Option<RatePassed>,
    ) -> Result<Fetched<Vec<Found>>, Error> {
        let (span, memory) = (self.trace.begin("sync.fetch").asking(), self.source.memory());
        let fetched = self.fetch_all(keys, slot, passed, &memory).await;
        end_fetch(span, fetched.as_ref().map(|(found, _)| found.len()));
        fetched.map(|(found, at)| Fetched { found, at, memory })
    }

    async fn fetch_all(
        &self,
        keys: Vec<Bson>,
        slot: RequestSlot,
        passed: Option<RatePassed>,
        memory: &BatchMemory,
    ) -> Result<(Vec<Found>, Timestamp), Error> {
        // Of several requests the first one counts: no answer is older.
        let asked = self.now();
        let Asking::PerUser(in_flight) = self.source.spec().asking else {
            let (keys, slot) = (&keys, &slot);
            let send = |source: Arc<SourceClient>| async move {
                source.request_documents(keys, memory, || slot.release()).await
            };
            return if keys.is_empty() {
                Ok((Vec::new(), asked))
            } else {
                self.fetch_with_retry(passed, Some(slot), send).await.map_err(RequestFailure::into_error)
            };
        };
        // The batch holds its slot until all of them are answered.
        let send = |key| async move {
            let keys = std::slice::from_ref(&key);
            let send = |source: Arc<SourceClient>| async move { source.request_documents(keys, memory, || ()).await };
            self.attribute_failure(self.fetch_with_retry(None, None, send).await)
        };
        let answers: Vec<_> = stream::iter(keys).map(send).buffered(in_flight).try_collect().await?;
        let has_answered = self.has_answered.load(Ordering::Relaxed);
        let found = answers.into_iter().map(|found| match found {
            Ok(found) => Ok(found),
            Err(error) if !has_answered => Err(error),
            Err(error) => Ok(Found::Failed("SourceError", error.to_string())),
        });
        Ok((found.collect::<Result<_, _>>()?, asked))
    }

    /// Decides whose failure it is when there is no usable answer for one document. The inner error is the document's
    /// if the source answers requests for others, and else the run's; the outer one is the run's or the attempt's.
    fn attribute_failure(
        &self,
        fetched: Result<(Vec<Found>, Timestamp), RequestFailure>,
    ) -> Result<Result<Found, Error>, Error> {
        match fetched {
            Ok((found, _)) => {
                self.failed_in_a_row.store(0, Ordering::Relaxed);
                Ok(Ok(found.into_iter().next().unwrap_or(Found::NotReturned)))
            }
            Err(RequestFailure::Rejected(error)) => Ok(Err(error)),
            Err(RequestFailure::Transient(error) | RequestFailure::Unusable(error)) => {
                let in_a_row = self.failed_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                if in_a_row >= MAX_FAILED_IN_A_ROW { Err(error) } else { Ok(Err(error)) }
            }
            Err(failure) => Err(failure.into_error()),
        }
    }

    /// Continues a walk through pages of about `size` results, from `next` on. The stream ends after the first error.
    pub fn walk(
        self: Arc<Self>,
        pages: Pages,
        walk: Walk,
        next: Option<Value>,
        size: usize,
    ) -> impl Stream<Item = Result<Fetched<SourcePage>, Error>> + Send {
        stream::unfold((self, pages, walk, next), move |(fetch, pages, mut walk, next)| async move {
            let at = next?;
            let span = fetch.trace.begin("sync.fetch").asking();
            let memory = fetch.source.memory();
            let (from, start, of_page) = (&pages, &at, &memory);
            let send = |source: Arc<SourceClient>| async move { source.page(from, start, size, of_page).await };
            let page = fetch.fetch_with_retry(None, None, send).await;
            let page = page.and_then(|(mut page, asked)| {
                walk.observe(&mut page, &pages, &at, size)?;
                Ok((page, asked))
            });
            let page = page.map_err(|failure| match failure {
                // A cursor, or an address, is of no use any more after hours.
                RequestFailure::Rejected(error) if at != pages.first() => {
                    Error::Attempt { reason: CURSOR_EXPIRED, message: format!("the walk starts over: {error}") }
                }
                failure => failure.into_error(),
            });
            end_fetch(span, page.as_ref().map(|(page, _)| page.results.len()));
            let next = page.as_ref().ok().and_then(|(page, _)| page.next.clone());
            let page = page.map(|(found, at)| Fetched { found, at, memory });
            Some((page, (fetch, pages, walk, next)))
        })
    }

    /// Pages of the source, when the source is walked through page by page.
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

    /// Sends a request when the rate limit lets it pass. Repeats it after each pause that the source asks for, and
    /// retries it a limited number of times after failures that a retry may avoid. Repeats it once with other Secrets
    /// when the source refuses the earlier ones. Holds `slot` meanwhile, where there is one.
    async fn fetch_with_retry<T, F>(
        &self,
        mut passed: Option<RatePassed>,
        slot: Option<&RequestSlot>,
        send: impl Fn(Arc<SourceClient>) -> F,
    ) -> Result<(T, Timestamp), RequestFailure>
    where
        F: Future<Output = Result<Reply<T>, RequestFailure>>,
    {
        let (mut tries, retries, mut is_renewed) = (0, self.source.spec().retries, false);
        loop {
            if !passed.take().is_some_and(|passed| self.is_valid(&passed)) {
                self.wait().await?;
            }
            if let Some(slot) = slot {
                slot.acquire().await;
            }
            let client = self.source.client().await;
            let (asked, began) = (self.now(), Instant::now());
            let reply = send(Arc::clone(&client)).await;
            metrics::source_asked(reply.is_ok(), began.elapsed());
            match reply {
                Ok(Reply { found, is_partial, pause }) => {
                    self.has_answered.store(true, Ordering::Relaxed);
                    if let Some(pause) = pause {
                        self.pause(pause).await;
                    }
                    if !is_partial || tries >= retries {
                        return Ok((found, asked));
                    }
                }
                Err(RequestFailure::Limited(pause)) => {
                    let pause = pause.or_else(|| self.unspecified_pause()).ok_or(RequestFailure::Limited(None))?;
                    self.pause(pause).await;
                    continue;
                }
                Err(RequestFailure::Unauthorized(_)) if !is_renewed && self.source.renew(&client).await? => {
                    is_renewed = true;
                    continue;
                }
                Err(RequestFailure::Transient(_)) if tries < retries => {}
                Err(failure) => return Err(failure),
            }
            tries += 1;
            if let Some(slot) = slot {
                slot.release();
            }
            sleep(RETRY_BACKOFF.delay(tries, rand::random())).await;
        }
    }

    /// Returns the pause after a rejection without a time, which all requests in flight share. `None`: too many
    /// rejections had no time.
    fn unspecified_pause(&self) -> Option<Duration> {
        let before = if self.has_answered.load(Ordering::Relaxed) { 0 } else { self.pauses };
        (before < MAX_UNSPECIFIED).then(|| UNSPECIFIED_PAUSE.delay(before + 1, 0.0))
    }

    /// Waits until the rate limit lets a request pass. Fails before a long pause, during which the run does not need
    /// a worker.
    async fn wait(&self) -> Result<(), Error> {
        let own = self.source.spec().rate;
        loop {
            // The policy may change meanwhile.
            let host = self.source.host_rate();
            let rates = || own.into_iter().chain(host);
            let every = rates().map(|rate| rate.every).max().unwrap_or_default();
            let slack = rates().map(|rate| rate.slack).min().unwrap_or_default();
            let limits: Vec<SharedRateLimit> = iter::once((self.limit.clone(), own.unwrap_or_default()))
                .chain(host.map(|rate| (rate_limit::name_of_host(self.source.host()), rate)))
                .map(|(name, RequestRate { every, .. })| SharedRateLimit { name, every })
                .collect();
            match self.coordinator.reserve_request(&limits).await {
                Ok(Reservation::After(wait)) => {
                    let due = Instant::now() + wait;
                    sleep_until(due).await;
                    if every.is_zero() || due.elapsed() <= slack {
                        return Ok(());
                    }
                }
                Ok(Reservation::RetryAfter(wait)) if wait > every + LONGEST_WAIT => return Err(Error::Paused(wait)),
                Ok(Reservation::RetryAfter(wait)) => sleep(wait.min(RESERVATION_RETRY)).await,
                Err(error) => {
                    tracing::debug!(%error, "could not reserve a request to the source");
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
            tracing::debug!(%error, "could not pause the requests to the source");
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
