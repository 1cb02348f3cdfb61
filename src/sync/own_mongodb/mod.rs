//! MongoDBs that namespaces bring: their connection strings, the clients, and the relay through which all connections
//! pass. See `docs/design/tenants.md`.

mod clients;
mod forward;
mod messages;
mod relay;
mod socks;
mod string;

pub use clients::{ClientKey, Clients, OwnClient};
pub use relay::ConnectionFailure;
pub use string::{NotUsable, OwnString};
