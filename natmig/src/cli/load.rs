//! `natmig load`.

use std::process::ExitCode;

/// Attaches natmig to this router's interfaces, without a controller.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(super) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
