//! The chart, installed with Helm.

use std::{fs, path::PathBuf};

use bson::{Document, doc};
use mongodb::Collection;
use serde_json::json;
use test_support::eventually;

use super::{
    getting_started::wait_until_complete,
    support::{Forward, attempt, get, make_restricted_namespace, variable},
};

pub const CHART: &str = "charts/sync-operator";
/// Namespace and release name of the operator for the whole cluster.
pub const HOME: &str = "sync-operator";

#[derive(Clone, Copy, Debug)]
pub enum Helm {
    V3,
    V4,
}

impl Helm {
    pub fn program(self) -> String {
        variable(match self {
            Self::V3 => "HELM3",
            Self::V4 => "HELM4",
        })
    }

    /// Runs Helm. Returns its output, or the error output of a failure.
    pub fn run(self, args: &[&str]) -> Result<String, String> {
        attempt(&self.program(), args, "")
    }

    /// `helm upgrade --install NAME CHART`, with values as for `--set`. Waits until all is ready.
    pub fn install(self, namespace: &str, name: &str, chart: &str, values: &[&str]) -> Result<String, String> {
        self.install_within("180s", namespace, name, chart, values)
    }

    pub fn install_within(
        self,
        limit: &str,
        namespace: &str,
        name: &str,
        chart: &str,
        values: &[&str],
    ) -> Result<String, String> {
        let mut args =
            vec!["upgrade", "--install", name, chart, "--namespace", namespace, "--wait", "--timeout", limit];
        for value in values {
            args.extend(["--set", value]);
        }
        self.run(&args)
    }
}

/// Values with which all images come from this machine.
pub const BUNDLED: [&str; 5] = [
    "bundled.redis.enabled=true",
    "bundled.redis.image=sync-operator-test/redis:7",
    "bundled.mongodb.enabled=true",
    "bundled.mongodb.image=sync-operator-test/mongodb:6",
    "log.format=text",
];

/// Documents of a run that [`assert_run_ends_without_loss`] ends.
pub const LONG: i32 = 40_000;

/// Values of an operator for its own namespace only.
pub const NAMESPACED: [&str; 2] = ["namespaced=true", "crds.enabled=false"];

/// [`BUNDLED`] and others.
pub fn bundled<'a>(others: &[&'a str]) -> Vec<&'a str> {
    [&BUNDLED[..], others].concat()
}

/// Installs the operator for the whole cluster, unless it is installed.
pub fn install_operator() {
    install_operator_with(&[]);
}

/// Installs the operator for the whole cluster with more values. [`install_operator`] removes them.
pub fn install_operator_with(values: &[&str]) {
    if get(&format!("namespace {HOME}")).is_null() {
        make_restricted_namespace(HOME);
    }
    let own = [&["flowSchema.enabled=true", "aggregateRoles.enabled=true"][..], values].concat();
    Helm::V4.install(HOME, HOME, CHART, &bundled(&own)).unwrap();
}

/// Installs the kinds, and uninstalls the operator for the whole cluster, which would also process every SyncJob.
pub fn install_only_crds() {
    if get("crd syncjobs.sync.codex.dev").is_null() {
        install_operator();
    }
    Helm::V4.run(&["uninstall", HOME, "--namespace", HOME, "--wait", "--ignore-not-found"]).unwrap();
}

/// MongoDB of the operator of the whole cluster.
pub struct Data {
    _forward: Forward,
    pub database: mongodb::Database,
}

impl Data {
    pub async fn open() -> Self {
        let forward = Forward::new(HOME, "service/sync-operator-bundled-mongodb", 27017);
        let uri = format!("mongodb://127.0.0.1:{}/?directConnection=true", forward.port);
        let database = mongodb::Client::with_uri_str(uri).await.unwrap().database("sync");
        Self { _forward: forward, database }
    }

    pub async fn seed(&self, collection: &str, count: i32) {
        let documents = (0..count).map(|id| doc! {"_id": id, "email": "a@b"});
        self.collection(collection).insert_many(documents).await.unwrap();
    }

    pub fn collection(&self, name: &str) -> Collection<Document> {
        self.database.collection(name)
    }

    pub async fn stamped(&self, collection: &str) -> u64 {
        self.collection(collection).count_documents(doc! {"lastSynced": {"$type": "date"}}).await.unwrap()
    }
}

/// Ends the slow run of `namespace` soon, and checks that the run has stamped each document once and spent no attempt.
/// The documents that the run has not reached are deleted, because the test has seen what it waits for.
pub async fn assert_run_ends_without_loss(namespace: &str, documents: &Collection<Document>) {
    let job = get(&format!("syncjob run --namespace {namespace}"));
    assert!(job["status"]["phase"] != "Complete", "the run was too short: {job}");
    // A busy machine interrupts the forwarded connection at times.
    let unreached = doc! {"lastSynced": {"$exists": false}};
    eventually("MongoDB deletes documents", async || documents.delete_many(unreached.clone()).await.ok()).await;
    let status = wait_until_complete(namespace, "run")["status"].take();
    let count = async |filter: Document| {
        eventually("MongoDB counts", async || documents.count_documents(filter.clone()).await.ok()).await
    };
    let stamped = count(doc! {"lastSynced": {"$type": "date"}}).await;
    assert_eq!(count(doc! {}).await, stamped);
    // A document that the run had read before it was deleted counts as unchanged.
    let counts = ["updated", "failed"].map(|name| status["counts"][name].as_u64());
    assert_eq!(counts, [Some(stamped), Some(0)], "{status}");
    assert!(stamped > 0, "{status}");
    assert_eq!((&status["attempts"], &status["recoveries"]), (&json!(0), &json!(0)), "a deploy costs no attempt");
}

/// A copy of the chart as an earlier release: with another version, and kinds without a field.
pub fn earlier_chart() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("sync-operator-chart-{}", std::process::id()));
    fs::remove_dir_all(&folder).ok();
    attempt("cp", &["-r", CHART, folder.to_str().unwrap()], "").unwrap();
    let file = folder.join("Chart.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\nversion: 0.1.0", "\nversion: 0.0.9")).unwrap();
    let file = folder.join("files/crds/syncjobs.yaml");
    let mut crd: serde_json::Value = serde_yaml_ng::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    crd.pointer_mut(spec).unwrap().as_object_mut().unwrap().remove("priority").unwrap();
    fs::write(&file, crd.to_string()).unwrap();
    folder
}
