//! Runs without any worker.

use std::time::Duration;

use kube::ResourceExt;
use serde_json::json;
use sync_operator::{domain::run::State, queue::Candidates};
use tokio::time::Instant;

use crate::support::{TestEnv, apply_job, eventually, finished, reason};

/// Number of runs of the lost worker: more than one call recovers.
const RUNS: usize = 40;
const LEASE: Duration = Duration::from_secs(2);

/// A lost worker has claimed all runs. The controller recovers them at once, ends cancelled and late runs, and reports
/// that no worker is connected.
#[tokio::test]
async fn runs_of_lost_workers_are_recovered_without_a_worker() {
    let env = TestEnv::new().await;
    let _controller =
        env.operator("controller", &["--workers", "0", "--lease-duration", "2s", "--resync-interval", "1s"]);
    let queue = sync_operator::queue::Queue::new(&env.servers.redis, &env.name, LEASE).unwrap();
    for run in 0..RUNS {
        let deadline = if run == 0 { "8s" } else { "1h" };
        apply_job(&env, &format!("run-{run}"), json!({"syncType": "Full", "activeDeadline": deadline})).await;
    }
    eventually("runs are enqueued", async || (queue.depth().await.unwrap().waiting == RUNS as u64).then_some(())).await;
    let mut claimed = 0;
    while claimed < RUNS {
        claimed += queue.claim("gone", 32, &mut Candidates::default()).await.unwrap().unwrap().len();
    }
    let began = Instant::now();
    eventually("the runs are recovered", async || {
        let recovered = queue.depth().await.unwrap().waiting == RUNS as u64;
        recovered.then_some(())
    })
    .await;
    let took = began.elapsed();
    assert!(took < LEASE.mul_f64(1.5) + Duration::from_secs(1), "{took:?}");
    let uid = env.jobs().get("run-1").await.unwrap().uid().unwrap();
    let run = queue.get(&uid).await.unwrap().unwrap();
    assert_eq!((run.state, run.recoveries), (State::Waiting, 1));

    let late = finished(&env, "run-0").await;
    assert_eq!(reason(&late, "Failed").as_deref(), Some("DeadlineExceeded"));
    env.patch_job("run-1", json!({"cancelled": true})).await;
    assert_eq!(reason(&finished(&env, "run-1").await, "Failed").as_deref(), Some("Cancelled"));
    eventually("the SyncJob reports that no worker is connected", async || {
        let job = env.jobs().get("run-2").await.unwrap();
        reason(&job, "Reconciling").filter(|reason| reason == "NoWorkers")
    })
    .await;
}
