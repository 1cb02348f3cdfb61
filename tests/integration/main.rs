//! Tests against real servers: Redis, MongoDB and a Kubernetes API server, and of whole processes.
//!
//! `make integration` starts the servers. Each test makes its own namespace, queue and database, and waits for
//! conditions instead of sleeping.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unwrap_in_result,
    clippy::similar_names,
    reason = "a test that cannot continue fails"
)]

mod alerts;
mod collection;
mod compat;
mod connection_strings;
mod control;
mod crashes;
mod crds;
mod faults;
mod held;
mod hostile_tenant;
mod http;
mod incremental;
mod installations;
mod lint;
mod local_runs;
mod logs;
mod mirror;
mod mongodb_faults;
mod no_workers;
mod objects;
mod operator;
mod outages;
mod own_mongodb;
mod prometheus;
mod queue;
mod redis_faults;
mod redis_topologies;
mod replicas;
mod rest_sources;
mod restores;
mod rollback;
mod schedules;
mod sources;
mod support;
mod tenants;
mod traces;
mod watch_cache;
mod workers;

use test_support::{certificates, receiver, servers, sinks, upstream};
