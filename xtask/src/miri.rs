//! `cargo xtask miri`: the tests of the packet core on an interpreted machine of the other byte order,
//! which also finds undefined behaviour.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{command::check, rustup::Toolchain};

/// A toolchain of its own: components of another nightly would change what builds the eBPF object.
const TOOLCHAIN: &str = "nightly-2026-10-30";
/// Big-endian, 64 bits.
const TARGET: &str = "s390x-unknown-linux-gnu";
/// Whose tests are run. The packet fixtures would take hours.
const PACKAGE: &str = "natmig-ebpf";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Machine to interpret, by Rust's name of it.
    #[arg(long, value_name = "TARGET", default_value = TARGET)]
    target: String,
    /// Cases of each property; an interpreted machine is some hundred times slower than a real one.
    #[arg(long, value_name = "N", default_value_t = 16)]
    cases: u32,
    /// Arguments of the tests, such as a part of their names.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let toolchain = Toolchain::named(TOOLCHAIN);
    if !toolchain.has_subcommand("miri") || !toolchain.has_sources() {
        toolchain
            .install(&["miri", "rust-src"])
            .context("Miri is a part of rustup's nightly toolchains (https://rustup.rs)")?;
    }
    let mut miri = toolchain.command("cargo");
    miri.args(["miri", "test", "--locked", "--no-fail-fast"]);
    miri.args(["--target", &arguments.target]);
    miri.args(["--package", PACKAGE]);
    miri.args(["--target-dir", "target/miri", "--"])
        .args(&arguments.rest)
        // Tests read the environment and files of the repository.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PROPTEST_CASES", arguments.cases.to_string());
    check(&mut miri)?;
    Ok(ExitCode::SUCCESS)
}
