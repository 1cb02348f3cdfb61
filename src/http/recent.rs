//! Cache of the answer of a server for a second. Callers of probes then cause at most one request per second.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

/// Lifetime of an answer.
const LIFETIME: Duration = Duration::from_secs(1);

/// Last answer of a server. Clones share it.
#[derive(Clone, Debug)]
pub struct Recent<T>(Arc<Mutex<Option<(Instant, T)>>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Recent<T> {
    /// Returns the last answer, or asks again when its lifetime has passed. One caller asks, and the others wait for
    /// its answer.
    pub(super) async fn get(&self, ask: impl Future<Output = T>) -> T {
        let mut last = self.0.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < LIFETIME
        {
            return answer.clone();
        }
        let answer = ask.await;
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn many_callers_ask_once_in_a_lifetime() {
        let (recent, asked) = (Recent::default(), AtomicUsize::new(0));
        let ask = async || {
            yield_now().await;
            asked.fetch_add(1, Ordering::Relaxed) + 1
        };
        for lifetime in 1..=3 {
            let answers = join_all((0..100).map(|_| recent.get(ask()))).await;
            assert_eq!(answers, [lifetime; 100]);
            let expired = Instant::now().checked_sub(LIFETIME).unwrap();
            recent.0.lock().await.as_mut().unwrap().0 = expired;
        }
    }
}
