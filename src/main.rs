//! The `sync-operator` program.

use std::process::ExitCode;

use clap::Parser;
use sync_operator::{cli::Cli, process};
use tikv_jemallocator::Jemalloc;

/// That of musl, which the image's program is linked with, lets all threads wait for each other.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::main(cli)
}
