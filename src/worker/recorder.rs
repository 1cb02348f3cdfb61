//! Records what becomes of the runs that a worker lets go of. Those that come while a call is under way go out together
//! in the next one: a busy worker needs less than one call for each run, and an idle one waits for nothing.

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::PAUSE;
use crate::queue::{Fenced, LetGo, Queue};

/// Most runs in one call: Redis does nothing else meanwhile, about 1 ms.
const MOST: usize = 32;

struct Letter {
    run: LetGo,
    answer: oneshot::Sender<Fenced>,
}

/// Takes runs to be recorded.
pub(super) struct Recorder(mpsc::UnboundedSender<Letter>);

/// Runs that are not recorded yet.
pub(super) struct Unrecorded(mpsc::UnboundedReceiver<Letter>);

impl Recorder {
    pub fn new() -> (Self, Unrecorded) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Unrecorded(receiver))
    }

    /// Waits until the run is recorded, for as long as Redis is away. When this is cancelled it may or may not be.
    pub async fn record(&self, run: LetGo) -> Fenced {
        let (answer, recorded) = oneshot::channel();
        self.0.send(Letter { run, answer }).ok();
        recorded.await.unwrap_or(Fenced::Lost)
    }
}

impl Unrecorded {
    /// Records runs, and tries again until Redis takes them or nobody waits for that any more.
    pub async fn keep_recording(mut self, queue: &Queue) {
        let mut letters = Vec::new();
        loop {
            if letters.is_empty() && self.0.recv_many(&mut letters, MOST).await == 0 {
                return;
            }
            letters.retain(|letter| !letter.answer.is_closed());
            match queue.let_go(letters.iter().map(|letter| &letter.run)).await {
                Ok(answers) => {
                    for (letter, answer) in letters.drain(..).zip(answers) {
                        letter.answer.send(answer).ok();
                    }
                }
                Err(error) => {
                    tracing::debug!(runs = letters.len(), %error, "ends of runs not recorded yet");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
