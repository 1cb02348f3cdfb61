//! Random faults against real processes: three controllers, a worker, an API server, Redis and a MongoDB replica set
//! are killed, paused, restarted, and cut off from each other during twenty runs. Three of the runs fetch from a
//! GraphQL server that gives faulty answers. After each round all runs must have ended with the correct result.
//!
//! `make test-faults ROUNDS=200 SEED=1` plays the rounds. A failure prints the seed of its round, and
//! `make test-faults ROUNDS=1 SEED=that` repeats its faults.

#![allow(clippy::too_many_lines, reason = "a round is long")]

mod check;
mod environment;
mod plan;
mod replica_set;
mod round;

use std::{env, fs, time::Duration};

use sync_operator::api::source::Batching;
use tokio::time::Instant;

use environment::Environment;

/// Operator processes; the last one is a worker.
const OPERATORS: usize = 4;
const RUNS: usize = 20;
/// Batching of the first runs, which fetch.
const FETCHING: [Batching; 3] = [Batching::PerBatch, Batching::PerUser, Batching::Pages];
const USERS: i32 = 2000;
/// Users that the validator of the collection refuses.
const REJECTED: i32 = 3;
/// Documents of the run that is rolled back. `REJECTED` of them are refused.
const ROLLED_BACK: i32 = 200;
const LEASE: Duration = Duration::from_secs(1);
/// Time in which all runs must end after the faults.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "make faults"]
fn all_runs_end_correctly_after_random_faults() {
    let number = |name: &str, default: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rounds, seed) = (number("ROUNDS", 200), number("SEED", rand::random::<u32>().into()));
    println!("{rounds} rounds, SEED={seed}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let environment = Environment::up(OPERATORS);
    runtime.block_on(replica_set::a_stamp_that_could_be_rolled_back_does_not_count(&environment));
    for round in 0..rounds {
        let (began, seed) = (Instant::now(), seed + round);
        let played = runtime.block_on(round::play(&environment, seed));
        let took = began.elapsed().as_secs_f64();
        match played {
            Ok(summary) => println!("round {}/{rounds}  seed {seed}  {took:.1} s  {summary}", round + 1),
            Err(report) => {
                let folder = environment.folder();
                fs::write(folder.join("report"), &report).unwrap();
                panic!(
                    "round {}/{rounds}  seed {seed}  failed after {took:.1} s\n{report}\nlogs and report: {}\n\
                     repeat it with: make test-faults ROUNDS=1 SEED={seed}",
                    round + 1,
                    folder.display(),
                );
            }
        }
    }
    fs::remove_dir_all(environment.folder()).ok();
}
