//! `natmig load`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use natmig_common::SLOT_COUNT;

use super::output;
use crate::{
    config::RouterConfig,
    router::{Router, StartOptions, Started},
};

/// Attach natmig to this router's interfaces, without a controller.
///
/// An instance that is loaded already keeps its bindings: its program is replaced without
/// detaching it. Bindings come from `natmig map apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    natmig load --config router.toml --check   # only look for mistakes\n  \
    natmig load --config router.toml\n\n\
router.toml:\n  \
    router = \"edge1\"\n  \
    locator_pools = [\"10.1.1.128/25\", \"2001:db8:1:0:f::/80\"]\n  \
    max_addresses = 2097152      # optional: room for IPv4 addresses, two per binding\n  \
    max_addresses_ipv6 = 2097152 # optional: for IPv6; as many as of IPv4 unless it is said\n  \
    binding_counters = true      # optional: count traffic by binding\n  \
    binding_counter_banks = 1    # optional: a power of two; more help where many CPUs serve one VM\n  \
    forward = \"bound\"            # optional: or all, to take the fast path with every packet\n  \
    [[interface]]\n  \
    name = \"eth1\"\n  \
    role = \"access\"              # or fabric, external: these need no more than a name\n  \
    segment = \"rack1\"\n  \
    prefix = \"10.1.1.0/24\"\n  \
    gateway = \"10.1.1.1\"\n  \
    prefix_ipv6 = \"2001:db8:1::/64\" # IPv6 beside IPv4, or instead of it\n  \
    gateway_ipv6 = \"fe80::1\"    # of the prefix, or link-local\n  \
    parent = \"eth0\"             # of an interface that is a VLAN: what carries it,\n  \
    vlan = 10                    # and its number")]
pub(crate) struct Args {
    /// The router's configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration file.
    #[arg(long)]
    check: bool,
    /// Attach in generic mode, which works with every driver and is slow.
    #[arg(long)]
    generic: bool,
    /// Load this eBPF object instead of the one in the binary.
    #[arg(long, value_name = "FILE", hide = true)]
    object: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        config: file,
        check,
        generic,
        object,
        json,
    } = args;
    let config = RouterConfig::read(&file)?;
    if check {
        output::line(&format!("{} is valid", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if generic {
        eprintln!(
            "natmig: warning: generic mode copies every packet before the program sees it; never use it in production"
        );
    }
    let object = match object {
        Some(path) => Some(std::fs::read(&path).with_context(|| path.display().to_string())?),
        None => None,
    };
    let options = StartOptions {
        generic,
        object,
        wait_for_table: false,
    };
    let Started { report, .. } = Router::start(&config, &options)?;
    for warning in &report.warnings {
        eprintln!("natmig: warning: {warning}");
    }
    if json {
        return output::json(&report);
    }
    let rows = report.interfaces.iter().map(|interface| {
        vec![
            interface.name.clone(),
            interface.ifindex.to_string(),
            interface.role.to_owned(),
            interface.mode.to_owned(),
            if interface.replaced {
                "program replaced"
            } else {
                "attached"
            }
            .to_owned(),
        ]
    });
    output::table(&["INTERFACE", "INDEX", "ROLE", "MODE", "PROGRAM"], rows)?;
    println!(
        "instance {}: {}, {} addresses bound, room for {} IPv4 and {} IPv6 addresses and {} transactions, maps take {}",
        config.instance,
        if report.adopted {
            "pinned tables adopted"
        } else {
            "tables created"
        },
        report.addresses,
        config.max_addresses,
        config.max_addresses_ipv6,
        SLOT_COUNT,
        output::bytes(report.map_bytes),
    );
    if report.rolled_back > 0 {
        println!(
            "{} half-done transactions were taken back",
            report.rolled_back
        );
    }
    Ok(ExitCode::SUCCESS)
}
