//! `natmig topology`.

use std::process::ExitCode;

/// Checks, applies and shows the topology.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(super) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
