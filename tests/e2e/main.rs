//! Tests of the chart as a user installs it, on a real cluster with pods: `make test-e2e`. Tests share the cluster and its
//! custom resource definitions, so they run one after the other.

#![allow(clippy::unwrap_used, clippy::panic, clippy::unwrap_in_result, clippy::too_many_lines, reason = "tests")]
#![allow(
    clippy::await_holding_lock,
    reason = "each test has a runtime of its own, so a lock held across an await stops no other"
)]

mod ceilings;
mod getting_started;
mod lifecycle;
mod rbac;
mod release;
mod secrets;
mod servers;
mod support;
mod upgrade;
mod user_errors;
