//! `natmig controller`.

use std::{path::PathBuf, process::ExitCode};

use super::daemon;
use crate::controller::{self, ControllerConfig};

/// Run the controller
///
/// Keeps the inventory, plans migrations and coordinates the routers' agents. Routers forward
/// without it; what was under way when it ended goes on when it is started again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig controller --config /etc/natmig/controller.toml --check\n  \
    natmig controller --config /etc/natmig/controller.toml\n\n\
    The file, with its defaults:\n  \
    listen = \"198.18.0.1:7400\"              # for agents; without it only the socket is served\n  \
    socket = \"/run/natmig/controller.sock\"\n  \
    store = \"/var/lib/natmig/controller.redb\"\n\n\
    The log goes to standard error; NATMIG_LOG=debug shows more of it.")]
pub(crate) struct Args {
    /// The controller's configuration
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/natmig/controller.toml"
    )]
    config: PathBuf,

    /// Validate the configuration and exit
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = ControllerConfig::read(&args.config)?;
    if args.check {
        println!("{}: valid", args.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    daemon::log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = daemon::Shutdown::new()?;
        let controller = controller::start(&config).await?;
        daemon::ready();
        controller.run(shutdown.requested()).await?;
        tracing::info!("ended");
        Ok(ExitCode::SUCCESS)
    })
}
