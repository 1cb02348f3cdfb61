//! The speed of runs with a source: `make bench-sources`.

use std::time::{Duration, Instant};

use bson::doc;
use serde_json::{Value, json};

use super::{ALLOWED, ONE, counts, limited_runs, run, spec, with};
use crate::{support::TestEnv, upstream::Upstream};

#[tokio::test]
#[ignore = "for a quiet machine: make bench-sources"]
async fn a_rate_is_never_exceeded_and_well_used() {
    let seen = limited_runs().await;
    let within = |(at, first): (usize, &Instant)| {
        seen[at..].iter().take_while(|later| **later - *first < Duration::from_secs(1)).count()
    };
    let most = seen.iter().enumerate().map(within).max().unwrap();
    let rate = (seen.len() - 1) as f64 / (*seen.last().unwrap() - seen[0]).as_secs_f64();
    println!(
        "rateLimit 100/s, 4 runs on 3 processes: {} requests, at most {most} in a second, {rate:.1}/s used",
        seen.len()
    );
    assert!(most <= 100 && rate >= 90.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "for a quiet machine: make bench-sources"]
async fn ten_thousand_users_from_a_slow_server() {
    let (env, upstream) = (TestEnv::new().await, Upstream::start().await);
    env.seed(10_000, 0).await;
    // MongoDB keeps old versions of documents for 5 min, which is longer than the time between these runs. And MongoDB
    // makes a checkpoint each minute by default, and every 2 s in the tests.
    let admin = env.database.client().database("admin");
    for (parameter, value) in [("minSnapshotHistoryWindowInSeconds", 0), ("syncdelay", 60)] {
        admin.run_command(doc! {"setParameter": 1, parameter: value}).await.unwrap();
    }
    let (operator, _) = env.all(&ALLOWED);
    let mut wide = spec(&upstream);
    wide["parallelism"] = 8.into();
    // The time of MongoDB for the stamps alone.
    let mut stamping = wide.clone();
    stamping.as_object_mut().unwrap().retain(|key, _| key != "source" && key != "mapping");
    for round in 0..4 {
        let status = run(&env, &format!("stamp-{round}"), stamping.clone()).await;
        println!("10000 users, parallelism 8: stamped in {}", status.duration.unwrap());
    }
    for (round, delay) in
        [50, 50, 50, 50, 50, 50, 50, 150, 150, 150, 500].map(Duration::from_millis).into_iter().enumerate()
    {
        share(&env, &upstream, &format!("run-{round}"), &wide, delay).await;
        println!("{} MiB", operator.resident_mib());
    }
    let mut each =
        with(&upstream, &json!({"query": ONE, "batching": "PerUser", "concurrency": 1, "resultPath": "/data/user"}));
    each["parallelism"] = 8.into();
    share(&env, &upstream, "one-by-one", &each, Duration::from_millis(50)).await;
    println!("{} MiB", operator.resident_mib());
}

/// Runs with 8 concurrent requests to a slow server, and returns the share of the time in which they waited for it.
async fn share(env: &TestEnv, upstream: &Upstream, name: &str, spec: &Value, delay: Duration) {
    {
        let mut state = upstream.state();
        (state.delay, state.took) = (delay, Duration::ZERO);
        state.seen.clear();
    }
    let status = run(env, name, spec.clone()).await;
    assert_eq!(counts(&status).2, 0);
    let (seen, took) = {
        let state = upstream.state();
        (state.seen.clone(), state.took)
    };
    let answer = took / seen.len() as u32;
    let elapsed = *seen.last().unwrap() - seen[0] + answer;
    // The work of the server adds to the delay.
    let share = took.as_secs_f64() / 8.0 / elapsed.as_secs_f64();
    let rounds = answer.as_secs_f64() * seen.len().div_ceil(8) as f64 / elapsed.as_secs_f64();
    print!(
        "10000 users, {} requests, 8 in flight: fetched in {elapsed:.2?}, an answer in {answer:.1?}, {share:.2} of what is possible, {rounds:.2} in rounds of 8, all done after {}, ",
        seen.len(),
        status.duration.unwrap()
    );
}
