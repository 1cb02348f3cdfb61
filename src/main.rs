//! The `sync-operator` program.

use std::process::ExitCode;

use clap::Parser;
use sync_operator::{cli::Cli, process};

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::main(cli)
}
