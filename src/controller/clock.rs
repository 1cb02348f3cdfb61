//! The time of the controllers. The local clock is used while it agrees with the clock of the API server. Its changes
//! between two comparisons are not noticed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{Request, header::DATE};
use futures::Stream;
use jiff::{Timestamp, fmt::rfc2822};
use kube::{Client, client::Body};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_stream::{StreamExt, wrappers::WatchStream};

use crate::{
    domain::clock::{self, Clocks, Reading},
    queue::Queue,
    telemetry::metrics,
};

/// Interval between comparisons of the local clock with the monotonic one.
const COMPARE_INTERVAL: Duration = Duration::from_secs(1);
/// Number of these comparisons after which all clocks are compared, whatever the local clock did.
const COMPARISONS_PER_SYNC: u32 = 30;
/// Seconds between two comparisons from which on the local clock was set, or the machine was asleep. A clock that is
/// slewed to the right time differs by less.
const STEP: f64 = 0.5;
/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(2);

/// Clock that continues from its last comparison with other clocks. Cheap to clone.
#[derive(Clone)]
pub(super) struct Clock(Arc<Inner>);

struct Inner {
    base: Mutex<(Timestamp, Instant)>,
    /// Difference between clocks that cannot be corrected.
    skew: watch::Sender<Option<String>>,
    /// Counts jumps of this clock.
    jumps: watch::Sender<u64>,
    /// The clocks were compared once.
    is_compared: watch::Sender<bool>,
}

impl Clock {
    pub fn new() -> Self {
        let base = Mutex::new((Timestamp::now(), Instant::now()));
        let (skew, jumps, is_compared) = (watch::Sender::new(None), watch::Sender::new(0), watch::Sender::new(false));
        Self(Arc::new(Inner { base, skew, jumps, is_compared }))
    }

    /// Waits until the clocks were compared once.
    pub async fn compared(&self) {
        // Fails only without a sender, and this has one.
        self.0.is_compared.subscribe().wait_for(|is_compared| *is_compared).await.ok();
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        let (time, since) = *self.0.base.lock().unwrap_or_else(PoisonError::into_inner);
        time.checked_add(since.elapsed()).unwrap_or(time)
    }

    /// Difference between clocks that cannot be corrected, as a sentence.
    pub fn skew(&self) -> Option<String> {
        self.0.skew.borrow().clone()
    }

    /// Stream of events: the clock has jumped, or a difference that cannot be corrected begins or ends. All objects
    /// with due times have to be reconciled then.
    pub fn changes(&self) -> impl Stream<Item = ()> + Send + use<> {
        let jumps = WatchStream::from_changes(self.0.jumps.subscribe()).map(drop);
        jumps.merge(WatchStream::from_changes(self.0.skew.subscribe()).map(drop))
    }

    /// Compares the clocks each 30 s, and when the local one was set. Never ends.
    pub async fn compare_regularly(&self, client: &Client, queue: &Queue) {
        let mut ticks = interval(COMPARE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut time, mut since, mut is_pending) = (Timestamp::now(), Instant::now(), false);
        for tick in (0..COMPARISONS_PER_SYNC).cycle() {
            ticks.tick().await;
            let (before, began) = (std::mem::replace(&mut time, Timestamp::now()), since);
            since = Instant::now();
            let off = time.duration_since(before).as_secs_f64() - since.duration_since(began).as_secs_f64();
            if off.abs() > STEP {
                tracing::warn!(seconds = off, "the clock was set");
            }
            if off.abs() > STEP || tick == 0 || is_pending {
                is_pending = !self.compare(client, queue).await;
            }
        }
    }

    /// Compares the clocks. False when the API server has not answered: the clock continues unchanged.
    async fn compare(&self, client: &Client, queue: &Queue) -> bool {
        let (api_server, redis) = tokio::join!(timeout(LIMIT, date(client)), timeout(LIMIT, queue.time()));
        let (api_server, redis) = (api_server.ok().flatten(), redis.ok().and_then(Result::ok));
        let expected = self.now();
        let clocks =
            Clocks { local: if api_server.is_some() { Timestamp::now() } else { expected }, api_server, redis };
        metrics::clock_skew(&clocks);
        let Reading { now, skew } = clock::compare(&clocks);
        *self.0.base.lock().unwrap_or_else(PoisonError::into_inner) = (now, Instant::now());
        if now.duration_since(expected).as_secs_f64().abs() > STEP {
            tracing::warn!(%expected, %now, "the clock of the controllers has jumped; all schedules are reconciled again");
            self.0.jumps.send_modify(|jumps| *jumps += 1);
        }
        self.0.skew.send_if_modified(|known| {
            // The seconds in the sentence change with each comparison.
            let changes = known.is_some() != skew.is_some();
            if changes {
                if let Some(skew) = &skew {
                    tracing::warn!(skew, "clocks differ");
                } else {
                    tracing::info!("the clocks agree again");
                }
                known.clone_from(&skew);
            }
            changes
        });
        self.0.is_compared.send_replace(true);
        api_server.is_some()
    }
}

/// The API server's clock, in whole seconds.
async fn date(client: &Client) -> Option<Timestamp> {
    let request = Request::get("/version").body(Body::empty()).ok()?;
    let answer = client.send(request).await.ok()?;
    let date = answer.headers().get(DATE)?.to_str().ok()?;
    rfc2822::parse(date).ok().map(|date| date.timestamp())
}
