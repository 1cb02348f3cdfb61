//! Opens the source of a run: reads the Secrets it names, when their owners let them be sent there.

use kube::Client;

use crate::{
    api::source::SecretKey,
    domain::source::SourceSpec,
    secrets,
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

    async fn read(&self, namespace: &str, entry: &SecretKey, host: Option<&str>) -> Result<Vec<u8>, Error> {
        let client = self.client.clone().ok_or_else(|| {
            let name = &entry.name;
            let message = format!("the worker has no access to the Kubernetes API, which holds the Secret {name}");
            Error::InvalidSource(message)
        })?;
        secrets::read(client, namespace, entry, host).await.map_err(|error| match error {
            secrets::Error::Invalid(message) => Error::InvalidSource(message),
            secrets::Error::Unavailable(_) => {
                Error::Attempt { reason: "SecretUnavailable", message: error.to_string() }
            }
        })
    }
}

fn text(value: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(value).map_err(|_| Error::InvalidSource("a Secret's value for a header is no text".to_owned()))
}
