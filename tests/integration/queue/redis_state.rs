//! Scripts, the clock and shared values in Redis.

use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use redis::AsyncCommands;
use sync_operator::{
    domain::run::{LeaseState, State},
    queue::{Disposition, FencedWrite, NewRun, Renewed},
};

use super::support::{LEASE, NOTHING, Raw, ReleaseOne, claim, enqueue, entry, named_queue, queue};
use crate::support::unique;

#[tokio::test]
async fn the_first_key_of_the_dashboard_is_the_key_of_all() {
    let queue = queue(LEASE);
    let proposals: Vec<[u8; 32]> = (0..20).map(|number| [number; 32]).collect();
    let keys = join_all(proposals.iter().map(|proposal| queue.dashboard_key(proposal))).await;
    let keys: Vec<_> = keys.into_iter().map(Result::unwrap).collect();
    assert!(proposals.iter().any(|proposal| keys[0] == proposal) && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let mut raw = Raw::of(queue.name()).await;
    let key = raw.key("dashboard_key");
    raw.connection.del::<_, ()>(key).await.unwrap();
    assert_eq!(queue.dashboard_key(&keys[0]).await.unwrap(), keys[0], "a process that runs stores it again");
}

#[tokio::test]
async fn scripts_are_loaded_again_after_a_script_flush() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    let mut flush = async || redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut raw.connection).await.unwrap();
    flush().await;
    enqueue(&queue, "a", 0).await;
    flush().await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    flush().await;
    assert_eq!(queue.renew("w", &[("a".to_owned(), epoch)]).await.unwrap(), Renewed::default());
    flush().await;
    assert_eq!(queue.checkpoint("a", epoch, "{}").await.unwrap(), LeaseState::Held);
    flush().await;
    assert_eq!(queue.finish("a", epoch, Disposition::Completed, NOTHING).await.unwrap(), FencedWrite::Applied);
    assert_eq!(entry(&queue, "a").await.state, State::Completed);
}

#[tokio::test]
async fn stamps_do_not_go_back_with_the_clock_of_redis() {
    let name = unique("queue");
    let (queue, mut raw) = (named_queue(&name, LEASE), Raw::of(&name).await);
    let key = raw.key("clock");
    let minutes = |minutes: i64| Timestamp::now().as_millisecond() + minutes * 60_000;
    for (uid, last, ahead) in [("first", 0, false), ("hour", minutes(60), true), ("day", minutes(24 * 60), false)] {
        raw.connection.set::<_, _, ()>(&key, last).await.unwrap();
        enqueue(&queue, uid, 0).await;
        let run = claim(&queue, "w").await;
        let started = run.entry.started.unwrap();
        assert_eq!((started, started.as_millisecond() > last), (run.at, ahead || last == 0), "{uid}");
        assert_eq!(started.as_millisecond() > minutes(50), ahead, "{uid}");
    }
    // The start time in Redis is tomorrow.
    let tomorrow = Timestamp::from_millisecond(minutes(24 * 60)).unwrap();
    queue.enqueue(&NewRun { started: Some(tomorrow), ..NewRun::new("tomorrow", "{}") }).await.unwrap();
    let run = claim(&queue, "w").await;
    assert_eq!(run.entry.started, Some(run.at));
}
