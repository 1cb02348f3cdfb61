//! A Kubernetes operator that keeps the documents of a MongoDB collection in sync on a schedule.
//!
//! `docs/design/architecture.md` describes how the parts fit together.

mod adopt;
pub mod alerts;
pub mod api;
pub mod cli;
pub mod cluster;
mod connection_error;
pub mod controller;
#[cfg(test)]
mod documentation;
pub mod domain;
pub mod engine;
#[cfg(test)]
mod fixtures;
pub mod http;
mod installation;
pub mod lint;
pub mod local;
pub mod manifest;
pub mod policy;
pub mod policy_file;
pub mod process;
pub mod queue;
mod recovery;
mod secrets;
pub mod sync;
pub mod telemetry;
pub mod verify;
pub mod watched_files;
pub mod worker;
