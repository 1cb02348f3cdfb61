//! Opens the source of a run: reads the Secrets it names, when their owners let them be sent there.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};

use crate::{
    api::{HOSTS_ANNOTATION, source::SecretKey},
    cluster::ask,
    domain::source::SourceSpec,
    sync::{Egress, Error, Secrets, Source},
};

/// What runs may fetch from, and with what.
#[derive(Clone, Default)]
pub struct Sources {
    /// Reads Secrets. `None` where there is no Kubernetes API.
    pub client: Option<Client>,
    /// Which addresses may be asked.
    pub egress: Egress,
}

impl Sources {
    pub(super) async fn open(&self, namespace: &str, spec: &SourceSpec) -> Result<Source, Error> {
        let host = Source::host(spec)?;
        let mut secrets = Secrets::default();
        if let Some(token) = &spec.token {
            let token = self.read(namespace, token, Some(&host)).await?;
            secrets.headers.push(("authorization".to_owned(), format!("Bearer {}", text(token)?.trim())));
        }
        for header in &spec.headers {
            let value = self.read(namespace, &header.secret_ref, Some(&host)).await?;
            secrets.headers.push((header.name.to_ascii_lowercase(), text(value)?));
        }
        if let Some(ca) = &spec.ca {
            secrets.ca = Some(self.read(namespace, ca, None).await?);
        }
        Source::new(spec, &secrets, &self.egress)
    }

    /// Reads one entry of a Secret. `host`: where it is to be sent, which its annotation must allow. Whoever may create
    /// SyncJobs may not always read Secrets, and could have them sent to a host of their own.
    async fn read(&self, namespace: &str, entry: &SecretKey, host: Option<&str>) -> Result<Vec<u8>, Error> {
        let SecretKey { name, key } = entry;
        let invalid = |message: String| Error::InvalidSource(message);
        let client = self.client.clone().ok_or_else(|| {
            invalid(format!("the worker has no access to the Kubernetes API, which holds the Secret {name}"))
        })?;
        let secrets = Api::<Secret>::namespaced(client, namespace);
        let secret = ask("read a Secret", secrets.get_opt(name)).await.map_err(|error| match error.status() {
            Some(status) if status.code == 403 => invalid(format!(
                "the operator may not read Secret {name} in namespace {namespace}: give its service account a Role with get on it"
            )),
            _ => Error::Attempt {
                reason: "SecretUnavailable",
                message: format!("could not read the Secret {name}: the Kubernetes API did not answer as it should"),
            },
        })?;
        let secret =
            secret.ok_or_else(|| invalid(format!("there is no Secret {name} in namespace {namespace}: create it")))?;
        let allowed = secret.annotations().get(HOSTS_ANNOTATION).map(String::as_str).unwrap_or_default();
        if let Some(host) = host.filter(|host| !allowed.split(',').any(|name| name.trim().eq_ignore_ascii_case(host))) {
            return Err(invalid(format!(
                "Secret {name} may not be sent to {host}: its owner has to allow it with kubectl annotate secret {name} {HOSTS_ANNOTATION}={host}"
            )));
        }
        let value = secret.data.and_then(|mut data| data.remove(key));
        value
            .map(|value| value.0)
            .ok_or_else(|| invalid(format!("Secret {name} has no key {key}: add it, or name another one")))
    }
}

fn text(value: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(value).map_err(|_| Error::InvalidSource("a Secret's value for a header is no text".to_owned()))
}
