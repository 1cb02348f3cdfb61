//! Opens the source of a run: reads the Secrets it names, where their owners allow that.

use std::{collections::HashMap, fmt, sync::Arc};

use kube::Client;
use tokio::sync::Mutex;

use crate::{
    api::source::SecretKey,
    domain::{
        secret_scope::{SecretScope, check_operations},
        source::{Request, RequestRate, SourceSpec},
    },
    policy::CurrentPolicy,
    secrets::{self, SecretEntry},
    sync::{BatchMemory, Error, Secrets, SourceBudget, SourceBudgets, SourceClient},
};

/// Factory of source clients, with the Secrets that they use.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Reader of Secrets.
    pub secrets: SecretReader,
    /// Policy with the addresses to which requests may go.
    pub policy: CurrentPolicy,
    /// Memory that the answers of sources may take.
    pub budgets: SourceBudgets,
}

/// Reader of Secrets.
#[derive(Clone, Default)]
pub enum SecretReader {
    /// There is no Kubernetes API that has Secrets.
    #[default]
    None,
    /// Reads Secrets from the Kubernetes API, with the scopes that their annotations state.
    Kubernetes(Client),
    /// Has the entries that the caller of a local run gave. They have no scope: the caller names the source too.
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
    /// Reads the entry `entry` of a Secret in `namespace`, and adds the Secret's scope to `scopes`.
    pub(super) async fn read_secret(
        &self,
        namespace: &str,
        entry: &SecretKey,
        scopes: &mut Vec<SecretScope>,
    ) -> Result<Vec<u8>, Error> {
        let SecretKey { name, key } = entry;
        match self {
            Self::None => Err(Error::InvalidSource(format!(
                "the worker has no access to the Kubernetes API, which has the Secret {name}"
            ))),
            Self::Given(given) => given.0.get(&(name.clone(), key.clone())).cloned().ok_or_else(|| {
                Error::InvalidSource(format!("the Secret {name} is not given: add --secret {name}/{key}=env:VARIABLE"))
            }),
            Self::Kubernetes(client) => {
                let found = secrets::find_entry(client.clone(), namespace, entry).await;
                let SecretEntry { value, scope } = found.map_err(|error| match error {
                    secrets::Error::Invalid(message) => Error::InvalidSource(message),
                    secrets::Error::Unavailable(_) => {
                        Error::Attempt { reason: "SecretUnavailable", message: error.to_string() }
                    }
                })?;
                scopes.push(scope);
                Ok(value)
            }
        }
    }
}

/// Source of a run. It can read its Secrets again.
pub(super) struct OpenSource {
    sources: Sources,
    namespace: String,
    spec: SourceSpec,
    /// Scheme, host and port of the endpoint.
    origin: String,
    /// Host of the endpoint.
    host: String,
    budget: Arc<SourceBudget>,
    /// Client with the Secrets as they were last read. Locked while they are read again, because requests in the
    /// meantime would be refused.
    current: Mutex<(Arc<SourceClient>, Secrets)>,
}

impl OpenSource {
    /// Spec of the source.
    pub fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    /// Scheme, host and port of the endpoint.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Host of the endpoint.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Rate of the installation for the host of the endpoint.
    pub fn host_rate(&self) -> Option<RequestRate> {
        self.sources.policy.get().rate_of(&self.host)
    }

    /// Memory for the answers of one batch.
    pub fn memory(&self) -> BatchMemory {
        BatchMemory::new(Arc::clone(&self.budget))
    }

    /// Client for the next request.
    pub async fn client(&self) -> Arc<SourceClient> {
        Arc::clone(&self.current.lock().await.0)
    }

    /// Reads the Secrets again, after the server refused those of `refused`. Returns true when requests have other
    /// values now.
    pub async fn renew(&self, refused: &Arc<SourceClient>) -> Result<bool, Error> {
        let mut current = self.current.lock().await;
        let (client, former) = &*current;
        if !Arc::ptr_eq(client, refused) {
            // Another request has renewed them since.
            return Ok(true);
        }
        let secrets = self.sources.read_secrets(&self.namespace, &self.spec).await?;
        if (&secrets.headers, &secrets.ca) == (&former.headers, &former.ca) {
            return Ok(false);
        }
        tracing::info!(namespace = self.namespace, "a Secret of the source has changed: repeating the request");
        let client = SourceClient::new(&self.spec, secrets.clone(), self.sources.policy.egress(&self.namespace))?;
        *current = (Arc::new(client), secrets);
        Ok(true)
    }
}

impl Sources {
    pub(super) async fn open(&self, namespace: &str, spec: &SourceSpec) -> Result<OpenSource, Error> {
        let secrets = self.read_secrets(namespace, spec).await?;
        let client = SourceClient::new(spec, secrets.clone(), self.policy.egress(namespace))?;
        Ok(OpenSource {
            sources: self.clone(),
            namespace: namespace.to_owned(),
            spec: spec.clone(),
            origin: client.origin(),
            host: client.host(),
            budget: self.budgets.of_namespace(namespace),
            current: Mutex::new((Arc::new(client), secrets)),
        })
    }

    async fn read_secrets(&self, namespace: &str, spec: &SourceSpec) -> Result<Secrets, Error> {
        let Secrets { mut headers, mut ca, mut scopes } = Secrets::default();
        if let Some(token) = &spec.token {
            let token = self.secrets.read_secret(namespace, token, &mut scopes).await?;
            headers.push(("authorization".to_owned(), format!("Bearer {}", text(token)?.trim())));
        }
        for header in &spec.headers {
            let value = self.secrets.read_secret(namespace, &header.secret_ref, &mut scopes).await?;
            headers.push((header.name.to_ascii_lowercase(), text(value)?));
        }
        // A CA bundle is not sent, so it has no say in what a request does.
        self.check_operations(spec, &scopes)?;
        if let Some(entry) = &spec.ca {
            ca = Some(self.secrets.read_secret(namespace, entry, &mut scopes).await?);
        }
        Ok(Secrets { headers, ca, scopes })
    }

    fn check_operations(&self, spec: &SourceSpec, sent: &[SecretScope]) -> Result<(), Error> {
        match &spec.request {
            // The caller of a local run gives the values of the Secrets and names the operations.
            Request::GraphQl { operations, .. } if !matches!(self.secrets, SecretReader::Given(_)) => {
                check_operations(operations, sent).map_err(|error| Error::InvalidSource(error.to_string()))
            }
            _ => Ok(()),
        }
    }
}

fn text(value: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(value).map_err(|_| Error::InvalidSource("a Secret's value for a header is no text".to_owned()))
}
