//! The `natmig` command.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    natmig::cli::run(natmig::cli::Command::parse())
}
