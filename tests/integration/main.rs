//! Tests against real servers: Redis, MongoDB and a Kubernetes API server, and of whole processes.
//!
//! `make integration` starts the servers. Each test makes its own namespace, queue and database, and waits for
//! conditions instead of sleeping.

mod crds;
mod operator;
mod outages;
mod queue;
mod support;
mod target;
