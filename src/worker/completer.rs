//! Batch completer. Collects the runs that a worker releases and writes them to Redis in one call; runs that are
//! released while a call is in flight go into the next one. A busy worker needs less than one call for each run, and an
//! idle one does not wait.

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::PAUSE;
use crate::queue::{FencedWrite, Queue, Release};

/// Limit of runs in one call. Redis serves no other client for its length, about 1 ms.
const MOST: usize = 32;

struct Completion {
    run: Release,
    answer: oneshot::Sender<FencedWrite>,
}

/// Sender of released runs.
pub(super) struct BatchCompleter(mpsc::UnboundedSender<Completion>);

/// Receiver of released runs that are not in Redis yet.
pub(super) struct CompletionReceiver(mpsc::UnboundedReceiver<Completion>);

impl BatchCompleter {
    pub fn new() -> (Self, CompletionReceiver) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), CompletionReceiver(receiver))
    }

    /// Waits until the run is in Redis, for as long as Redis is unavailable. When this future is dropped, the run may
    /// or may not be written.
    pub async fn record(&self, run: Release) -> FencedWrite {
        let (answer, recorded) = oneshot::channel();
        self.0.send(Completion { run, answer }).ok();
        recorded.await.unwrap_or(FencedWrite::LeaseLost)
    }
}

impl CompletionReceiver {
    /// Writes runs to Redis, and retries until Redis accepts them or the caller of [`BatchCompleter::record`] has
    /// ended.
    pub async fn run(mut self, queue: &Queue) {
        let mut completions = Vec::new();
        loop {
            if completions.is_empty() && self.0.recv_many(&mut completions, MOST).await == 0 {
                return;
            }
            completions.retain(|completion| !completion.answer.is_closed());
            match queue.release(completions.iter().map(|completion| &completion.run)).await {
                Ok(answers) => {
                    for (completion, answer) in completions.drain(..).zip(answers) {
                        completion.answer.send(answer).ok();
                    }
                }
                Err(error) => {
                    tracing::debug!(runs = completions.len(), %error, "could not record the end of runs; retrying");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
