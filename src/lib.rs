//! A Kubernetes operator that keeps the documents of a MongoDB collection in sync on a schedule.
//!
//! `docs/architecture.md` tells how the parts fit together.

pub mod api;
pub mod domain;
