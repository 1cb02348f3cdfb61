//! `sync-operator verify`: creates a SyncJob as a user would, and waits for its end. The SyncJob passes through every
//! part of an installation.

use std::time::Duration;

use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use tokio::time::{Instant, sleep};

use crate::{
    api::{
        SyncJob, SyncJobSpec,
        conditions::{FAILED, RECONCILING},
        syncjob::SyncMode,
    },
    cluster::{self, call},
    domain::{conditions, job},
};

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Settings of a verification.
#[derive(Clone, Debug)]
pub struct VerifySettings {
    /// Namespace of the SyncJob. `None`: the namespace of the client.
    pub namespace: Option<String>,
    /// The collection it synchronises.
    pub collection: String,
    /// Longest wait for its end.
    pub timeout: Duration,
}

/// Failure of the verification.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Failure of a request to the API server.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// The run has ended, but not well.
    #[error("the run ended as Failed: {0}")]
    Failed(String),
    /// The run has not ended.
    #[error("the run has not ended after {after:?}; it is {last}; check /readyz and the logs of the operator's pods")]
    Late {
        /// Duration of the wait.
        after: Duration,
        /// Last known state of the SyncJob.
        last: String,
    },
}

/// Creates a SyncJob, prints its progress, waits for its end and deletes it.
///
/// # Errors
/// When the SyncJob does not complete. The SyncJob is also deleted in this case. It stays when the call is
/// cancelled.
pub async fn run(client: Client, settings: VerifySettings) -> Result<(), Error> {
    let namespace = settings.namespace.as_deref().unwrap_or(client.default_namespace()).to_owned();
    let jobs: Api<SyncJob> = Api::namespaced(client, &namespace);
    let name = format!("verify-{:08x}", rand::random::<u32>());
    let mut spec = SyncJobSpec { sync_type: SyncMode::Full, ..SyncJobSpec::default() };
    spec.target.collection = Some(settings.collection);
    let made = call("create a SyncJob", jobs.create(&PostParams::default(), &SyncJob::new(&name, spec))).await?;
    println!("SyncJob {namespace}/{} created", made.name_any());
    let ended = wait_for_end(&jobs, &name, settings.timeout).await;
    call("delete a SyncJob", jobs.delete(&name, &DeleteParams::background())).await?;
    ended
}

async fn wait_for_end(jobs: &Api<SyncJob>, name: &str, limit: Duration) -> Result<(), Error> {
    let (start, mut last) = (Instant::now(), String::new());
    loop {
        let job = call("read a SyncJob", jobs.get(name)).await?;
        let now = describe(&job);
        if now != last {
            println!("{now}");
            last = now;
        }
        if job::is_complete(&job) {
            return Ok(());
        }
        if job::is_finished(&job) {
            return Err(Error::Failed(last));
        }
        if start.elapsed() > limit {
            return Err(Error::Late { after: limit, last });
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn describe(job: &SyncJob) -> String {
    let Some(status) = &job.status else { return "not observed by a controller yet".to_owned() };
    let phase = status.phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}"));
    let why = [FAILED, RECONCILING].iter().find_map(|type_| conditions::find(&status.conditions, type_));
    let why = why.map_or_else(String::new, |condition| format!(": {}", condition.message));
    let counts = status.counts.unwrap_or_default();
    format!("{phase}, {} of {} documents{why}", counts.processed, counts.total)
}
