//! Notifications of workers, and of changes.

use std::time::Duration;

use sync_operator::{
    domain::run::LeaseState,
    queue::{Candidates, Disposition, FencedWrite, Queue, RunChanges},
};
use tokio::time::{Instant, timeout};

use super::support::{LEASE, NOTHING, ReleaseOne, claim, enqueue, queue, reap};
use crate::{
    servers::Redis,
    support::{PATIENCE, eventually, unique},
};

#[tokio::test]
async fn every_way_to_become_claimable_notifies_a_worker() {
    let queue = queue(Duration::from_millis(200));
    for event in ["enqueue", "release", "retry", "lost"] {
        let (mut notifier, start) = (queue.work_notifier(), Instant::now());
        if event != "enqueue" {
            enqueue(&queue, event, 0).await;
            notifier.wait(PATIENCE).await.unwrap();
        }
        let waiter = tokio::spawn(async move { notifier.wait(PATIENCE).await });
        let done = match event {
            "enqueue" => {
                enqueue(&queue, event, 0).await;
                FencedWrite::Applied
            }
            "release" => queue.release_unfinished(event, claim(&queue, "w").await.entry.epoch, "{}").await.unwrap(),
            "retry" => queue.retry(event, claim(&queue, "w").await.entry.epoch, LEASE, NOTHING).await.unwrap(),
            _ => {
                claim(&queue, "w").await;
                reap(&queue, 1).await;
                FencedWrite::Applied
            }
        };
        assert_eq!(done, FencedWrite::Applied);
        waiter.await.unwrap().unwrap();
        assert!(start.elapsed() < PATIENCE / 2, "{event} notifies: {:?}", start.elapsed());
        queue.remove(event).await.unwrap();
    }
}

#[tokio::test]
async fn a_run_that_a_notification_names_is_claimed_in_one_call() {
    let redis = Redis::start(&[]);
    redis.connect().await;
    let queue = Queue::new(&redis.url(), &unique("queue"), LEASE).unwrap();
    let scripts = async || {
        let stats: String = redis.ask("INFO commandstats").await;
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.and_then(|calls| calls.split(',').next()).map_or(0, |calls| calls.parse::<u64>().unwrap())
    };
    let (mut notifier, mut candidates) = (queue.work_notifier(), Candidates::default());
    // The first claim also loads the script.
    for (uid, most) in [("a", None), ("b", Some(1))] {
        enqueue(&queue, uid, 0).await;
        candidates.add(notifier.wait(PATIENCE).await.unwrap().unwrap());
        let before = scripts().await;
        let claims = queue.claim("w", 1, &mut candidates).await.unwrap().unwrap();
        assert_eq!(claims.iter().map(|claim| claim.uid.as_str()).collect::<Vec<_>>(), [uid]);
        let calls = scripts().await - before;
        assert!(most.is_none_or(|most| calls == most), "{calls} calls for {uid}");
    }
}

#[tokio::test]
async fn each_run_wakes_one_waiting_worker() {
    let queue = queue(LEASE);
    let start = Instant::now();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let mut notifier = queue.work_notifier();
            tokio::spawn(async move { notifier.wait(PATIENCE).await })
        })
        .collect();
    for uid in ["a", "b", "c"] {
        enqueue(&queue, uid, 0).await;
    }
    for waiter in waiters {
        waiter.await.unwrap().unwrap();
    }
    assert!(start.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn a_wait_for_work_ends_after_its_limit() {
    let queue = queue(LEASE);
    timeout(PATIENCE / 2, queue.work_notifier().wait(Duration::from_millis(50))).await.unwrap().unwrap();
}

/// Follows the changes of the queue from now on.
async fn follow(queue: &Queue) -> (Vec<String>, RunChanges) {
    let mut changes = queue.changes();
    let mut first = tokio::spawn(async move {
        let changed = changes.next().await;
        (changed, changes)
    });
    // The first call determines the start of the changes, so runs are enqueued until it returns.
    eventually("the first change is reported", async || {
        enqueue(queue, &unique("run"), -1000).await;
        timeout(Duration::from_millis(200), &mut first).await.ok().map(Result::unwrap)
    })
    .await
}

#[tokio::test]
async fn changes_between_two_calls_are_reported() {
    let queue = queue(LEASE);
    enqueue(&queue, "before", 0).await;
    let (changed, mut changes) = follow(&queue).await;
    assert!(!changed.contains(&"before".to_owned()), "changes before the first call are not reported: {changed:?}");
    let expected: Vec<String> = (0..20).map(|run| format!("between-{run}")).collect();
    for uid in &expected {
        enqueue(&queue, uid, 0).await;
    }
    let mut changed = Vec::new();
    while changed.len() < expected.len() {
        let next = timeout(PATIENCE, changes.next()).await.unwrap();
        changed.extend(next.into_iter().filter(|uid| uid.starts_with("between")));
    }
    assert_eq!(changed, expected, "each once, and in order");
}

#[tokio::test]
async fn every_transition_is_reported() {
    let queue = queue(Duration::from_millis(500));
    let (_, mut changes) = follow(&queue).await;
    let mut await_change = async |what: &str| {
        while !timeout(PATIENCE / 2, changes.next())
            .await
            .unwrap_or_else(|_| panic!("{what} is not reported"))
            .contains(&"a".to_owned())
        {}
    };
    enqueue(&queue, "a", 0).await;
    await_change("enqueue").await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    await_change("claim").await;
    assert_eq!(queue.checkpoint("a", epoch, "{}").await.unwrap(), LeaseState::Held);
    await_change("checkpoint").await;
    assert_eq!(queue.release_unfinished("a", epoch, "{}").await.unwrap(), FencedWrite::Applied);
    await_change("release").await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    await_change("claim").await;
    assert_eq!(queue.retry("a", epoch, Duration::ZERO, NOTHING).await.unwrap(), FencedWrite::Applied);
    await_change("retry").await;
    claim(&queue, "w").await;
    await_change("claim").await;
    reap(&queue, 1).await;
    await_change("a lost worker").await;
    let epoch = claim(&queue, "w").await.entry.epoch;
    await_change("claim").await;
    assert_eq!(queue.finish("a", epoch, Disposition::Completed, NOTHING).await.unwrap(), FencedWrite::Applied);
    await_change("finish").await;
}
