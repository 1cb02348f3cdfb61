//! Logs, metrics, traces and events.

mod availability;
pub mod events;
pub mod logs;
pub mod metrics;
pub mod traces;

pub use availability::{Availability, AvailabilityProbe, LEASE, MONGODB, REDIS, record_write};
