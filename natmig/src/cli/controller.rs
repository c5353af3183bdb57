//! `natmig controller`.

mod status;

use std::{path::PathBuf, process::ExitCode};

use super::{capabilities, daemon};
use crate::controller::{self, ControllerConfig, Listeners};

/// Run the controller
///
/// Keeps the inventory, plans migrations and coordinates the routers' agents. Routers forward
/// without it; what was under way when it ended goes on when it is started again. Several controllers
/// can share a store on etcd: one leads, the others stand by and take over when it dies.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    natmig controller --config /etc/natmig/controller.toml --check\n  \
    natmig controller --config /etc/natmig/controller.toml\n  \
    natmig controller status --controller https://198.18.0.1:7400,https://198.18.0.2:7400\n\n\
    The file, with its defaults:\n  \
    listen = \"198.18.0.1:7400\"              # for agents; without it only the socket is served\n  \
    socket = \"/run/natmig/controller.sock\"\n  \
    store = \"/var/lib/natmig/controller.redb\"\n  \
    socket_group = \"natmig\"                 # may use the socket besides root (default: nobody)\n  \
    socket_role = \"read-only\"               # or operator\n  \
    metrics = \"127.0.0.1:9442\"              # for Prometheus (default: nowhere)\n  \
    [tls]                                   # natmig pki issue controller NAME --address ...\n  \
    ca = \"/etc/natmig/pki/ca.pem\"\n  \
    certificate = \"/etc/natmig/pki/controller-ctl1.pem\"\n  \
    key = \"/etc/natmig/pki/controller-ctl1.key\"\n\n\
    Several controllers have, instead of store:\n  \
    name = \"controller1\"                     # the host's name by default\n  \
    advertise = \"https://198.18.0.1:7400\"    # where it is reached; that of listen by default\n  \
    [etcd]\n  \
    endpoints = [\"https://198.18.0.1:2379\", \"https://198.18.0.2:2379\", \"https://198.18.0.3:2379\"]\n  \
    prefix = \"/natmig/fabric1\"              # the same for all controllers of a fabric\n  \
    lease = \"3s\"                            # a leader that died is replaced after so long\n  \
    ca = \"/etc/natmig/etcd-ca.pem\"          # these three with https://\n  \
    certificate = \"/etc/natmig/etcd.pem\"\n  \
    key = \"/etc/natmig/etcd-key.pem\"\n  \
    user = \"natmig\"                         # these two if etcd asks for a password\n  \
    password_file = \"/etc/natmig/etcd-password\"\n\n\
    The log goes to standard error; NATMIG_LOG=debug shows more of it."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,

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

#[derive(Debug, clap::Subcommand)]
enum Command {
    Status(status::Args),
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(Command::Status(args)) = &args.command {
        return status::run(args);
    }
    let config = ControllerConfig::read(&args.config)?;
    if args.check {
        for warning in controller::check(&config)? {
            eprintln!("natmig: {warning}");
        }
        println!("{}: valid", args.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    daemon::log();
    // Bound before there are threads, each of which has capabilities of its own.
    let listeners = Listeners::bind(&config)?;
    capabilities::keep(capabilities::CONTROLLER)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = daemon::Shutdown::new()?;
        let controller = controller::start_on(&config, listeners).await?;
        daemon::ready();
        controller.run(shutdown.requested()).await?;
        tracing::info!("ended");
        Ok(ExitCode::SUCCESS)
    })
}
