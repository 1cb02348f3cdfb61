//! The MongoDB deployment, and what of it a run may work on.

use std::{path::Path, time::Duration};

use bson::{Bson, DateTime, Document, doc};
use jiff::Timestamp;
use mongodb::{
    Client,
    options::{ClientOptions, ReadConcern, Tls, TlsOptions, WriteConcern},
};

use super::{Target, both, within};
use crate::{
    domain::{run::RunSpec, source::Missing},
    sync::{Error, Unavailable},
};

const SERVER_SELECTION: Duration = Duration::from_secs(5);

/// The MongoDB deployment, and which of its databases may be worked on.
#[derive(Clone, Debug)]
pub struct Databases {
    client: Client,
    default: String,
    allowed: Vec<String>,
}

impl Databases {
    /// A deployment. Connects when first used. `allowed` are databases beside `default` that runs may name. `ca`: file
    /// with the certificates (PEM) of the authorities that vouch for the servers, instead of the well-known ones.
    ///
    /// # Errors
    /// When the URI cannot be used. The text does not hold the URI.
    pub async fn new(uri: &str, default: &str, allowed: &[String], ca: Option<&Path>) -> Result<Self, Unavailable> {
        let unusable = |error: mongodb::error::Error| Unavailable(Error::from(error).to_string());
        let mut options = ClientOptions::parse(uri).await.map_err(|error| match *error.kind {
            mongodb::error::ErrorKind::InvalidArgument { message, .. } if !message.contains('@') => {
                Unavailable(message)
            }
            mongodb::error::ErrorKind::InvalidArgument { .. } => Unavailable("it is no connection string".to_owned()),
            _ => unusable(error),
        })?;
        options.app_name.get_or_insert_with(|| "sync-operator".to_owned());
        options.server_selection_timeout.get_or_insert(SERVER_SELECTION);
        options.connect_timeout.get_or_insert(SERVER_SELECTION);
        if let Some(ca) = ca {
            let mut tls = match options.tls.take() {
                Some(Tls::Enabled(tls)) => tls,
                _ => TlsOptions::default(),
            };
            tls.ca_file_path = Some(ca.to_owned());
            options.tls = Some(Tls::Enabled(tls));
        }
        options.write_concern = Some(WriteConcern::majority());
        // A stamp that another worker wrote counts only once it cannot be rolled back any more.
        options.read_concern = Some(ReadConcern::majority());
        // The checkpoint and the guard make repeating a batch safe; the driver's retries would halve the rate.
        options.retry_writes = Some(false);
        let client = Client::with_options(options).map_err(unusable)?;
        Ok(Self { client, default: default.to_owned(), allowed: allowed.to_vec() })
    }

    /// Asks MongoDB for a sign of life.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ping(&self) -> Result<(), Error> {
        within(async { Ok(self.client.database("admin").run_command(doc! {"ping": 1}).await?) }).await.map(drop)
    }

    /// The documents of a run that started at `started`.
    ///
    /// # Errors
    /// When the spec names a database that is not allowed, or a filter that is no query.
    pub fn target(&self, spec: &RunSpec, started: Timestamp) -> Result<Target, Error> {
        let name = spec.database.as_deref().unwrap_or(&self.default);
        if name != self.default && !self.allowed.iter().any(|allowed| allowed == name) {
            return Err(Error::InvalidTarget(format!(
                "target.database {name:?} is not allowed: use {:?}, or start the operator with --allowed-databases {name}",
                self.default
            )));
        }
        let filter = Document::try_from(spec.filter.clone())
            .map_err(|error| Error::InvalidTarget(format!("target.filter is no extended JSON: {error}")))?;
        let database = self.client.database(name);
        Ok(Target {
            collection: database.collection(&spec.collection),
            database,
            key: spec.key_field.clone(),
            stamp_field: spec.last_synced_field.clone(),
            selection: selection(filter.clone(), spec, DateTime::from_millis(started.as_millisecond())),
            filter,
            stamp: DateTime::from_millis(started.as_millisecond()),
            batch_size: spec.batch_size,
            mapping: spec.source.as_ref().map(|source| source.mapping.clone()),
            missing: spec.source.as_ref().map_or(Missing::Fail, |source| source.missing.clone()),
            upsert: spec.source.as_ref().is_some_and(|source| source.upsert),
            transaction: spec.transaction,
            journal: None,
            dry_run: spec.dry_run,
        })
    }
}

/// The query for a run's documents. An Incremental run also finds those it stamped itself, so that a run that
/// starts over counts them.
fn selection(filter: Document, spec: &RunSpec, stamp: DateTime) -> Document {
    let Some(stale_after) = spec.stale_after else { return filter };
    let field = spec.last_synced_field.as_str();
    let stale = DateTime::from_millis(stamp.timestamp_millis().saturating_sub(stale_after.as_millis() as i64));
    let due = doc! {"$or": [
        {field: {"$not": {"$gte": stale}}},
        {field: {"$type": "array"}},
        // With a source, the stamp is the time of the fetch.
        {field: if spec.source.is_some() { Bson::from(doc! {"$gte": stamp}) } else { stamp.into() }},
        {"$expr": {"$gt": ["$updatedAt", format!("${field}")]}},
    ]};
    both(filter, due)
}
