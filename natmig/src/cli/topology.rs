//! `natmig topology`.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;

use super::client::{self, ClientArgs};
use crate::{
    names::RouterName,
    proto::v1,
    topology::{Subnet, Tier, Topology},
};

/// Check, apply and show the topology
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig topology check fabric.toml\n  \
    natmig topology apply fabric.toml\n  \
    natmig topology show\n\n\
fabric.toml:\n  \
    drain = \"5s\"                    # optional: how long old locators are forwarded\n  \
    quarantine = \"30s\"              # optional: how long they are not used again\n  \
    [[router]]\n  \
    name = \"edge1\"\n  \
    tier = \"edge\"                   # edge, aggregation or core\n  \
    [[segment]]\n  \
    name = \"rack1\"\n  \
    prefix = \"10.1.1.0/24\"\n  \
    gateway = \"10.1.1.1\"\n  \
    pool = \"10.1.1.128/25\"          # locators\n  \
    prefix_ipv6 = \"2001:db8:1::/64\" # IPv6 beside IPv4, or instead of it\n  \
    gateway_ipv6 = \"2001:db8:1::1\"  # or link-local, such as fe80::1\n  \
    pool_ipv6 = \"2001:db8:1:0:f::/80\" # in one /64\n  \
    routers = [\"edge1\"]             # one or two")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Validate a topology file; needs no controller
    Check {
        /// The topology (TOML)
        file: PathBuf,
    },
    /// Make a topology the one that migrations are planned for
    Apply {
        /// The topology (TOML)
        file: PathBuf,
    },
    /// Show the topology in force, or the one in a file
    Show {
        /// The topology (TOML); without it the controller's is shown
        file: Option<PathBuf>,
    },
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.client.json;
    match args.command {
        Command::Check { file } => {
            let (_, topology) = read(&file)?;
            if json {
                client::print_json(&topology)?;
            } else {
                println!("{}: valid: {}", file.display(), summary(&topology));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Apply { file } => {
            let (text, topology) = read(&file)?;
            let file = file.display().to_string();
            args.client.run(async move |mut client| {
                client
                    .apply_topology(v1::ApplyTopologyRequest { text, file })
                    .await?;
                if json {
                    client::print_json(&topology)?;
                } else {
                    println!("applied: {}", summary(&topology));
                }
                Ok(())
            })
        }
        Command::Show { file: Some(file) } => {
            let (_, topology) = read(&file)?;
            show(&topology, json)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { file: None } => args.client.run(async move |mut client| {
            let answer = client.get_topology(v1::GetTopologyRequest {}).await?;
            match answer.into_inner().topology {
                Some(topology) => show(&topology.try_into()?, json)?,
                None if json => println!("null"),
                None => println!("no topology; apply one with `natmig topology apply FILE`"),
            }
            Ok(())
        }),
    }
}

fn read(file: &PathBuf) -> anyhow::Result<(String, Topology)> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).with_context(|| name.clone())?;
    let topology = Topology::parse(&name, &text)?;
    Ok((text, topology))
}

fn summary(topology: &Topology) -> String {
    format!(
        "{} routers, {} segments, drain {}, quarantine {}",
        topology.routers.len(),
        topology.segments.len(),
        seconds(topology.drain),
        seconds(topology.quarantine),
    )
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

fn show(topology: &Topology, json: bool) -> anyhow::Result<()> {
    if json {
        return client::print_json(topology);
    }
    println!("{}", summary(topology));
    for tier in [Tier::Core, Tier::Aggregation, Tier::Edge] {
        let names: Vec<_> = topology
            .routers
            .iter()
            .filter(|(_, other)| **other == tier)
            .map(|(name, _)| name.as_str())
            .collect();
        println!("{tier:<12} {}", names.join("  "));
    }
    let mut table = client::table(&["segment", "prefix", "gateway", "pool", "edge routers"]);
    for (name, segment) in &topology.segments {
        let routers: Vec<_> = segment.routers.iter().map(RouterName::as_str).collect();
        let column = |text: fn(&Subnet) -> String| {
            let texts: Vec<_> = segment.subnets.iter().map(text).collect();
            texts.join("\n")
        };
        table.add_row([
            name.to_string(),
            column(|subnet| subnet.prefix.to_string()),
            column(|subnet| subnet.gateway.to_string()),
            column(|subnet| subnet.pool.to_string()),
            routers.join(" "),
        ]);
    }
    println!("{table}");
    Ok(())
}
