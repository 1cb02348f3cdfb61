//! Code that the tests of this crate share, and that needs the types of the operator. The rest of the shared code is in
//! the crate test-support.

mod builders;
mod env;
mod events;
mod operators;
mod patches;
mod runs;

pub use builders::*;
pub use env::{TestEnv, add_redis_user, allow_queue};
pub use events::{events, wait_for_events};
pub use operators::*;
pub use runs::*;
pub use test_support::{Operator, PATIENCE, RequestLimit, Servers, eventually, free_port, get, unique, variable};
