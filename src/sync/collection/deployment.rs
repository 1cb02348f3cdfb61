//! The MongoDB deployment, and the databases that a run may use.

use std::{path::Path, sync::Arc, time::Duration};

use bson::{DateTime, Document, doc};
use jiff::Timestamp;
use mongodb::{
    Client,
    options::{ClientOptions, ReadConcern, Tls, TlsOptions, WriteConcern},
};

use super::{
    Listing, State, TargetCollection, both,
    due::{AccessPlan, DueFilter},
    within,
};
use crate::{
    connection_error,
    domain::{
        policy::NotAllowed,
        run::RunSpec,
        source::{Asking, Missing, SourceName, SourceSpec},
    },
    policy::CurrentPolicy,
    sync::{Error, OwnClient, Unavailable, keys},
};

/// URL schemes of a connection string.
const SCHEMES: [&str; 2] = ["mongodb", "mongodb+srv"];

const SERVER_SELECTION: Duration = Duration::from_secs(5);
/// Largest number of connections to each server, unless the URI sets another. The driver's 10 are fewer than one run
/// may use, and a write that waits for a connection would count as unanswered.
const CONNECTIONS: u32 = 256;
/// Time by which a stamp may be later than the end of each active run. A later stamp is a mistake, such as a local time
/// that was stored as UTC. Clocks of servers that replace each other differ by less.
const FUTURE: Duration = Duration::from_mins(5);

/// The MongoDB deployment, and which of its databases may be worked on.
#[derive(Clone, Debug)]
pub struct Deployment {
    client: Client,
    /// `None`: each target has to name its own.
    default: Option<String>,
    allowed: Allowed,
    /// Rights of namespaces. With `tenants`, they replace `allowed`.
    policy: CurrentPolicy,
    /// MongoDB of a namespace. `None`: that of the operator.
    own: Option<Arc<OwnClient>>,
}

/// Databases that targets may set, in addition to the default database.
#[derive(Clone, Debug)]
enum Allowed {
    Any,
    Only(Vec<String>),
}

impl Deployment {
    /// Opens a deployment, and connects when first used. `allowed`: additional databases that runs may name. `ca`:
    /// file with a CA bundle (PEM) that verifies the servers, instead of the built-in roots.
    ///
    /// # Errors
    /// When the URI cannot be used. The text does not hold the URI.
    pub async fn new(uri: &str, default: &str, allowed: &[String], ca: Option<&Path>) -> Result<Self, Unavailable> {
        let (client, _) = open(uri, ca).await?;
        let (default, allowed) = (Some(default.to_owned()), Allowed::Only(allowed.to_vec()));
        Ok(Self { client, default, allowed, policy: CurrentPolicy::default(), own: None })
    }

    /// Returns the MongoDB of a namespace. Runs may use each of its databases.
    #[must_use]
    pub fn own(own: Arc<OwnClient>) -> Self {
        Self {
            client: own.client().clone(),
            default: own.database().map(str::to_owned),
            allowed: Allowed::Any,
            policy: CurrentPolicy::default(),
            own: Some(own),
        }
    }

    /// Returns the client, when the deployment is the MongoDB of a namespace.
    #[must_use]
    pub fn own_client(&self) -> Option<&Arc<OwnClient>> {
        self.own.as_ref()
    }

    /// Returns the deployment with the rights of a policy.
    #[must_use]
    pub fn governed_by(self, policy: CurrentPolicy) -> Self {
        Self { policy, ..self }
    }

    /// Checks a run against the policy.
    ///
    /// # Errors
    /// When the policy does not allow the run.
    pub fn check(&self, spec: &RunSpec, namespace: &str) -> Result<(), NotAllowed> {
        let policy = self.policy.get();
        policy.check(&policy.matching(namespace), namespace, spec, self.default.as_deref().unwrap_or_default())
    }

    /// A deployment of which targets may name any database. `default`: database of targets that name none; if there is
    /// none, the URI's.
    ///
    /// # Errors
    /// When the URI cannot be used. The text does not hold the URI.
    pub async fn for_local_run(uri: &str, default: Option<&str>, ca: Option<&Path>) -> Result<Self, Unavailable> {
        let (client, in_uri) = open(uri, ca).await?;
        let default = default.map(str::to_owned).or(in_uri);
        Ok(Self { client, default, allowed: Allowed::Any, policy: CurrentPolicy::default(), own: None })
    }

    /// Returns the time of MongoDB's clock (`localTime` of `hello`), to the millisecond.
    ///
    /// # Errors
    /// When MongoDB does not answer.
    pub async fn time(&self) -> Result<Timestamp, Error> {
        let hello = within(async { Ok(self.client.database("admin").run_command(doc! {"hello": 1}).await?) }).await?;
        let time = hello.get_datetime("localTime").ok().map(|time| time.timestamp_millis());
        let time = time.and_then(|millis| Timestamp::from_millisecond(millis).ok());
        time.ok_or_else(|| Error::Attempt {
            reason: "ServerError",
            message: "MongoDB's answer to hello has no localTime".to_owned(),
        })
    }

    /// Pings MongoDB.
    ///
    /// # Errors
    /// When MongoDB does not answer.
    pub async fn ping(&self) -> Result<(), Error> {
        within(async { Ok(self.client.database("admin").run_command(doc! {"ping": 1}).await?) }).await.map(drop)
    }

    /// The documents of a run that started at `started`, at the time `now`. `namespace` is that of its SyncJob, to
    /// which the name of its source belongs.
    ///
    /// # Errors
    /// When the spec names a database that is not allowed, or a filter that is no query.
    pub fn target(
        &self,
        spec: &RunSpec,
        namespace: &str,
        started: Timestamp,
        now: Timestamp,
    ) -> Result<TargetCollection, Error> {
        let Some(name) = spec.database.as_deref().or(self.default.as_deref()) else {
            let missing = match self.own {
                Some(_) => "target.database is not set, and the connection string names none: set it",
                None => {
                    "target.database is not set, and there is no default: set it, or MONGODB_DATABASE, or name a database in MONGODB_URI, such as mongodb://localhost:27017/codex"
                }
            };
            return Err(Error::InvalidTarget(missing.to_owned()));
        };
        let default = self.default.as_deref().unwrap_or_default();
        if let Allowed::Only(allowed) = &self.allowed
            && name != default
            && self.policy.get().tenants.is_none()
            && !allowed.iter().any(|allowed| allowed == name)
        {
            return Err(Error::InvalidTarget(format!(
                "target.database {name:?} is not allowed: use {default:?}, or start the operator with --allowed-databases {name}"
            )));
        }
        let filter = Document::try_from(spec.filter.clone())
            .map_err(|error| Error::InvalidTarget(format!("target.filter is no extended JSON: {error}")))?;
        let filter = match spec.subset.keys.as_slice() {
            [] => filter,
            keys => both(
                filter,
                doc! {&spec.key_field: {"$in": keys.iter().flat_map(|key| keys::spellings(key)).collect::<Vec<_>>()}},
            ),
        };
        // Documents without a key do not belong to the source. In MongoDB, null also matches a missing field.
        let filter = match spec.source {
            Some(_) if spec.key_field != "_id" => both(filter, doc! {&spec.key_field: {"$ne": null}}),
            _ => filter,
        };
        let source = spec.source.as_ref();
        let state = source.map(|source| State::new(source.name.state_path(namespace)));
        let progress = state.as_ref().map_or_else(|| spec.last_synced_field.clone(), |state| state.at.clone());
        let is_named = |source: &&SourceSpec| matches!(source.name, SourceName::Given(_));
        let now = started.max(now);
        let (ahead, future) = (after(now, FUTURE), after(now, spec.active_deadline + FUTURE));
        let due = due(spec, &progress, started, future);
        let removal = source.filter(is_named).filter(|_| spec.subset.is_everything());
        let database = self.client.database(name);
        Ok(TargetCollection {
            collection: database.collection(&spec.collection),
            database,
            key: spec.key_field.clone(),
            stamp_field: spec.last_synced_field.clone(),
            selection: due.as_ref().map_or_else(|| filter.clone(), |due| both(filter.clone(), due.query())),
            due,
            progress,
            filter,
            stamp: DateTime::from_millis(started.as_millisecond()),
            ahead,
            future,
            batch_size: spec.batch_size,
            read_limit: spec.active_deadline,
            mapping: source.map(|source| source.mapping.clone()),
            state,
            missing: source.map_or(Missing::Fail, |source| source.missing.clone()),
            removal: removal.and_then(|source| match &source.missing {
                Missing::Remove(removal) => Some(removal.clone()),
                _ => None,
            }),
            listing: match source {
                Some(SourceSpec { asking: Asking::Pages(_), upsert, .. }) => Listing::Pages { upsert: *upsert },
                _ => Listing::Documents,
            },
            transaction: spec.transaction,
            journal: None,
            dry_run: spec.dry_run,
        })
    }
}

/// Opens a client, and returns it with the database that the URI names.
async fn open(uri: &str, ca: Option<&Path>) -> Result<(Client, Option<String>), Unavailable> {
    let unusable = |error: mongodb::error::Error| Unavailable(Error::from(error).to_string());
    let mut options = ClientOptions::parse(uri).await.map_err(|error| match *error.kind {
        mongodb::error::ErrorKind::InvalidArgument { .. } => {
            Unavailable(connection_error::connection_string_mistake(uri, &SCHEMES))
        }
        _ => unusable(error),
    })?;
    options.max_pool_size.get_or_insert(CONNECTIONS);
    if let Some(ca) = ca {
        let mut tls = match options.tls.take() {
            Some(Tls::Enabled(tls)) => tls,
            _ => TlsOptions::default(),
        };
        tls.ca_file_path = Some(ca.to_owned());
        options.tls = Some(Tls::Enabled(tls));
    }
    with_own_settings(&mut options);
    let database = options.default_database.clone();
    Ok((Client::with_options(options).map_err(unusable)?, database))
}

/// Sets the options that the program needs, in place of those of a connection string.
pub(in crate::sync) fn with_own_settings(options: &mut ClientOptions) {
    options.app_name.get_or_insert_with(|| "sync-operator".to_owned());
    options.server_selection_timeout.get_or_insert(SERVER_SELECTION);
    options.connect_timeout.get_or_insert(SERVER_SELECTION);
    options.write_concern = Some(WriteConcern::majority());
    // A stamp that another worker wrote counts only once it cannot be rolled back any more.
    options.read_concern = Some(ReadConcern::majority());
    // The checkpoint and the guard make repeating a batch safe; the driver's retries would halve the rate.
    options.retry_writes = Some(false);
}

fn after(now: Timestamp, time: Duration) -> DateTime {
    DateTime::from_millis(now.as_millisecond().saturating_add(time.as_millis() as i64))
}

/// Filter of the documents that are due for an Incremental run. The filter includes documents that the run has
/// handled itself, so that a run that starts over counts them.
fn due(spec: &RunSpec, progress: &str, started: Timestamp, future: DateTime) -> Option<DueFilter> {
    let stale_after = spec.stale_after?;
    let stamp = DateTime::from_millis(started.as_millisecond());
    Some(DueFilter {
        progress: progress.to_owned(),
        stale: DateTime::from_millis(stamp.timestamp_millis().saturating_sub(stale_after.as_millis() as i64)),
        future,
        // With a source, it is the time of the fetch.
        own: if spec.source.is_some() { doc! {"$gte": stamp}.into() } else { stamp.into() },
        access: AccessPlan::Scan,
        are_few: None,
    })
}
