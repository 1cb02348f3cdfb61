//! The queue on a real Redis.

mod claims;
mod control;
mod ends;
mod fairness;
mod fencing;
mod held;
mod leases;
mod model;
mod notifications;
mod play;
mod rate_limits;
mod redis_state;
mod repairs;
mod support;
mod versions;
mod waits;
