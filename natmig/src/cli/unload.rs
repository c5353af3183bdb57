//! `natmig unload`.

use std::process::ExitCode;

use crate::{config::DEFAULT_INSTANCE, router};

/// Detach natmig from this router and remove its tables, port, guard and routes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance.
    #[arg(long, default_value = DEFAULT_INSTANCE)]
    instance: String,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { instance } = args;
    crate::config::check_instance(&instance).map_err(anyhow::Error::msg)?;
    router::unload(&instance)?;
    println!("instance {instance} is unloaded");
    Ok(ExitCode::SUCCESS)
}
