//! `natmig agent`.

use std::{fs, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;

use super::{capabilities, daemon};
use crate::{
    agent::{self, Identity},
    config::RouterConfig,
    metrics::{Endpoint, RouterMetrics},
    router::{Router, StartOptions},
};

/// Run the agent of this router
///
/// Loads the data plane if it is not there yet, dials the controller, and does to the router's tables
/// what the controller says. On a router that has just booted it attaches the data plane once the
/// table is whole, and only then tells the service manager that it is ready: order whatever attracts
/// traffic (a routing daemon) after it. The data plane goes on when the agent ends, however it ends;
/// `natmig unload` takes it down.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig agent --config /etc/natmig/router.toml --check\n  \
    natmig agent --config /etc/natmig/router.toml\n\n\
The file is the one of `natmig load`, and says besides where the controller is:\n  \
    [controller]\n  \
    endpoints = [\"https://198.18.0.1:7400\"]\n  \
    ca = \"/etc/natmig/pki/ca.pem\"              # natmig pki issue agent ROUTER\n  \
    certificate = \"/etc/natmig/pki/agent-edge1.pem\"\n  \
    key = \"/etc/natmig/pki/agent-edge1.key\"\n\n\
    With metrics = \"127.0.0.1:9441\" before that, http://127.0.0.1:9441/metrics is for Prometheus.\n\n\
    The log goes to standard error; NATMIG_LOG=debug shows more of it.")]
pub(crate) struct Args {
    /// The router's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/natmig/router.toml")]
    config: PathBuf,

    /// Validate the configuration and exit
    #[arg(long)]
    check: bool,

    /// Directory that keeps what must survive a reboot
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/natmig")]
    state: PathBuf,

    /// Attach in generic mode: slow, where the driver has no native XDP
    #[arg(long)]
    generic: bool,

    /// Load this eBPF object instead of the one in the binary
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = RouterConfig::read(&args.config)?;
    let term_file = args.state.join(format!("{}.term", config.instance));
    let identity = Identity::new(&config, term_file, daemon::ready)
        .with_context(|| args.config.display().to_string())?;
    if args.check {
        println!("{}: valid", args.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    let object = match &args.object {
        None => None,
        Some(path) => Some(fs::read(path).with_context(|| path.display().to_string())?),
    };
    daemon::log();
    // Before there are threads, each of which has capabilities of its own.
    capabilities::keep(capabilities::AGENT)?;
    let started = Router::start(
        &config,
        &StartOptions {
            generic: args.generic,
            object,
            wait_for_table: true,
        },
    )?;
    for warning in &started.report.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        router = %config.router,
        adopted = started.report.adopted,
        addresses = started.report.addresses,
        "{}",
        if started.report.waits {
            "data plane loaded; it is attached when the controller has filled its table"
        } else {
            "data plane attached"
        }
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let metrics = RouterMetrics::new(&config.instance, started.router.figures());
    runtime.block_on(async {
        let shutdown = daemon::Shutdown::new()?;
        if let Some(address) = config.metrics {
            let endpoint = Endpoint::open(address).await?;
            tracing::info!(%address, "metrics at /metrics");
            tokio::spawn(endpoint.serve(Arc::new(metrics)));
        }
        if !started.report.waits {
            daemon::ready();
        }
        agent::run(started.router, identity, shutdown.requested()).await?;
        tracing::info!("ended; the data plane stays attached");
        Ok(ExitCode::SUCCESS)
    })
}
