//! Logs, metrics, traces and events.

pub mod events;
pub mod logs;
pub mod metrics;
mod outage;
pub mod traces;

pub use outage::{LEASE, MONGODB, Outage, REDIS, Witness, note_write};
