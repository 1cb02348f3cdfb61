//! What a run does to the data. Knows nothing of the queue or of Kubernetes.

mod error;
mod json;
mod keys;
mod mapping;
mod restore;
pub(crate) mod source;
mod target;

pub use error::{Error, Unavailable};
pub use source::{Doubt, Egress, Failure, Found, Page, Reply, Secrets, Source, Walk};
pub use target::{Batch, Candidates, Databases, FoundJournal, Outcome, PageEnd, PutBack, States, Target};
