//! What a run does to the data. Knows nothing of the queue or of Kubernetes.

mod error;
mod json;
mod keys;
mod mapping;
mod restore;
pub(crate) mod source;
mod target;

pub use error::{Error, Unavailable};
pub use source::{Egress, Failure, Found, Page, Reply, Secrets, Source};
pub use target::{Batch, Databases, FoundJournal, Outcome, PageEnd, PutBack, Target};
