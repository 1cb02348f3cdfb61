//! `sync-operator run`: runs without Kubernetes and Redis, as whole processes.

mod answers;
mod equality;
mod removal;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Duration,
};

use bson::{DateTime, Document, doc};
use k8s_openapi::jiff::Timestamp;
use mongodb::Database;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process, time::timeout};

use crate::{
    certificates::Authority,
    servers::MongoDb,
    support::{PATIENCE, Servers, eventually, source, unique},
    upstream::{PRIVATE, Peculiar, Upstream},
};

/// A database and a folder of one test, without an API server and Redis.
struct Local {
    servers: Servers,
    name: String,
    database: Database,
    folder: PathBuf,
}

/// The output and the exit code of a process.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ended {
    /// The one line of JSON on standard output.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{}\n{}", self.stdout, self.stderr))
    }

    fn counts(&self) -> (i64, i64, i64, i64) {
        let counts = &self.json()["status"]["counts"];
        let count = |name: &str| counts[name].as_i64().unwrap();
        (count("processed"), count("updated"), count("unchanged"), count("failed"))
    }
}

impl Local {
    async fn new() -> Self {
        let (servers, name) = (Servers::shared(), unique("local"));
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(&folder).unwrap();
        let database = mongodb::Client::with_uri_str(&servers.mongodb).await.unwrap().database(&name);
        Self { servers, name, database, folder }
    }

    /// `count` users, of which the first `rejected` are refused by a validator.
    async fn seed(&self, count: i32, rejected: i32) {
        let users = self.database.collection::<Document>("users");
        let user = |i| doc! {"_id": i, "email": if i < rejected { "nobody" } else { "a@b" }};
        users.insert_many((0..count).map(user)).await.unwrap();
        let rule = doc! {"email": {"$regex": "@"}};
        self.database.run_command(doc! {"collMod": "users", "validator": rule}).await.unwrap();
    }

    async fn count(&self, filter: Document) -> u64 {
        self.database.collection::<Document>("users").count_documents(filter).await.unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sync-operator"));
        command
            .arg("run")
            .args(args)
            .current_dir(&self.folder)
            .env_remove("KUBECONFIG")
            .env_remove("REDIS_URL")
            .env_remove("RUST_LOG")
            .env("MONGODB_URI", &self.servers.mongodb)
            .env("MONGODB_DATABASE", &self.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the command to its end, with `input` on standard input.
    async fn finish(&self, command: Command, input: &str) -> Ended {
        let mut child = process::Command::from(command).kill_on_drop(true).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.ok();
        drop(stdin);
        timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap().into()
    }

    async fn run(&self, manifest: &str, args: &[&str]) -> Ended {
        self.finish(self.command(&[&["-"], args].concat()), manifest).await
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn job(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "sync.codex.dev/v1alpha1", "kind": "SyncJob", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn full() -> Value {
    json!({"syncType": "Full"})
}

/// A full run that asks `upstream` for each user by REST.
fn by_user(upstream: &Upstream, part: &Value) -> Value {
    let mut rest = json!({"endpoint": upstream.rest("/users/{id}"), "batching": "PerUser"});
    rest.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    json!({
        "syncType": "Full",
        "backoff": {"initial": "100ms", "jitter": 0},
        "source": source("rest", &rest),
        "mapping": [{"from": "/name", "to": "name", "type": "String"}],
    })
}

#[tokio::test]
async fn a_run_stamps_documents_with_the_time_of_mongodb() {
    let local = Local::new().await;
    local.seed(1000, 3).await;
    let hello = async || local.database.run_command(doc! {"hello": 1}).await.unwrap();
    let time = async || hello().await.get_datetime("localTime").unwrap().timestamp_millis();
    let before = time().await;
    let ended = local.run(&job("users", &full()), &[]).await;
    let after = time().await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (1000, 997, 0, 3)), "{}", ended.stderr);
    let status = &ended.json()["status"];
    assert_eq!((&status["phase"], &status["progress"]), (&json!("Complete"), &json!(100)));
    assert_eq!(status["failures"][0]["reason"], "ValidationFailed");
    let between = doc! {"$gte": DateTime::from_millis(before), "$lte": DateTime::from_millis(after)};
    assert_eq!(local.count(doc! {"lastSynced": between}).await, 997);
}

#[tokio::test]
async fn the_database_of_the_connection_string_is_the_default() {
    let local = Local::new().await;
    local.seed(10, 0).await;
    let mut command = local.command(&["-"]);
    let uri = local.servers.mongodb.replace("/?", &format!("/{}?", local.name));
    command.env_remove("MONGODB_DATABASE").env("MONGODB_URI", uri);
    let ended = local.finish(command, &job("users", &full())).await;
    assert_eq!((ended.code, ended.counts().1), (Some(0), 10));
    fs::write(local.folder.join("uri"), format!("{}\n", local.servers.mongodb)).unwrap();
    let mut command = local.command(&["-", "--mongodb-uri-file", "uri", "--mongodb-database", &local.name]);
    command.env_remove("MONGODB_DATABASE").env_remove("MONGODB_URI");
    let ended = local.finish(command, &job("users", &full())).await;
    assert_eq!((ended.code, ended.counts().1), (Some(0), 10), "{}", ended.stderr);
    let mut command = local.command(&["-"]);
    command.env_remove("MONGODB_DATABASE");
    let ended = local.finish(command, &job("users", &full())).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("users: target.database is not set"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_dry_run_shows_what_would_change_and_writes_nothing() {
    let local = Local::new().await;
    local.seed(50, 0).await;
    let ended = local.run(&job("users", &full()), &["--dry-run"]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (50, 50, 0, 0)));
    assert_eq!(ended.json()["status"]["changes"].as_array().unwrap().len(), 20);
    assert_eq!(ended.json()["dryRun"], true);
    assert_eq!(local.count(doc! {"lastSynced": {"$exists": true}}).await, 0);
}

#[tokio::test]
async fn limit_and_key_restrict_a_run_and_remove_nothing() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(30).await);
    local.seed(50, 0).await;
    for id in 0..50 {
        upstream.state().users.insert(id.to_string(), Peculiar::Gone);
    }
    upstream.state().users.insert("7".to_owned(), Peculiar::Named("Ada".to_owned()));
    for (on_missing, args, processed, updated) in [
        ("Delete", &["--limit", "8"][..], 8, 1),
        ("Mark", &["--limit", "1"], 1, 0),
        ("Delete", &["--key", "7", "--key", "9"], 2, 0),
        ("Delete", &["--key", "nobody"], 0, 0),
    ] {
        let spec = by_user(&upstream, &json!({"onMissing": on_missing}));
        let ended = local.run(&job("users", &spec), args).await;
        let counts = ended.counts();
        assert_eq!((ended.code, counts.0, counts.1), (Some(0), processed, updated), "{args:?}: {}", ended.stdout);
    }
    let pages = json!({"syncType": "Full", "batchSize": 5, "mapping": [{"from": "/name", "to": "name"}], "source": source("rest", &json!({
        "endpoint": upstream.rest("/numbered?page={page}&n={first}"), "batching": "Pages", "onMissing": "Delete",
        "pagination": {"by": "Number"}, "resultPath": "/users", "upsert": true}))});
    upstream.state().users.clear();
    let ended = local.run(&job("users", &pages), &["--limit", "8"]).await;
    assert_eq!((ended.code, ended.counts().0), (Some(0), 8), "{}{}", ended.stdout, ended.stderr);
    let ended = local.run(&job("users", &pages), &["--key", "20"]).await;
    assert_eq!((ended.code, ended.counts().0), (Some(0), 1), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(local.count(doc! {}).await, 50, "nothing is deleted");
    assert_eq!(local.count(doc! {"missingSince": {"$exists": true}}).await, 0, "nothing is marked");
}

#[tokio::test]
async fn secrets_come_from_a_variable_a_file_or_stdin() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(5, 0).await;
    upstream.state().token = Some("s3cret".to_owned());
    let spec = by_user(&upstream, &json!({"tokenSecretRef": {"name": "gitlab", "key": "token"}}));
    let file = local.folder.join("job.json");
    fs::write(&file, job("users", &spec)).unwrap();
    fs::write(local.folder.join("token"), "s3cret\n").unwrap();
    for source in ["gitlab/token=env:GITLAB_TOKEN", "gitlab/token=file:token", "gitlab/token=-"] {
        let mut command = local.command(&["job.json", "--secret", source]);
        command.env("GITLAB_TOKEN", "s3cret");
        let ended = local.finish(command, "s3cret").await;
        assert_eq!((ended.code, ended.counts().0), (Some(0), 5), "{source}: {}", ended.stderr);
        assert!(!ended.stdout.contains("s3cret") && !ended.stderr.contains("s3cret"));
    }
    for (args, message) in [
        (&[][..], "add --secret gitlab/token=env:VARIABLE"),
        (&["--secret", "gitlab/token=env:NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set"),
        (&["--secret", "gitlab/token=file:absent"], "could not read absent"),
        (&["--secret", "gitlab/token=s3cret"], "must be NAME/KEY=env:VARIABLE"),
    ] {
        let ended = local.finish(local.command(&[&["job.json"], args].concat()), "").await;
        assert_eq!(ended.code, Some(2), "{args:?}");
        assert!(ended.stderr.contains(message), "{args:?}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn an_invalid_manifest_ends_before_anything_is_written() {
    let local = Local::new().await;
    local.seed(5, 0).await;
    let valid = job("users", &full());
    for (manifest, message) in [
        (format!("{valid}\n---\n{}", job("bad", &json!({"batchSize": 0}))), "spec.batchSize: must be from 1 to 10000"),
        (job("users", &json!({"batchsize": 10})), "spec.batchsize"),
        ("kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\n".to_owned(), "no manifest of a SyncJob"),
        (String::new(), "no manifest of a SyncJob"),
    ] {
        let ended = local.run(&manifest, &[]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{manifest}");
        assert!(ended.stderr.contains(message), "{manifest}: {}", ended.stderr);
    }
    assert_eq!(local.count(doc! {"lastSynced": {"$exists": true}}).await, 0);
    let ended = local.finish(local.command(&["absent.yaml"]), "").await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("could not read absent.yaml"), "{}", ended.stderr);
}

#[tokio::test]
async fn results_are_shown_as_json_yaml_or_text() {
    let local = Local::new().await;
    local.seed(30, 25).await;
    let two = format!("{}\n---\n{}", job("a", &full()), job("b", &json!({"syncType": "Full", "dryRun": true})));
    let ended = local.run(&two, &[]).await;
    let names: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&names[0]["name"], &names[1]["name"], names.len()), (&json!("a"), &json!("b"), 2));
    let ended = local.run(&two, &["-o", "yaml"]).await;
    let documents = ended.stdout.split("---\n").skip(1);
    let documents: Vec<Value> = documents.map(|text| serde_yaml_ng::from_str(text).unwrap()).collect();
    assert_eq!((&documents[0]["kind"], &documents[0]["status"]["phase"]), (&json!("SyncJob"), &json!("Complete")));
    assert_eq!(documents[1]["metadata"]["name"], "b");
    let ended = local.run(&two, &["--output", "text"]).await;
    assert!(ended.stdout.starts_with("a: Complete after "), "{}", ended.stdout);
    for line in [
        "  30 of 30 documents processed: 5 updated, 0 unchanged, 25 failed",
        "  failed 0: ValidationFailed: the collection's validator refuses the document",
        "  and 5 more failed documents",
        "  30 of 30 documents processed (dry run): 30 would be updated, 0 unchanged, 0 failed",
    ] {
        assert!(ended.stdout.contains(line), "{line}\n{}", ended.stdout);
    }
}

#[tokio::test]
async fn a_held_run_exits_with_3_and_removes_what_is_approved() {
    let (local, upstream) = (Local::new().await, Upstream::with_people(12).await);
    let spec = json!({"syncType": "Full", "mapping": [{"from": "/name", "to": "name"}], "source": source("rest", &json!({
        "endpoint": upstream.rest("/linked?n={first}"), "name": "people", "batching": "Pages", "onMissing": "Mark",
        "pagination": {"by": "Link"}, "upsert": true}))});
    let manifest = job("users", &spec);
    let ended = local.run(&manifest, &[]).await;
    assert_eq!((ended.code, ended.counts()), (Some(0), (12, 12, 0, 0)), "{}", ended.stderr);
    upstream.state().people = 2;
    let expected = "the run would mark 10 of 12 confirmed documents, and guard.maxMissing allows 5. To approve: run the same command with --approve 10";

    let dry = local.run(&manifest, &["--dry-run", "-o", "text"]).await;
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert!(dry.stdout.contains("\n  the guard would hold 10 documents"), "{}", dry.stdout);
    for args in [&[][..], &["--approve", "9"]] {
        let held = local.run(&manifest, args).await;
        assert_eq!(held.code, Some(3), "{args:?}: {}", held.stderr);
        let status = &held.json()["status"];
        assert_eq!((&status["phase"], &status["counts"]["held"]), (&json!("Held"), &json!(10)));
        let condition = &status["conditions"][0];
        assert_eq!((&condition["type"], &condition["reason"]), (&json!("Held"), &json!("GuardExceeded")));
        assert!(condition["message"].as_str().unwrap().starts_with(expected), "{condition}");
        assert!(held.stderr.contains(&format!("users waits for an approval: {expected}")), "{}", held.stderr);
    }
    let held = local.run(&manifest, &["-o", "text"]).await;
    assert!(held.stdout.starts_with(&format!("users: Held: GuardExceeded: {expected}")), "{}", held.stdout);
    let held = local.run(&manifest, &["-o", "yaml"]).await;
    let shown: Value = serde_yaml_ng::from_str(&held.stdout).unwrap();
    assert_eq!((held.code, &shown["status"]["phase"]), (Some(3), &json!("Held")));
    // The other jobs run too. A failed run determines the exit code.
    let failing = job("failing", &json!({"target": {"collection": "other", "filter": {"$nonsense": 1}}}));
    let both = local.run(&format!("{manifest}\n---\n{failing}"), &[]).await;
    assert_eq!((both.code, both.stdout.lines().count()), (Some(1), 2), "{}", both.stderr);
    let marked = doc! {"missingSince": {"$exists": true}};
    assert_eq!(local.count(marked.clone()).await, 0);

    let approved = local.run(&manifest, &["--approve", "10"]).await;
    assert_eq!((approved.code, &approved.json()["status"]["counts"]["marked"]), (Some(0), &json!(10)));
    assert_eq!((local.count(marked.clone()).await, local.count(doc! {"_id": {"$lt": 2}}).await), (10, 2));
    for args in [&["--approve", "many"][..], &["--approve", "-1"]] {
        assert_eq!(local.run(&manifest, args).await.code, Some(2), "{args:?}");
    }
}

#[tokio::test]
async fn a_failed_attempt_is_retried_and_a_failed_run_exits_with_1() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(5, 0).await;
    let broken = crate::upstream::Instead::Status(500, Vec::new());
    let spec = |limit: i32| {
        let batches =
            json!({"endpoint": upstream.rest("/users?ids={ids}"), "batching": "PerBatch", "requestRetries": 0});
        let mut spec = by_user(&upstream, &batches);
        spec["backoffLimit"] = limit.into();
        spec
    };
    upstream.state().instead.extend(vec![broken.clone(); 2]);
    let ended = local.run(&job("users", &spec(3)), &[]).await;
    assert_eq!((ended.code, ended.counts().0), (Some(0), 5), "{}", ended.stderr);
    assert_eq!(ended.json()["status"]["attempts"], 2);
    assert!(ended.stderr.contains("users: attempt 1 failed with SourceError"), "{}", ended.stderr);
    upstream.state().instead.extend(vec![broken; 2]);
    let ended = local.run(&job("users", &spec(1)), &[]).await;
    let status = &ended.json()["status"];
    assert_eq!((ended.code, &status["phase"]), (Some(1), &json!("Failed")));
    let failed = status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Failed").unwrap();
    assert_eq!(failed["reason"], "BackoffLimitExceeded");
    assert!(!ended.stdout.contains(PRIVATE) && !ended.stderr.contains(PRIVATE));
}

#[tokio::test]
async fn a_rejected_document_fails_its_run_and_rollback_restores_it() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(40, 4).await;
    let before = documents(&local.database).await;
    let mut spec = by_user(&upstream, &json!({}));
    for (field, value) in [("transaction", json!("Batch")), ("onFailure", json!("Rollback")), ("batchSize", json!(10))]
    {
        spec[field] = value;
    }
    spec["failurePolicy"] = json!({"maxFailedPercent": 5});
    let ended = local.run(&job("users", &spec), &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(ended.json()["status"]["counts"]["rolledBack"], 36);
    assert_eq!(documents(&local.database).await, before);
    let left = local.database.list_collection_names().await.unwrap();
    assert_eq!(left, ["users"], "the journal is dropped");
}

async fn documents(database: &Database) -> Vec<Document> {
    use futures::TryStreamExt;
    let users = database.collection::<Document>("users");
    users.find(doc! {}).sort(doc! {"_id": 1}).await.unwrap().try_collect().await.unwrap()
}

/// A spec with one document in each batch and one batch after the other.
fn slow(on_failure: &str, upstream: &Upstream) -> Value {
    let mut spec = by_user(upstream, &json!({"rateLimit": {"requests": 100}}));
    spec["batchSize"] = 1.into();
    spec["parallelism"] = 1.into();
    spec["transaction"] = "Batch".into();
    spec["onFailure"] = on_failure.into();
    spec
}

#[tokio::test]
async fn an_interrupted_run_continues_with_its_resume_file() {
    for on_failure in ["Keep", "Rollback"] {
        let (local, upstream) = (Local::new().await, Upstream::start().await);
        local.seed(300, 0).await;
        let manifest = job("users", &slow(on_failure, &upstream));
        fs::write(local.folder.join("job.json"), &manifest).unwrap();
        let child = process::Command::from(local.command(&["job.json"])).kill_on_drop(true).spawn().unwrap();
        let stamped = doc! {"lastSynced": {"$exists": true}};
        eventually("documents are stamped", async || (local.count(stamped.clone()).await > 30).then_some(())).await;
        let pid = child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let ended: Ended = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap().into();
        assert_eq!(ended.code, Some(130), "{}", ended.stderr);
        assert!(ended.stderr.contains("--resume users.resume.json"), "{}", ended.stderr);
        let done = local.count(stamped.clone()).await;
        assert!(done < 300, "the run is neither rolled back nor complete: {done}");
        assert_eq!(ended.counts().0 as u64, done, "the checkpoint has all written documents");

        let file = local.folder.join("users.resume.json");
        let resume = fs::read_to_string(&file).unwrap();
        assert!(!resume.contains("mongodb://") && !resume.contains(&upstream.url), "{resume}");
        // The run seems to be interrupted for an hour, which is the deadline. The interruption does not count.
        let mut earlier: Value = serde_json::from_str(&resume).unwrap();
        let progress = &mut earlier["runs"][0]["progress"];
        for time in ["started", "interrupted"] {
            let at: Timestamp = progress[time].as_str().unwrap().parse().unwrap();
            progress[time] = (at - Duration::from_secs(3600)).to_string().into();
        }
        fs::write(&file, earlier.to_string()).unwrap();
        let changed = job("users", &full());
        let refused = local.run(&changed, &["--resume", "users.resume.json"]).await;
        assert_eq!(refused.code, Some(2));
        assert!(refused.stderr.contains("another spec of default/users"), "{}", refused.stderr);

        let asked = upstream.requests();
        let absent = local.run(&job("other", &json!({"dryRun": true})), &["--resume", "absent.json"]).await;
        assert!(absent.stderr.contains("absent.json does not exist"), "{}", absent.stderr);
        let ended = local.finish(local.command(&["job.json", "--resume", "users.resume.json"]), "").await;
        assert_eq!((ended.code, ended.counts()), (Some(0), (300, 300, 0, 0)), "{}", ended.stderr);
        assert_eq!(upstream.requests() - asked, 300 - done as usize, "no document is requested twice");
        assert!(!file.exists(), "the resume file is removed");
        let left = local.database.list_collection_names().await.unwrap();
        assert_eq!(left, ["users"], "the journal is dropped");
    }
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    let (local, upstream) = (Local::new().await, Upstream::start().await);
    local.seed(5, 0).await;
    upstream.state().delay = Duration::from_secs(600);
    let mut spec = by_user(&upstream, &json!({"timeout": "10m"}));
    spec["activeDeadline"] = "1h".into();
    fs::write(local.folder.join("job.json"), job("users", &spec)).unwrap();
    let child = process::Command::from(local.command(&["job.json"])).kill_on_drop(true).spawn().unwrap();
    eventually("the source receives a request", async || (upstream.requests() > 0).then_some(())).await;
    let pid = child.id().unwrap().to_string();
    for _ in 0..2 {
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let ended: Ended = timeout(Duration::from_secs(4), child.wait_with_output()).await.unwrap().unwrap().into();
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
}

#[tokio::test]
async fn a_mongodb_that_cannot_be_reached_ends_the_command() {
    let local = Local::new().await;
    let mut command = local.command(&["-"]);
    command.env("MONGODB_URI", "mongodb://user:s3cret@127.0.0.1:9/?serverSelectionTimeoutMS=500");
    let ended = local.finish(command, &job("users", &full())).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("MONGODB_URI") && ended.stderr.contains("could be reached"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("s3cret"));
    let mut command = local.command(&["-"]);
    command.env_remove("MONGODB_URI");
    let ended = local.finish(command, &job("users", &full())).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--mongodb-uri"), "{}", ended.stderr);
}

#[tokio::test]
async fn an_authority_of_mongodb_is_given_as_a_file() {
    let local = Local::new().await;
    let (trusted, other) = (Authority::new(), Authority::new());
    let both = trusted.certify().in_one_file();
    let mongodb = MongoDb::start(&["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", both.to_str().unwrap()]);
    let run = async |authority: Option<&Authority>| {
        let mut command = local.command(&["-"]);
        if let Some(authority) = authority {
            command.arg("--mongodb-ca-file").arg(authority.file());
        }
        command.env("MONGODB_URI", format!("{}&tls=true&serverSelectionTimeoutMS=2000", mongodb.url("")));
        local.finish(command, &job("users", &full())).await
    };
    let ended =
        eventually("MongoDB answers", async || Some(run(Some(&trusted)).await).filter(|ended| ended.code == Some(0)));
    assert_eq!(ended.await.json()["status"]["phase"], "Complete");
    for authority in [None, Some(&other)] {
        let ended = run(authority).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains("certificate"), "{}", ended.stderr);
    }
    let mut command = local.command(&["-", "--mongodb-ca-file", "nowhere"]);
    command.env("MONGODB_URI", mongodb.url(""));
    let ended = local.finish(command, &job("users", &full())).await;
    assert!(ended.code == Some(2) && ended.stderr.contains("MONGODB_CA_FILE"), "{:?} {}", ended.code, ended.stderr);
}
