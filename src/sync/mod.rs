//! What a run does to the data. Knows nothing of the queue or of Kubernetes.

mod error;
mod keys;
mod target;

pub use error::{Error, Unavailable};
pub use target::{Batch, Databases, Outcome, Target};
