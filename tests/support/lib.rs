//! Code that the tests, the benchmarks and the examples share, and that does not need the crate sync-operator: servers,
//! processes, unique names and waiting. `tests/integration/support` has the shared code that does need it.

#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    clippy::panic,
    clippy::similar_names,
    clippy::unwrap_in_result,
    clippy::unwrap_used,
    reason = "a test that cannot continue fails"
)]

pub mod certificates;
mod http;
mod names;
mod operator;
pub mod process;
mod proxy;
pub mod receiver;
pub mod servers;
pub mod sinks;
pub mod upstream;
mod wait;

pub use http::get;
pub use names::{free_port, unique, variable};
pub use operator::Operator;
pub use proxy::RequestLimit;
pub use servers::Servers;
pub use wait::{PATIENCE, eventually};
