//! The engine: executes one attempt of a run. It counts the documents, walks them in batches, fetches their desired
//! content, writes them, and saves checkpoints.
//!
//! The engine knows neither the queue nor SyncJobs. Its interface to other processes is [`Coordinator`], which
//! workers implement with Redis and local runs in memory.

mod attempt;
mod batch;
mod coordinator;
mod fetcher;
mod request_slot;
mod sources;
mod targets;

pub use attempt::{AttemptResult, Opening, RunAttempt};
pub use coordinator::{CoordinationError, Coordinator, Signals};
pub use sources::{GivenSecrets, SecretReader, Sources};
pub use targets::Targets;
