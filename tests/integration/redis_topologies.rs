//! The queue behind Sentinel and in a Redis Cluster, on dedicated servers.

use std::time::Duration;

use sync_operator::{
    domain::run::{LeaseState, State},
    queue::{Error, NewRun, Queue},
};

use crate::{
    servers::{Redis, SentinelRedis},
    support::{claim_one, eventually, unique},
};

const LEASE: Duration = Duration::from_secs(30);

async fn enqueue(queue: &Queue, uid: &str) {
    let run = NewRun::new(uid, "{}");
    eventually("the run is enqueued", async || queue.enqueue(&run).await.ok()).await;
}

#[tokio::test]
async fn behind_sentinel_a_run_continues_after_a_failover() {
    let mut watched = SentinelRedis::start(Duration::from_millis(500)).await;
    let url = watched.url();
    let name = unique("sentinel");
    let queue = Queue::new(&url, &name, LEASE).unwrap();
    enqueue(&queue, "a").await;
    let epoch = claim_one(&queue, "w").await.unwrap().unwrap().entry.epoch;
    let mut notifier = queue.work_notifier();
    notifier.wait(Duration::from_secs(1)).await.unwrap();
    eventually("the replica has the run", async || {
        watched.replica.ask::<Option<f64>>(&format!("ZSCORE {{sync:{name}}}:active a")).await.map(drop)
    })
    .await;
    watched.master.kill();

    let lease = eventually("the replica takes over", async || queue.checkpoint("a", epoch, "{}").await.ok()).await;
    assert_eq!(lease, LeaseState::Held);
    enqueue(&queue, "b").await;
    assert!(matches!(claim_one(&queue, "w").await, Err(Error::Unasserted)), "writes may be lost");
    let server = queue.server().await.unwrap();
    assert!(!server.is_asserted);
    assert!(queue.confirm(&server.replication_id).await.unwrap());
    eventually("the notifier finds the new master", async || notifier.wait(Duration::from_secs(1)).await.ok()).await;
    assert_eq!(claim_one(&queue, "w").await.unwrap().unwrap().uid, "b");
}

#[tokio::test]
async fn in_a_cluster_the_owner_of_the_slot_is_found_and_followed() {
    let cluster = ["--cluster-enabled", "yes"];
    let (owner, other) = (Redis::start(&cluster), Redis::start(&cluster));
    owner.connect().await;
    // Redis 6.2 has no ADDSLOTSRANGE.
    let slots: Vec<_> = (0..16384).map(|slot| slot.to_string()).collect();
    owner.ask::<()>(&format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await;
    other.ask::<()>(&format!("CLUSTER MEET 127.0.0.1 {}", owner.port)).await;
    eventually("the Redis Cluster is complete", async || {
        let whole = other.ask::<String>("CLUSTER INFO").await;
        (whole.contains("cluster_state:ok") && whole.contains("cluster_known_nodes:2")).then_some(())
    })
    .await;

    let url = format!("redis+cluster://127.0.0.1:{}", other.port);
    let name = unique("cluster");
    let queue = Queue::new(&url, &name, LEASE).unwrap();
    enqueue(&queue, "a").await;
    let epoch = claim_one(&queue, "w").await.unwrap().unwrap().entry.epoch;
    assert_eq!(queue.checkpoint("a", epoch, "{}").await.unwrap(), LeaseState::Held);
    assert_eq!(queue.repair([]).await.unwrap().mended, 0);
    assert_eq!(queue.get("a").await.unwrap().unwrap().state, State::Active);
    queue.remove("a").await.unwrap();

    // The slot moves to the other server.
    owner.ask::<()>("FLUSHALL").await;
    let slot: i64 = owner.ask(&format!("CLUSTER KEYSLOT {{sync:{name}}}:wake")).await;
    let id: String = other.ask("CLUSTER MYID").await;
    let from: String = owner.ask("CLUSTER MYID").await;
    other.ask::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {from}")).await;
    owner.ask::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {id}")).await;
    for server in [&other, &owner] {
        server.ask::<()>(&format!("CLUSTER SETSLOT {slot} NODE {id}")).await;
    }
    enqueue(&queue, "b").await;
    let claimed = eventually("the new owner is found", async || claim_one(&queue, "w").await.ok()?.ok()).await;
    assert_eq!(claimed.uid, "b");
    assert_ne!(other.ask::<i64>("DBSIZE").await, 0);
}

/// A Sentinel that was disconnected during a failover still names the previous master, which is a replica now.
#[tokio::test]
async fn a_replica_named_by_a_sentinel_is_not_used() {
    let watched = SentinelRedis::start(Duration::from_secs(60)).await;
    let config = format!("sentinel monitor main 127.0.0.1 {} 1\n", watched.replica.port);
    let outdated = Redis::with_config(&config, &["--sentinel"]);
    outdated.connect().await;
    let url = format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{}/main", outdated.port, watched.sentinel.port);
    let queue = Queue::new(&url, &unique("sentinel"), LEASE).unwrap();
    assert!(queue.enqueue(&NewRun::new("a", "{}")).await.unwrap());
    assert_eq!(claim_one(&queue, "w").await.unwrap().unwrap().uid, "a");
}
