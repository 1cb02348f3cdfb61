//! Opens the MongoDB of a run: that of the operator, or the one that the namespace brings.

use crate::{
    api::HOSTS_ANNOTATION,
    domain::{
        run::{OwnMongoDb, RunSpec},
        secret_scope::{OutOfScope, SecretScope},
    },
    policy::CurrentPolicy,
    sync::{ClientKey, Clients, ConnectionFailure, Deployment, Error, OwnString},
};

use super::{AttemptResult, SecretReader};

/// Reason of an attempt that reached no server.
const UNREACHABLE: &str = "Unreachable";

/// MongoDBs of runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Targets {
    shared: Deployment,
    own: Clients,
    /// Reader of the Secrets with connection strings.
    secrets: SecretReader,
}

impl Targets {
    /// Creates the MongoDBs of runs. `shared`: that of the operator.
    #[must_use]
    pub fn new(shared: Deployment, policy: CurrentPolicy, secrets: SecretReader) -> Self {
        Self { shared, own: Clients::new(policy), secrets }
    }

    /// Returns the MongoDB of the operator.
    #[must_use]
    pub fn shared(&self) -> &Deployment {
        &self.shared
    }

    /// Opens the MongoDB of a run in a namespace.
    ///
    /// # Errors
    /// When a Secret cannot be read or used, or the policy does not allow a host.
    pub async fn open(&self, namespace: &str, spec: &RunSpec) -> Result<Deployment, Error> {
        let Some(mongodb) = &spec.own_mongodb else { return Ok(self.shared.clone()) };
        let OwnMongoDb { uri, ca } = mongodb;
        let invalid = |error| match error {
            Error::InvalidSource(message) => Error::InvalidTarget(message),
            error => error,
        };
        let mut scopes = Vec::new();
        let text = self.secrets.read_secret(namespace, uri, &mut scopes).await.map_err(invalid)?;
        let ca = match ca {
            Some(ca) => Some(self.secrets.read_secret(namespace, ca, &mut scopes).await.map_err(invalid)?),
            None => None,
        };
        let secret = &uri.name;
        let unusable = |why: &str| Error::InvalidTarget(format!("the connection string in Secret {secret} {why}"));
        let text = String::from_utf8(text).map_err(|_| unusable("is no text: correct it"))?;
        let string = OwnString::parse(text.trim()).map_err(|error| unusable(&error.to_string()))?;
        check_scopes(&string, secret, &scopes)?;
        let key = ClientKey { namespace: namespace.to_owned(), mongodb: mongodb.clone() };
        Ok(Deployment::own(self.own.open(key, string, ca).await?))
    }

    /// Drops the client of an own MongoDB that an attempt could not reach, so that the next one looks up its hosts again.
    /// Returns the latest failure of the client's connections.
    pub fn forget_unreachable(&self, deployment: &Deployment, result: &AttemptResult) -> Option<ConnectionFailure> {
        let (Some(client), AttemptResult::Retry(outcome)) = (deployment.own_client(), result) else { return None };
        if outcome.reason != UNREACHABLE {
            return None;
        }
        self.own.forget(client);
        client.failure()
    }

    /// Returns the result of an attempt with what is known about the connections to an own MongoDB.
    #[must_use]
    pub fn explain(&self, deployment: &Deployment, result: AttemptResult) -> AttemptResult {
        match self.forget_unreachable(deployment, &result) {
            Some(ConnectionFailure::NotAllowed(message)) => AttemptResult::from(&Error::InvalidTarget(message)),
            Some(ConnectionFailure::Unusable(cause)) => {
                let message = format!("the MongoDB of target.uriSecretRef could not be reached: {cause}");
                AttemptResult::from(&Error::Attempt { reason: UNREACHABLE, message })
            }
            None => result,
        }
    }
}

/// Checks that the owners of the Secrets allow all hosts. The error shows no host, which could be a part of a password.
fn check_scopes(string: &OwnString, secret: &str, scopes: &[SecretScope]) -> Result<(), Error> {
    for (index, to) in string.destinations().iter().enumerate() {
        for scope in scopes {
            let Err(refused) = scope.check(to) else { continue };
            let (OutOfScope::NotAnnotated { secret: lacking, .. } | OutOfScope::Host { secret: lacking, .. }) = refused
            else {
                return Err(Error::InvalidTarget(refused.to_string()));
            };
            return Err(Error::InvalidTarget(format!(
                "host {} of the connection string in Secret {secret} is not in the annotation {HOSTS_ANNOTATION} of Secret {lacking}: add it as host:port with TLS, mongodb://host:port without, or mongodb+srv://host",
                index + 1
            )));
        }
    }
    Ok(())
}
