//! A model of the changes of documents by runs: random collections, sources, specs, runs, overlaps and kills, against
//! the engine in this process, a real MongoDB and a small HTTP server. After each run an oracle checks that no present
//! document was harmed.
//!
//! `make prove-model CASES=10000 SEED=1` plays the cases. A failure prints the seed of its case, and
//! `CASES=1 SEED=that` plays it again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unwrap_in_result,
    clippy::too_many_lines,
    clippy::struct_excessive_bools,
    clippy::default_trait_access,
    reason = "a case that cannot continue fails"
)]

mod case;
mod oracle;
mod play;
mod slow;
mod stage;

use std::{collections::HashMap, env, process::Command};

use futures::{FutureExt, StreamExt, stream};
use sync_operator::sync::Deployment;

use crate::{case::Case, play::Environment};

/// Number of concurrent cases.
const AT_ONCE: usize = 12;
/// Failures that are printed.
const SHOWN: usize = 5;

/// A MongoDB server of the model. Stopped when dropped.
struct Server(Option<String>);

impl Server {
    /// Starts a server, unless `MONGODB_URI` names one, and returns its address.
    fn start() -> (Self, String) {
        if let Ok(uri) = env::var("MONGODB_URI") {
            return (Self(None), uri);
        }
        let name = format!("model-{}", std::process::id());
        let server = Self(Some(name.clone()));
        cluster(&name, &["up", "mongodb"]);
        let lines = cluster(&name, &["env"]);
        let uri = lines.lines().find_map(|line| line.strip_prefix("export MONGODB_URI=")).unwrap();
        (server, uri.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(name) = &self.0 {
            cluster(name, &["down"]);
        }
    }
}

fn cluster(name: &str, args: &[&str]) -> String {
    let output = Command::new("tests/cluster/cluster.sh").args(["--name", name]).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn main() {
    let number = |name: &str, default: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (cases, seed) = (number("CASES", 300), number("SEED", rand::random::<u32>().into()));
    println!("{cases} cases, SEED={seed}");
    let (server, uri) = Server::start();
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let is_proved = runtime.block_on(prove(&uri, cases, seed));
    drop(server);
    // The clients of MongoDB would fail at the end of the runtime.
    std::process::exit(i32::from(!is_proved))
}

async fn prove(uri: &str, cases: u64, seed: u64) -> bool {
    let name = format!("model_{}", std::process::id());
    let database = mongodb::Client::with_uri_str(uri).await.unwrap().database(&name);
    let stages = stage::Stages::default();
    let address = stage::serve(stages.clone()).await;
    let deployment = Deployment::new(&slow::proxy(uri).await, &name, &[], None).await.unwrap();
    let environment = Environment { deployment, sources: play::sources(), database: database.clone(), stages, address };
    assert_eq!(format!("{:?}", Case::new(seed)), format!("{:?}", Case::new(seed)), "a case follows from its seed");
    let play = async |seed| {
        let played = std::panic::AssertUnwindSafe(play::play(&environment, Case::new(seed))).catch_unwind().await;
        (seed, played.unwrap_or_else(|_| Err("a panic, see above".to_owned())))
    };
    let mut played = stream::iter((0..cases).map(|number| play(seed.wrapping_add(number)))).buffer_unordered(AT_ONCE);
    let (mut sums, mut failed) = (HashMap::new(), 0);
    while let Some((seed, result)) = played.next().await {
        match result {
            Ok(more) => play::add(&mut sums, &more),
            Err(report) => {
                failed += 1;
                if failed <= SHOWN {
                    eprintln!("\nSEED={seed} CASES=1\n{report}");
                    eprintln!("  {}", summary(&Case::new(seed)));
                    if cases == 1 {
                        eprintln!("  {}", all_steps(&Case::new(seed)));
                    }
                } else {
                    eprintln!("SEED={seed} {}", report.lines().next().unwrap_or_default());
                }
            }
        }
    }
    database.drop().await.unwrap();
    // A model without events proves nothing.
    for name in ["marked", "deleted", "unmarked", "held", "approved", "killed", "skipped"] {
        let happened: u64 = sums.get(name).copied().unwrap_or_default();
        assert!(happened > 0 || cases < 300, "nothing was {name} in {cases} cases");
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_unstable();
    println!("{}", sums.iter().map(|(name, number)| format!("{number} {name}")).collect::<Vec<_>>().join(", "));
    if failed > 0 {
        eprintln!("{failed} of {cases} cases failed");
    }
    failed == 0
}

/// The steps of a case, which are printed when it is the only one.
fn all_steps(case: &Case) -> String {
    case.steps.iter().enumerate().map(|(at, step)| format!("step {at}: {step:?}")).collect::<Vec<_>>().join("\n  ")
}

/// Summary of a case without its steps.
fn summary(case: &Case) -> String {
    let Case { keys, key_field, collation, index, documents, sources, .. } = case;
    format!(
        "keys {keys:?} at {key_field}, collation {collation}, index {index:?}, {} documents\n  {}",
        documents.len(),
        sources.iter().map(|source| format!("{source:?}")).collect::<Vec<_>>().join("\n  ")
    )
}
