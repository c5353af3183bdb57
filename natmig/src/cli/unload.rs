//! `natmig unload`.

use std::process::ExitCode;

/// Detaches natmig from this router and removes its tables.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(super) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
