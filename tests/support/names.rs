//! Unique names and ports, and the variables of a test run.

use std::{
    env,
    net::TcpListener,
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
};

/// The value of an environment variable that the scripts of the tests set.
pub fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make integration`"))
}

/// A name that no other test, and no other run of the tests, uses.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A port for a server of a test. The kernel could give a port that it chooses to another connection before the server
/// listens. These ports are below those of the kernel and of `cluster.sh`, and each is returned once in a process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 100 * 100;
    let mut ports = std::iter::repeat_with(|| 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}
