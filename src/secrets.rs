//! Reads Secrets, when their owners allow their use for a destination.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};

use crate::{
    api::{HOSTS_ANNOTATION, OPERATIONS_ANNOTATION, source::SecretKey},
    cluster::call,
    domain::{
        destination::Destination,
        secret_scope::{OutOfScope, SecretScope},
    },
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

impl From<OutOfScope> for Error {
    fn from(error: OutOfScope) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Entry of a Secret, with the scope of the Secret.
pub struct SecretEntry {
    /// Value of the entry.
    pub value: Vec<u8>,
    /// Scope of the Secret. Check it before the value is used: users that may create objects with references to Secrets
    /// may have no right to read the Secrets, and could have them sent to a host of their own.
    pub scope: SecretScope,
}

/// Reads an entry of a Secret for a destination.
///
/// # Errors
/// When the entry does not exist, may not be read, or may not be used for the destination.
pub async fn read_entry(
    client: Client,
    namespace: &str,
    entry: &SecretKey,
    to: &Destination,
) -> Result<Vec<u8>, Error> {
    let found = find_entry(client, namespace, entry).await?;
    found.scope.check(to)?;
    Ok(found.value)
}

/// Reads an entry of a Secret whose destination is known later.
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
    let annotation = |name| secret.annotations().get(name).map(String::as_str);
    let scope = SecretScope::new(name, annotation(HOSTS_ANNOTATION), annotation(OPERATIONS_ANNOTATION));
    let value = secret.data.and_then(|mut data| data.remove(key));
    let lacking = || Error::Invalid(format!("Secret {name} has no key {key}: add it, or name another one"));
    Ok(SecretEntry { value: value.ok_or_else(lacking)?.0, scope })
}
