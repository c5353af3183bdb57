//! `natmig map`.

use std::process::ExitCode;

/// Reads and changes this router's tables.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(super) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
