//! `natmig-bench`: runs the benchmarks. See `cargo xtask bench --help`.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match natmig_bench::bench::run(&natmig_bench::bench::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("natmig-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
