//! `sync-operator adopt`: takes the queue and the objects over from another installation.

use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{
    api::{SyncJob, SyncSchedule},
    cluster,
    domain::{installation::Owner, job},
    queue::{self, Queue},
};

/// Error of an incomplete adoption.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The queue was not.
    #[error(transparent)]
    Queue(#[from] queue::Error),
    /// Objects were not.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
}

/// Makes `me` the owner of the queue, and of the objects in a namespace, or in all. Prints the previous owners.
///
/// # Errors
/// When Redis or the API server does not answer. A repeated call does no harm.
pub async fn run(client: Client, queue: &Queue, namespace: Option<&str>, me: Owner) -> Result<(), Error> {
    let former = loop {
        let recorded = queue.owner().await?;
        if queue.own(&me, recorded.as_ref()).await? {
            break recorded;
        }
    };
    match former.filter(|former| *former != me) {
        Some(former) => println!("queue {}: {me}, before {former}", queue.name()),
        None => println!("queue {}: {me}", queue.name()),
    }
    let schedules = cluster::api::<SyncSchedule>(&client, namespace);
    let jobs = cluster::api::<SyncJob>(&client, namespace);
    for schedule in list(&schedules).await? {
        let mark = schedule.status.as_ref().and_then(|status| status.installation.as_deref());
        adopt(&client, &schedule, mark, &me.lease).await?;
    }
    for job in list(&jobs).await?.into_iter().filter(|job| !job::is_finished(job)) {
        adopt(&client, &job, job.status.as_ref().and_then(|status| status.installation.as_deref()), &me.lease).await?;
    }
    Ok(())
}

async fn list<K>(objects: &Api<K>) -> Result<Vec<K>, Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    Ok(cluster::call("list objects", objects.list(&ListParams::default())).await?.items)
}

/// Replaces the Lease of the previous owner with that of `me`.
async fn adopt<K>(client: &Client, object: &K, mark: Option<&str>, me: &str) -> Result<(), Error>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let Some(former) = mark.filter(|mark| *mark != me) else { return Ok(()) };
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let patch = Patch::Merge(json!({"metadata": {"uid": object.uid()}, "status": {"installation": me}}));
    let objects = Api::<K>::namespaced(client.clone(), &namespace);
    match cluster::call("adopt an object", objects.patch_status(&name, &PatchParams::default(), &patch)).await {
        Err(error) if error.is_not_found() => return Ok(()),
        patched => patched?,
    };
    println!("{} {namespace}/{name}: {me}, before {former}", K::kind(&()));
    Ok(())
}
