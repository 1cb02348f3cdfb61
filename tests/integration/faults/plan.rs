//! The plan of a round: its faults and their times. The seed determines the plan.

use std::time::Duration;

use rand::{Rng, rngs::StdRng};
use serde_json::json;

use super::{
    LEASE, OPERATORS, RUNS,
    environment::{MEMBERS, Toxic},
};

/// Faults begin within this time.
const WINDOW: Duration = Duration::from_secs(3);

/// A fault. The duration is the time after which the fault ends.
#[derive(Clone, Debug)]
pub enum Fault {
    KillOperator(usize, Duration),
    /// Longer than the lease, mostly.
    PauseOperator(usize, Duration),
    StopOperator(usize, Duration),
    KillServer(&'static str, Duration),
    FlushRedis,
    StepDown,
    /// Proxies, and the fault of their connections.
    AddToxic(Vec<String>, Toxic, Duration),
    /// A change of `spec`.
    PatchSpec(usize, serde_json::Value),
    Delete(usize),
    /// Deletes a SyncJob and creates another one with its name.
    Replace(usize),
}

/// The faults of a round, by the time at which they begin.
pub fn plan_faults(random: &mut StdRng) -> Vec<(Duration, Fault)> {
    let count = random.random_range(5..13);
    let mut faults: Vec<_> = (0..count).map(|_| (millis(random, 0, WINDOW), draw_fault(random))).collect();
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// Draws one fault. All rounds use this distribution.
fn draw_fault(random: &mut StdRng) -> Fault {
    let operator = random.random_range(0..OPERATORS);
    let run = random.random_range(0..RUNS);
    let short = |random: &mut StdRng| millis(random, 0, Duration::from_millis(1500));
    match random.random_range(0..24) {
        0..=2 => Fault::KillOperator(operator, short(random)),
        3..=4 => Fault::PauseOperator(operator, millis(random, 500, 3 * LEASE)),
        5 => Fault::StopOperator(operator, short(random)),
        6 => Fault::KillServer("redis", short(random)),
        7 => Fault::KillServer("apiserver", short(random)),
        8..=9 => Fault::KillServer(MEMBERS[random.random_range(0..3)], short(random)),
        10 => Fault::FlushRedis,
        11 => Fault::StepDown,
        12..=17 => {
            let (proxies, toxic) = (proxies(random), toxic(random));
            Fault::AddToxic(proxies, toxic, millis(random, 200, 3 * LEASE))
        }
        18..=19 => Fault::PatchSpec(run, json!({"suspended": random.random_bool(0.6)})),
        20 => Fault::PatchSpec(run, json!({"cancelled": true})),
        21 => Fault::PatchSpec(run, json!({"priority": random.random_range(-10..10)})),
        22 => Fault::Delete(run),
        _ => Fault::Replace(run),
    }
}

/// The proxies of one operator, or of all operators, to Redis or the API server, or the proxy of a MongoDB member.
fn proxies(random: &mut StdRng) -> Vec<String> {
    let part = match random.random_range(0..3) {
        0 => "redis",
        1 => "apiserver",
        _ => return vec![MEMBERS[random.random_range(0..3)].to_owned()],
    };
    if random.random_bool(0.4) {
        return (0..OPERATORS).map(|operator| format!("{part}-{operator}")).collect();
    }
    vec![format!("{part}-{}", random.random_range(0..OPERATORS))]
}

fn toxic(random: &mut StdRng) -> Toxic {
    // Upstream, requests are lost. Downstream, answers to executed requests are lost.
    let stream = if random.random_bool(0.5) { "upstream" } else { "downstream" };
    let (kind, attributes) = match random.random_range(0..6) {
        0 => return Toxic::Down,
        1 => ("timeout", json!({"timeout": 0})),
        2 => ("reset_peer", json!({"timeout": random.random_range(0..300)})),
        3 => ("latency", json!({"latency": random.random_range(20..700), "jitter": 20})),
        4 => ("bandwidth", json!({"rate": random.random_range(2..60)})),
        _ => ("limit_data", json!({"bytes": random.random_range(100..30_000)})),
    };
    Toxic::Other { kind, stream, attributes }
}

fn millis(random: &mut StdRng, least: u64, most: Duration) -> Duration {
    Duration::from_millis(random.random_range(least..most.as_millis() as u64))
}
