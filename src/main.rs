//! The `sync-operator` program.

use std::process::ExitCode;

use clap::Parser;
use sync_operator::{cli::Cli, process};
use tikv_jemallocator::Jemalloc;

/// The allocator of musl, with which the program of the image is linked, serializes all threads.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::main(cli)
}
