//! Logs and events.

pub mod events;
pub mod logs;
mod outage;

pub use outage::{Outage, REDIS};
