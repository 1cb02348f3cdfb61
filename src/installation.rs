//! The installation that this process belongs to.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use tokio::time::sleep;

use crate::{
    cluster,
    domain::installation::{ALL_NAMESPACES, Fingerprint},
};

/// Namespace that each cluster has, with a uid of its own.
const CLUSTER: &str = "kube-system";
/// Pause after an error of the API server.
const PAUSE: Duration = Duration::from_secs(1);

/// Determines the fingerprint of controllers that watch one namespace, or all of them. A part that this process may not
/// read is left out. Waits while the API server is unavailable.
pub async fn controller_fingerprint(client: &Client, namespace: Option<&str>, database: Option<&str>) -> Fingerprint {
    let cluster = uid(client, CLUSTER).await;
    let scope = match namespace {
        None => ALL_NAMESPACES.to_owned(),
        Some(name) => uid(client, name).await.unwrap_or_else(|| name.to_owned()),
    };
    Fingerprint { cluster, scope: Some(scope), database: database.map(str::to_owned) }
}

/// Determines the fingerprint of a process that has workers alone. It may be outside of the cluster, and without
/// rights.
pub async fn worker_fingerprint(client: Option<&Client>, database: Option<&str>) -> Fingerprint {
    let cluster = match client {
        Some(client) => read_uid(client, CLUSTER).await.ok().flatten(),
        None => None,
    };
    Fingerprint { cluster, scope: None, database: database.map(str::to_owned) }
}

/// The uid of a namespace. `None`: this process may not read it, or it does not exist.
async fn uid(client: &Client, name: &str) -> Option<String> {
    loop {
        match read_uid(client, name).await {
            Ok(uid) => return uid,
            Err(error) => {
                tracing::debug!(%error, namespace = name, "could not determine the installation yet; retrying");
            }
        }
        sleep(PAUSE).await;
    }
}

async fn read_uid(client: &Client, name: &str) -> Result<Option<String>, cluster::Error> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    match cluster::call("read a namespace", namespaces.get_metadata_opt(name)).await {
        Ok(namespace) => Ok(namespace.and_then(|namespace| namespace.uid())),
        Err(error) if error.status().is_some_and(|status| matches!(status.code, 401 | 403)) => {
            tracing::debug!(%error, "the uid of the namespace is left out of the fingerprint of the installation");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
