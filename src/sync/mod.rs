//! Access of a run to the data. Independent of the queue and of Kubernetes.

mod collection;
mod error;
mod json;
mod keys;
mod mapping;
mod own_mongodb;
pub(crate) mod source;
mod three_way_merge;

pub use collection::{
    Batch, BatchResult, Deployment, FoundJournal, PageEnd, PutBack, RemovalCandidates, States, TargetCollection,
};
pub use error::{Error, Unavailable};
pub use own_mongodb::{ClientKey, Clients, ConnectionFailure, NotUsable, OwnClient, OwnString};
pub use source::{
    BatchMemory, Doubt, Found, Reply, RequestFailure, Secrets, SourceBudget, SourceBudgets, SourceClient, SourcePage,
    Walk,
};
