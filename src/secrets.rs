//! Reads Secrets, when their owners let them be sent where they are to go.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};

use crate::{
    api::{HOSTS_ANNOTATION, source::SecretKey},
    cluster::call,
};

/// Error of an entry of a Secret that cannot be used. The texts do not contain any part of the entry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A user has to correct the configuration.
    #[error("{0}")]
    Invalid(String),
    /// Worth another try.
    #[error("could not read the Secret {0}: the Kubernetes API did not answer as it should")]
    Unavailable(String),
}

/// Reads an entry of a Secret. `host`: the host that receives the value, which the annotation of the Secret must
/// allow. Users that may create objects with references to Secrets may have no right to read them, and could have
/// them sent to a host of their own.
///
/// # Errors
/// When the entry does not exist, may not be read, or may not be sent to the host.
pub async fn read_entry(
    client: Client,
    namespace: &str,
    entry: &SecretKey,
    host: Option<&str>,
) -> Result<Vec<u8>, Error> {
    let found = find_entry(client, namespace, entry).await?;
    host.map_or(Ok(()), |host| found.may_go_to(host))?;
    Ok(found.value)
}

/// Entry of a Secret, with the hosts that may receive it.
pub struct SecretEntry {
    name: String,
    hosts: String,
    /// Value of the entry.
    pub value: Vec<u8>,
}

impl SecretEntry {
    /// Fails when the Secret's annotation does not name the host.
    ///
    /// # Errors
    /// When the annotation does not name the host.
    pub fn may_go_to(&self, host: &str) -> Result<(), Error> {
        let Self { name, hosts, .. } = self;
        if hosts.split(',').any(|allowed| allowed.trim().eq_ignore_ascii_case(host)) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "Secret {name} may not be sent to {host}: allow it with kubectl annotate secret {name} {HOSTS_ANNOTATION}={host}"
        )))
    }
}

/// Reads an entry of a Secret whose value contains its own host: check [`SecretEntry::may_go_to`] before it is sent.
///
/// # Errors
/// When the entry does not exist, or may not be read.
pub async fn find_entry(client: Client, namespace: &str, entry: &SecretKey) -> Result<SecretEntry, Error> {
    let SecretKey { name, key } = entry;
    let secrets = Api::<Secret>::namespaced(client, namespace);
    let secret = call("read a Secret", secrets.get_opt(name)).await.map_err(|error| match error.status() {
        Some(status) if status.code == 403 => Error::Invalid(format!(
            "the operator may not read Secret {name} in namespace {namespace}: give its service account a Role with get on it"
        )),
        _ => Error::Unavailable(name.clone()),
    })?;
    let missing = || Error::Invalid(format!("there is no Secret {name} in namespace {namespace}: create it"));
    let secret = secret.ok_or_else(missing)?;
    let hosts = secret.annotations().get(HOSTS_ANNOTATION).cloned().unwrap_or_default();
    let value = secret.data.and_then(|mut data| data.remove(key));
    let lacking = || Error::Invalid(format!("Secret {name} has no key {key}: add it, or name another one"));
    Ok(SecretEntry { name: name.clone(), hosts, value: value.ok_or_else(lacking)?.0 })
}
