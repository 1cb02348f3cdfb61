//! Opens the source of a run: reads the Secrets it names, where their owners allow that.

use std::{collections::HashMap, fmt};

use kube::Client;

use crate::{
    api::source::SecretKey,
    domain::source::SourceSpec,
    secrets,
    sync::{Egress, Error, Secrets, SourceClient},
};

/// Factory of source clients, with the Secrets that they use.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Reader of Secrets.
    pub secrets: SecretReader,
    /// Addresses to which requests may go.
    pub egress: Egress,
}

/// Reader of Secrets.
#[derive(Clone, Default)]
pub enum SecretReader {
    /// There is no Kubernetes API that has Secrets.
    #[default]
    None,
    /// Reads Secrets from the Kubernetes API, if the Secret's annotation allows the host they are sent to.
    Kubernetes(Client),
    /// Has the entries that the caller of a local run gave.
    Given(GivenSecrets),
}

impl fmt::Debug for SecretReader {
    /// Shows no value of a Secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Kubernetes(_) => "Kubernetes",
            Self::Given(_) => "Given",
        })
    }
}

/// Entries of Secrets that the caller of a local run gave, by the Secret's name and the entry's key.
#[derive(Clone, Default)]
pub struct GivenSecrets(HashMap<(String, String), Vec<u8>>);

impl GivenSecrets {
    /// Adds the entry `key` of the Secret `name`.
    pub fn insert(&mut self, name: String, key: String, value: Vec<u8>) {
        self.0.insert((name, key), value);
    }
}

impl SecretReader {
    /// Reads the entry `entry` of a Secret in `namespace`, to be sent to `host`.
    async fn read_secret(&self, namespace: &str, entry: &SecretKey, host: Option<&str>) -> Result<Vec<u8>, Error> {
        let SecretKey { name, key } = entry;
        match self {
            Self::None => Err(Error::InvalidSource(format!(
                "the worker has no access to the Kubernetes API, which has the Secret {name}"
            ))),
            Self::Given(given) => given.0.get(&(name.clone(), key.clone())).cloned().ok_or_else(|| {
                Error::InvalidSource(format!("the Secret {name} is not given: add --secret {name}/{key}=env:VARIABLE"))
            }),
            Self::Kubernetes(client) => {
                secrets::read_entry(client.clone(), namespace, entry, host).await.map_err(|error| match error {
                    secrets::Error::Invalid(message) => Error::InvalidSource(message),
                    secrets::Error::Unavailable(_) => {
                        Error::Attempt { reason: "SecretUnavailable", message: error.to_string() }
                    }
                })
            }
        }
    }
}

impl Sources {
    pub(super) async fn open(&self, namespace: &str, spec: &SourceSpec) -> Result<SourceClient, Error> {
        let host = SourceClient::host(spec)?;
        let mut secrets = Secrets::default();
        if let Some(token) = &spec.token {
            let token = self.secrets.read_secret(namespace, token, Some(&host)).await?;
            secrets.headers.push(("authorization".to_owned(), format!("Bearer {}", text(token)?.trim())));
        }
        for header in &spec.headers {
            let value = self.secrets.read_secret(namespace, &header.secret_ref, Some(&host)).await?;
            secrets.headers.push((header.name.to_ascii_lowercase(), text(value)?));
        }
        if let Some(ca) = &spec.ca {
            secrets.ca = Some(self.secrets.read_secret(namespace, ca, None).await?);
        }
        SourceClient::new(spec, &secrets, &self.egress)
    }
}

fn text(value: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(value).map_err(|_| Error::InvalidSource("a Secret's value for a header is no text".to_owned()))
}
