//! Rate limits and pauses of two namespaces that use the same server.

use serde_json::{Value, json};
use sync_operator::{
    domain::run::{Payload, State},
    queue::NewRun,
};

use super::{ALLOWED, spec, with};
use crate::{
    support::{TestEnv, eventually},
    tenants::PolicyFile,
    upstream::{Instead, Upstream},
};

/// Puts a run into the queue as a controller does, with the namespace as its uid.
async fn enqueue(env: &TestEnv, namespace: &str, spec: Value) {
    let spec = serde_json::from_value(spec).unwrap();
    let payload = Payload { namespace: namespace.to_owned(), name: "run".to_owned(), spec };
    let payload = serde_json::to_string(&payload).unwrap();
    assert!(env.queue().enqueue(&NewRun { namespace, ..NewRun::new(namespace, &payload) }).await.unwrap());
}

async fn state(env: &TestEnv, uid: &str) -> State {
    env.queue().get(uid).await.unwrap().unwrap().state
}

async fn wait_for(env: &TestEnv, uid: &str, expected: State) {
    eventually("the run has the state", async || (state(env, uid).await == expected).then_some(())).await;
}

#[tokio::test]
async fn a_paused_run_holds_no_slot() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(100, 0).await;
    let _worker = env.operator("worker", &[&ALLOWED[..], &["--workers", "1"]].concat());
    upstream.state().instead.push_back(Instead::Status(429, vec![("retry-after", "600".to_owned())]));
    enqueue(&env, "a", spec(&upstream)).await;
    wait_for(&env, "a", State::Delayed).await;
    enqueue(&env, "b", spec(&upstream)).await;
    wait_for(&env, "b", State::Completed).await;
    assert_eq!(state(&env, "a").await, State::Delayed, "the pause is over in ten minutes");
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn a_slow_rate_delays_only_its_namespace() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(300, 0).await;
    let _worker = env.operator("worker", &[&ALLOWED[..], &["--workers", "2"]].concat());
    let slow = with(&upstream, &json!({"rateLimit": {"requests": 1, "per": "1m"}}));
    enqueue(&env, "a", slow.clone()).await;
    eventually("its first request was sent", async || (upstream.requests() == 1).then_some(())).await;
    let mut one_batch = slow;
    one_batch["target"] = json!({"filter": {"_id": {"$lt": 100}}});
    enqueue(&env, "b", one_batch).await;
    wait_for(&env, "b", State::Completed).await;
    assert_eq!(state(&env, "a").await, State::Active, "its second request waits for a minute");
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn a_rate_of_the_policy_counts_for_all_namespaces() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(100, 0).await;
    let addresses = "addresses: [{name: here, networks: [127.0.0.0/8, \"::1/128\"]}]";
    let file = PolicyFile::new(&format!("{addresses}\nrates: [{{host: localhost, requests: 1, per: 1m}}]"));
    let worker = env.operator("worker", &["--workers", "3", "--policy-file", file.path()]);
    let endpoint = upstream.url.replace("127.0.0.1", "localhost");
    enqueue(&env, "a", with(&upstream, &json!({"endpoint": endpoint}))).await;
    wait_for(&env, "a", State::Completed).await;
    enqueue(&env, "b", with(&upstream, &json!({"endpoint": endpoint}))).await;
    enqueue(&env, "c", spec(&upstream)).await;
    wait_for(&env, "c", State::Completed).await;
    assert_eq!((state(&env, "b").await, upstream.requests()), (State::Active, 2), "another host has no rate");
    file.replace(addresses, &worker, "the new policy applies").await;
    wait_for(&env, "b", State::Completed).await;
}
